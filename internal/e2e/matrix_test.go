package e2e

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/efi"
	"github.com/org/attestable-image-action/internal/testenv"
)

// A guest is one architecture of the boot matrix.
type guest struct {
	name, debian string // of the architecture: as here, and as in Debian
	efi          string // in the names of EFI files
	boot         string // the boot path
	machine      uint16
}

var guests = []guest{
	{"x86_64", "amd64", "x64", "EFI/BOOT/BOOTX64.EFI", 0x8664},
	{"aarch64", "arm64", "aa64", "EFI/BOOT/BOOTAA64.EFI", 0xaa64},
}

// stubs are the versions of systemd-stub that Debian ships, oldest first.
var stubs = []struct{ version, suite string }{
	{"252", "bookworm"}, {"254", "bookworm-backports"}, {"257", "trixie"}, {"newest", "sid"},
}

// kernel is the kernel of every matrix boot. It need not find a root: the
// PCRs are compared when it takes over.
func (g guest) kernel(t *testing.T) []byte {
	t.Helper()
	name := "linux-image-cloud-" + g.debian
	depends := testenv.DebianDepends(t, "trixie", g.debian, name)
	return testenv.DebianFile(t, "trixie", g.debian, depends, "boot/vmlinuz-*")
}

// uki makes a unified kernel image with a stub of a Debian suite.
func (g guest) uki(t *testing.T, suite string, more ...testenv.PESection) []byte {
	t.Helper()
	stub := testenv.DebianFile(t, suite, g.debian, "systemd-boot-efi", "usr/lib/systemd/boot/efi/linux"+g.efi+".efi.stub")
	console := map[string]string{"x86_64": "ttyS0", "aarch64": "ttyAMA0"}[g.name]
	sections := append([]testenv.PESection{
		{Name: ".osrel", Data: []byte("ID=matrix\nVERSION_ID=1\n")},
		{Name: ".cmdline", Data: []byte("console=" + console + " panic=-1")},
		{Name: ".uname", Data: []byte("6.12-matrix")},
		{Name: ".initrd", Data: []byte("070701 no archive, and nobody asks for one\n")},
	}, more...)
	// What stands behind the first .profile belongs to a profile.
	at := slices.IndexFunc(sections, func(s testenv.PESection) bool { return s.Name == ".profile" })
	if at < 0 {
		at = len(sections)
	}
	image, err := testenv.AddSections(stub, slices.Insert(sections, at, testenv.PESection{Name: ".linux", Data: g.kernel(t)})...)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// bootDisk makes a disk with these files on its EFI system partition, some of
// them with FAT's read-only attribute.
func bootDisk(t *testing.T, files map[string][]byte, readOnly ...string) string {
	t.Helper()
	const size, start = 200 << 20, 1 << 20 // bytes
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	partition := fmt.Sprintf("%s@@%d", path, start)
	tool := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(testenv.Tool(t, name), args...)
		cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
	}
	tool("sgdisk", "--clear", "--new=1:2048:0", "--typecode=1:ef00", "--change-name=1:EFI", path)
	tool("mformat", "-i", partition, "-F", "-T", fmt.Sprint((size-start-1<<20)/512), "-h", "64", "-s", "32", "::")
	made := map[string]bool{}
	for name, content := range files {
		for i, c := range name {
			if c == '/' && !made[name[:i]] {
				made[name[:i]] = true
				tool("mmd", "-i", partition, "::"+name[:i])
			}
		}
		file := filepath.Join(dir, "file")
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		tool("mcopy", "-i", partition, file, "::"+name)
	}
	for _, name := range readOnly {
		tool("mattrib", "-i", partition, "+r", "::"+name)
	}
	return path
}

// comparison is what `boot --format json` says.
type comparison struct {
	Equal bool
	PCRs  []struct {
		PCR                 int
		Equal               bool
		Predicted, Recorded string
		Events              []struct {
			Equal                                  bool
			Type, Description, Predicted, Recorded string
		}
	}
}

// bootsAsPredicted boots a disk; every PCR asked for must be as predicted.
func bootsAsPredicted(t *testing.T, disk string, flags ...string) {
	t.Helper()
	for _, name := range []string{"qemu-system-x86_64", "qemu-system-aarch64", "swtpm"} {
		testenv.Tool(t, name)
	}
	serial := filepath.Join(t.TempDir(), "serial.log")
	result := run(t, nil, command(t), append([]string{"boot", "--format", "json", "--serial-log", serial}, append(flags, disk)...)...)
	start := strings.Index(result.output, "{")
	var c comparison
	if start < 0 || json.Unmarshal([]byte(result.output[start:strings.LastIndex(result.output, "}")+1]), &c) != nil {
		log, _ := os.ReadFile(serial)
		t.Fatalf("boot: %v\n%s\n%s", result.err, result.output, log)
	}
	for _, pcr := range c.PCRs {
		if pcr.Equal {
			continue
		}
		t.Errorf("PCR %d is predicted as %s, the boot recorded %s", pcr.PCR, pcr.Predicted, pcr.Recorded)
		for _, e := range pcr.Events {
			t.Logf("  %v %s %s: %s predicted, %s recorded", e.Equal, e.Type, e.Description, e.Predicted, e.Recorded)
		}
	}
	if len(c.PCRs) == 0 || result.err != nil != !c.Equal {
		t.Errorf("boot: %v with %d PCRs", result.err, len(c.PCRs))
	}
}

// identity is how Secure Boot comes to let images run.
type identity struct {
	sign func(image []byte) []byte
	db   func(t *testing.T, images [][]byte) []byte
	pk   *testenv.Signer
}

// identities are, by the shape of the matrix, the ways in which db can vouch for
// an image.
func identities(t *testing.T) map[string]*identity {
	t.Helper()
	ca := testenv.NewSigner(t, "matrix CA", nil)
	leaf := testenv.NewSigner(t, "matrix signer", ca)
	other := testenv.NewSigner(t, "another signer", nil)
	byLeaf := func(image []byte) []byte { return leaf.Sign(t, image) }
	certificates := func(signers ...*testenv.Signer) func(*testing.T, [][]byte) []byte {
		return func(*testing.T, [][]byte) (db []byte) {
			for _, s := range signers {
				db = append(db, testenv.SignatureList(efi.CertX509, s.Certificate.Raw)...)
			}
			return db
		}
	}
	return map[string]*identity{
		"own certificate": {byLeaf, certificates(leaf), ca},
		"issuing CA":      {byLeaf, certificates(other, ca), ca},
		"two signatures":  {func(image []byte) []byte { return other.Sign(t, leaf.Sign(t, image)) }, certificates(other, ca), ca},
		"digest":          {slices.Clone[[]byte], digests, ca},
	}
}

// digests is a db of the SHA-256 Authenticode digests of PE images.
func digests(t *testing.T, images [][]byte) []byte {
	t.Helper()
	var entries [][]byte
	for _, content := range images {
		image, err := efi.ParseImage(bytes.NewReader(content), int64(len(content)))
		if err != nil {
			continue // no PE image
		}
		h := sha256.New()
		if err := image.Authenticode(h); err != nil {
			t.Fatal(err)
		}
		entries = append(entries, h.Sum(nil))
	}
	return testenv.SignatureList(efi.CertSHA256, entries...)
}

// flags writes the variables to files.
func (i *identity) flags(t *testing.T, images [][]byte) []string {
	t.Helper()
	dir := t.TempDir()
	var flags []string
	pk := testenv.SignatureList(efi.CertX509, i.pk.Certificate.Raw)
	for name, content := range map[string][]byte{"PK": pk, "KEK": pk, "db": i.db(t, images)} {
		path := filepath.Join(dir, name+".esl")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		flags = append(flags, "--"+name, path)
	}
	return flags
}

// refusesToPredict demands that a disk is refused for a reason, and not booted.
func refusesToPredict(t *testing.T, disk, reason string) {
	t.Helper()
	run(t, nil, command(t), "boot", disk).refuses(t, reason)
}

// files are those of an EFI system partition, by path.
type files map[string][]byte

// with returns the files and more.
func (f files) with(more files) files {
	all := maps.Clone(f)
	maps.Copy(all, more)
	return all
}

// parts are what the disks of one stub and architecture are made of.
type parts struct {
	t      *testing.T
	guest  guest
	stub   string // version
	suite  string
	kernel []byte
	uki    []byte
	loader []byte // systemd-boot
}

// addon makes an add-on with Debian's stub for add-ons.
func (p parts) addon(sections ...testenv.PESection) []byte {
	p.t.Helper()
	stub := testenv.DebianFile(p.t, p.suite, p.guest.debian, "systemd-boot-efi", "usr/lib/systemd/boot/efi/addon"+p.guest.efi+".efi.stub")
	image, err := testenv.AddSections(stub, sections...)
	if err != nil {
		p.t.Fatal(err)
	}
	return image
}

// direct is a disk whose firmware starts the unified kernel image.
func (p parts) direct() files { return files{p.guest.boot: p.uki} }

// throughLoader is one whose firmware starts systemd-boot.
func (p parts) throughLoader() files {
	return files{
		p.guest.boot: p.loader, "EFI/Linux/matrix.efi": p.uki,
		"loader/loader.conf": []byte("timeout 0\nconsole-mode keep\n"),
	}
}

// companions are files of every kind but add-ons; beside is the image's path.
func companionFiles(beside string) files {
	return files{
		beside + ".extra.d/second.cred":       []byte("b"),
		beside + ".extra.d/First.CRED":        []byte("a credential\n"),
		beside + ".extra.d/.hidden.cred":      []byte("nobody looks at it"),
		beside + ".extra.d/tools.raw":         bytes.Repeat([]byte("sysext"), 1000),
		beside + ".extra.d/tools.confext.raw": bytes.Repeat([]byte("confext"), 999),
		beside + ".extra.d/readme.txt":        []byte("nobody looks at it either"),
		"loader/credentials/all.cred":         []byte("for all"),
		"loader/credentials/ALL2.CRE":         []byte("no credential"),
		"loader/extensions/all.raw":           []byte("for all, and odd"),
		"loader/extensions/all.confext.raw":   []byte("for all"),
	}
}

// A shape is a way to boot.
type shape struct {
	name   string
	stubs  string // for which versions of systemd-stub, all when empty
	files  func(parts) files
	secure string // a name of identities, empty when Secure Boot is off
	pcrs   string // all when empty
}

const (
	allPCRs    = "4,5,7,9,11,12,13"
	withoutPCR = "4,5,7,11,12,13" // but 9
)

var shapes = []shape{
	{name: "direct", files: parts.direct},
	{name: "through systemd-boot", files: parts.throughLoader},
	{name: "type 1 entry", files: func(p parts) files {
		return files{
			p.guest.boot: p.loader, "loader/loader.conf": []byte("timeout 0\n"),
			"vmlinuz": p.kernel, "initrd.img": []byte("070701 no archive either\n"),
			"loader/entries/matrix.conf": []byte("title Matrix\nlinux /vmlinuz\ninitrd /initrd.img\noptions panic=-1\noptions quiet\n"),
		}
	}},
	{name: "own certificate", files: parts.direct, secure: "own certificate"},
	{name: "issuing CA", files: parts.direct, secure: "issuing CA"},
	{name: "digest", files: parts.direct, secure: "digest"},
	{name: "two signatures", files: parts.direct, secure: "two signatures"},
	{name: "signed, through systemd-boot", files: parts.throughLoader, secure: "own certificate"},
	{name: "companions", files: func(p parts) files { return p.direct().with(companionFiles(p.guest.boot)) }},
	{name: "companions, through systemd-boot", secure: "own certificate", files: func(p parts) files {
		return p.throughLoader().with(companionFiles("EFI/Linux/matrix.efi"))
	}},
	{name: "add-on", files: func(p parts) files {
		if p.stub == "252" {
			// It knows none, and passes over the file.
			return p.direct().with(files{p.guest.boot + ".extra.d/one.addon.efi": []byte("anything")})
		}
		return p.direct().with(files{
			p.guest.boot + ".extra.d/one.addon.efi": p.addon(testenv.PESection{Name: ".cmdline", Data: []byte("quiet")}),
			p.guest.boot + ".extra.d/one.cred":      []byte("beside it"),
		})
	}},
	{name: "signed add-ons", stubs: "257 newest", secure: "two signatures", files: func(p parts) files {
		return p.direct().with(files{
			"loader/addons/a.addon.efi":              p.addon(testenv.PESection{Name: ".cmdline", Data: []byte("first=1")}),
			p.guest.boot + ".extra.d/c.addon.efi":    p.addon(testenv.PESection{Name: ".cmdline", Data: []byte("third=3\x00")}),
			p.guest.boot + ".extra.d/B.Addon.efi":    p.addon(testenv.PESection{Name: ".cmdline", Data: []byte("second=2")}, testenv.PESection{Name: ".uname", Data: []byte("6.12-mat")}),
			p.guest.boot + ".extra.d/d.addon.efi":    p.addon(testenv.PESection{Name: ".cmdline", Data: []byte("other=4")}, testenv.PESection{Name: ".uname", Data: []byte("6.13\x00")}),
			p.guest.boot + ".extra.d/none.addon.efi": p.addon(testenv.PESection{Name: ".sbat", Data: []byte("sbat,1\n")}),
		})
	}},
	{name: "add-ons with initrds", stubs: "257 newest", files: func(p parts) files {
		return p.direct().with(companionFiles(p.guest.boot)).with(files{
			"loader/addons/one.addon.efi": p.addon(testenv.PESection{Name: ".initrd", Data: []byte("first\n")}, testenv.PESection{Name: ".ucode", Data: []byte("microcode 1")}),
			p.guest.boot + ".extra.d/two.addon.efi": p.addon(testenv.PESection{Name: ".ucode", Data: []byte("microcode two")},
				testenv.PESection{Name: ".cmdline", Data: []byte("quiet")}, testenv.PESection{Name: ".initrd", Data: []byte("second")}),
		})
	}},
	{name: "profiles", stubs: "257 newest", files: func(p parts) files {
		return files{p.guest.boot: p.guest.uki(p.t, p.suite, profiles...)}
	}},
	{name: "profiles, through systemd-boot", stubs: "257 newest", secure: "own certificate", files: func(p parts) files {
		return p.throughLoader().with(files{"EFI/Linux/matrix.efi": p.guest.uki(p.t, p.suite, profiles...)})
	}},
	{name: "random seed in use", stubs: "newest", pcrs: withoutPCR, files: func(p parts) files {
		return p.direct().with(files{randomSeed: bytes.Repeat([]byte("seed"), 16)})
	}},
}

// profiles are two of a unified kernel image: the first has a command line of its
// own, the second another and an initrd.
var profiles = []testenv.PESection{
	{Name: ".profile", Data: []byte("ID=main\n")},
	{Name: ".cmdline", Data: []byte("console=ttyS0 panic=-1 profile=main")},
	{Name: ".profile", Data: []byte("ID=debug\nTITLE=Debugging\n")},
	{Name: ".cmdline", Data: []byte("profile=debug")},
	{Name: ".initrd", Data: []byte("070701 for debugging\n")},
}

// randomSeed, with FAT's read-only attribute, keeps systemd-stub 262 from giving
// the initrd what differs from machine to machine.
const randomSeed = "loader/random-seed"

// always are the boots of the matrix that every run of the tests makes.
var always = map[string]bool{
	"x86_64/stub 252/through systemd-boot": true,
	"x86_64/stub 254/issuing CA":           true,
	"x86_64/stub 257/type 1 entry":         true,
	"x86_64/stub 257/add-ons with initrds": true,
	"x86_64/stub newest/direct":            true,
	"x86_64/stub newest/signed add-ons":    true,
	"aarch64/stub 257/direct":              true,
}

// TestBootMatrix boots shapes that are predicted, under OVMF and AAVMF, and
// compares all PCRs: some of them always, all of them when
// ATTESTABLE_IMAGE_MATRIX is set, as scripts/boot-matrix does.
func TestBootMatrix(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: the boot matrix takes minutes")
	}
	full := os.Getenv("ATTESTABLE_IMAGE_MATRIX") != ""
	for _, g := range guests {
		for _, stub := range stubs {
			name := g.name + "/stub " + stub.version
			var wanted []shape
			for _, s := range shapes {
				if (s.stubs == "" || slices.Contains(strings.Fields(s.stubs), stub.version)) && (full || always[name+"/"+s.name]) {
					wanted = append(wanted, s)
				}
			}
			if len(wanted) == 0 {
				continue
			}
			t.Run(name, func(t *testing.T) {
				loader := testenv.DebianFile(t, stub.suite, g.debian, "systemd-boot-efi", "usr/lib/systemd/boot/efi/systemd-boot"+g.efi+".efi")
				made := parts{t, g, stub.version, stub.suite, g.kernel(t), g.uki(t, stub.suite), loader}
				ways := identities(t)
				for _, s := range wanted {
					t.Run(s.name, func(t *testing.T) {
						made.t = t
						made.boots(s, ways[s.secure])
					})
				}
			})
		}
	}
}

// boots makes the disk of a shape, and compares a boot of it with the prediction.
func (p parts) boots(s shape, secure *identity) {
	t := p.t
	t.Helper()
	content := s.files(p)
	flags := []string{"--pcr", cmp.Or(s.pcrs, allPCRs)}
	if secure != nil {
		for name, image := range content {
			if bytes.HasPrefix(image, []byte("MZ")) && strings.HasSuffix(strings.ToLower(name), ".efi") {
				content[name] = secure.sign(image)
			}
		}
		flags = append(flags, secure.flags(t, slices.Collect(maps.Values(content)))...)
	}
	var readOnly []string
	if _, ok := content[randomSeed]; p.stub == "newest" && !ok {
		content[randomSeed] = nil
		readOnly = append(readOnly, randomSeed)
	}
	disk := bootDisk(t, content, readOnly...)
	if p.guest.name == "aarch64" && p.stub == "252" {
		// Its programs do not say what they are.
		refusesToPredict(t, disk, "what it loads next cannot be told")
		return
	}
	bootsAsPredicted(t, disk, flags...)
}
