package measure

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// tinyDisk makes a disk of 64 KiB that can be predicted: a GUID partition table
// by sgdisk, and a FAT12 file system by mtools with a unified kernel image.
// More files may stand beside it, by their paths.
func tinyDisk(t testing.TB, uki []byte, more ...testenv.PESection) []byte {
	t.Helper()
	const first, last = 34, 94 // sectors of the EFI system partition
	dir := t.TempDir()
	path, image := filepath.Join(dir, "tiny.raw"), filepath.Join(dir, "uki.efi")
	for name, content := range map[string][]byte{path: make([]byte, 64<<10), image: uki} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	esp := fmt.Sprintf("%s@@%d", path, first*512)
	for _, command := range [][]string{
		{"sgdisk", "--clear", "--set-alignment=1", fmt.Sprintf("--new=1:%d:%d", first, last), "--typecode=1:ef00", path},
		{"mformat", "-i", esp, "-T", fmt.Sprint(last - first + 1), "-h", "1", "-s", "1", "-r", "1", "-c", "1", "::"},
		{"mmd", "-i", esp, "::EFI", "::EFI/BOOT"},
		{"mcopy", "-i", esp, image, "::EFI/BOOT/BOOTX64.EFI"},
	} {
		if out, err := exec.Command(testenv.Tool(t, command[0]), command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
		}
	}
	for _, file := range more {
		if err := os.WriteFile(image, file.Data, 0o600); err != nil {
			t.Fatal(err)
		}
		for i, c := range file.Name {
			if c == '/' {
				_ = exec.Command(testenv.Tool(t, "mmd"), "-i", esp, "-D", "s", "::"+file.Name[:i]).Run() // it may be there
			}
		}
		if out, err := exec.Command(testenv.Tool(t, "mcopy"), "-i", esp, image, "::"+file.Name).CombinedOutput(); err != nil {
			t.Fatalf("mcopy: %v\n%s", err, out)
		}
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// fixGPT makes the checksums of a partition table right, so that a changed disk
// is read on behind them.
func fixGPT(disk []byte) {
	le := binary.LittleEndian
	header := disk[512:]
	table, size := le.Uint64(header[72:]), uint64(le.Uint32(header[80:]))*uint64(le.Uint32(header[84:]))
	if table < uint64(len(disk)/512) && size <= uint64(len(disk))-table*512 {
		le.PutUint32(header[88:], crc32.ChecksumIEEE(disk[table*512:table*512+size]))
	}
	if n := le.Uint32(header[12:]); n >= 92 && n <= 512 {
		le.PutUint32(header[16:], 0)
		le.PutUint32(header[16:], crc32.ChecksumIEEE(header[:n]))
	}
}

// TestTinyDisk shows that FuzzDisk begins with disks that can be predicted.
func TestTinyDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tiny.raw")
	if err := os.WriteFile(path, tinyDisk(t, testenv.UKI(0x8664, "257.13-1")), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := Disk(t.Context(), openDisk(t, path), Options{PCRs: []int{2, 4, 5, 7, 9, 11, 12, 13}})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Images) != 2 || p.Architecture != "x86_64" {
		t.Errorf("boot chain %v for %s", p.Images, p.Architecture)
	}
}

// FuzzDisk predicts the boot of changed disks: whatever they hold, there is a
// whole prediction or an error of one line.
func FuzzDisk(f *testing.F) {
	signer := testenv.NewSigner(f, "signer", nil)
	uki := testenv.UKI(0x8664, "257.13-1")
	tiny := tinyDisk(f, uki)
	f.Add(tiny, false)
	f.Add(tinyDisk(f, signer.Sign(f, uki)), true)
	f.Add(tinyDisk(f, testenv.UKI(0x8664, "252", testenv.PESection{Name: ".sbat", Data: []byte("sbat,1")})), false)
	f.Add(tinyDisk(f, testenv.PE(0x8664, testenv.PESection{Name: ".sdmagic", Data: []byte("LoaderInfo: systemd-boot 257 ####")})), false)
	f.Add(tinyDisk(f, testenv.UKI(0x8664, "258", testenv.PESection{Name: ".profile", Data: []byte("ID=a")}, testenv.PESection{Name: ".cmdline", Data: []byte("a")}),
		testenv.PESection{Name: "EFI/BOOT/BOOTX64.EFI.extra.d/a.cred", Data: []byte("a")},
		testenv.PESection{Name: "loader/extensions/b.confext.raw", Data: []byte("bb")},
		testenv.PESection{Name: "loader/addons/c.addon.efi", Data: testenv.PE(0x8664, testenv.PESection{Name: ".cmdline", Data: []byte("c")}, testenv.PESection{Name: ".initrd", Data: []byte("c")})},
	), false)
	s := schema(f)
	lists := testenv.SignatureList([16]byte{0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72}, signer.Certificate.Raw)
	f.Fuzz(func(t *testing.T, content []byte, secureBoot bool) {
		if len(content) < 2048 || len(content) > 1<<20 {
			return
		}
		content = append([]byte(nil), content...)
		fixGPT(content)
		path := filepath.Join(t.TempDir(), "disk.raw")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		var o Options
		if secureBoot {
			o.SecureBoot = SecureBoot{PK: lists, DB: lists}
		}
		d := openDisk(t, path)
		o.PCRs = []int{2, 4, 5, 7, 11, 12, 13}
		p, err := Disk(t.Context(), d, o)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "measure "+path+": ") || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Fatalf("error %q", err)
			}
			return
		}
		if secureBoot != (len(p.Authorities) > 0) || len(p.Images) == 0 {
			t.Fatalf("Secure Boot is on: %t, but authorities are %v and images %v", secureBoot, p.Authorities, p.Images)
		}
		// A file of n clusters is read by pieces of it: once whole, and its sections
		// and its kernel again.
		if read := d.BytesRead(); read > 8*int64(len(content))+1<<20 {
			t.Fatalf("read %d bytes of a disk of %d", read, len(content))
		}
		document, err := p.Document().Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if err := validate(t, s, document); err != nil {
			t.Fatal(err)
		}
	})
}
