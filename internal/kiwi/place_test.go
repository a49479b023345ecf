package kiwi

import (
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"
)

const placedConfig = `<?xml version="1.0" encoding="utf-8"?>
<!-- <package name="openssh-server"/> is no package here -->
<image schemaversion="8.5" name="test">
    <preferences>
        <version>1.0.0</version>
        <type image="oem"
              kernelcmdline="console=ttyS0 quiet
                             systemd.debug_shell=1 mitigations=off"
              filesystem="ext4"/>
    </preferences>
    <users>
        <user name="root" password="x" groups="root"/>
        <user name="web" groups="web"/>
    </users>
    <packages type="image">
        <package name="systemd"/>
        <package name="openssh-server"/>
        <package name="twice"/><package name="twice"/>
        <package name="other" arch="nowhere"/>
        <package name="other"/>
    </packages>
    <repository type="apt-deb" alias="a"/>
</image>
`

func places(t *testing.T, config string) *Places {
	t.Helper()
	p, err := ReadPlaces(fstest.MapFS{
		"config.xml": {Data: []byte(config)}, "config.sh": {Data: []byte("true\n")}, "root/etc/motd": {Data: []byte("hello\n")},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPlaces(t *testing.T) {
	p := places(t, placedConfig)
	twoTypes := places(t, `<image><preferences>
<type kernelcmdline="a=1"/>
<type kernelcmdline='a=1 b=2'/></preferences></image>`)
	for _, tc := range []struct {
		name string
		find func() (Place, bool)
		want Place // none, if it is not certain
	}{
		{"a package", func() (Place, bool) { return p.Package("openssh-server") }, Place{"config.xml", 17}},
		{"a package that is not listed", func() (Place, bool) { return p.Package("cloud-init") }, Place{}},
		{"a package that is listed twice", func() (Place, bool) { return p.Package("twice") }, Place{}},
		{"a package of two architectures", func() (Place, bool) { return p.Package("other") }, Place{"config.xml", 20}},
		{"a user", func() (Place, bool) { return p.User("root") }, Place{"config.xml", 12}},
		{"a user without a password", func() (Place, bool) { return p.User("web") }, Place{}},
		{"an option of the kernel", func() (Place, bool) { return p.KernelOption("console=ttyS0") }, Place{"config.xml", 7}},
		{"an option in the next line", func() (Place, bool) { return p.KernelOption("mitigations=off") }, Place{"config.xml", 8}},
		{"an option that is missing", func() (Place, bool) { return p.KernelOption("lockdown=integrity") }, Place{"config.xml", 7}},
		{"an option of one of two", func() (Place, bool) { return twoTypes.KernelOption("b=2") }, Place{"config.xml", 3}},
		{"an option of both", func() (Place, bool) { return twoTypes.KernelOption("a=1") }, Place{}},
		{"an option that both lack", func() (Place, bool) { return twoTypes.KernelOption("c=3") }, Place{}},
		{"a file of root/", func() (Place, bool) { return p.RootFile("etc/motd") }, Place{"root/etc/motd", 0}},
		{"a file of a package", func() (Place, bool) { return p.RootFile("etc/passwd") }, Place{}},
		{"a directory of root/", func() (Place, bool) { return p.RootFile("etc") }, Place{}},
		{"a file outside", func() (Place, bool) { return p.RootFile("../../etc/passwd") }, Place{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got, ok := tc.find(); ok != (tc.want != Place{}) || ok && got != tc.want {
				t.Errorf("%+v, %t; want %+v", got, ok, tc.want)
			}
		})
	}
}

func TestPlaceOfError(t *testing.T) {
	description := fstest.MapFS{"image/config.xml": {Data: []byte(placedConfig)}, "image/config.sh": {Data: []byte("true\n")}}
	reasonOf := func(name string) string {
		log, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		return Reason(string(log))
	}
	schema := "the description does not follow KIWI's schema: "
	for _, tc := range []struct {
		name, reason string
		want         Place
	}{
		{"a package that no source has", "System package installation failed: E: Unable to locate package openssh-server", Place{"image/config.xml", 17}},
		{"a package of somebody else", reasonOf("package.log"), Place{}},
		{"an unknown attribute", schema + "Invalid attribute groups for element user; Element user failed to validate attributes", Place{"image/config.xml", 0}},
		{"an unknown attribute of one element", schema + "Invalid attribute alias for element repository; Element image failed to validate content", Place{"image/config.xml", 22}},
		{"an unknown element", schema + "Did not expect element users there", Place{"image/config.xml", 11}},
		{"content that is left over", schema + "Element image has extra content: repository", Place{"image/config.xml", 22}},
		{"a real schema error", reasonOf("schema.log"), Place{"image/config.xml", 3}},
		{"a script", reasonOf("script.log"), Place{"image/config.sh", 0}},
		{"a line of a script", "config.sh failed with: /image/config.sh: line 12: systemctlx: command not found", Place{"image/config.sh", 12}},
		{"a script that is not there", "images.sh failed with: no", Place{}},
		{"something else", reasonOf("dracut.log"), Place{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, ok := PlaceOfError(description, fmt.Errorf("build x: %w", &LogError{Reason: tc.reason}))
			if ok != (tc.want != Place{}) || ok && got != tc.want {
				t.Errorf("%+v, %t; want %+v", got, ok, tc.want)
			}
		})
	}
	broken := fstest.MapFS{"config.xml": {Data: []byte("<image>\n<preferences>\n</image>\n")}}
	_, err := (&Options{Description: broken}).outline()
	if got, ok := PlaceOfError(broken, err); !ok || got != (Place{"config.xml", 3}) {
		t.Errorf("no XML: %v is at %+v, %t", err, got, ok)
	}
	if _, ok := PlaceOfError(description, errors.New("no room")); ok {
		t.Error("any error has a place")
	}
	if _, ok := PlaceOfError(fstest.MapFS{}, &xml.SyntaxError{Line: 1}); ok {
		t.Error("a description without a file has a place")
	}
}

func FuzzPlaces(f *testing.F) {
	f.Add(placedConfig, "Unable to locate package openssh-server")
	f.Add("<type kernelcmdline='", "the description does not follow KIWI's schema: Did not expect element type there")
	f.Fuzz(func(t *testing.T, config, reason string) {
		p, err := ReadPlaces(fstest.MapFS{"config.xml": {Data: []byte(config)}})
		if err != nil {
			return
		}
		for _, find := range []func(string) (Place, bool){p.Package, p.User, p.KernelOption, p.RootFile, p.Reason} {
			if at, ok := find(reason); ok && at.Line > 1+len(config) && at.File == "config.xml" {
				t.Errorf("%+v", at)
			}
		}
	})
}
