package attest

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

func TestParseTrust(t *testing.T) {
	pretty, err := os.ReadFile("testdata/public-good-root.json")
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		data  []byte
		roots int
		want  string
	}{
		"one":              {pretty, 1, ""},
		"two":              {append(append(bytes.Clone(pretty), '\n'), pretty...), 2, ""},
		"empty":            {nil, 0, "it is empty"},
		"cut off":          {pretty[:len(pretty)/2], 0, "unexpected EOF"},
		"no root":          {[]byte(`{"mediaType":"x"}`), 0, "unsupported TrustedRoot media type: x"},
		"no authority":     {[]byte(`{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`), 0, "it names no certificate authority"},
		"one and garbage":  {append(bytes.Clone(pretty), "x"...), 0, "invalid character"},
		"a root and other": {append(bytes.Clone(pretty), "{}"...), 0, "unsupported TrustedRoot media type"},
	} {
		t.Run(name, func(t *testing.T) {
			trust, err := ParseTrust("FILE", tc.data)
			if tc.want == "" {
				if err != nil || len(trust.roots) != tc.roots {
					t.Errorf("error %v", err)
				}
			} else if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "FILE") {
				t.Errorf("error %v, want one about %q", err, tc.want)
			}
		})
	}
}

// TestSeveralRoots verifies with the second of two trust roots.
func TestSeveralRoots(t *testing.T) {
	a := newAuthority(t, "somebody", nil)
	other := newAuthority(t, "somebody", nil)
	other.trust.roots = append(other.trust.roots, a.trust.roots...)
	if got := other.trust.Check(a.both(t)[0], testDigest); got.Err != nil {
		t.Error(got.Err)
	}
}

// TestGitHubTUFRoot holds that the root of trust for GitHub's own Sigstore is
// signed by its own keys.
func TestGitHubTUFRoot(t *testing.T) {
	root, err := metadata.Root().FromBytes(gitHubTUFRoot)
	if err != nil {
		t.Fatal(err)
	}
	if err := root.VerifyDelegate(metadata.ROOT, root); err != nil {
		t.Error(err)
	}
}

// TestFetchRoot holds what is said when the TUF repository cannot be used.
func TestFetchRoot(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	t.Setenv("HOME", cache)
	for name, tc := range map[string]struct {
		handler http.HandlerFunc
		want    string
	}{
		"nothing there": {http.NotFound, "404"},
		"nonsense":      {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("{}")) }, "fetch the trust root"},
		"without end": {func(w http.ResponseWriter, _ *http.Request) {
			for range 2000 {
				if _, err := w.Write(bytes.Repeat([]byte("x"), 1<<10)); err != nil {
					return
				}
			}
		}, "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(tc.handler)
			defer server.Close()
			_, err := fetchRoot(context.Background(), server.URL, gitHubTUFRoot, trustedRootTarget, quick)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.HasSuffix(err.Error(), "name a trusted root file with --trusted-root to do without") {
				t.Errorf("error %v, want one about %q", err, tc.want)
			}
		})
	}
	if entries, err := os.ReadDir(filepath.Join(cache, "attestable-image", "tuf")); err != nil {
		t.Errorf("%d entries, error %v", len(entries), err)
	}
	if _, err := os.Stat(filepath.Join(cache, ".sigstore")); err == nil {
		t.Error("something was written to the home directory")
	}
}
