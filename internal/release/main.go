// Command release makes what scripts/release cannot: the container image of
// attestable-image, as an OCI layout (image-layout.md of the OCI Image Format
// Specification 1.1) with one image for each architecture. It needs no daemon, and the
// same binaries, version, commit and time make the same digest.
//
//	go run ./internal/release -version V -revision COMMIT -created UNIX -output DIR ARCH=BINARY...
//	go run ./internal/release push DIGEST DIR REFERENCE
//
// The first prints the digest of the index. The second pushes the index of that digest,
// with the credentials of `docker login`.
package main

import (
	"archive/tar"
	"bytes"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

const (
	// user is nobody in particular, as in other images without a shell.
	user = "65532:65532"
	// program is where the binary lies, and source whose it is.
	program = "usr/bin/attestable-image"
	source  = "https://github.com/org/attestable-image-action"
)

// release is what an image is made of.
type release struct {
	version, revision string
	created           time.Time
}

func main() {
	if len(os.Args) == 5 && os.Args[1] == "push" {
		if err := push(os.Args[2], os.Args[3], os.Args[4]); err != nil {
			fmt.Fprintf(os.Stderr, "release: push the container image: %v\n", err)
			os.Exit(1)
		}
		return
	}
	version := flag.String("version", "", "version of the release")
	revision := flag.String("revision", "", "commit, in full")
	created := flag.Int64("created", 0, "time of the commit, in Unix seconds")
	output := flag.String("output", "", "directory for the OCI layout")
	flag.Parse()
	r := release{version: *version, revision: *revision, created: time.Unix(*created, 0).UTC()}
	digest, err := r.write(*output, flag.Args())
	if err != nil {
		fmt.Fprintf(os.Stderr, "release: make the container image: %v\n", err)
		os.Exit(1)
	}
	fmt.Println(digest)
}

// write makes the layout in dir of binaries, each ARCH=PATH with Go's name of the
// architecture, and returns the digest of its index.
func (r release) write(dir string, binaries []string) (v1.Hash, error) {
	if r.version == "" || r.revision == "" || dir == "" || len(binaries) == 0 {
		return v1.Hash{}, errors.New("give -version, -revision, -created, -output and ARCH=BINARY")
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, binary := range binaries {
		arch, path, ok := strings.Cut(binary, "=")
		if !ok {
			return v1.Hash{}, fmt.Errorf("%q is not ARCH=BINARY", binary)
		}
		image, err := r.image(arch, path)
		if err != nil {
			return v1.Hash{}, fmt.Errorf("for %s: %w", arch, err)
		}
		platform := &v1.Platform{OS: "linux", Architecture: arch}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: platform}})
	}
	annotated, ok := mutate.Annotations(index, r.annotations()).(v1.ImageIndex)
	if !ok {
		return v1.Hash{}, errors.New("the index lost its kind with its annotations")
	}
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return v1.Hash{}, err
	}
	if err := path.AppendIndex(annotated, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": r.version})); err != nil {
		return v1.Hash{}, err
	}
	return annotated.Digest()
}

// push pushes the index of a digest from the layout in dir to reference.
func push(digest, dir, reference string) error {
	hash, err := v1.NewHash(digest)
	if err != nil {
		return err
	}
	ref, err := name.ParseReference(reference)
	if err != nil {
		return err
	}
	path, err := layout.FromPath(dir)
	if err != nil {
		return err
	}
	top, err := path.ImageIndex()
	if err != nil {
		return err
	}
	index, err := top.ImageIndex(hash)
	if err != nil {
		return err
	}
	return remote.WriteIndex(ref, index, remote.WithAuthFromKeychain(authn.DefaultKeychain))
}

// annotations are those of the OCI Image Format Specification, "Annotations". On the
// index registries show them; on each image they say the same.
func (r release) annotations() map[string]string {
	return map[string]string{
		"org.opencontainers.image.title":       "attestable-image",
		"org.opencontainers.image.description": "Measure, inspect, publish and verify attestable images",
		"org.opencontainers.image.source":      source,
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.version":     r.version,
		"org.opencontainers.image.revision":    r.revision,
		"org.opencontainers.image.created":     r.created.Format(time.RFC3339),
	}
}

func (r release) image(arch, path string) (v1.Image, error) {
	files, err := r.files(path)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files)), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	created := v1.Time{Time: r.created}
	image, err = mutate.Append(image, mutate.Addendum{
		Layer: layer, History: v1.History{Created: created, CreatedBy: "scripts/release"}, MediaType: types.OCILayer,
	})
	if err != nil {
		return nil, err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Created = "linux", arch, created
	file.Config = v1.Config{
		Entrypoint: []string{"/" + program}, User: user, WorkingDir: "/",
		Env: []string{"PATH=/usr/bin", "HOME=/tmp", "SSL_CERT_FILE=/" + certificates}, Labels: r.annotations(),
	}
	if image, err = mutate.ConfigFile(image, file); err != nil {
		return nil, err
	}
	annotated, ok := mutate.Annotations(image, r.annotations()).(v1.Image)
	if !ok {
		return nil, errors.New("the image lost its kind with its annotations")
	}
	return annotated, nil
}

const certificates = "etc/ssl/certs/ca-certificates.crt"

// files is the image's only layer, as a tar archive: the binary, the certificate
// authorities that browsers trust, and a place for temporary files.
func (r release) files(path string) ([]byte, error) {
	binary, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	roots, err := authorities()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	archive := tar.NewWriter(&out)
	for _, entry := range []struct {
		name    string
		mode    int64
		content []byte
	}{
		{"etc/", 0o755, nil},
		{"etc/ssl/", 0o755, nil},
		{"etc/ssl/certs/", 0o755, nil},
		{certificates, 0o644, roots},
		{"tmp/", 0o1777, nil},
		{"usr/", 0o755, nil},
		{"usr/bin/", 0o755, nil},
		{program, 0o755, binary},
	} {
		header := &tar.Header{Name: entry.name, Mode: entry.mode, Size: int64(len(entry.content)), ModTime: r.created, Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
		if strings.HasSuffix(entry.name, "/") {
			header.Typeflag = tar.TypeDir
		}
		if err := archive.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := archive.Write(entry.content); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), archive.Close()
}

// authorities are the certificates of Mozilla's list, in PEM, as the pinned module of
// Go's has them: not those of the machine that releases. One that may vouch under
// conditions only, which PEM cannot say, is left out.
func authorities() ([]byte, error) {
	var out bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint != nil {
			continue
		}
		if err := pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}); err != nil {
			return nil, err
		}
	}
	if out.Len() == 0 {
		return nil, errors.New("the list of certificate authorities is empty")
	}
	return out.Bytes(), nil
}
