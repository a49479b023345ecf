package kiwi

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// templateConfig is the description of the template debian.
func templateConfig(t testing.TB) []byte {
	t.Helper()
	config, err := os.ReadFile(filepath.Join("..", "..", "kiwi-templates", "debian", "config.xml"))
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func TestEdit(t *testing.T) {
	config := templateConfig(t)
	sources, err := ParsePackageSources("http://snapshot.example/debian\n\n  https://security.example/debian-security trixie-security main contrib\n/srv/packages")
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Name: "other", Version: "4.5.6", PackageSources: sources}
	edited, err := o.edit(slices.Clone(config), o.PackageSources)
	if err != nil {
		t.Fatal(err)
	}
	text := string(edited)
	for _, want := range []string{
		`<image schemaversion="8.5" name="other" displayname=`,
		`<version>4.5.6</version>`,
		`alias="package-source-1" distribution="trixie" components="main" repository_gpgcheck="true"><source path="http://snapshot.example/debian"><signing key="file:///usr/share/keyrings/debian-archive-keyring.gpg"/></source></repository>`,
		`alias="package-source-2" distribution="trixie-security" components="main contrib" repository_gpgcheck="true"><source path="https://security.example/debian-security">`,
		`alias="package-source-3" distribution="trixie" components="main" repository_gpgcheck="false"><source path="dir:///run/attestable-image/repositories/2">`,
		`<source path="dir:///usr/lib/attestable-image/packages"/>`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing in\n%s", want, text)
		}
	}
	if strings.Contains(text, "deb.debian.org") {
		t.Error("the public repository is still there")
	}
	outline, err := readOutline(edited)
	if err != nil {
		t.Fatal(err)
	}
	if len(outline.repositories) != 4 {
		t.Errorf("%d repositories, want 4", len(outline.repositories))
	}
	// Without anything to replace nothing changes.
	same, err := new(Options).edit(slices.Clone(config), nil)
	if err != nil || string(same) != string(config) {
		t.Errorf("an edit of nothing changed the description (%v)", err)
	}
}

// TestEditRpm puts package sources in place of repositories of rpm packages, whose
// form is not Debian's.
func TestEditRpm(t *testing.T) {
	const config = `<image name="a"><preferences><version>1.0.0</version><packagemanager>dnf5</packagemanager></preferences>` +
		`<repository arch="x86_64" alias="core" sourcetype="mirrorlist" package_gpgcheck="true" customize="key.sh">` +
		`<source path="https://cdn.example/x86_64/mirror.list"/></repository>` +
		`<repository arch="aarch64" alias="core-arm"><source path="https://cdn.example/aarch64/mirror.list"/></repository></image>`
	for _, tc := range []struct{ name, source, want string }{
		{"another list of mirrors", "https://cdn.example/2023.1/$basearch/mirror.list", `<repository alias="package-source-1" sourcetype="mirrorlist" package_gpgcheck="true" customize="key.sh"><source path="https://cdn.example/2023.1/$basearch/mirror.list">`},
		{"a repository", "https://mirror.example/core", `<repository alias="package-source-1" package_gpgcheck="true" customize="key.sh"><source path="https://mirror.example/core">`},
		{"a directory", "/srv/core", `<repository alias="package-source-1" package_gpgcheck="false" customize="key.sh" repository_gpgcheck="false"><source path="dir:///run/attestable-image/repositories/0">`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sources, err := ParsePackageSources(tc.source)
			if err != nil {
				t.Fatal(err)
			}
			edited, err := (&Options{PackageSources: sources}).edit([]byte(config), sources)
			if err != nil || !strings.Contains(string(edited), tc.want) || strings.Count(string(edited), "<repository") != 1 {
				t.Errorf("the description is %s (%v), want %s", edited, err, tc.want)
			}
		})
	}
}

func TestEditRefuses(t *testing.T) {
	const head, tail = `<image name="a"><preferences><version>1.0.0</version></preferences>`, `</image>`
	sources := []PackageSource{{URI: "http://a/b"}}
	for _, tc := range []struct {
		name, config string
		options      Options
		want         string
	}{
		{"not XML", "image: {}", Options{}, "no <image> element"},
		{"cut off", "<image name=\"a\"><pref", Options{}, "it is not XML"},
		{"another document", "<html/>", Options{}, "no <image> element"},
		{"no name", "<image></image>", Options{Name: "b"}, "no name to replace"},
		{"no version", `<image name="a"/>`, Options{Version: "1.2.3"}, "no <version> in <preferences>"},
		{"version elsewhere", `<image name="a"><x><version>1.0.0</version></x></image>`, Options{Version: "1.2.3"}, "no <version> in <preferences>"},
		{"no repository", head + tail, Options{PackageSources: sources}, "no remote repository that a package source could stand in for"},
		{"local repository only", head + `<repository><source path="dir:///x"/></repository>` + tail, Options{PackageSources: sources}, "no remote repository"},
		{"suite of rpm packages", head + `<repository type="rpm-md"><source path="https://x/y"/></repository>` + tail, Options{PackageSources: []PackageSource{{URI: "http://a/b", Suite: "trixie"}}}, "rpm packages, which have no suites: write the package source http://a/b without \"trixie\""},
		{"deep", strings.Repeat("<image>", 100), Options{}, "nested deeper than 64"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := tc.options.edit([]byte(tc.config), tc.options.PackageSources)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want %q", err, tc.want)
			}
		})
	}
}

func FuzzEdit(f *testing.F) {
	f.Add(templateConfig(f))
	f.Add([]byte(`<image name='a'><preferences><version>1</version></preferences><repository><source path="http://x"/></repository></image>`))
	f.Fuzz(func(t *testing.T, config []byte) {
		o := Options{Name: "n", Version: "1.2.3", PackageSources: []PackageSource{{URI: "http://a/b"}}}
		edited, err := o.edit(slices.Clone(config), o.PackageSources)
		if err != nil {
			return
		}
		decoder := xml.NewDecoder(strings.NewReader(string(edited)))
		for {
			if _, err := decoder.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%q was edited to %q: %v", config, edited, err)
			}
		}
	})
}

func TestParsePackageSources(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"no URI", "debian", "neither an http, https or ftp URI nor an absolute path"},
		{"another scheme", "ssh://host/debian", "neither an http"},
		{"no host", "http:///debian", "neither an http"},
		{"a file elsewhere", "file://host/debian", "neither an http"},
		{"a suite with markup", `http://host/debian "><x`, "cannot be a suite or a component"},
		{"too many", strings.Repeat("http://host/debian\n", maxSources+1), "more than 32 package sources"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := ParsePackageSources(tc.text)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want %q", err, tc.want)
			}
		})
	}
	if sources, err := ParsePackageSources(" \n\n"); err != nil || sources != nil {
		t.Errorf("no source: %v, %v", sources, err)
	}
}

func TestNamesAndVersions(t *testing.T) {
	for _, bad := range []string{"", "-x", ".x", "a b", "a/b", "a\"b", strings.Repeat("a", 128)} {
		if ValidateName(bad) == nil {
			t.Errorf("name %q is accepted", bad)
		}
	}
	for _, bad := range []string{"", "1", "1.2", "1.2.3.4", "v1.2.3", "1.2.x", "1.2.3\n"} {
		if ValidateVersion(bad) == nil {
			t.Errorf("version %q is accepted", bad)
		}
	}
	if err := ValidateName("my-Image_1.0"); err != nil {
		t.Error(err)
	}
	if err := ValidateVersion("10.20.30"); err != nil {
		t.Error(err)
	}
}
