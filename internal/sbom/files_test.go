package sbom

import (
	"errors"
	"io/fs"
	"slices"
	"testing"
)

func TestFiles(t *testing.T) {
	root := rootFS(map[string]string{
		"var/lib/dpkg/info/web.list":          "/.\n/usr\n/usr/bin/web\n/../odd//name/\n",
		"var/lib/dpkg/info/libweb:amd64.list": "/usr/lib/libweb.so\n",
	})
	for _, test := range []struct {
		name string
		p    Package
		want []string // nil: there is no list
	}{
		{"of one architecture", Package{Kind: Deb, Name: "web", Arch: "amd64"}, []string{"usr", "usr/bin/web", "odd/name"}},
		{"of several", Package{Kind: Deb, Name: "libweb", Arch: "amd64"}, []string{"usr/lib/libweb.so"}},
		{"of another", Package{Kind: Deb, Name: "libweb", Arch: "arm64"}, nil},
		{"a name with a path", Package{Kind: Deb, Name: "../info/web", Arch: "amd64"}, nil},
		{"an rpm", Package{Kind: RPM, Name: "web", Arch: "x86_64"}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Files(root, test.p)
			if test.want == nil {
				if !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("files %q, error %v", got, err)
				}
				return
			}
			if err != nil || !slices.Equal(got, test.want) {
				t.Errorf("files %q, error %v", got, err)
			}
		})
	}
}

func TestIsDatabase(t *testing.T) {
	for name, want := range map[string]bool{"var/lib/dpkg/status": true, "var/lib/dpkg": true, "usr/lib/sysimage/rpm/rpmdb.sqlite": true, "var/lib/dpkgs": false, "etc/dpkg": false} {
		if IsDatabase(name) != want {
			t.Errorf("IsDatabase(%q) is %v", name, !want)
		}
	}
}
