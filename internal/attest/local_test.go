package attest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
)

// signLocally signs both statements with a local trust root.
func signLocally(t *testing.T, l *LocalTrust) []Candidate {
	t.Helper()
	provenance, err := LocalProvenance()
	if err != nil {
		t.Fatal(err)
	}
	var candidates []Candidate
	for predicateType, predicate := range map[string][]byte{PredicateProvenance: provenance, PredicateMeasurements: testMeasurements} {
		line, err := NewLocalSigner(l).Sign(context.Background(), statement(t, predicateType, predicate))
		if err != nil {
			t.Fatal(err)
		}
		candidates = append(candidates, Candidate{Source: "local", Data: line})
	}
	return candidates
}

func TestLocalTrust(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "trust")
	l, err := OpenLocalTrust(dir)
	if err != nil || !l.Created {
		t.Fatalf("created %v, error %v", l != nil && l.Created, err)
	}
	for _, name := range []string{".", localRootFile, localCAFile, localTSAFile} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: mode %v, error %v", name, info.Mode(), err)
		}
	}
	first := signLocally(t, l)
	again, err := OpenLocalTrust(dir)
	if err != nil || again.Created {
		t.Fatalf("opened again: created %v, error %v", again != nil && again.Created, err)
	}
	second := signLocally(t, again)
	trust, err := ReadLocalTrust(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, candidates := range [][]Candidate{first, second} {
		v, err := Verify(context.Background(), trust, Expectation{Local: true}, testDigest, from(candidates...))
		if err != nil || outcome(v) != "" {
			t.Errorf("failed %q, error %v", outcome(v), err)
		}
	}

	t.Run("is no one's identity", func(t *testing.T) {
		v, err := Verify(context.Background(), trust, expectImage(), testDigest, from(first...))
		if err != nil || outcome(v) != "provenance issuer: "+LocalIssuer {
			t.Errorf("failed %q, error %v", outcome(v), err)
		}
	})
	t.Run("is not the public trust root", func(t *testing.T) {
		got := PublicTrust(context.Background(), gitHubHost, GitHub{}).Check(first[0], testDigest)
		if got.Err == nil || !strings.Contains(got.Err.Error(), "it was signed with a local trust root") {
			t.Errorf("error %v", got.Err)
		}
	})
	t.Run("somebody's identity is not local", func(t *testing.T) {
		a := newAuthority(t, "somebody", nil)
		v, err := Verify(context.Background(), a.trust, Expectation{Local: true}, testDigest, from(a.both(t)...))
		if err != nil || outcome(v) != "provenance issuer: "+gitHubHost.Issuer {
			t.Errorf("failed %q, error %v", outcome(v), err)
		}
	})
	t.Run("another local trust root", func(t *testing.T) {
		other, err := OpenLocalTrust(t.TempDir())
		if err != nil || !other.Created {
			t.Fatal(err)
		}
		v, err := Verify(context.Background(), trust, Expectation{Local: true}, testDigest, from(signLocally(t, other)...))
		if err != nil || !strings.HasPrefix(outcome(v), "provenance attestation: local: failed to verify") {
			t.Errorf("failed %q, error %v", outcome(v), err)
		}
	})
	// What anybody who has sigstore-go would write.
	t.Run("with sigstore-go alone", func(t *testing.T) {
		material, err := root.NewTrustedRootFromPath(filepath.Join(dir, localRootFile))
		if err != nil {
			t.Fatal(err)
		}
		v, err := verify.NewVerifier(material, verify.WithSignedTimestamps(1))
		if err != nil {
			t.Fatal(err)
		}
		identity, err := verify.NewShortCertificateIdentity(LocalIssuer, "", LocalIdentity, "")
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range first {
			b := new(bundle.Bundle)
			if err := b.UnmarshalJSON(c.Data); err != nil {
				t.Fatal(err)
			}
			digest := bytes.Repeat([]byte{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}, 4)
			if _, err := v.Verify(b, verify.NewPolicy(verify.WithArtifactDigest("sha256", digest), verify.WithCertificateIdentity(identity))); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestBadLocalTrust(t *testing.T) {
	other, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(other)
	if err != nil {
		t.Fatal(err)
	}
	strange := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	public, err := os.ReadFile("testdata/public-good-root.json")
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		file string
		data []byte // nil removes the file
		want string
	}{
		"no root":             {localRootFile, nil, "there are other files in it, and no trusted_root.json"},
		"empty root":          {localRootFile, []byte{}, "it is empty"},
		"no JSON":             {localRootFile, []byte("x"), "invalid character"},
		"somebody's root":     {localRootFile, public, "is not one that this command made"},
		"no CA key":           {localCAFile, nil, "no such file or directory"},
		"no PEM":              {localCAFile, []byte("x"), "holds no key in PEM"},
		"no key":              {localCAFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}), "read "},
		"another CA key":      {localCAFile, strange, "is not the key of the certificate"},
		"another TSA key":     {localTSAFile, strange, "is not the key of the certificate"},
		"an endless key file": {localTSAFile, bytes.Repeat([]byte("x"), 1<<17), "is longer than 65536 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := OpenLocalTrust(dir); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, tc.file)
			err := os.Remove(path)
			if err == nil && tc.data != nil {
				err = os.WriteFile(path, tc.data, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err = OpenLocalTrust(dir); err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "name a directory that is empty") {
				t.Errorf("error %v, want one about %q", err, tc.want)
			}
		})
	}
	t.Run("a directory of something else", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "thesis.txt"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		// Nobody is told to remove what is not ours.
		if _, err := OpenLocalTrust(dir); err == nil || strings.Contains(err.Error(), "remove") {
			t.Errorf("error %v", err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Errorf("%d files, error %v", len(entries), err)
		}
	})
	t.Run("a file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenLocalTrust(path); err == nil || !strings.Contains(err.Error(), "create the local trust root "+path) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("reading makes nothing", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "trust")
		if _, err := ReadLocalTrust(dir); err == nil || !strings.Contains(err.Error(), "'attest --local-trust' makes one") {
			t.Errorf("error %v", err)
		}
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("stat: %v", err)
		}
	})
}
