package e2e

import (
	"bytes"
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
	image, err := testenv.AddSections(stub, append(sections, testenv.PESection{Name: ".linux", Data: g.kernel(t)})...)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// bootDisk makes a disk with these files on its EFI system partition.
func bootDisk(t *testing.T, files map[string][]byte) string {
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
		"own certificate":              {byLeaf, certificates(leaf), ca},
		"signed, through systemd-boot": {byLeaf, certificates(leaf), ca},
		"issuing CA":                   {byLeaf, certificates(other, ca), ca},
		"two signatures":               {func(image []byte) []byte { return other.Sign(t, leaf.Sign(t, image)) }, certificates(other, ca), ca},
		"digest":                       {slices.Clone[[]byte], digests, ca},
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

// always are the boots of the matrix that every run of the tests makes.
var always = map[string]bool{
	"x86_64/stub 252/through systemd-boot": true,
	"x86_64/stub newest/direct":            true,
	"x86_64/stub 257/type 1 entry":         true,
	"x86_64/stub 254/issuing CA":           true,
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
			shapes := []string{"direct", "through systemd-boot", "type 1 entry",
				"own certificate", "issuing CA", "digest", "two signatures", "signed, through systemd-boot"}
			wanted := func(shape string) bool { return full || always[name+"/"+shape] }
			if !slices.ContainsFunc(shapes, wanted) {
				continue
			}
			t.Run(name, func(t *testing.T) {
				pcrs := "4,5,7,9,11,12,13"
				if stub.version == "newest" {
					pcrs = "4,5,7,11,12,13"
				}
				uki := g.uki(t, stub.suite)
				loader := testenv.DebianFile(t, stub.suite, g.debian, "systemd-boot-efi", "usr/lib/systemd/boot/efi/systemd-boot"+g.efi+".efi")
				configuration := []byte("timeout 0\nconsole-mode keep\n")
				disks := map[string]struct {
					files  map[string][]byte
					pcrs   string
					secure *identity
				}{
					"direct": {map[string][]byte{g.boot: uki}, pcrs, nil},
					"through systemd-boot": {map[string][]byte{
						g.boot: loader, "EFI/Linux/matrix.efi": uki, "loader/loader.conf": configuration,
					}, pcrs, nil},
					"type 1 entry": {map[string][]byte{
						g.boot: loader, "loader/loader.conf": configuration,
						"vmlinuz": g.kernel(t), "initrd.img": []byte("070701 no archive either\n"),
						"loader/entries/matrix.conf": []byte("title Matrix\nlinux /vmlinuz\ninitrd /initrd.img\noptions panic=-1\noptions quiet\n"),
					}, "4,5,7,9,11,12,13", nil},
				}
				for shape, identity := range identities(t) {
					disk := disks["direct"]
					if strings.HasSuffix(shape, "systemd-boot") {
						disk = disks["through systemd-boot"]
					}
					disk.secure, disk.files = identity, maps.Clone(disk.files)
					for name, content := range disk.files {
						if strings.HasSuffix(strings.ToLower(name), ".efi") {
							disk.files[name] = identity.sign(content)
						}
					}
					disks[shape] = disk
				}
				for _, shape := range shapes {
					if wanted(shape) {
						t.Run(shape, func(t *testing.T) {
							if g.name == "aarch64" && stub.version == "252" {
								// Its programs do not say what they are.
								refusesToPredict(t, bootDisk(t, disks[shape].files), "what it loads next cannot be told")
								return
							}
							flags := []string{"--pcr", disks[shape].pcrs}
							if identity := disks[shape].secure; identity != nil {
								flags = append(flags, identity.flags(t, slices.Collect(maps.Values(disks[shape].files)))...)
							}
							bootsAsPredicted(t, bootDisk(t, disks[shape].files), flags...)
						})
					}
				}
			})
		}
	}
}
