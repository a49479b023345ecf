package attest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// testRelease is the part of GitHub's API that keeps the assets of one release.
type testRelease struct {
	url    string
	assets map[string]string // content by name
	ids    map[string]string // name by number
	next   int
	fail   func(r *http.Request) int // a status instead of an answer, or 0
	upload string                    // host to send uploads to, when it is not this one
}

func newTestRelease(t *testing.T) *testRelease {
	t.Helper()
	l := &testRelease{assets: map[string]string{}, ids: map[string]string{}, next: 1}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if l.fail != nil {
			if status := l.fail(r); status != 0 {
				http.Error(w, `{"message":"no"}`, status)
				return
			}
		}
		l.answer(t, w, r)
	}))
	t.Cleanup(server.Close)
	l.url = server.URL
	return l
}

func (l *testRelease) answer(t *testing.T, w http.ResponseWriter, r *http.Request) {
	const assets = "/repos/octo-org/image/releases/assets/"
	id, ofAsset := strings.CutPrefix(r.URL.Path, assets)
	name := l.ids[id]
	switch {
	case r.Method == http.MethodGet && r.URL.EscapedPath() == "/repos/octo-org/image/releases/tags/v1%2F0":
		type asset struct {
			ID   json.RawMessage `json:"id"`
			Name string          `json:"name"`
		}
		list := []asset{}
		for id, name := range l.ids {
			list = append(list, asset{json.RawMessage(id), name})
		}
		host := l.upload
		if host == "" {
			host = l.url
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"upload_url": host + "/upload{?name,label}", "assets": list})
	case r.Method == http.MethodPost && r.URL.Path == "/upload":
		name := r.URL.Query().Get("name")
		if _, ok := l.assets[name]; ok {
			http.Error(w, `{"errors":[{"code":"already_exists"}]}`, http.StatusUnprocessableEntity)
			return
		}
		data, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		l.next++
		l.assets[name], l.ids[fmt.Sprint(l.next)] = string(data), name
		w.WriteHeader(http.StatusCreated)
		_, _ = fmt.Fprintf(w, `{"id":%d}`, l.next)
	case !ofAsset || name == "":
		http.NotFound(w, r)
	case r.Method == http.MethodGet && r.Header.Get("Accept") == "application/octet-stream":
		_, _ = io.WriteString(w, l.assets[name])
	case r.Method == http.MethodDelete:
		delete(l.assets, name)
		delete(l.ids, id)
		w.WriteHeader(http.StatusNoContent)
	case r.Method == http.MethodPatch:
		var body struct{ Name string }
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		l.assets[body.Name], l.ids[id] = l.assets[name], body.Name
		delete(l.assets, name)
		_, _ = io.WriteString(w, "{}")
	default:
		t.Errorf("%s %s", r.Method, r.URL)
	}
}

// TestReleaseFile adds bundles to a file of a release, and again.
func TestReleaseFile(t *testing.T) {
	l := newTestRelease(t)
	api := GitHub{API: l.url, Token: "ghs_verysecret", transport: quick}
	ctx := context.Background()
	open := func() (*ReleaseFile, error) { return api.ReleaseFile(ctx, "octo-org/image", "v1/0", "a.jsonl") }
	const one, two, three = `{"n":1}`, `{"n":2}`, `{"n":3}`
	f, err := open()
	if err != nil {
		t.Fatal(err)
	}
	if found, err := f.Candidates(); err != nil || len(found) != 0 {
		t.Errorf("%d bundles, error %v", len(found), err)
	}
	if err := f.Add(ctx, []byte(one), []byte(two)); err != nil {
		t.Fatal(err)
	}
	// One that stopped in the middle left its new file.
	l.next++
	l.assets["a.jsonl.new"], l.ids[fmt.Sprint(l.next)] = "half", "a.jsonl.new"
	if f, err = open(); err != nil {
		t.Fatal(err)
	}
	if found, err := f.Candidates(); err != nil || len(found) != 2 || string(found[1].Data) != two {
		t.Errorf("%v, error %v", found, err)
	}
	if err := f.Add(ctx, []byte(three)); err != nil {
		t.Fatal(err)
	}
	if want := one + "\n" + two + "\n" + three + "\n"; len(l.assets) != 1 || l.assets["a.jsonl"] != want {
		t.Errorf("the release has %v", l.assets)
	}

	for name, tc := range map[string]struct {
		fail   func(r *http.Request) int
		upload string
		want   string
	}{
		"no such release": {fail: func(r *http.Request) int {
			if strings.Contains(r.URL.Path, "/tags/") {
				return 404
			}
			return 0
		}, want: "there is no published release with this tag"},
		"no permission": {fail: func(r *http.Request) int {
			if r.Method == http.MethodPost {
				return 403
			}
			return 0
		}, want: "give the job 'permissions: contents: write'"},
		"immutable": {fail: func(r *http.Request) int {
			if r.Method == http.MethodPost {
				return 422
			}
			return 0
		}, want: "or the release is immutable"},
		"down":              {fail: func(*http.Request) int { return 503 }, want: "503 Service Unavailable"},
		"uploads to others": {upload: "http://evil.example", want: "a place for uploads, evil.example, that is not GitHub's"},
	} {
		t.Run(name, func(t *testing.T) {
			l.fail, l.upload = tc.fail, tc.upload
			defer func() { l.fail, l.upload = nil, "" }()
			f, err := open()
			if err == nil {
				err = f.Add(ctx, []byte(one))
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), api.Token) {
				t.Errorf("error %v, want one about %q", err, tc.want)
			}
			if l.assets["a.jsonl"] == "" {
				t.Error("the file is gone")
			}
		})
	}
	// GitHub's own hosts.
	for base, host := range map[string]string{"https://api.github.com": "uploads.github.com", "https://api.octo.ghe.com": "uploads.octo.ghe.com"} {
		f := &ReleaseFile{api: GitHub{API: base}}
		if got, err := f.uploadURL("https://" + host + "/repos/a/b/releases/1/assets{?name,label}"); err != nil || got.Host != host {
			t.Errorf("%v, error %v", got, err)
		}
	}
}
