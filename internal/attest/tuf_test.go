package attest

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// tufRepository makes a TUF repository (The Update Framework 1.0) whose target
// name is data, and returns its files by path and its first root.
func tufRepository(t *testing.T, name string, data []byte) (files map[string][]byte, anchor []byte) {
	t.Helper()
	expires := time.Now().Add(48 * time.Hour)
	top, targets := metadata.Root(expires), metadata.Targets(expires)
	signers := make(map[string]signature.Signer)
	for _, role := range []string{metadata.ROOT, metadata.TARGETS, metadata.SNAPSHOT, metadata.TIMESTAMP} {
		public, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		key, err := metadata.KeyFromPublicKey(public)
		if err == nil {
			err = top.Signed.AddKey(key, role)
		}
		if err == nil {
			signers[role], err = signature.LoadSigner(private, crypto.Hash(0))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	target, err := metadata.TargetFile().FromBytes(name, data, "sha256")
	if err != nil {
		t.Fatal(err)
	}
	targets.Signed.Targets[name] = target
	files = map[string][]byte{"/targets/" + target.Hashes["sha256"].String() + "." + name: data}
	write := func(path string, sign func(signature.Signer) (*metadata.Signature, error), role string, encode func(bool) ([]byte, error)) {
		t.Helper()
		_, err := sign(signers[role])
		if err == nil {
			files[path], err = encode(false)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	snapshot, timestamp := metadata.Snapshot(expires), metadata.Timestamp(expires)
	write("/1.root.json", top.Sign, metadata.ROOT, top.ToBytes)
	write("/1.targets.json", targets.Sign, metadata.TARGETS, targets.ToBytes)
	write("/1.snapshot.json", snapshot.Sign, metadata.SNAPSHOT, snapshot.ToBytes)
	write("/timestamp.json", timestamp.Sign, metadata.TIMESTAMP, timestamp.ToBytes)
	return files, files["/1.root.json"]
}

// TestPublishedTrust fetches a trust root with TUF, believes bundles by the
// issuer that it belongs to, and needs no network the next time.
func TestPublishedTrust(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	t.Setenv("HOME", cache)
	a := newAuthority(t, orgGitHub, nil)
	data, err := a.trust.roots[0].MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	files, anchor := tufRepository(t, trustedRootTarget, data)
	var calls atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) == 1 { // tried again
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return
		}
		data, ok := files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(data)
	}))
	defer server.Close()
	published := &Trust{
		public: func() (*root.TrustedRoot, error) {
			t.Error("the root of the public Sigstore was asked for")
			return nil, context.Canceled
		},
		github: func() (*root.TrustedRoot, error) {
			return fetchRoot(context.Background(), server.URL, anchor, trustedRootTarget, quick)
		},
	}
	candidate := a.both(t)[1]
	for range 2 {
		if got := published.Check(candidate, testDigest); got.Err != nil {
			t.Fatal(got.Err)
		}
		server.Close()
	}

	t.Run("of somebody else", func(t *testing.T) {
		got := published.Check(newAuthority(t, "somebody", nil).both(t)[1], testDigest)
		if got.Err == nil || !strings.Contains(got.Err.Error(), "which is neither the public Sigstore nor GitHub") {
			t.Errorf("error %v", got.Err)
		}
	})
	t.Run("with another anchor", func(t *testing.T) {
		t.Setenv("XDG_CACHE_HOME", t.TempDir())
		again := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if data, ok := files[r.URL.Path]; ok {
				_, _ = w.Write(data)
				return
			}
			http.NotFound(w, r)
		}))
		defer again.Close()
		if _, err := fetchRoot(context.Background(), again.URL, gitHubTUFRoot, trustedRootTarget, quick); err == nil {
			t.Error("believed")
		}
		if _, err := fetchRoot(context.Background(), again.URL, anchor, trustedRootTarget, quick); err != nil {
			t.Error(err)
		}
	})
}

// TestTenantTrust believes a tenant's bundles by the tenant's trust root, whose
// name its API tells.
func TestTenantTrust(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	t.Setenv("HOME", cache)
	a := newAuthority(t, orgGitHub, nil)
	data, err := a.trust.roots[0].MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	files, anchor := tufRepository(t, "octo-1.trusted_root.json", data)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if data, ok := files[r.URL.Path]; ok {
			_, _ = w.Write(data)
			return
		}
		http.NotFound(w, r)
	}))
	defer server.Close()
	meta := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"domains":{"artifact_attestations":{"trust_domain":"octo-1"}}}`))
	}))
	defer meta.Close()
	tenant, err := ParseHost("https://octo.ghe.com")
	if err != nil {
		t.Fatal(err)
	}
	trust := &Trust{github: func() (*root.TrustedRoot, error) {
		target, err := rootOf(context.Background(), tenant, GitHub{API: meta.URL})
		if err != nil {
			return nil, err
		}
		return fetchRoot(context.Background(), server.URL, anchor, target, quick)
	}}
	if got := trust.Check(a.both(t)[1], testDigest); got.Err != nil {
		t.Error(got.Err)
	}
	if _, err := fetchRoot(context.Background(), server.URL, anchor, trustedRootTarget, quick); err == nil || !strings.Contains(err.Error(), "fetch the trust root trusted_root.json from") {
		t.Errorf("error %v", err)
	}
}
