package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/testenv"
)

// fixture is an image in the making. newFixture gives one without weaknesses;
// each test case spoils it in one way.
type fixture struct {
	root       map[string]string // files; a value "-> TARGET" makes a symbolic link, a name ending in "/" a directory
	modes      map[string]fs.FileMode
	xattrs     map[string]string // security.capability by file
	moreXattrs [][3]string       // file, name, value
	devices    map[string]uint64
	cmdline    string
	noCmdline  bool
	initrd     map[string]string
	rawInitrd  []byte
	sections   []testenv.PESection // more of the UKI
	esp        map[string]string
	boot       string // path of the UKI, "" for none
	kind       string // of the root: "erofs", "squashfs" or "ext4"
	damage     func(root []byte)
	extra      []extraPartition
	secureBoot bool
}

type extraPartition struct {
	name    string
	content []byte
}

const rootUUID = "00112233-4455-6677-8899-aabbccddeeff"

const service = "[Service]\nExecStart=/usr/bin/true\n"

func newFixture() *fixture {
	return &fixture{
		root: map[string]string{
			"etc/passwd":                         "root:x:0:0:root:/root:/usr/sbin/nologin\nweb:x:500:500::/srv/web:/usr/sbin/nologin\n",
			"etc/shadow":                         "root:*:20000:0:99999:7:::\nweb:!*:20000::::::\n",
			"etc/fstab":                          "# nothing\n",
			"etc/os-release":                     "ID=test\n",
			"etc/machine-id":                     "",
			"usr/sbin/init":                      "-> ../lib/systemd/systemd",
			"usr/lib/systemd/systemd":            "an init",
			"usr/lib/systemd/system/web.service": service,
			"usr/lib/systemd/system/multi-user.target":               "[Unit]\nDescription=Multi-User\n",
			"etc/systemd/system/multi-user.target.wants/web.service": "-> /usr/lib/systemd/system/web.service",
			"boot/config-6.12": "CONFIG_MODULES=y\nCONFIG_MODULE_SIG=y\n",
			"srv/web/":         "",
			"tmp/":             "",
		},
		modes:   map[string]fs.FileMode{"tmp": 0o777 | fs.ModeSticky, "etc/shadow": 0o640},
		xattrs:  map[string]string{},
		devices: map[string]uint64{},
		cmdline: "ro panic=-1 rd.shell=0 rd.emergency=poweroff systemd.gpt_auto=0 systemd.import_credentials=no efi=noruntime lockdown=integrity" +
			" roothash=" + strings.Repeat("ab", 32) + " systemd.verity_root_data=UUID=" + rootUUID + " systemd.verity_root_hash=UUID=" + rootUUID +
			" systemd.verity_root_options=hash-offset=4096,panic-on-corruption",
		initrd: map[string]string{
			"init": "-> usr/lib/systemd/systemd", "usr/lib/systemd/systemd": "an init", "usr/lib/dracut-lib.sh": "",
			"etc/shadow": "root:*:20000::::::\n", "etc/veritytab": "", "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
		},
		esp:  map[string]string{},
		boot: "EFI/BOOT/BOOTX64.EFI",
		kind: "erofs",
	}
}

// cpio makes an archive in the newc format, with the directories that its files lie
// in, since the kernel makes none that is not there.
func cpio(files map[string]string) []byte {
	var b bytes.Buffer
	entry := func(name string, mode, size int, content string) {
		fmt.Fprintf(&b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", 1, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		b.Write(make([]byte, -b.Len()&3))
		b.WriteString(content)
		b.Write(make([]byte, -b.Len()&3))
	}
	made := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		for i, c := range name {
			if c == '/' && !made[name[:i]] {
				made[name[:i]] = true
				if target, given := files[name[:i]]; !given || !strings.HasPrefix(target, "-> ") {
					entry(name[:i], 0o040755, 0, "")
				}
			}
		}
		content, mode := files[name], 0o100644
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			content, mode = target, 0o120777
		}
		entry(name, mode, len(content), content)
	}
	entry("TRAILER!!!", 0, 0, "")
	return b.Bytes()
}

func compress(b []byte) []byte {
	z, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	return z.EncodeAll(b, nil)
}

// writeTree writes files to a directory.
func (f *fixture) writeTree(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range f.root {
		path := filepath.Join(dir, name)
		must(os.MkdirAll(filepath.Dir(path), 0o755))
		switch target, link := strings.CutPrefix(content, "-> "); {
		case strings.HasSuffix(name, "/"):
			must(os.MkdirAll(path, 0o755))
		case link:
			must(os.Symlink(target, path))
		default:
			must(os.WriteFile(path, []byte(content), 0o644))
		}
	}
	for name, device := range f.devices {
		if err := unix.Mknod(filepath.Join(dir, name), unix.S_IFCHR|0o600, int(device)); err != nil {
			testenv.Missing(t, fmt.Sprintf("making a device file: %v", err))
		}
	}
	for name, mode := range f.modes {
		must(os.Chmod(filepath.Join(dir, name), mode))
	}
	for name, value := range f.xattrs {
		if err := unix.Lsetxattr(filepath.Join(dir, name), "security.capability", []byte(value), 0); err != nil {
			testenv.Missing(t, fmt.Sprintf("giving a file capabilities: %v", err))
		}
	}
	for _, x := range f.moreXattrs {
		if err := unix.Lsetxattr(filepath.Join(dir, x[0]), x[1], []byte(x[2]), 0); err != nil {
			testenv.Missing(t, fmt.Sprintf("giving a file the attribute %s: %v", x[1], err))
		}
	}
	return dir
}

func run(t testing.TB, program string, args ...string) {
	t.Helper()
	c := exec.Command(testenv.Tool(t, program), args...)
	c.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1", "SOURCE_DATE_EPOCH=1700000000")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
}

// makeRoot makes the root file system.
func (f *fixture) makeRoot(t testing.TB) []byte {
	t.Helper()
	tree, image := f.writeTree(t), filepath.Join(t.TempDir(), "root")
	switch f.kind {
	case "erofs":
		run(t, "mkfs.erofs", "-zlz4hc,12", "-x1", "-U"+rootUUID, image, tree)
	case "squashfs":
		run(t, "mksquashfs", tree, image, "-quiet", "-no-progress", "-comp", "zstd")
	case "ext4":
		file, err := os.Create(image)
		if err == nil {
			err = file.Truncate(8 << 20)
		}
		if err != nil {
			t.Fatal(err)
		}
		run(t, "mke2fs", "-q", "-F", "-U", rootUUID, "-d", tree, image)
	}
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if f.damage != nil {
		f.damage(b)
	}
	return b
}

// makeUKI makes the unified kernel image.
func (f *fixture) makeUKI() []byte {
	initrd := f.rawInitrd
	if initrd == nil {
		initrd = compress(cpio(f.initrd))
	}
	sections := []testenv.PESection{
		{Name: ".sdmagic", Data: []byte("#### LoaderInfo: systemd-stub 257.13-1 ####\x00")},
		{Name: ".linux", Data: testenv.PE(0x8664, testenv.PESection{Name: ".text", Data: []byte{0xc3}})},
		{Name: ".initrd", Data: initrd},
	}
	if !f.noCmdline {
		sections = append(sections, testenv.PESection{Name: ".cmdline", Data: []byte(f.cmdline + "\x00")})
	}
	sections = append(sections, f.sections...)
	return testenv.PE(0x8664, sections...)
}

// espCache has EFI system partitions, []byte, by what is on them.
var espCache sync.Map

// makeESP makes the EFI system partition.
func (f *fixture) makeESP(t testing.TB) []byte {
	t.Helper()
	files := maps.Clone(f.esp)
	if f.boot != "" {
		files[f.boot] = string(f.makeUKI())
	}
	key := sha256.Sum256(fmt.Appendf(nil, "%q", files))
	if b, ok := espCache.Load(key); ok {
		return b.([]byte)
	}
	image, tree := filepath.Join(t.TempDir(), "esp"), t.TempDir()
	run(t, "mkfs.vfat", "-C", "--invariant", image, "2048")
	for name, content := range files {
		path := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	top, err := filepath.Glob(filepath.Join(tree, "*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(top) > 0 {
		run(t, "mcopy", append(append([]string{"-s", "-i", image}, top...), "::/")...)
	}
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	espCache.Store(key, b)
	return b
}

// makeDisk makes a raw disk with a GUID partition table.
func (f *fixture) makeDisk(t testing.TB) string {
	t.Helper()
	linux := disk.GUID{0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4}
	partitions := append([]extraPartition{{"esp", f.makeESP(t)}, {"root", f.makeRoot(t)}}, f.extra...)
	const first = 2048
	le := binary.LittleEndian
	table, data := make([]byte, 128*128), []byte(nil)
	for i, p := range partitions {
		content := slices.Concat(p.content, make([]byte, -len(p.content)&4095))
		entry := table[128*i:]
		copy(entry, linux[:])
		if i == 0 {
			copy(entry, disk.ESPType[:])
		}
		entry[16] = byte(i + 1)
		begin := first + len(data)/512
		le.PutUint64(entry[32:], uint64(begin))
		le.PutUint64(entry[40:], uint64(begin+len(content)/512-1))
		for n, c := range p.name {
			le.PutUint16(entry[56+2*n:], uint16(c))
		}
		data = append(data, content...)
	}
	b := make([]byte, first*512)
	copy(b[446:], []byte{0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})
	b[510], b[511] = 0x55, 0xaa
	copy(b[1024:], table)
	header := b[512 : 512+92]
	copy(header, "EFI PART\x00\x00\x01\x00")
	le.PutUint32(header[12:], 92)
	le.PutUint64(header[24:], 1)
	last := uint64(first + len(data)/512)
	le.PutUint64(header[32:], last+33)
	le.PutUint64(header[40:], 34)
	le.PutUint64(header[48:], last)
	le.PutUint64(header[72:], 2)
	le.PutUint32(header[80:], 128)
	le.PutUint32(header[84:], 128)
	le.PutUint32(header[88:], crc32.ChecksumIEEE(table))
	le.PutUint32(header[16:], crc32.ChecksumIEEE(header))
	b = append(append(b, data...), make([]byte, 34*512)...)
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// audit makes the disk and looks at it.
func (f *fixture) audit(t testing.TB) *Report {
	t.Helper()
	return auditFile(t, f.makeDisk(t), Options{SecureBoot: f.secureBoot})
}

func auditFile(t testing.TB, path string, o Options) *Report {
	t.Helper()
	d, err := disk.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r, err := Disk(context.Background(), d, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
