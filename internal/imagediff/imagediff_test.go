package imagediff

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
)

// image is an image in the making; each test changes one thing in it.
type image struct {
	root     map[string]string // files; a value "-> TARGET" makes a symbolic link, a name ending in "/" a directory
	modes    map[string]fs.FileMode
	owners   map[string]int
	xattrs   map[string]string // user.test by file
	epoch    int64             // of the root file system
	packed   string            // how mkfs.erofs packs
	verity   bool
	cmdline  string
	osrel    string
	initrd   map[string]string
	headers  byte   // somewhere in the header of the unified kernel image
	signed   string // 8 bytes that stand for a signature of it
	esp      map[string]string
	rootName string
	rootUUID string
	gap      string // in no partition
	boot     string // boot code of the MBR
}

func status(packages ...string) string {
	var b strings.Builder
	for _, p := range packages {
		name, version, _ := strings.Cut(p, " ")
		fmt.Fprintf(&b, "Package: %s\nStatus: install ok installed\nArchitecture: amd64\nVersion: %s\nMaintainer: nobody <nobody@example.com>\nDescription: none\n\n", name, version)
	}
	return b.String()
}

func newImage() *image {
	return &image{
		root: map[string]string{
			"etc/passwd":                   "root:x:0:0:root:/root:/usr/sbin/nologin\n",
			"etc/shadow":                   "root:*:20000:0:99999:7:::\n",
			"etc/os-release":               "ID=test\nVERSION_ID=1\nPRETTY_NAME=\"Test 1\"\n",
			"etc/web.conf":                 "listen = 443\n",
			"usr/sbin/init":                "-> ../lib/systemd/systemd",
			"usr/lib/systemd/systemd":      "an init",
			"usr/bin/web":                  "a program",
			"usr/bin/worker":               "another program",
			"srv/page":                     strings.Repeat("a page\n", 3000),
			"srv/link":                     "-> page",
			"var/lib/dpkg/status":          status("base 1.0-1", "web 2.0-1"),
			"var/lib/dpkg/info/base.list":  "/.\n/usr/lib/systemd/systemd\n",
			"var/lib/dpkg/info/web.list":   "/.\n/etc/web.conf\n/bin/web\n/usr/bin/worker\n",
			"var/lib/dpkg/info/other.list": "/srv/page\n",
		},
		modes:    map[string]fs.FileMode{"etc/shadow": 0o640},
		epoch:    1_700_000_000,
		packed:   "-zlz4hc,12",
		cmdline:  "ro panic=-1 rd.shell=0 rd.emergency=poweroff systemd.gpt_auto=0 systemd.import_credentials=no",
		osrel:    "ID=test\nVERSION_ID=1\n",
		initrd:   map[string]string{"init": "an init", "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "usr/bin/web": "a program"},
		esp:      map[string]string{},
		rootName: "root",
		rootUUID: "00112233-4455-4677-8899-aabbccddeeff",
	}
}

func tool(t testing.TB, program string, args ...string) string {
	t.Helper()
	c := exec.Command(testenv.Tool(t, program), args...)
	c.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1", "TZ=UTC")
	if program != "mkfs.erofs" { // it would not listen to -T
		c.Env = append(c.Env, "SOURCE_DATE_EPOCH=1700000000")
	}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
	return string(out)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// makeRoot makes the root file system, with its hash tree when there is one, whose
// root hash it returns.
func (i *image) makeRoot(t testing.TB) (content []byte, rootHash string) {
	t.Helper()
	tree, file := t.TempDir(), filepath.Join(t.TempDir(), "root")
	for _, name := range slices.Sorted(maps.Keys(i.root)) {
		content, path := i.root[name], filepath.Join(tree, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		switch target, link := strings.CutPrefix(content, "-> "); {
		case strings.HasSuffix(name, "/"):
			must(t, os.MkdirAll(path, 0o755))
		case link:
			must(t, os.Symlink(target, path))
		default:
			must(t, os.WriteFile(path, []byte(content), 0o644))
		}
	}
	for name, value := range i.xattrs {
		if err := unix.Lsetxattr(filepath.Join(tree, name), "user.test", []byte(value), 0); err != nil {
			testenv.Missing(t, fmt.Sprintf("giving a file an attribute: %v", err))
		}
	}
	for name, id := range i.owners {
		if err := os.Lchown(filepath.Join(tree, name), id, id); err != nil {
			testenv.Missing(t, fmt.Sprintf("giving a file to another user: %v", err))
		}
	}
	for name, mode := range i.modes {
		must(t, os.Chmod(filepath.Join(tree, name), mode))
	}
	tool(t, "mkfs.erofs", "--quiet", i.packed, "-T"+strconv.FormatInt(i.epoch, 10), "-x1", "-U"+i.rootUUID, file, tree)
	if i.verity {
		info, err := os.Stat(file)
		must(t, err)
		out := tool(t, "veritysetup", "format", "--salt", strings.Repeat("5a", 32), "--uuid", i.rootUUID,
			"--data-blocks", strconv.FormatInt(info.Size()/4096, 10), "--hash-offset", strconv.FormatInt(info.Size(), 10), file, file)
		rootHash = regexp.MustCompile(`Root hash:\s+([0-9a-f]{64})`).FindStringSubmatch(out)[1] +
			" systemd.verity_root_options=hash-offset=" + strconv.FormatInt(info.Size(), 10) + ",panic-on-corruption"
	}
	content, err := os.ReadFile(file)
	must(t, err)
	return content, rootHash
}

// cpio makes an archive in the newc format.
func cpio(files map[string]string) []byte {
	var b bytes.Buffer
	entry := func(name string, mode int, content string) {
		fmt.Fprintf(&b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", 1, mode, 0, 0, 1, 1_700_000_000, len(content), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		b.Write(make([]byte, -b.Len()&3))
		b.WriteString(content)
		b.Write(make([]byte, -b.Len()&3))
	}
	made := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		for i, c := range name {
			if c == '/' && !made[name[:i]] { // the kernel makes no directory by itself
				made[name[:i]] = true
				entry(name[:i], 0o040755, "")
			}
		}
		entry(name, 0o100644, files[name])
	}
	entry("TRAILER!!!", 0, "")
	z, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	return z.EncodeAll(b.Bytes(), nil)
}

func (i *image) makeESP(t testing.TB, rootHash string) []byte {
	t.Helper()
	cmdline := i.cmdline
	if rootHash != "" {
		cmdline += " roothash=" + rootHash
	}
	uki := testenv.PE(0x8664,
		testenv.PESection{Name: ".sdmagic", Data: []byte("#### LoaderInfo: systemd-stub 257.13-1 ####\x00")},
		testenv.PESection{Name: ".linux", Data: testenv.PE(0x8664, testenv.PESection{Name: ".text", Data: []byte{0xc3}})},
		testenv.PESection{Name: ".initrd", Data: cpio(i.initrd)},
		testenv.PESection{Name: ".osrel", Data: []byte(i.osrel)},
		testenv.PESection{Name: ".cmdline", Data: []byte(cmdline + "\x00")})
	uki[64+4+4] = i.headers // TimeDateStamp
	if i.signed != "" {     // a WIN_CERTIFICATE, and the directory entry that says where
		binary.LittleEndian.PutUint32(uki[64+24+112+4*8:], uint32(len(uki)))
		binary.LittleEndian.PutUint32(uki[64+24+112+4*8+4:], 16)
		uki = append(append(uki, 16, 0, 0, 0, 0, 2, 2, 0), i.signed...)
	}
	files := maps.Clone(i.esp)
	files["EFI/BOOT/BOOTX64.EFI"] = string(uki)
	esp, tree := filepath.Join(t.TempDir(), "esp"), t.TempDir()
	tool(t, "mkfs.vfat", "-C", "--invariant", esp, "2048")
	for name, content := range files {
		path := filepath.Join(tree, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(content), 0o644))
	}
	top, err := filepath.Glob(filepath.Join(tree, "*"))
	must(t, err)
	tool(t, "mcopy", append(append([]string{"-s", "-i", esp}, top...), "::/")...)
	content, err := os.ReadFile(esp)
	must(t, err)
	return content
}

// disk makes the raw disk.
func (i *image) disk(t testing.TB) *disk.Disk {
	t.Helper()
	const espAt, rootAt, end, size = 1 << 20, 4 << 20, 7 << 20, 8 << 20
	root, hash := i.makeRoot(t)
	raw := make([]byte, size)
	copy(raw, i.boot)
	copy(raw[espAt:], i.makeESP(t, hash))
	copy(raw[rootAt:], root)
	copy(raw[rootAt-4096:], i.gap)
	// UEFI 2.10, section 5.3: the protective MBR, the header, the table.
	copy(raw[446:], []byte{0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})
	raw[510], raw[511] = 0x55, 0xaa
	le, table := binary.LittleEndian, raw[1024:1024+128*128]
	for n, p := range []struct {
		name       string
		begin, end uint64
	}{{"EFI", espAt, espAt + 2<<20}, {i.rootName, rootAt, end}} {
		entry := table[128*n:]
		copy(entry, disk.ESPType[:])
		entry[0] += byte(n)
		entry[16] = byte(n + 1)
		le.PutUint64(entry[32:], p.begin/512)
		le.PutUint64(entry[40:], p.end/512-1)
		for at, c := range p.name {
			le.PutUint16(entry[56+2*at:], uint16(c))
		}
	}
	header := raw[512 : 512+92]
	copy(header, "EFI PART\x00\x00\x01\x00")
	for at, value := range map[int]uint32{12: 92, 80: 128, 84: 128, 88: crc32.ChecksumIEEE(table)} {
		le.PutUint32(header[at:], value)
	}
	for at, value := range map[int]uint64{24: 1, 32: size/512 - 1, 40: 34, 48: size/512 - 34, 72: 2} {
		le.PutUint64(header[at:], value)
	}
	le.PutUint32(header[16:], crc32.ChecksumIEEE(header))
	path := filepath.Join(t.TempDir(), "disk.raw")
	must(t, os.WriteFile(path, raw, 0o600))
	d, err := disk.Open(path)
	must(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

// Digests, and counts in parentheses, say nothing to a reader of a test.
var (
	hexDigests = regexp.MustCompile(`[0-9a-f]{64,}`)
	counts     = regexp.MustCompile(`\(\d+( bytes)?\)`)
)

// facts are all that a report says, a line each.
func facts(r *Report) []string {
	var all []string
	say := func(format string, args ...any) {
		text := hexDigests.ReplaceAllString(strings.TrimSpace(fmt.Sprintf(format, args...)), "DIGEST")
		all = append(all, counts.ReplaceAllString(text, "(N$1)"))
	}
	for _, p := range r.Packages {
		say("package %s %q -> %q", p.Name, p.A, p.B)
	}
	for _, c := range r.CommandLine {
		say("option %s%q -> %q", c.Name, c.A, c.B)
	}
	file := func(where string, f File) {
		say("%s %s %s", where, f.How, f.Path)
		for _, c := range f.Changes {
			say("%s %s: %s %s -> %s", where, f.Path, c.Name, c.A, c.B)
		}
	}
	for _, f := range r.Files {
		file("file", f)
	}
	if r.FilesHidden > 0 {
		say("hidden %d", r.FilesHidden)
	}
	for _, x := range r.Times {
		say("time %s: %d -> %d (%d)", x.Where, x.A.Unix(), x.B.Unix(), x.Files)
	}
	for _, b := range r.Boot {
		say("boot %s %s", b.How, b.Path)
		for _, s := range b.Sections {
			say("section %s %s", s.How, s.Name)
			for _, l := range s.Lines {
				say("line of %s: %s%s -> %s", s.Name, l.Name, l.A, l.B)
			}
			for _, f := range s.Files {
				file("in "+s.Name, f)
			}
			if s.FilesHidden > 0 {
				say("hidden in %s: %d", s.Name, s.FilesHidden)
			}
		}
		for _, c := range b.Changes {
			say("boot %s %s: %s -> %s", b.Path, c.Name, c.A, c.B)
		}
		if b.Headers {
			say("headers")
		}
		if b.Signatures {
			say("signatures")
		}
	}
	for _, c := range r.Verity {
		say("verity %s %s -> %s", c.Name, c.A, c.B)
	}
	for _, p := range r.Partitions {
		say("partition %d %s %s %s -> %s", p.Number, p.How, p.Field, p.A, p.B)
	}
	for _, p := range r.Filesystems {
		say("file system %d %s %s -> %s", p.Number, p.Field, p.A, p.B)
	}
	for _, p := range r.PCRs {
		for _, e := range p.Events {
			say("PCR %d %s %s: %s", p.PCR, e.How, e.What, e.Because)
		}
		if len(p.Events) == 0 {
			say("PCR %d for no reason", p.PCR)
		}
	}
	for _, f := range r.Appeared {
		say("appeared %s", f.ID)
	}
	for _, f := range r.Gone {
		say("gone %s", f.ID)
	}
	for _, c := range r.SecureBoot {
		say("Secure Boot %s: %s -> %s", c.Name, c.A, c.B)
	}
	for _, c := range r.Builder {
		say("builder %s: %s -> %s", c.Name, c.A, c.B)
	}
	for _, p := range r.BuilderPackages {
		say("builder has %s %q -> %q", p.Name, p.A, p.B)
	}
	for _, c := range r.Inputs {
		say("input %s: %s -> %s", c.Name, c.A, c.B)
	}
	for _, f := range r.Source {
		file("source", f)
	}
	for _, c := range r.Other {
		say("other %s %s %s", c.Name, c.A, c.B)
	}
	for _, n := range r.NotCompared {
		say("not compared: %s", n)
	}
	return all
}

func compare(t testing.TB, a, b *disk.Disk, o Options) *Report {
	t.Helper()
	o.Measure.PCRs = []int{4, 5, 7, 11, 12}
	r, err := Disks(context.Background(), a, b, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestDisks changes one thing, and demands that the report names that, what follows
// from it, and nothing else.
func TestDisks(t *testing.T) {
	uki := func(section string, more ...string) []string {
		return append([]string{"boot changed EFI/BOOT/BOOTX64.EFI", "section changed " + section}, more...)
	}
	before := newImage().disk(t)
	const pcr4 = "PCR 4 changed EFI/BOOT/BOOTX64.EFI: sections "
	for _, test := range []struct {
		name   string
		change func(*image)
		all    bool
		want   []string
	}{
		{"a package", func(i *image) {
			i.root["var/lib/dpkg/status"] = status("base 1.0-1", "web 2.0-2")
		}, false, []string{`package web "2.0-1" -> "2.0-2"`, "hidden 1"}},
		{"a package with its files", func(i *image) {
			i.root["var/lib/dpkg/status"] = status("base 1.0-1", "web 2.0-2")
			i.root["usr/bin/web"], i.root["usr/bin/worker"], i.root["usr/bin/more"] = "new program", "a worker program", "more"
			i.root["var/lib/dpkg/info/web.list"] += "/usr/bin/more\n"
			i.root["etc/web.conf"] = "listen = 80\n"
			i.initrd["usr/bin/web"] = "new program"
		}, false, []string{
			`package web "2.0-1" -> "2.0-2"`, "file changed etc/web.conf", "file etc/web.conf: size 13 -> 12", "hidden 5",
			"boot changed EFI/BOOT/BOOTX64.EFI", "section changed .initrd", "hidden in .initrd: 1",
			pcr4 + ".initrd", "PCR 11 changed .initrd (N bytes): 1 of its files",
		}},
		{"a package with its files, all of them", func(i *image) {
			i.root["var/lib/dpkg/status"] = status("base 1.0-1", "web 2.0-2")
			i.root["usr/bin/web"] = "new program"
		}, true, []string{
			`package web "2.0-1" -> "2.0-2"`, "file changed usr/bin/web", "file usr/bin/web: size 9 -> 11",
			"file changed var/lib/dpkg/status", "file var/lib/dpkg/status: content DIGEST -> DIGEST",
		}},
		{"a package that gains a right", func(i *image) {
			i.root["var/lib/dpkg/status"] = status("base 1.0-1", "web 2.0-2")
			i.modes["usr/bin/worker"] = 0o755 | fs.ModeSetuid
		}, false, []string{
			`package web "2.0-1" -> "2.0-2"`, "file changed usr/bin/worker", "file usr/bin/worker: mode 0644 -> 4755", "hidden 1", "appeared setuid-file",
		}},
		{"a package more", func(i *image) {
			i.root["var/lib/dpkg/status"] = status("base 1.0-1", "web 2.0-1", "zoo 1")
		}, false, []string{`package zoo "" -> "1"`, "hidden 1"}},
		{"a package less", func(i *image) {
			i.root["var/lib/dpkg/status"] = status("base 1.0-1")
		}, false, []string{`package web "2.0-1" -> ""`, "hidden 1"}},
		{"the content of a file", func(i *image) {
			i.root["srv/page"] = strings.Repeat("a page\n", 2999) + "a pagE\n"
		}, false, []string{"file changed srv/page", "file srv/page: content DIGEST -> DIGEST"}},
		{"the size of a file", func(i *image) { i.root["srv/page"] += "more\n" }, false, []string{"file changed srv/page", "file srv/page: size 21000 -> 21005"}},
		{"the mode of a file", func(i *image) { i.modes["srv/page"] = 0o600 }, false, []string{"file changed srv/page", "file srv/page: mode 0644 -> 0600"}},
		{"the mode of a directory", func(i *image) { i.modes["srv"] = 0o700 }, false, []string{"file changed srv", "file srv: mode 0755 -> 0700"}},
		{"the owner of a file", func(i *image) { i.owners = map[string]int{"srv/page": 12} }, false, []string{"file changed srv/page", "file srv/page: owner 0:0 -> 12:12"}},
		{"an attribute", func(i *image) { i.xattrs = map[string]string{"srv/page": "x"} }, false, []string{"file changed srv/page", `file srv/page: attribute user.test  -> "x"`}},
		{"the target of a link", func(i *image) { i.root["srv/link"] = "-> /etc" }, false, []string{"file changed srv/link", "file srv/link: target page -> /etc"}},
		{"a type", func(i *image) { i.root["srv/link"] = "page" }, false, []string{
			"file changed srv/link", "file srv/link: type symbolic link -> file", "file srv/link: mode 0777 -> 0644",
		}},
		{"a file more", func(i *image) { i.root["srv/pag"] = "" }, false, []string{"file added srv/pag"}},
		{"a directory more", func(i *image) { i.root["srv/link.d/x"] = "" }, false, []string{"file added srv/link.d", "file added srv/link.d/x"}},
		{"a file less", func(i *image) { delete(i.root, "srv/link") }, false, []string{"file removed srv/link"}},
		{"a kernel option", func(i *image) { i.cmdline += " loglevel=3" }, false, slices.Concat(
			[]string{`option "" -> "loglevel=3"`}, uki(".cmdline", "line of .cmdline:  -> loglevel=3"),
			[]string{pcr4 + ".cmdline", "PCR 11 changed .cmdline (N bytes): loglevel=3"})},
		{"a value of a kernel option", func(i *image) { i.cmdline = strings.Replace(i.cmdline, "poweroff", "reboot", 1) }, false, slices.Concat(
			[]string{`option "rd.emergency=poweroff" -> "rd.emergency=reboot"`}, uki(".cmdline", "line of .cmdline: rd.emergency=poweroff -> rd.emergency=reboot"),
			[]string{pcr4 + ".cmdline", "PCR 11 changed .cmdline (N bytes): rd.emergency=poweroff -> rd.emergency=reboot"})},
		{"a file of the initrd", func(i *image) { i.initrd["init"] = "AN init" }, false, slices.Concat(
			uki(".initrd", "in .initrd changed init", "in .initrd init: content DIGEST -> DIGEST"),
			[]string{pcr4 + ".initrd", "PCR 11 changed .initrd (N bytes): 1 of its files"})},
		{"a line of .osrel", func(i *image) { i.osrel = "ID=test\nVERSION_ID=2\n" }, false, slices.Concat(
			uki(".osrel", "line of .osrel: VERSION_ID=1 -> VERSION_ID=2"),
			[]string{pcr4 + ".osrel", "PCR 11 changed .osrel (N bytes): VERSION_ID=1 -> VERSION_ID=2"})},
		{"headers of the unified kernel image", func(i *image) { i.headers = 7 }, false, []string{
			"boot changed EFI/BOOT/BOOTX64.EFI", "headers", "PCR 4 changed EFI/BOOT/BOOTX64.EFI: its headers, or bytes behind its sections",
		}},
		{"a signature", func(i *image) { i.signed = "SIGNED.." }, false, []string{"boot changed EFI/BOOT/BOOTX64.EFI", "signatures"}},
		{"a file of the EFI system partition", func(i *image) { i.esp["note.txt"] = "hello" }, false, []string{"boot added note.txt", "appeared esp-stray-file"}},
		{"the epoch", func(i *image) { i.epoch += 60 }, false, []string{"time partition 2: 1700000000 -> 1700000060 (N)"}},
		{"the layout of the file system", func(i *image) { i.packed = "-Enoinline_data" }, false, []string{
			"other partition 2: the erofs file system is laid out in another way, and no file differs",
		}},
		{"a name in the partition table", func(i *image) { i.rootName = "other" }, false, []string{
			"partition 2 changed name root -> other", "PCR 5 changed GUID partition table: name of partition 2",
		}},
		{"the UUID of the root file system", func(i *image) { i.rootUUID = "00112233-4455-4677-8899-aabbccddeef0" }, false, []string{
			"file system 2 UUID 00112233-4455-4677-8899-aabbccddeeff -> 00112233-4455-4677-8899-aabbccddeef0",
		}},
		{"bytes between partitions", func(i *image) { i.gap = "hello" }, false, []string{"other bytes 3145728 to 4194304 of the disk, in no partition, differ"}},
		{"boot code", func(i *image) { i.boot = "hello" }, false, []string{"other bytes 0 to 446 of the disk, in no partition, differ"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			after := newImage()
			test.change(after)
			got := facts(compare(t, before, after.disk(t), Options{All: test.all}))
			if !slices.Equal(got, test.want) {
				t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(test.want, "\n  "))
			}
		})
	}
}

// TestVerity changes a file of a root file system with a hash tree: the root hash
// follows, and the PCRs over it.
func TestVerity(t *testing.T) {
	before, after := newImage(), newImage()
	before.verity, after.verity = true, true
	after.root["srv/page"] = strings.Repeat("a page\n", 2999) + "a pagE\n"
	r := compare(t, before.disk(t), after.disk(t), Options{})
	got, want := facts(r), []string{
		"file changed srv/page", "file srv/page: content DIGEST -> DIGEST",
		"boot changed EFI/BOOT/BOOTX64.EFI", "section changed .cmdline", "line of .cmdline: the root hash and identifiers ->",
		"verity root hash DIGEST -> DIGEST",
		"PCR 4 changed EFI/BOOT/BOOTX64.EFI: sections .cmdline", "PCR 11 changed .cmdline (N bytes): the root hash and identifiers",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// TestIdentifiers renames a root file system, and the options that name it, of which one
// loses more than the identifier.
func TestIdentifiers(t *testing.T) {
	make := func(uuid, more string) *disk.Disk {
		i := newImage()
		i.rootUUID = uuid
		i.cmdline += " systemd.verity_root_data=UUID=" + uuid + " root=UUID=" + uuid + more
		return i.disk(t)
	}
	before := make("00112233-4455-4677-8899-aabbccddeeff", ",ro")
	const option = "root=UUID=00112233-4455-4677-8899-aabbccddeeff,ro"
	got := facts(compare(t, before, make("00112233-4455-4677-8899-aabbccddeef0", ",ro"), Options{}))
	if !slices.Contains(got, "line of .cmdline: the root hash and identifiers ->") || strings.Contains(strings.Join(got, "\n"), "option") {
		t.Errorf("another UUID: got\n%s", strings.Join(got, "\n"))
	}
	got = facts(compare(t, before, make("00112233-4455-4677-8899-aabbccddeef0", ""), Options{}))
	if !slices.Contains(got, fmt.Sprintf("option %q -> %q", option, "root=UUID=00112233-4455-4677-8899-aabbccddeef0")) || strings.Contains(strings.Join(got, "\n"), "option systemd.verity") {
		t.Errorf("another option, too: got\n%s", strings.Join(got, "\n"))
	}
}

// TestIdentical compares a disk with another that was made in the same way.
func TestIdentical(t *testing.T) {
	r := compare(t, newImage().disk(t), newImage().disk(t), Options{})
	if got := facts(r); !r.Identical || len(got) > 0 {
		t.Errorf("identical: %v, differences: %q", r.Identical, got)
	}
}

// TestEveryByte changes bytes anywhere, as damage or malice would, and demands a
// report that says something, or an error: never an empty report, and no panic.
func TestEveryByte(t *testing.T) {
	original := newImage().disk(t)
	raw, err := os.ReadFile(original.Name())
	must(t, err)
	random := rand.New(rand.NewPCG(1, 2))
	path := filepath.Join(t.TempDir(), "changed.raw")
	for n := range 100 {
		changed := slices.Clone(raw)
		// The superblock, inodes and directories of the root file system are at its
		// beginning; the rest of the disk is mostly empty.
		at := []int{1<<20 + random.IntN(100<<10), 4<<20 + 1024 + random.IntN(20<<10), random.IntN(len(raw))}[n%3]
		changed[at] ^= byte(1 + random.IntN(255))
		must(t, os.WriteFile(path, changed, 0o600))
		d, err := disk.Open(path)
		must(t, err)
		r, err := Disks(t.Context(), original, d, Options{})
		d.Close()
		if err == nil && (r.Identical || len(facts(r)) == 0) {
			t.Errorf("byte %d changed, and the report is empty", at)
		}
	}
}

// TestTooMuch gives files that are longer than what may be read of a disk.
func TestTooMuch(t *testing.T) {
	before, after := newImage(), newImage()
	after.root["srv/page"] = strings.Repeat("a page\n", 2999) + "a pagE\n"
	after.root["usr/bin/web"] = "A program"
	c := &comparison{ctx: t.Context(), a: &side{disk: before.disk(t)}, b: &side{disk: after.disk(t)}, report: newReport("a", "b"), left: 1000}
	for _, s := range []*side{c.a, c.b} {
		var err error
		s.gpt, err = s.disk.GPT()
		must(t, err)
	}
	must(t, c.partitions())
	got, want := facts(c.report), []string{
		"file changed usr/bin/web", "file usr/bin/web: content DIGEST -> DIGEST", "not compared: /srv/page of partition 2: " + errTooMuch.Error(),
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestUnreadable compares with disks that have no partition table, no EFI system
// partition that is one, and no root.
func TestUnreadable(t *testing.T) {
	original := newImage().disk(t)
	raw, err := os.ReadFile(original.Name())
	must(t, err)
	for _, test := range []struct {
		name   string
		at, n  int
		failed string
		want   []string
	}{
		{"no table", 512, 512, "no GUID partition table", nil},
		{"no file system for the boot files", 1 << 20, 512, "", []string{"not compared: packages", "not compared: PCRs", "appeared partition-not-read", "not compared: partition 1"}},
		{"no root", 4 << 20, 1 << 20, "", []string{"file system 2 kind erofs -> none", "not compared: packages", "appeared root-not-found"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			changed := slices.Clone(raw)
			clear(changed[test.at : test.at+test.n])
			path := filepath.Join(t.TempDir(), "changed.raw")
			must(t, os.WriteFile(path, changed, 0o600))
			d, err := disk.Open(path)
			must(t, err)
			defer d.Close()
			r, err := Disks(t.Context(), original, d, Options{})
			if test.failed != "" {
				if err == nil || !strings.Contains(err.Error(), test.failed) {
					t.Errorf("error is %v", err)
				}
				return
			}
			must(t, err)
			all := facts(r)
			for _, want := range test.want {
				if !slices.ContainsFunc(all, func(fact string) bool { return strings.HasPrefix(fact, want) }) {
					t.Errorf("%q is missing from\n  %s", want, strings.Join(all, "\n  "))
				}
			}
		})
	}
}

func TestComparePaths(t *testing.T) {
	order := []string{".", "a", "a/b", "a/b/c", "a/c", "a b", "a.d", "a.d/x", "ab", "b"}
	// A walk comes to what is in a directory before it comes to the next name.
	for i, a := range order {
		for j, b := range order {
			want := min(1, max(-1, i-j))
			if got := comparePaths(a, b); min(1, max(-1, got)) != want {
				t.Errorf("comparePaths(%q, %q) is %d, want %d", a, b, got, want)
			}
		}
	}
}

func TestCompareEvents(t *testing.T) {
	event := func(name, digest string) measure.EventInfo {
		return measure.EventInfo{PCR: 4, Type: "EV_IPL", Description: name, Digest: digest}
	}
	a := []measure.EventInfo{event("one", "1"), event("two (3 bytes)", "2"), event("gone", "3"), event("last", "4")}
	b := []measure.EventInfo{event("new", "5"), event("one", "1"), event("two (4 bytes)", "6"), event("last", "4")}
	var got []string
	for _, e := range compareEvents(a, b, func(measure.EventInfo) string { return "" }) {
		got = append(got, fmt.Sprintf("%s %s %s->%s", e.How, e.What, e.DigestA, e.DigestB))
	}
	if want := []string{"added new ->5", "changed two (4 bytes) 2->6", "removed gone 3->"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
