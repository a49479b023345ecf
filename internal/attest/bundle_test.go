package attest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/strictjson"
)

func TestBundleFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "bundles.jsonl")
	for _, b := range []string{`{"a":1}`, `{"b":2}`} {
		if err := AppendBundles(path, []byte(b)); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil || string(data) != "{\"a\":1}\n{\"b\":2}\n" {
		t.Errorf("file %q, error %v", data, err)
	}
	got, err := ReadBundles(path)
	if err != nil || len(got) != 2 || string(got[1].Data) != `{"b":2}` || got[1].Source != path+", bundle 2" {
		t.Errorf("bundles %v, error %v", got, err)
	}
	if err := RecordPath(dir, path); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "created_attestation_paths.txt")); err != nil || string(data) != path+"\n" {
		t.Errorf("list %q, error %v", data, err)
	}

	for name, tc := range map[string]struct{ data, want string }{
		"empty":     {"\n \n", "it is empty"},
		"no JSON":   {"hello", "invalid character 'h'"},
		"cut off":   {`{"a":`, "unexpected EOF"},
		"too many":  {strings.Repeat("{}\n", MaxBundles+1), "it holds more than 100 bundles"},
		"long file": {strings.Repeat(" ", 2*MaxBundle+1), "is longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := filepath.Join(t.TempDir(), "bad")
			if err := os.WriteFile(bad, []byte(tc.data), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := ReadBundles(bad); err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), bad) {
				t.Errorf("error %v, want one about %q", err, tc.want)
			}
		})
	}
	if _, err := ReadBundles(filepath.Join(dir, "missing")); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("error %v", err)
	}
	if err := AppendBundles(filepath.Join(dir, "missing", "file"), nil); err == nil {
		t.Error("a file was made in a directory that is missing")
	}
}

// TestFetchAll holds how much of what others add to an artifact is fetched.
func TestFetchAll(t *testing.T) {
	ctx, stop := context.WithCancel(context.Background())
	for name, tc := range map[string]struct{ n, size, want int }{
		"none":      {0, 0, 0},
		"few":       {3, 1 << 10, 3},
		"many":      {1000, 1, MaxBundles},
		"large":     {1000, MaxBundle, 5},
		"too large": {1000, maxFetched + 1, 1},
	} {
		data, fetched := make([]byte, tc.size), 0
		got, err := FetchAll(ctx, tc.n, func(int) Candidate {
			fetched++
			return Candidate{Data: data}
		})
		if err != nil || len(got) != tc.want || fetched != tc.want {
			t.Errorf("%s: %d candidates, fetched %d, error %v, want %d", name, len(got), fetched, err, tc.want)
		}
		if large := tc.size >= MaxBundle; large && (got[tc.want-1].Err == nil || got[tc.want-1].Data != nil) {
			t.Errorf("%s: the last one is kept", name)
		}
	}
	got, err := FetchAll(ctx, 2, func(i int) Candidate { return []Candidate{{Err: errors.New("gone")}, {Data: []byte("{}")}}[i] })
	if err != nil || len(got) != 2 || got[0].Err == nil || got[1].Err != nil {
		t.Errorf("%+v, error %v", got, err)
	}
	stop()
	if _, err := FetchAll(ctx, 2, func(int) Candidate { return Candidate{Err: ctx.Err()} }); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// FuzzCheck gives the verifier bundles from strangers: nothing that was changed
// may be believed to say another thing.
func FuzzCheck(f *testing.F) {
	trust, err := ReadTrust("testdata/public-good-root.json")
	if err != nil {
		f.Fatal(err)
	}
	real, err := os.ReadFile("testdata/sigstore-js-2.0.0.sigstore.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(real)
	// The same as a bundle of the kind that is looked into.
	f.Add(bytes.Replace(real, []byte("application/vnd.dev.sigstore.bundle+json;version=0.1"), []byte("application/vnd.dev.sigstore.bundle+json;version=0.2"), 1))
	f.Add([]byte(`{"mediaType":"` + BundleMediaType + `","dsseEnvelope":{"payloadType":"` + PayloadType + `","payload":"e30=","signatures":[{"sig":""}]},"verificationMaterial":{"certificate":{"rawBytes":""}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		got := trust.Check(Candidate{Data: data}, testDigest)
		if got.Err == nil || got.Predicate != nil {
			t.Errorf("believed: %+v", got)
		}
	})
}

// FuzzStatement gives the readers of what was signed, which may be signed by
// anybody, all kinds of JSON.
func FuzzStatement(f *testing.F) {
	predicate, err := testClaims().Provenance("https://github.com")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(predicate, []byte(`{"Measurements":{"PCR4":"aa"},"List":[1,{"a":null}]}`))
	f.Add([]byte(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"ab"}}],"predicate":{}}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if s, err := parseStatement(a); err == nil && (!isObject(s.Predicate) || s.subjects() == "") {
			t.Errorf("statement %+v", s)
		}
		if _, err := contradictions(a, certified(testClaims())); err == nil {
			if _, err := strictjson.Value(a); err != nil && !strings.Contains(err.Error(), "stands twice in one object") {
				t.Errorf("read provenance that is no JSON: %v", err)
			}
		}
		c, err := CompareMeasurements(a, b)
		if err != nil {
			return
		}
		if reverse, err := CompareMeasurements(b, a); err == nil && reverse.OK != c.OK {
			t.Errorf("%q and %q are equal one way only", a, b)
		}
		if self, err := CompareMeasurements(a, a); err != nil || !self.OK {
			t.Errorf("%q differs from itself: %+v, %v", a, self, err)
		}
	})
}

// FuzzConfiguration gives the readers of trust roots and signing configurations
// what users may name by mistake.
func FuzzConfiguration(f *testing.F) {
	root, err := os.ReadFile("testdata/public-good-root.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(root)
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.signingconfig.v0.2+json","caUrls":[{"url":"https://ca","majorApiVersion":1}],"tsaUrls":[{"url":"x","majorApiVersion":1}],"tsaConfig":{"selector":"EXACT","count":1}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if trust, err := ParseTrust("x", data); err == nil && len(trust.roots) == 0 {
			t.Error("a trust root without a root")
		}
		if i, err := parseInstance(data, testTime); err == nil && len(i.Timestamps)+len(i.Logs) == 0 {
			t.Error("an instance that tells no time")
		}
		if candidates, err := parseBundles("x", data); err == nil && len(candidates) == 0 {
			t.Error("no bundles without an error")
		}
	})
}
