package kiwi

import (
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

// TestDownloadKeepsPasswords holds that no error shows the password of a private
// package index.
func TestDownloadKeepsPasswords(t *testing.T) {
	const name = "kiwi-1.2.3.tar.gz"
	for what, tc := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"refused":      {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, "answers 403 Forbidden"},
		"not listed":   {func(http.ResponseWriter, *http.Request) {}, "does not list " + name},
		"another file": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, `<a href="%s">`, name) }, "and not 00"},
		"too long":     {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, maxIndexBytes+1)) }, "it is larger than"},
		"broken":       {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "look up KIWI's source"},
	} {
		t.Run(what, func(t *testing.T) {
			server := httptest.NewServer(tc.answer)
			defer server.Close()
			t.Setenv("PIP_INDEX_URL", strings.Replace(server.URL, "://", "://me:s3cret@", 1)+"/simple/")
			_, err := new(builder).download(t.Context(), name, "00")
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("error %v, want one about %q without the password", err, tc.want)
			}
		})
	}
}

// TestBuilderOf holds which Dockerfile makes the builder of a description, and which
// package source its base can come from.
func TestBuilderOf(t *testing.T) {
	templates := os.DirFS(filepath.Join("..", "..", "kiwi-templates"))
	rpm := fstest.MapFS{"config.xml": {Data: []byte(`<image name="a"><preferences><packagemanager>dnf5</packagemanager></preferences></image>`)}}
	_, err := (&Options{Source: "image", Description: rpm, Builder: templates, Log: io.Discard}).builderImage(t.Context(), &engine{})
	if err == nil || !strings.Contains(err.Error(), `its package manager is "dnf5"`) {
		t.Errorf("rpm packages without a Dockerfile: %v", err)
	}
	_, err = (&Options{Source: "image", Description: rpm, Log: io.Discard}).builderImage(t.Context(), &engine{})
	if err == nil || !strings.Contains(err.Error(), "no Dockerfile for its builder: name a builder image") {
		t.Errorf("no builder: %v", err)
	}
	for _, tc := range []struct{ template, source, want string }{
		{"debian", "", ""},
		{"debian", "http://mirror.example/debian", "http://mirror.example/debian"},
		{"debian", "http://mirror.example/other sid\nhttp://mirror.example/debian trixie main", "http://mirror.example/debian"},
		{"debian", "/srv/debian", ""},
		{"ubuntu", "http://mirror.example/ubuntu", ""},
		{"ubuntu", "http://mirror.example/debian trixie", "http://mirror.example/debian"},
		{"al2023", "https://mirror.example/al2023", ""},
	} {
		sources, err := ParsePackageSources(tc.source)
		if err != nil {
			t.Fatal(err)
		}
		description, err := fs.Sub(templates, tc.template)
		if err != nil {
			t.Fatal(err)
		}
		o := Options{Description: description, PackageSources: sources}
		outline, err := o.outline()
		if err != nil {
			t.Fatal(err)
		}
		if got := o.mirror(outline); got != tc.want {
			t.Errorf("%s with %q: the base comes from %q, want %q", tc.template, tc.source, got, tc.want)
		}
	}
}

// TestBases holds which bases one of Debian's, made here, can stand in for, and that
// the templates' are among them or pinned by digest.
func TestBases(t *testing.T) {
	for base, want := range map[string]bool{
		"docker.io/library/debian:trixie-slim":                  true,
		"debian:trixie":                                         true,
		"debian:trixie-slim@sha256:" + strings.Repeat("0a", 32): true,
		"debian:bookworm":                                       false,
		"docker.io/library/fedora:43":                           false,
		"registry.example/debian:trixie":                        false,
	} {
		if got := debianBase().MatchString(base); got != want {
			t.Errorf("%s: %v, want %v", base, got, want)
		}
	}
	for _, name := range []string{"al2023", "debian"} {
		dockerfile, err := os.ReadFile(filepath.Join("..", "..", "kiwi-templates", name, "Dockerfile"))
		if err != nil {
			t.Fatal(err)
		}
		m := baseArgument().FindSubmatch(dockerfile)
		if m == nil || !debianBase().Match(m[1]) && !strings.Contains(string(m[1]), "@sha256:") {
			t.Errorf("the base of %s's builder is %q", name, m)
		}
	}
}

// TestBuilderHash holds that the builder's image follows from the Dockerfile and
// builder/ alone: what is written about a template does not make a new one.
func TestBuilderHash(t *testing.T) {
	files := fstest.MapFS{"Dockerfile": {Data: []byte("FROM scratch\n")}, "builder/kiwi.yml": {Data: []byte("x")}}
	sum := func() string {
		sum, err := (&builder{files: files}).stage(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	first := sum()
	files["README.md"], files["config.xml"] = &fstest.MapFile{Data: []byte("x")}, &fstest.MapFile{Data: []byte("x")}
	if sum() != first {
		t.Error("a README makes another builder")
	}
	files["builder/kiwi.yml"] = &fstest.MapFile{Data: []byte("y")}
	if sum() == first {
		t.Error("another builder/ makes the same builder")
	}
}
