package measure

import (
	"bytes"
	"crypto/sha512"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/efi"
	"github.com/org/attestable-image-action/internal/testenv"
)

// TestCompanions has the events that versions of systemd-stub make of the same
// files. Boots of internal/e2e prove those of 252, 254, 257 and 262.
func TestCompanions(t *testing.T) {
	e := newDiskEditor(t, "stub257")
	path := e.copy(t)
	for name, content := range map[string]string{
		bootX64 + ".extra.d/b.cred":         "b",
		bootX64 + ".extra.d/A.CRED":         "a",
		bootX64 + ".extra.d/.c.cred":        "hidden",
		bootX64 + ".extra.d/x.raw":          "x",
		bootX64 + ".extra.d/y.confext.raw":  "y",
		"loader/credentials/all.cred":       "all",
		"loader/extensions/all.raw":         "all",
		"loader/extensions/all.confext.raw": "all",
		"loader/credentials/caf\u00e9.cred": "not ASCII",
	} {
		write(t, path, name, []byte(content))
	}
	const (
		credentials = "12 credentials: EFI/BOOT/BOOTX64.EFI.extra.d/A.CRED, EFI/BOOT/BOOTX64.EFI.extra.d/b.cred"
		global      = "12 credentials for every image: loader/credentials/all.cred"
		sysext      = "13 system extensions: EFI/BOOT/BOOTX64.EFI.extra.d/x.raw"
		confext     = "12 configuration extensions: EFI/BOOT/BOOTX64.EFI.extra.d/y.confext.raw"
	)
	for stub, want := range map[string][]string{
		"252": {credentials, global, sysext + ", EFI/BOOT/BOOTX64.EFI.extra.d/y.confext.raw"},
		"255": {credentials, global, sysext + ", EFI/BOOT/BOOTX64.EFI.extra.d/y.confext.raw"},
		"256": {credentials, global, sysext, confext},
		"257": {credentials, global, sysext, confext},
		"258": {
			credentials, global, sysext, "13 system extensions for every image: loader/extensions/all.raw",
			confext, "12 configuration extensions for every image: loader/extensions/all.confext.raw",
		},
	} {
		t.Run(stub, func(t *testing.T) {
			write(t, path, bootX64, testenv.UKI(0x8664, stub))
			p, err := Disk(t.Context(), openDisk(t, path), Options{PCRs: []int{12, 13}})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, event := range p.Events {
				if event.PCR == 12 || event.PCR == 13 {
					got = append(got, fmt.Sprint(event.PCR, " ", event.Description))
				}
			}
			chain, err := FindBootChain(t.Context(), openDisk(t, path), "")
			if err != nil || len(chain.Companions) != strings.Count(strings.Join(want, ""), "EFI/")+strings.Count(strings.Join(want, ""), "loader/") || chain.CommandLine != "ro quiet" {
				t.Errorf("boot chain %+v, %v", chain, err)
			}
			if strings.Join(got, "\n") != strings.Join(want, "\n") {
				t.Errorf("events are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// TestArchive has cpio read what is made for the kernel.
func TestArchive(t *testing.T) {
	content, size := cpioArchive(".extra/credentials", 0o500, 0o400,
		cpioMember{"one", strings.NewReader("1"), 1}, cpioMember{"two.cred", strings.NewReader("22222"), 5}, cpioMember{"empty", strings.NewReader(""), 0})
	archive, err := io.ReadAll(content)
	if err != nil || int64(len(archive)) != size || size%4 != 0 {
		t.Fatalf("read %d bytes of %d: %v", len(archive), size, err)
	}
	for option, want := range map[string]string{
		"--list":      ".extra .extra/credentials .extra/credentials/one .extra/credentials/two.cred .extra/credentials/empty",
		"--to-stdout": "122222",
	} {
		args := []string{"--quiet", "--extract", option}
		if option == "--list" {
			args = []string{"--quiet", option}
		}
		cmd := exec.Command(testenv.Tool(t, "cpio"), args...)
		cmd.Stdin = bytes.NewReader(archive)
		out, err := cmd.Output()
		if got := strings.Join(strings.Fields(string(out)), " "); err != nil || got != want {
			t.Errorf("cpio %s: %v, %q, want %q", option, err, got, want)
		}
	}
	cmd := exec.Command(testenv.Tool(t, "cpio"), "--quiet", "--list", "--verbose", "--numeric-uid-gid")
	cmd.Stdin = bytes.NewReader(archive)
	out, err := cmd.Output()
	if err != nil || !strings.Contains(string(out), "dr-x------") || !strings.Contains(string(out), "dr-xr-xr-x") || strings.Count(string(out), "-r-------- ") != 3 {
		t.Errorf("cpio lists, %v:\n%s", err, out)
	}
}

// TestDefaultProfile picks sections as systemd-stub does.
func TestDefaultProfile(t *testing.T) {
	for name, test := range map[string]struct {
		stub      int
		sections  string
		want      string
		ambiguous bool
	}{
		"no profile":        {257, ".text .linux .cmdline", ".linux .cmdline", false},
		"one that adds":     {257, ".linux .profile .cmdline", ".linux .profile .cmdline", false},
		"one that replaces": {257, ".cmdline .linux .profile .cmdline", ".linux .profile .cmdline", false},
		"two":               {257, ".linux .cmdline .profile .osrel .profile .cmdline .initrd", ".linux .cmdline .profile .osrel", false},
		"all replaced":      {257, ".cmdline .initrd .profile .initrd .cmdline .profile .initrd", ".profile .initrd .cmdline", false},
		"twice in the base": {257, ".linux .cmdline .cmdline", ".linux .cmdline", true},
		"twice in one":      {257, ".cmdline .profile .cmdline .cmdline", ".profile .cmdline", true},
		"too old":           {256, ".linux .cmdline .profile .cmdline", ".linux .cmdline .profile", true},
		"too old for one":   {256, ".linux .cmdline .profile", ".linux .cmdline .profile", false},
	} {
		t.Run(name, func(t *testing.T) {
			var sections []efi.Section
			for i, s := range strings.Fields(test.sections) {
				sections = append(sections, efi.Section{Name: s, RawOffset: uint32(i)})
			}
			chosen, err := defaultProfile(sections, test.stub)
			var got []string
			for _, s := range chosen {
				got = append(got, s.Name)
				// A profile's section stands behind the base's.
				if want := strings.LastIndex(test.sections, s.Name); name == "one that replaces" && s.RawOffset != uint32(strings.Count(test.sections[:want], " ")) {
					t.Errorf("%s is the section at place %d", s.Name, s.RawOffset)
				}
			}
			if strings.Join(got, " ") != test.want || (err != nil) != test.ambiguous {
				t.Errorf("sections %q, %v; want %q", got, err, test.want)
			}
		})
	}
}

// TestSameKernel compares names as C strings of a length.
func TestSameKernel(t *testing.T) {
	for _, test := range []struct {
		uname, wanted string
		want          bool
	}{
		{"6.12.1", "6.12.1", true},
		{"6.12.1", "6.12.1\x00", true},
		{"6.12.1\x00", "6.12.1\x00rest", true},
		{"6.12.1", "6.12", true},
		{"6.12", "6.12.1", false},
		{"6.12.1", "6.13.1", false},
		{"6.12.1", "", true},
	} {
		if got := sameKernel([]byte(test.uname), []byte(test.wanted)); got != test.want {
			t.Errorf("%q for %q: %v", test.wanted, test.uname, got)
		}
	}
}

// TestAddons checks what an add-on changes in each PCR.
func TestAddons(t *testing.T) {
	e := newDiskEditor(t, "stub257")
	path := e.copy(t)
	addon := testenv.PE(0x8664, testenv.PESection{Name: ".cmdline", Data: []byte("debug")}, testenv.PESection{Name: ".uname", Data: []byte("other")})
	write(t, path, bootX64, testenv.UKI(0x8664, "257"))
	write(t, path, "loader/addons/one.addon.efi", addon)
	o := Options{PCRs: []int{4, 9, 12}}
	p, err := Disk(t.Context(), openDisk(t, path), o)
	if err != nil {
		t.Fatal(err)
	}
	// The image says nothing of its kernel's name: the add-on's counts for nothing.
	want := sha512.Sum384(encodeUTF16("debug"))
	found := false
	for _, event := range p.Events {
		found = found || event.PCR == 12 && bytes.Equal(event.Digest, want[:])
	}
	if p.CommandLine != "ro quiet debug" {
		t.Errorf("the kernel gets %q", p.CommandLine)
	}
	if !found || len(p.Images) != 3 || p.Images[1].Path != "loader/addons/one.addon.efi" {
		t.Errorf("images %v, events %v", p.Images, p.Events)
	}
	with := p.Value(9)
	write(t, path, bootX64, testenv.UKI(0x8664, "257", testenv.PESection{Name: ".uname", Data: []byte("6.12")}))
	if p, err = Disk(t.Context(), openDisk(t, path), o); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p.Value(12), make([]byte, 48)) || len(p.Images) != 3 || bytes.Equal(p.Value(9), with) {
		t.Errorf("an add-on for another kernel: PCR 12 is %x, images %v", p.Value(12), p.Images)
	}
}

// TestAddonDenied has an add-on that Secure Boot does not let run: systemd-stub
// would boot without it.
func TestAddonDenied(t *testing.T) {
	signer := testenv.NewSigner(t, "signer", nil)
	lists := testenv.SignatureList(efi.CertX509, signer.Certificate.Raw)
	e := newDiskEditor(t, "stub257")
	path := e.copy(t)
	write(t, path, bootX64, signer.Sign(t, testenv.UKI(0x8664, "257")))
	addon := testenv.PE(0x8664, testenv.PESection{Name: ".cmdline", Data: []byte("debug")})
	write(t, path, bootX64+".extra.d/debug.addon.efi", addon)
	o := Options{SecureBoot: SecureBoot{PK: lists, DB: lists}}
	_, err := Disk(t.Context(), openDisk(t, path), o)
	wantError(t, err, "PCR 4 cannot be predicted: add-on EFI/BOOT/BOOTX64.EFI.extra.d/debug.addon.efi on the EFI system partition: with these Secure Boot variables firmware does not let it run: EFI/BOOT/BOOTX64.EFI.extra.d/debug.addon.efi is not signed")
	write(t, path, bootX64+".extra.d/debug.addon.efi", signer.Sign(t, addon))
	if _, err := Disk(t.Context(), openDisk(t, path), o); err != nil {
		t.Error(err)
	}
}
