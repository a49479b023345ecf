package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cuelabs.dev/go/oci/ociregistry/ocimem"
	"cuelabs.dev/go/oci/ociregistry/ociserver"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/org/attestable-image-action/internal/testenv"
)

const bundleMediaType = types.MediaType("application/vnd.dev.sigstore.bundle.v0.3+json")

// TestStack proves that the servers of testenv are a Sigstore deployment that
// others' programs believe, before anything of ours is added: sigstore-go
// signs, gh and cosign verify.
func TestStack(t *testing.T) {
	for name, options := range map[string]testenv.Options{
		"private with a log":   {},
		"GitHub without a log": {Organization: testenv.GitHubInc, NoRekor: true, GenuineIssuer: true},
		"public":               {Public: true, GenuineIssuer: true},
	} {
		t.Run(name, func(t *testing.T) {
			stack := testenv.StartSigstore(t, options)
			registry := httptest.NewServer(ociserver.New(ocimem.New(), nil))
			t.Cleanup(registry.Close)
			workflow := testenv.DefaultRun

			image, err := random.Image(1000, 1)
			if err != nil {
				t.Fatal(err)
			}
			repository := strings.TrimPrefix(registry.URL, "http://") + "/octo-org/image"
			reference := pushImage(t, repository, image)
			digest, err := image.Digest()
			if err != nil {
				t.Fatal(err)
			}
			bundle := signStatement(t, stack, workflow, digest)
			pushBundle(t, repository, image, bundle)
			bundleFile := filepath.Join(t.TempDir(), "bundle.json")
			if err := os.WriteFile(bundleFile, bundle, 0o600); err != nil {
				t.Fatal(err)
			}
			id := storeBundle(t, stack, workflow, bundle)
			if id == 0 {
				t.Error("the API gave no number")
			}

			t.Run("gh with a bundle file", func(t *testing.T) {
				ghVerify(t, stack, workflow, "oci://"+reference, predicateProvenance, nil, "--bundle", bundleFile).accepts(t)
			})
			t.Run("gh from the registry", func(t *testing.T) {
				ghVerify(t, stack, workflow, "oci://"+reference, predicateProvenance, []string{"GH_TOKEN=x"}, "--bundle-from-oci").accepts(t)
			})
			t.Run("gh from the API", func(t *testing.T) {
				ghVerify(t, stack, workflow, "oci://"+reference, predicateProvenance, ghAPI(stack)).accepts(t)
			})
			t.Run("gh from the API with another token", func(t *testing.T) {
				ghVerify(t, stack, workflow, "oci://"+reference, predicateProvenance, append(ghAPI(stack), "GH_TOKEN=wrong")).
					refuses(t, "Bad credentials")
			})
			t.Run("cosign", func(t *testing.T) {
				cosignVerify(t, stack, workflow, reference, predicateProvenance).accepts(t)
			})
			t.Run("another workflow", func(t *testing.T) {
				other := testenv.Run{WorkflowPath: ".github/workflows/other.yml"}
				// gh does not say which part of the policy failed.
				ghVerify(t, stack, other, "oci://"+reference, predicateProvenance, nil, "--bundle", bundleFile).
					refuses(t, "Sigstore verification failed")
				cosignVerify(t, stack, other, reference, predicateProvenance).
					refuses(t, "no matching CertificateIdentity found")
			})
			if refused := stack.Proxy.Refused(); len(refused) > 0 {
				t.Errorf("somebody wanted to reach %q", refused)
			}
		})
	}
}

// signStatement signs a provenance statement of the digest with sigstore-go
// and returns the bundle.
func signStatement(t *testing.T, s *testenv.Stack, workflow testenv.Run, digest v1.Hash) []byte {
	t.Helper()
	statement, err := json.Marshal(map[string]any{
		"_type":         "https://in-toto.io/Statement/v1",
		"predicateType": predicateProvenance,
		"subject":       []any{map[string]any{"name": "image", "digest": map[string]string{"sha256": digest.Hex}}},
		"predicate":     map[string]any{},
	})
	if err != nil {
		t.Fatal(err)
	}
	token, err := s.Issuer.Token("sigstore", workflow.Claims())
	if err != nil {
		t.Fatal(err)
	}
	key, err := sign.NewEphemeralKeypair(nil)
	if err != nil {
		t.Fatal(err)
	}
	trusted, err := root.NewTrustedRootFromPath(s.TrustedRoot)
	if err != nil {
		t.Fatal(err)
	}
	options := sign.BundleOptions{
		CertificateProvider:        sign.NewFulcio(&sign.FulcioOptions{BaseURL: s.FulcioURL}),
		CertificateProviderOptions: &sign.CertificateProviderOptions{IDToken: token},
		TimestampAuthorities:       []*sign.TimestampAuthority{sign.NewTimestampAuthority(&sign.TimestampAuthorityOptions{URL: s.TimestampURL})},
		Context:                    context.Background(),
		TrustedRoot:                trusted,
	}
	if s.RekorURL != "" {
		options.TransparencyLogs = []sign.Transparency{sign.NewRekor(&sign.RekorOptions{BaseURL: s.RekorURL, Version: 2})}
	}
	bundle, err := sign.Bundle(&sign.DSSEData{Data: statement, PayloadType: "application/vnd.in-toto+json"}, key, options)
	if err != nil {
		t.Fatal(err)
	}
	spaced, err := protojson.Marshal(bundle)
	if err != nil {
		t.Fatal(err)
	}
	var line bytes.Buffer
	if err := json.Compact(&line, spaced); err != nil {
		t.Fatal(err)
	}
	return line.Bytes()
}

// pushImage pushes an image under the tag latest and returns REPOSITORY@DIGEST.
func pushImage(t *testing.T, repository string, image v1.Image) string {
	t.Helper()
	tag, err := name.NewTag(repository + ":latest")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, image); err != nil {
		t.Fatal(err)
	}
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return repository + "@" + digest.String()
}

// pushBundle pushes a bundle as a referrer of the image.
func pushBundle(t *testing.T, repository string, image v1.Image, bundle []byte) {
	t.Helper()
	size, err := image.Size()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	mediaType, err := image.MediaType()
	if err != nil {
		t.Fatal(err)
	}
	referrer, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), bundleMediaType),
		static.NewLayer(bundle, bundleMediaType))
	if err != nil {
		t.Fatal(err)
	}
	annotated, ok := mutate.Annotations(referrer, map[string]string{
		"dev.sigstore.bundle.content":       "dsse-envelope",
		"dev.sigstore.bundle.predicateType": predicateProvenance,
	}).(v1.Image)
	if !ok {
		t.Fatal("mutate.Annotations made no image")
	}
	subject, ok := mutate.Subject(annotated, v1.Descriptor{MediaType: mediaType, Size: size, Digest: digest}).(v1.Image)
	if !ok {
		t.Fatal("mutate.Subject made no image")
	}
	pushImage(t, repository, subject)
}
