package e2e

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	ourartifact "github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/testenv"
)

// A deployment is a way to attest that there is, with an artifact that the
// command attested in this way.
type deployment struct {
	name     string
	stack    *testenv.Stack // nil for a local trust root
	local    string         // directory of the local trust root, or ""
	log      uint32         // major version of its Rekor; 0 without one
	stamped  bool           // has a timestamp authority
	run      testenv.Run
	artifact *artifact

	trustedRoot, trustedRootLines string // paths; JSON, and JSON Lines
	identity, issuer              string

	bundles map[string]*protobundle.Bundle // as they were stored, by predicate type
}

// deploy makes an artifact and keeps its bundles. With flags, attest is called
// with them instead of the stack's signing configuration.
func deploy(t *testing.T, d *deployment, r *testenv.Registry, disk string, flags ...string) *deployment {
	t.Helper()
	// Of another name, and so of another digest: nothing is attested twice.
	named := filepath.Join(t.TempDir(), fmt.Sprintf("%x.raw", d.name))
	if err := os.Link(disk, named); err != nil {
		t.Fatal(err)
	}
	disk = named
	if d.local != "" {
		d.trustedRoot = filepath.Join(d.local, "trusted_root.json")
		d.trustedRootLines = d.trustedRoot // one line already
		d.identity, d.issuer = attest.LocalIdentity, attest.LocalIssuer
		d.artifact = makeLocalArtifact(t, d.local, r, disk)
	} else {
		d.trustedRoot, d.trustedRootLines = d.stack.TrustedRoot, d.stack.TrustedRootLines
		d.identity, d.issuer = d.run.Identity(), d.stack.Issuer.URL
		d.artifact = makeArtifact(t, d.stack, d.run, r, disk, flags...)
	}
	d.bundles = make(map[string]*protobundle.Bundle)
	for _, predicateType := range predicates {
		data, err := os.ReadFile(d.artifact.bundleFile(t, predicateType))
		if err != nil {
			t.Fatal(err)
		}
		b := new(protobundle.Bundle)
		if err := protojson.Unmarshal(data, b); err != nil {
			t.Fatal(err)
		}
		d.bundles[predicateType] = b
	}
	material := d.bundles[predicateProvenance].GetVerificationMaterial()
	if (len(material.GetTlogEntries()) > 0) != (d.log > 0) || (len(material.GetTimestampVerificationData().GetRfc3161Timestamps()) > 0) != d.stamped {
		t.Fatalf("%s signed with other services than it should: %s", d.name, material)
	}
	return d
}

// makeLocalArtifact runs measure, push and attest with a local trust root.
func makeLocalArtifact(t *testing.T, trust string, r *testenv.Registry, disk string) *artifact {
	t.Helper()
	a := &artifact{registry: r, disk: disk, bundles: filepath.Join(t.TempDir(), "attestations.jsonl")}
	pushed := run(t, nil, command(t), "push", "--quiet", disk, r.Host+"/octo-org/image:"+releaseTag)
	pushed.accepts(t)
	a.reference = strings.TrimSpace(pushed.output)
	run(t, nil, command(t), "attest", "--local-trust", trust, "--bundle-output", a.bundles, a.reference).accepts(t)
	return a
}

// signing is what a statement is signed with. Empty fields stand for what the
// deployment uses.
type signing struct {
	run     testenv.Run // whose token
	fulcio  string      // URL
	reissue func(leaf *x509.Certificate) ([]byte, error)
	// Without what the deployment would add.
	withoutLog, withoutTimestamp bool
}

// sign signs a payload with sigstore-go, which does not ask what it is.
func (d *deployment) sign(t *testing.T, payload []byte, s signing) *protobundle.Bundle {
	t.Helper()
	key, err := sign.NewEphemeralKeypair(nil)
	if err != nil {
		t.Fatal(err)
	}
	options := sign.BundleOptions{Context: context.Background(), CertificateProviderOptions: &sign.CertificateProviderOptions{}}
	authority := reissuing{reissue: s.reissue}
	if d.local != "" {
		if authority.CertificateProvider, err = attest.OpenLocalTrust(d.local); err != nil {
			t.Fatal(err)
		}
	} else {
		if s.fulcio == "" {
			s.fulcio = d.stack.FulcioURL
		}
		if s.run == (testenv.Run{}) {
			s.run = d.run
		}
		authority.CertificateProvider = sign.NewFulcio(&sign.FulcioOptions{BaseURL: s.fulcio})
		if options.CertificateProviderOptions.IDToken, err = d.stack.Issuer.Token("sigstore", s.run.Claims()); err != nil {
			t.Fatal(err)
		}
	}
	options.CertificateProvider = authority
	if d.stamped && d.stack != nil && !s.withoutTimestamp {
		options.TimestampAuthorities = []*sign.TimestampAuthority{sign.NewTimestampAuthority(&sign.TimestampAuthorityOptions{URL: d.stack.TimestampURL})}
	}
	switch {
	case s.withoutLog:
	case d.log == 1:
		options.TransparencyLogs = []sign.Transparency{sign.NewRekor(&sign.RekorOptions{BaseURL: d.stack.RekorV1URL})}
	case d.log == 2:
		options.TransparencyLogs = []sign.Transparency{sign.NewRekor(&sign.RekorOptions{BaseURL: d.stack.RekorURL, Version: 2})}
	}
	b, err := sign.Bundle(&sign.DSSEData{Data: payload, PayloadType: attest.PayloadType}, key, options)
	if err != nil {
		t.Fatalf("%s: sign: %v", d.name, err)
	}
	return b
}

// reissuing lets a certificate be issued again.
type reissuing struct {
	sign.CertificateProvider
	reissue func(leaf *x509.Certificate) ([]byte, error)
}

func (r reissuing) GetCertificate(ctx context.Context, keypair sign.Keypair, options *sign.CertificateProviderOptions) ([]byte, error) {
	der, err := r.CertificateProvider.GetCertificate(ctx, keypair, options)
	if err != nil || r.reissue == nil {
		return der, err
	}
	if block, _ := pem.Decode(der); block != nil {
		der = block.Bytes
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return r.reissue(leaf)
}

// payload is the statement of a predicate type, as it was signed.
func (d *deployment) payload(predicateType string) []byte {
	return bytes.Clone(d.bundles[predicateType].GetDsseEnvelope().GetPayload())
}

// bundleLine is a bundle as JSON on one line.
func bundleLine(t *testing.T, b *protobundle.Bundle) []byte {
	t.Helper()
	spaced, err := protojson.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	var line bytes.Buffer
	if err := json.Compact(&line, spaced); err != nil {
		t.Fatal(err)
	}
	return line.Bytes()
}

// nothing changes nothing.
func nothing(*protobundle.Bundle, string) {}

// each changes a copy of each bundle.
func (d *deployment) each(t *testing.T, change func(b *protobundle.Bundle, predicateType string)) map[string][]byte {
	t.Helper()
	changed := make(map[string][]byte)
	for predicateType, b := range d.bundles {
		b = proto.CloneOf(b)
		change(b, predicateType)
		changed[predicateType] = bundleLine(t, b)
	}
	return changed
}

// signed signs a payload that change makes of each statement.
func (d *deployment) signed(t *testing.T, s signing, change func(payload []byte) []byte) map[string][]byte {
	t.Helper()
	signed := make(map[string][]byte)
	for predicateType := range d.bundles {
		payload := d.payload(predicateType)
		if change != nil {
			payload = change(payload)
		}
		signed[predicateType] = bundleLine(t, d.sign(t, payload, s))
	}
	return signed
}

// delivery is what a client meets: an artifact in a registry with bundles beside
// it, the same bundles in files, and with GitHub.
type delivery struct {
	*deployment
	bundleFiles map[string]string // by predicate type
	bundlesFile string            // all of them, one a line
	reference   string            // HOST/REPOSITORY@DIGEST, or by a tag

	cosignReference                               string // when it is another
	remeasure                                     bool   // by those who fetch disks
	trustedRootOverride, trustedRootLinesOverride string // when they are others
}

// deliver stores bundles in a new repository beside a copy of the artifact, in
// files, and with GitHub until the test ends.
func (d *deployment) deliver(t *testing.T, repository string, bundles map[string][]byte) *delivery {
	t.Helper()
	// Not t.TempDir: errors name files, and must not have a variant's words from there.
	dir, err := os.MkdirTemp("", "delivery")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	v := &delivery{deployment: d, bundleFiles: make(map[string]string), bundlesFile: filepath.Join(dir, "bundles.jsonl")}
	v.reference = d.copyArtifact(t, repository)
	ref, err := ourartifact.ParseReference(v.reference)
	if err != nil {
		t.Fatal(err)
	}
	var lines []byte
	for _, predicateType := range predicates {
		line := bundles[predicateType]
		lines = append(append(lines, line...), '\n')
		v.bundleFiles[predicateType] = filepath.Join(dir, filepath.Base(filepath.Dir(predicateType))+".json")
		if err := os.WriteFile(v.bundleFiles[predicateType], line, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ourartifact.PutReferrer(t.Context(), ref, attest.BundleMediaType, line, attest.Annotations(predicateType, time.Now())); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(v.bundlesFile, lines, 0o600); err != nil {
		t.Fatal(err)
	}
	if d.stack != nil {
		t.Cleanup(d.stack.GitHub.Tamper(func(original []byte) []byte {
			for predicateType, b := range bundles {
				if strings.Contains(payloadOf(original), `"`+predicateType+`"`) {
					return b
				}
			}
			return original
		}))
	}
	return v
}

// payloadOf is the statement in a bundle.
func payloadOf(bundle []byte) string {
	var b struct {
		DSSEEnvelope struct {
			Payload []byte `json:"payload"`
		} `json:"dsseEnvelope"`
	}
	if err := json.Unmarshal(bundle, &b); err != nil {
		return ""
	}
	return string(b.DSSEEnvelope.Payload)
}

// copyArtifact copies the artifact, without what is attested of it, into
// another repository of its registry.
func (d *deployment) copyArtifact(t *testing.T, repository string) string {
	t.Helper()
	descriptor, manifest := d.artifact.manifest(t)
	from, err := name.NewDigest(d.artifact.reference)
	if err != nil {
		t.Fatal(err)
	}
	to, err := name.NewRepository(d.artifact.registry.Host + "/octo-org/" + repository)
	if err != nil {
		t.Fatal(err)
	}
	copyBlob := func(b v1.Descriptor) error {
		layer, err := remote.Layer(from.Context().Digest(b.Digest.String()))
		if err != nil {
			return err
		}
		content, err := layer.Compressed()
		if err != nil {
			return err
		}
		defer content.Close()
		var data bytes.Buffer
		if _, err := data.ReadFrom(content); err != nil {
			return err
		}
		return remote.WriteLayer(to, static.NewLayer(data.Bytes(), b.MediaType))
	}
	err = copyBlob(manifest.Config)
	for _, layer := range manifest.Layers {
		err = errors.Join(err, copyBlob(layer))
	}
	raw := rawManifest{data: descriptor.Manifest, mediaType: descriptor.MediaType}
	err = errors.Join(err, remote.Put(to.Digest(descriptor.Digest.String()), raw), remote.Put(to.Tag(releaseTag), raw))
	if err != nil {
		t.Fatalf("copy %s: %v", d.artifact.reference, err)
	}
	return to.Name() + "@" + descriptor.Digest.String()
}
