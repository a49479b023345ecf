package measure

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// espOffset is where the EFI system partition of a golden disk begins, in bytes.
const espOffset = 2048 * 512

// diskEditor changes copies of a golden disk with mtools.
type diskEditor struct {
	golden string
	uki    []byte
}

func newDiskEditor(t testing.TB, name string) *diskEditor {
	t.Helper()
	e := &diskEditor{golden: testenv.GoldenDisk(t, name)}
	out := filepath.Join(t.TempDir(), "uki.efi")
	mtools(t, e.golden, "mcopy", "::EFI/BOOT/BOOTX64.EFI", out)
	var err error
	if e.uki, err = os.ReadFile(out); err != nil {
		t.Fatal(err)
	}
	return e
}

// mtools runs a program of mtools on the EFI system partition of a disk.
func mtools(t testing.TB, disk, program string, args ...string) {
	t.Helper()
	command := append([]string{"-i", disk + "@@" + strconv.Itoa(espOffset)}, args...)
	if out, err := exec.Command(testenv.Tool(t, program), command...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
}

// copy makes a sparse copy of the golden disk.
func (e *diskEditor) copy(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if out, err := exec.Command("cp", "--sparse=always", e.golden, path).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	return path
}

// write puts a file onto the EFI system partition, and makes its directories.
func write(t testing.TB, disk, path string, content []byte) {
	t.Helper()
	for i, c := range path {
		if c == '/' && !strings.EqualFold(path[:i], "EFI") && !strings.EqualFold(path[:i], "EFI/BOOT") {
			// It may be there: when it is not, mcopy fails.
			_ = exec.Command(testenv.Tool(t, "mmd"), "-i", disk+"@@"+strconv.Itoa(espOffset), "-D", "s", "::"+path[:i]).Run()
		}
	}
	file := filepath.Join(t.TempDir(), "content")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	mtools(t, disk, "mcopy", "-o", file, "::"+path)
}

const bootX64 = "EFI/BOOT/BOOTX64.EFI"

// replace puts another file at the boot path.
func replace(content []byte) func(*testing.T, string) {
	return func(t *testing.T, disk string) { write(t, disk, bootX64, content) }
}

// add puts a file beside the others.
func add(path string, content string) func(*testing.T, string) {
	return func(t *testing.T, disk string) { write(t, disk, path, []byte(content)) }
}

func overwrite(t *testing.T, disk string, offset int64, content []byte) {
	t.Helper()
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(content, offset)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// addAddon puts an add-on beside the unified kernel image.
func addAddon(image []byte) func(t *testing.T, disk string) {
	return func(t *testing.T, disk string) { write(t, disk, bootX64+".extra.d/debug.addon.efi", image) }
}

// resize changes the size in the directory entry of a short name.
func resize(t *testing.T, disk, short string, size uint32) {
	t.Helper()
	content, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(content, []byte(short))
	if at < 0 {
		t.Fatalf("no short name %q on the disk", short)
	}
	overwrite(t, disk, int64(at)+28, binary.LittleEndian.AppendUint32(nil, size))
}

// rename changes a part of a file's long name into what no program would write.
func rename(t *testing.T, disk, from, to string) {
	t.Helper()
	content, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	old, _ := bytes.CutSuffix(encodeUTF16(from), []byte{0, 0})
	renamed, _ := bytes.CutSuffix(encodeUTF16(to), []byte{0, 0})
	at := bytes.Index(content, old)
	if at < 0 || len(old) != len(renamed) {
		t.Fatalf("no name with %q on the disk, or %q is longer", from, to)
	}
	overwrite(t, disk, int64(at), renamed)
}

// TestDiskRefuses has disks that no prediction may be made for: each error is
// one sentence that names the disk and the file that is the reason.
func TestDiskRefuses(t *testing.T) {
	e := newDiskEditor(t, "stub257")
	le := binary.LittleEndian
	section := func(name, content string) testenv.PESection {
		return testenv.PESection{Name: name, Data: []byte(content)}
	}
	loader := testenv.PE(0x8664, section(".sdmagic", "#### LoaderInfo: systemd-boot 257.13-1 ####\x00"))
	hostile := testenv.PE(0x8664, section(".sdmagic", "#### LoaderInfo: \x1b[2J\n::error::boo ####\x00"))
	plainPE := testenv.PE(0x8664, section(".text", "code"))
	driver := testenv.UKI(0x8664, "257")
	le.PutUint16(driver[88+68:], 11)
	inflated := testenv.UKI(0x8664, "257")
	le.PutUint32(inflated[328+5*40+8:], 0xf0000000) // VirtualSize of .linux
	inflatedInitrd := testenv.UKI(0x8664, "257")
	le.PutUint32(inflatedInitrd[328+4*40+8:], 1<<24)
	badKernel := testenv.PE(0x8664, section(".sdmagic", "LoaderInfo: systemd-stub 257 "), section(".linux", "no PE image"))

	for name, test := range map[string]struct {
		edit func(t *testing.T, disk string)
		o    Options
		want string // "" when it can be predicted
	}{
		"good":               {},
		"PCR 7 alone":        {o: Options{PCRs: []int{7}}},
		"no boot path":       {edit: func(t *testing.T, d string) { mtools(t, d, "mdel", "::"+bootX64) }, want: "the EFI system partition has neither EFI/BOOT/BOOTX64.EFI nor EFI/BOOT/BOOTAA64.EFI: firmware would start nothing from this disk"},
		"both boot paths":    {edit: add("EFI/BOOT/BOOTAA64.EFI", "MZ"), want: "the EFI system partition has both EFI/BOOT/BOOTX64.EFI and EFI/BOOT/BOOTAA64.EFI: choose the architecture"},
		"both, one chosen":   {edit: add("EFI/BOOT/BOOTAA64.EFI", "MZ"), o: Options{Arch: "x86_64"}},
		"both, other chosen": {edit: add("EFI/BOOT/BOOTAA64.EFI", "MZ"), o: Options{Arch: "aarch64"}, want: "EFI/BOOT/BOOTAA64.EFI: read PE image: DOS header at byte 0 lies outside the file of 2 bytes: it is truncated"},
		"not for aarch64":    {o: Options{Arch: "aarch64"}, want: "the EFI system partition has no boot path for aarch64"},
		"boot path is a directory": {edit: func(t *testing.T, d string) {
			mtools(t, d, "mdel", "::"+bootX64)
			mtools(t, d, "mmd", "::"+bootX64)
		}, want: "EFI system partition: open EFI/BOOT/BOOTX64.EFI: it is a directory"},
		"credentials share clusters": {edit: func(t *testing.T, d string) {
			add("loader/credentials/name.cred", "secret")(t, d)
			resize(t, d, "NAME~1  CRE", 1<<30)
		}, want: "the files of loader/credentials say that they have 1073741824 bytes, more than the file system holds"},
		"credential whose name is a path": {edit: func(t *testing.T, d string) {
			add("loader/credentials/a-b-long-name.cred", "secret")(t, d)
			rename(t, d, "a-b", "a/b")
		}, want: `loader/credentials has a file whose name a/b-long-name.cred is a path`},
		"add-on that is none":    {edit: add(bootX64+".extra.d/debug.addon.efi", "MZ"), want: "PCR 4 cannot be predicted: add-on EFI/BOOT/BOOTX64.EFI.extra.d/debug.addon.efi on the EFI system partition: read PE image: "},
		"add-on for all, PCR 12": {edit: add("loader/addons/debug.addon.efi", "MZ"), o: Options{PCRs: []int{12}}, want: "PCR 12 cannot be predicted: add-on loader/addons/debug.addon.efi"},
		"add-on for aarch64":     {edit: addAddon(testenv.PE(0xaa64, section(".cmdline", "quiet"))), want: "EFI/BOOT/BOOTX64.EFI.extra.d/debug.addon.efi is for aarch64, what loads it for x86_64"},
		"add-on with a kernel":   {edit: addAddon(testenv.UKI(0x8664, "257")), want: "it has a section .linux, and what systemd-stub makes of that is not predicted"},
		"add-on with a tree":     {edit: addAddon(testenv.PE(0x8664, section(".dtb", "x"))), want: "it has a section .dtb, and"},
		"add-on of two lines":    {edit: addAddon(testenv.PE(0x8664, section(".cmdline", "a"), section(".cmdline", "b"))), want: "it has 2 sections .cmdline, or an empty one"},
		"add-on of a long line":  {edit: addAddon(testenv.PE(0x8664, section(".cmdline", strings.Repeat("a", 1<<17)))), want: "section .cmdline has 131072 bytes, more than the 65536 that are read"},
		"add-on with a space":    {edit: addAddon(testenv.PE(0x8664, section(".cmdline", "quiet "))), want: "its command line is empty, begins or ends with space"},
		"add-on, old stub": {edit: func(t *testing.T, d string) {
			replace(testenv.UKI(0x8664, "254"))(t, d)
			addAddon(testenv.PE(0x8664, section(".initrd", "x")))(t, d)
		}, want: "it has an initrd or microcode, which systemd-stub uses from 257 on, and this is 254"},
		"two add-ons, old stub": {edit: func(t *testing.T, d string) {
			replace(testenv.UKI(0x8664, "254"))(t, d)
			write(t, d, bootX64+".extra.d/a.addon.efi", testenv.PE(0x8664, section(".cmdline", "a")))
			write(t, d, "loader/addons/b.addon.efi", testenv.PE(0x8664, section(".cmdline", "b")))
		}, want: "releases of systemd-stub 254 measure several add-ons in different ways (loader/addons/b.addon.efi and EFI/BOOT/BOOTX64.EFI.extra.d/a.addon.efi): leave one"},
		"harmless files": {edit: func(t *testing.T, d string) {
			add("loader/credentials/README.txt", "x")(t, d)
			add("startup.nsh", "x")(t, d)
		}},
		"systemd-boot": {edit: replace(loader), want: "PCR 4 cannot be predicted: EFI/BOOT/BOOTX64.EFI is systemd-boot 257, and the EFI system partition has no boot entry for it"},
		"systemd-boot, a name that gives the runner commands": {edit: func(t *testing.T, d string) {
			write(t, d, bootX64, loader)
			write(t, d, "EFI/Linux/AAA-a-long-name.efi", []byte("text"))
			rename(t, d, "AAA", "\n::")
		}, want: `open "EFI/Linux/\n::-a-long-name.efi": firmware opens no file of the name`},
		"systemd-boot, a driver": {edit: func(t *testing.T, d string) {
			write(t, d, bootX64, loader)
			write(t, d, "EFI/systemd/drivers/ext4x64.efi", testenv.Driver(0x8664))
		}, o: Options{PCRs: []int{2}}, want: "PCR 2 cannot be predicted: EFI/BOOT/BOOTX64.EFI is systemd-boot 257, and EFI/systemd/drivers/ext4x64.efi makes it load drivers"},
		"systemd-boot, PCR 5": {edit: replace(loader), o: Options{PCRs: []int{5}}, want: "PCR 5 cannot be predicted: EFI/BOOT/BOOTX64.EFI is systemd-boot 257"},
		"systemd-boot, PCR 7": {edit: replace(loader), o: Options{PCRs: []int{7}}, want: "PCR 7 cannot be predicted: EFI/BOOT/BOOTX64.EFI is systemd-boot 257"},
		"hostile loader":      {edit: replace(hostile), want: `EFI/BOOT/BOOTX64.EFI is the boot loader "\x1b[2J\n::error::boo", and`},
		"no .linux":           {edit: replace(plainPE), want: "PCR 4 cannot be predicted: EFI/BOOT/BOOTX64.EFI is not a unified kernel image (it has no .linux section), and what it loads next cannot be told"},
		"no stub version":     {edit: replace(testenv.PE(0x8664, section(".linux", "x"))), want: "EFI/BOOT/BOOTX64.EFI has a .linux section, but was not made with a systemd-stub whose version can be told"},
		"stub of no version":  {edit: replace(testenv.PE(0x8664, section(".sdmagic", "LoaderInfo: systemd-stub x"), section(".linux", "x"))), want: "EFI/BOOT/BOOTX64.EFI: read version of systemd-stub from .sdmagic"},
		"old stub":            {edit: replace(testenv.UKI(0x8664, "251")), want: "PCR 11 cannot be predicted: systemd-stub 251 in EFI/BOOT/BOOTX64.EFI is older than 252"},
		"old stub, PCR 12":    {edit: replace(testenv.UKI(0x8664, "251")), o: Options{PCRs: []int{12}}, want: "PCR 12 cannot be predicted: systemd-stub 251"},
		"old stub, PCR 4":     {edit: replace(testenv.UKI(0x8664, "251")), o: Options{PCRs: []int{4}}},
		"empty file":          {edit: replace(nil), want: "EFI/BOOT/BOOTX64.EFI: read PE image: DOS header at byte 0 lies outside the file of 0 bytes: it is truncated"},
		"text file":           {edit: replace(bytes.Repeat([]byte("text"), 99)), want: `EFI/BOOT/BOOTX64.EFI: read PE image: it does not start with "MZ"`},
		"truncated UKI":       {edit: replace(e.uki[:len(e.uki)/2]), want: `EFI/BOOT/BOOTX64.EFI: read PE image: section ".linux" at byte`},
		"UKI of 100 bytes":    {edit: replace(e.uki[:100]), want: "EFI/BOOT/BOOTX64.EFI: read PE image: PE header at byte"},
		"UKI for aarch64":     {edit: replace(testenv.UKI(0xaa64, "257")), want: "EFI/BOOT/BOOTX64.EFI is for aarch64: firmware would not start it"},
		"UKI for i386":        {edit: replace(testenv.UKI(0x14c, "257")), want: "EFI/BOOT/BOOTX64.EFI is for machine 0x014c, not for x86_64 or aarch64"},
		"driver":              {edit: replace(driver), want: "EFI/BOOT/BOOTX64.EFI is of PE subsystem 11, not an EFI application (10)"},
		"kernel for aarch64":  {edit: replace(testenv.PE(0x8664, section(".sdmagic", "LoaderInfo: systemd-stub 257 "), section(".linux", string(testenv.PE(0xaa64, section(".text", "x")))))), want: "EFI/BOOT/BOOTX64.EFI#.linux is for aarch64, what loads it for x86_64"},
		"kernel that is none": {edit: replace(badKernel), want: "EFI/BOOT/BOOTX64.EFI#.linux: read PE image: "},
		"two kernels":         {edit: replace(testenv.UKI(0x8664, "257", section(".linux", "x"))), o: Options{PCRs: []int{4}}, want: "EFI/BOOT/BOOTX64.EFI has 2 sections .linux, and which one counts cannot be told"},
		"two versions":        {edit: replace(testenv.UKI(0x8664, "257", section(".sdmagic", "LoaderInfo: systemd-stub 258 "))), want: "EFI/BOOT/BOOTX64.EFI has 2 sections .sdmagic"},
		"two command lines":   {edit: replace(testenv.UKI(0x8664, "257", section(".cmdline", "x"))), want: "PCR 11 cannot be predicted: EFI/BOOT/BOOTX64.EFI: it has several sections .cmdline, of which systemd-stub chooses at boot"},
		"kernel in a profile": {edit: replace(testenv.PE(0x8664, section(".sdmagic", "LoaderInfo: systemd-stub 257 "), section(".profile", "ID=a"), section(".profile", "ID=b"), section(".linux", "x"))), want: "EFI/BOOT/BOOTX64.EFI has its .linux section in a profile that nothing chooses"},
		"profiles, old stub":  {edit: replace(testenv.UKI(0x8664, "256", section(".profile", "ID=main"), section(".cmdline", "x"))), want: "PCR 11 cannot be predicted: EFI/BOOT/BOOTX64.EFI: it has several sections .cmdline"},
		"trees by machine":    {edit: replace(testenv.UKI(0x8664, "257", section(".dtbauto", "x"))), want: "PCR 11 cannot be predicted: EFI/BOOT/BOOTX64.EFI has a section .dtbauto, of which systemd-stub chooses by the machine"},
		"PCR 9 of 260":        {edit: replace(testenv.UKI(0x8664, "260")), o: Options{PCRs: []int{9}}, want: "PCR 9 cannot be predicted: EFI/BOOT/BOOTX64.EFI: what systemd-stub 260 hands to the kernel is known for 252 to 257, and from 262 on"},
		"PCR 9, no console":   {edit: replace(testenv.UKI(0x8664, "262")), o: Options{PCRs: []int{9}}, want: "systemd-stub 262 adds the consoles that the firmware has to the command line: put console= there"},
		"empty section":       {edit: replace(testenv.UKI(0x8664, "257", section(".uname", ""))), want: "PCR 11 cannot be predicted: section .uname of EFI/BOOT/BOOTX64.EFI is empty"},
		"kernel of 4 GiB":     {edit: replace(inflated), want: "section .linux of EFI/BOOT/BOOTX64.EFI says that 1536 bytes in the file fill 4026531840 bytes in memory, which no tool writes"},
		"initrd of 16 MiB":    {edit: replace(inflatedInitrd), want: "section .initrd of EFI/BOOT/BOOTX64.EFI says that 512 bytes in the file fill 16777216 bytes in memory"},
		"ESP of zeros":        {edit: func(t *testing.T, d string) { overwrite(t, d, espOffset, make([]byte, 512)) }, want: "partition 1, the EFI system partition: it is no FAT file system: its first byte is not a jump"},
		"no partition table":  {edit: func(t *testing.T, d string) { overwrite(t, d, 512, make([]byte, 512)) }, want: "there is no GUID partition table"},
		"damaged table":       {edit: func(t *testing.T, d string) { overwrite(t, d, 1024+40, []byte{1, 2, 3}) }, want: "CRC-32 of the entries is"},
		"disk cut off": {edit: func(t *testing.T, d string) {
			if err := os.Truncate(d, 2<<20); err != nil {
				t.Fatal(err)
			}
		}, want: "lies outside the disk of 2097152 bytes"},
		"PCR 0":          {o: Options{PCRs: []int{4, 0}}, want: "PCR 0 cannot be predicted from a disk: it records the firmware's own code"},
		"PCR 16":         {o: Options{PCRs: []int{16}}, want: "PCR 16 cannot be predicted from a disk: the running system or the TPM itself sets it"},
		"PCR -1":         {o: Options{PCRs: []int{-1}}, want: "PCR -1 cannot be predicted"},
		"bank":           {o: Options{Bank: "SHA1"}, want: `there is no bank "SHA1"`},
		"PK of no lists": {o: Options{SecureBoot: SecureBoot{PK: []byte("-----BEGIN CERTIFICATE-----")}}, want: "read Secure Boot variable PK: read EFI signature list at byte 0 of 27"},
		"unsigned with Secure Boot": {o: Options{SecureBoot: SecureBoot{PK: goldenFile(t, "sbA252.PK.esl"), DB: goldenFile(t, "sbA252.db.esl")}},
			want: "with these Secure Boot variables the disk will not boot: EFI/BOOT/BOOTX64.EFI is not signed"},
	} {
		t.Run(name, func(t *testing.T) {
			path := e.golden
			if test.edit != nil {
				path = e.copy(t)
				test.edit(t, path)
			}
			p, err := Disk(t.Context(), openDisk(t, path), test.o)
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if len(p.Images) == 0 || len(p.Value(p.PCRs[0])) != 48 {
					t.Errorf("boot chain %v, PCR %d is %x", p.Images, p.PCRs[0], p.Value(p.PCRs[0]))
				}
				return
			}
			wantError(t, err, "measure "+path+": ", test.want)
		})
	}
}

// TestDiskValues checks that what cannot matter does not: predictions of edited
// disks that can be predicted are those of the golden one.
func TestDiskValues(t *testing.T) {
	e := newDiskEditor(t, "stub257")
	recorded := readGolden(t)["stub257"].SHA384
	for name, edit := range map[string]func(t *testing.T, disk string){
		"copied anew, in other clusters": func(t *testing.T, d string) {
			add("padding", "x")(t, d)
			mtools(t, d, "mdel", "::"+bootX64)
			write(t, d, "efi/boot/bootx64.efi", e.uki)
		},
		"files beside it": func(t *testing.T, d string) {
			add("EFI/other/grubx64.efi", "MZ")(t, d)
			add("loader/entries/a.conf", "x")(t, d)
		},
		"grown": func(t *testing.T, d string) {
			if err := os.Truncate(d, 1<<30); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := e.copy(t)
			edit(t, path)
			d := openDisk(t, path)
			p, err := Disk(t.Context(), d, Options{})
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range p.PCRs {
				if got, want := hex.EncodeToString(p.Value(n)), recorded[strconv.Itoa(n)]; got != want {
					t.Errorf("PCR %d is %s, want %s", n, got, want)
				}
			}
		})
	}
}

// TestFileEqualsDisk predicts the same from a UKI as from the disk it lies on.
func TestFileEqualsDisk(t *testing.T) {
	for _, name := range []string{"stub257", "sbA252"} {
		t.Run(name, func(t *testing.T) {
			e := newDiskEditor(t, name)
			o := Options{SecureBoot: readGolden(t).secureBoot(t, name)}
			ofDisk, err := Disk(t.Context(), openDisk(t, e.golden), o)
			if err != nil {
				t.Fatal(err)
			}
			ofFile, err := predictFile(t, e.uki, o)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(ofFile.PCRs, DefaultPCRs) {
				t.Fatalf("PCRs %v", ofFile.PCRs)
			}
			for _, n := range ofFile.PCRs {
				if !bytes.Equal(ofFile.Value(n), ofDisk.Value(n)) {
					t.Errorf("PCR %d of the file is %x, of the disk %x", n, ofFile.Value(n), ofDisk.Value(n))
				}
			}
			_, err = predictFile(t, e.uki, Options{PCRs: []int{5}})
			wantError(t, err, "PCR 5 cannot be predicted: it records the partition table, and no disk was given")
		})
	}
	_, err := Files(t.Context(), nil, Options{})
	wantError(t, err, "measure PE images: none was given")
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Disk(ctx, openDisk(t, testenv.GoldenDisk(t, "stub257")), Options{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want one that is context.Canceled", err)
	}
}

func BenchmarkDisk(b *testing.B) {
	path := testenv.GoldenDisk(b, "stub257")
	for _, size := range []int64{0, 20 << 30} {
		name := "as it is"
		if size > 0 {
			name = "grown to 20 GiB"
			if err := os.Truncate(path, size); err != nil {
				b.Fatal(err)
			}
		}
		b.Run(name, func(b *testing.B) {
			d := openDisk(b, path)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Disk(b.Context(), d, Options{}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(d.BytesRead())/float64(b.N), "bytes-read/op")
		})
	}
}
