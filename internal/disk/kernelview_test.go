package disk

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/xi2/xz"
	"golang.org/x/sys/unix"

	"github.com/org/attestable-image-action/internal/testenv"
)

// TestKernelView has Linux mount images with one field changed each, in a guest, and
// compares what it finds by name with what the readers find: whatever they see
// otherwise, they have to report. ATTESTABLE_IMAGE_KERNEL_VIEW="SEED BUDGET" has it
// look at BUDGET images (scripts/kernel-view).
func TestKernelView(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: booting a guest takes a minute")
	}
	seed, budget := uint64(1), 160
	if text := os.Getenv("ATTESTABLE_IMAGE_KERNEL_VIEW"); text != "" {
		if _, err := fmt.Sscan(text, &seed, &budget); err != nil {
			t.Fatalf("ATTESTABLE_IMAGE_KERNEL_VIEW is %q, and has to be a seed and a budget: %v", text, err)
		}
	}
	guest := newViewGuest(t)
	bases := viewBases(t)
	random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // the same images for the same seed
	const batch = 160
	total := viewCount{}
	for number := 0; number < budget; {
		var views []*view
		for ; len(views) < batch && number < budget; number++ {
			base := bases[number%len(bases)]
			v := &view{number: number, base: base, image: bytes.Clone(base.image), what: "unchanged"}
			if number >= len(bases) {
				v.what = v.mutate(random)
			}
			v.look()
			views = append(views, v)
		}
		guest.look(t, views)
		for _, v := range views {
			total.add(t, v)
		}
	}
	t.Logf("seed %d: %d images; the kernel mounted %d, the readers opened %d; %d names compared, %d reported as unreadable or in disagreement, %d guests crashed, %d disagreements unreported",
		seed, budget, total.mounted, total.opened, total.names, total.reported, guest.crashes, total.wrong)
	if total.mounted < budget/3 || total.names < budget {
		t.Error("too little was compared")
	}
}

// viewBase is an image to change.
type viewBase struct {
	name, kind string
	image      []byte
	names      []string
}

// view is a changed image and what is seen in it.
type view struct {
	number int
	base   *viewBase
	image  []byte
	what   string // was changed
	names  []string

	refused  error             // by our reader, as a whole
	reader   map[string]string // by name, as the guest says it; "?" for what is reported
	reported map[string]bool   // directories in which something is reported
	kernel   []string          // of names; nil when the guest crashed
}

// viewTree is what all images hold: what is small, large, in many blocks, linked.
func viewTree(t *testing.T) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "tree")
	for name, content := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/shadow": "root:*:20000::::::\n", "etc/motd": "", "etc/large": strings.Repeat("a line of text\n", 900),
		"root/.ssh/authorized_keys": "ssh-ed25519 AAAA\n", "usr/bin/sh": strings.Repeat("\x7fELF program ", 500), "usr/lib/systemd/system/web.service": "[Service]\nExecStart=/usr/bin/true\n",
	} {
		at := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "many"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 150 {
		name := filepath.Join(root, "many", fmt.Sprintf("a-unit-with-a-name-of-quite-some-length-and-longer-%03d.service", i*7%150))
		var err error
		if i%60 == 0 {
			err = os.WriteFile(name, fmt.Appendf(nil, "unit %d\n", i), 0o600)
		} else {
			err = os.Link(filepath.Join(root, "many", fmt.Sprintf("a-unit-with-a-name-of-quite-some-length-and-longer-%03d.service", i/60*60*7%150)), name)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"etc/mask.service": "/dev/null", "etc/long": strings.Repeat("../etc/", 12) + "passwd", "lib": "usr/lib"} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func viewBases(t *testing.T) []*viewBase {
	t.Helper()
	tree := viewTree(t)
	var bases []*viewBase
	add := func(name, kind, file string) {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if kind == "erofs" {
			b[erofsSuperOffset+8] &^= erofsCompatChecksum
		}
		base := &viewBase{name: name, kind: kind, image: b}
		f, err := OpenFilesystem(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := f.Walk(func(name string, _ fs.FileInfo, err error) error {
			base.names = append(base.names, name)
			return err
		}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		bases = append(bases, base)
	}
	for _, options := range []string{"-t ext4 -b 1024 -O ^metadata_csum,^has_journal,^resize_inode", "-t ext4 -b 1024 -O ^has_journal,inline_data,^metadata_csum,^resize_inode -I 256", "-t ext2 -b 1024 -O ^resize_inode", "-t ext4 -b 4096 -O ^has_journal,metadata_csum"} {
		image := createFile(t, 768<<10)
		makeImage(t, tree, "mke2fs", append(append([]string{"-q", "-F", "-N", "64", "-d", "TREE"}, strings.Fields(options)...), image)...)
		if out, err := exec.Command(testenv.Tool(t, "e2fsck"), "-f", "-D", "-y", image).CombinedOutput(); err != nil && !strings.Contains(string(out), "FILE SYSTEM WAS MODIFIED") {
			t.Fatalf("e2fsck: %v\n%s", err, out)
		}
		add(options, "ext4", image)
	}
	add("squashfs", "squashfs", makeImage(t, tree, "mksquashfs", "TREE", "IMAGE", "-quiet", "-no-progress", "-noI", "-noD", "-noF", "-noX"))
	add("squashfs zstd", "squashfs", makeImage(t, tree, "mksquashfs", "TREE", "IMAGE", "-quiet", "-no-progress", "-noI", "-comp", "zstd"))
	add("erofs", "erofs", makeImage(t, tree, "mkfs.erofs", "--quiet", "IMAGE", "TREE"))
	add("erofs lz4", "erofs", makeImage(t, tree, "mkfs.erofs", "--quiet", "-zlz4hc,12", "-C4096", "IMAGE", "TREE"))
	return bases
}

// mutate changes one field of metadata, or a few bytes, and says which.
func (v *view) mutate(random *rand.Rand) string {
	places := v.places(random)
	at := places[random.IntN(len(places))]
	le := binary.LittleEndian
	b := v.image
	before := bytes.Clone(b[at : at+8])
	switch random.IntN(7) {
	case 0:
		b[at] ^= 1 << random.IntN(8)
	case 1:
		b[at] = byte(random.Uint32())
	case 2:
		b[at+random.IntN(4)] = []byte{0, 1, 0x7f, 0x80, 0xff}[random.IntN(5)]
	case 3:
		le.PutUint16(b[at:], []uint16{0, 1, 2, 0x7fff, 0x8000, 0xffff, 0x1000}[random.IntN(7)])
	case 4:
		le.PutUint32(b[at:], le.Uint32(b[at:])+uint32(random.IntN(17))-8) //nolint:gosec // wraps around
	case 5: // what stands elsewhere
		from := places[random.IntN(len(places))]
		copy(b[at:at+1<<random.IntN(4)], bytes.Clone(b[from:from+8]))
	case 6: // two change places
		from := places[random.IntN(len(places))]
		n := 1 << random.IntN(4)
		x, y := bytes.Clone(b[at:at+n]), bytes.Clone(b[from:from+n])
		copy(b[at:], y)
		copy(b[from:], x)
	}
	return fmt.Sprintf("at byte %#x: %x, before %x", at, b[at:at+8], before)
}

// places are the bytes of an image worth changing, in a part of it that random
// chooses: those that are not zero, and a few that are.
func (v *view) places(random *rand.Rand) []int {
	le := binary.LittleEndian
	b, whole := v.image, [2]int{0, len(v.image)}
	var parts [][2]int
	switch v.base.kind {
	case "ext4":
		whole[0] = ext4SuperOffset
		block := 1024 << le.Uint32(b[ext4SuperOffset+0x18:])
		descriptors := max(block, 2*ext4SuperOffset)
		table := int(le.Uint32(b[descriptors+8:])) * block
		parts = [][2]int{{ext4SuperOffset, 2 * ext4SuperOffset}, {descriptors, descriptors + 64}, {table, table + 45*int(le.Uint16(b[ext4SuperOffset+0x58:]))}, whole, whole}
	case "squashfs":
		inodes, directories := int(le.Uint64(b[64:])), int(le.Uint64(b[72:]))
		parts = [][2]int{{0, squashfsSuperSize}, {inodes, directories}, {directories, len(b)}, whole}
	case "erofs":
		parts = [][2]int{{erofsSuperOffset, erofsSuperOffset + erofsSuperSize}, {erofsSuperOffset, min(len(b), 8192)}, whole, whole}
	}
	part := parts[random.IntN(len(parts))]
	var places []int
	for at := part[0]; at+16 <= min(part[1], len(b)); at++ {
		if !bytes.Equal(b[at:at+2], []byte{0, 0}) || at%32 == 0 {
			places = append(places, at)
		}
	}
	return places
}

// look reads the image as the audit does.
func (v *view) look() {
	v.reader, v.reported = map[string]string{}, map[string]bool{}
	names := map[string]bool{}
	for _, name := range v.base.names {
		names[name] = true
	}
	f, err := OpenFilesystem(bytes.NewReader(v.image), int64(len(v.image)), v.base.kind)
	if v.refused = err; err == nil {
		count := 0
		v.refused = f.Walk(func(name string, _ fs.FileInfo, err error) error {
			if err != nil {
				v.reported[name] = true
				if strings.Contains(err.Error(), "inode number") {
					// Which file the kernel gives depends on what it opened before.
					return err
				}
			}
			if count++; count < 1000 {
				names[name] = true
			}
			return nil
		})
	}
	v.names = slices.Sorted(maps.Keys(names))
	v.names = slices.DeleteFunc(v.names, func(name string) bool { return strings.ContainsAny(name, "\n") })
	if v.refused != nil {
		return
	}
	for _, name := range v.names {
		text, err := describeFile(f, name)
		switch {
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR):
			text = "-"
		case err != nil:
			text = "?"
		}
		v.reader[name] = text
	}
}

// describeFile says of a file what the guest says of it.
func describeFile(f *Filesystem, name string) (string, error) {
	info, err := f.Lstat(name)
	if err != nil {
		return "", err
	}
	h, stat := sha256.New(), info.Sys().(*Stat)
	fmt.Fprintf(h, "%v %d:%d", info.Mode(), stat.UID, stat.GID)
	switch mode := info.Mode(); {
	case mode.IsRegular():
		fmt.Fprintf(h, " %d ", info.Size())
		file, err := f.Open(name)
		if err != nil {
			return "", err
		}
		defer file.Close()
		if _, err := io.Copy(h, io.LimitReader(file, 64<<10)); err != nil {
			return "", err
		}
	case mode.Type() == fs.ModeSymlink:
		target, err := f.ReadLink(name)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, " %s", target)
	case mode.IsDir():
		entries, err := f.ReadDir(name)
		if err != nil {
			return "", err
		}
		names := make([]string, 0, len(entries))
		for _, e := range entries {
			names = append(names, e.Name())
		}
		slices.Sort(names)
		fmt.Fprintf(h, " %q", names)
	case mode&fs.ModeDevice != 0:
		fmt.Fprintf(h, " %d", stat.Rdev)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:6]), nil
}

// viewCount counts what came out.
type viewCount struct{ mounted, opened, names, reported, wrong int }

// add compares a view with the kernel's.
func (c *viewCount) add(t *testing.T, v *view) {
	t.Helper()
	if v.refused == nil {
		c.opened++
	}
	if v.kernel == nil || len(v.kernel) != len(v.names) {
		return // not mounted, or the guest crashed
	}
	c.mounted++
	if v.refused != nil {
		if v.what == "unchanged" {
			t.Errorf("%s: %v", v.base.name, v.refused)
		}
		return
	}
	for i, name := range v.names {
		ours, theirs := v.reader[name], v.kernel[i]
		c.names++
		if ours == "?" || v.reported[name] || ours == "-" && v.isReported(name) {
			c.reported++
			if v.what == "unchanged" {
				t.Errorf("%s: %s is not read", v.base.name, name)
			}
			continue
		}
		if ours != theirs {
			if c.wrong++; c.wrong < 40 {
				t.Errorf("image %d (%s), changed %s: %s is %s for the reader, and %s for the kernel", v.number, v.base.name, v.what, name, ours, theirs)
			}
			break
		}
	}
}

// isReported reports whether a directory on the way to a name is.
func (v *view) isReported(name string) bool {
	for name != "." {
		if name = path.Dir(name); v.reported[name] {
			return true
		}
	}
	return false
}

// viewGuest boots Debian's kernel with the program that looks.
type viewGuest struct {
	qemu    string
	kernel  string
	files   map[string][]byte // of the initrd, but for the list of images
	crashes int
}

func newViewGuest(t *testing.T) *viewGuest {
	t.Helper()
	g := &viewGuest{qemu: testenv.Tool(t, "qemu-system-x86_64"), files: map[string][]byte{}}
	dir := t.TempDir()
	program := filepath.Join(dir, "init")
	build := exec.Command("go", "build", "-trimpath", "-o", program, "../testenv/kernelview")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the guest's program: %v\n%s", err, out)
	}
	content, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	g.files["init"] = content
	name := testenv.DebianDepends(t, "trixie", "amd64", "linux-image-cloud-amd64")
	modules := "usr/lib/modules/" + strings.TrimPrefix(name, "linux-image-") + "/kernel/"
	files := []string{"boot/vmlinuz-*"}
	for _, module := range []string{"drivers/block/virtio_blk", "drivers/block/loop", "lib/libcrc32c", "fs/erofs/erofs", "fs/squashfs/squashfs"} {
		files = append(files, modules+module+".ko.xz")
	}
	contents := testenv.DebianFiles(t, "trixie", "amd64", name, files...)
	g.kernel = filepath.Join(dir, "vmlinuz")
	if err := os.WriteFile(g.kernel, contents[0], 0o600); err != nil {
		t.Fatal(err)
	}
	for i, packed := range contents[1:] {
		r, err := xz.NewReader(bytes.NewReader(packed), 0)
		if err != nil {
			t.Fatal(err)
		}
		if g.files["modules/"+path.Base(files[i+1])], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

// look has guests look at the images, another one behind each that crashes one.
func (g *viewGuest) look(t *testing.T, views []*view) {
	t.Helper()
	type image struct {
		Number       int
		Kind         string
		Offset, Size int64
		Names        []string
	}
	dir := t.TempDir()
	all, err := os.Create(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	images, end := make([]image, 0, len(views)), int64(0)
	for i, v := range views {
		images = append(images, image{i, v.base.kind, end, int64(len(v.image)), v.names})
		if _, err := all.WriteAt(v.image, end); err != nil {
			t.Fatal(err)
		}
		end += (int64(len(v.image)) + 4095) &^ 4095
	}
	if err := all.Truncate(end + 4096); err != nil {
		t.Fatal(err)
	}
	for next := 0; next < len(images); {
		list, err := json.Marshal(images[next:])
		if err != nil {
			t.Fatal(err)
		}
		initrd := filepath.Join(dir, "initrd")
		files := maps.Clone(g.files)
		files["images.json"] = list
		if err := os.WriteFile(initrd, newcArchive(files), 0o600); err != nil {
			t.Fatal(err)
		}
		done, log := g.boot(t, all.Name(), initrd, func(number int, seen []string) { views[number].kernel = seen })
		if done {
			return
		}
		g.crashes++
		began := -1
		for line := range strings.Lines(log) {
			if text, ok := strings.CutPrefix(strings.TrimSpace(line), "BEGIN "); ok {
				if n, err := strconv.Atoi(text); err == nil {
					began = n
				}
			}
		}
		if began < next {
			t.Fatalf("the guest did not begin:\n%s", log)
		}
		t.Logf("image %d (%s), changed %s, ended the guest:\n%s", views[began].number, views[began].base.name, views[began].what, log[max(0, len(log)-1500):])
		next = began + 1
	}
}

// boot starts a guest. done says that it came to the end of its list.
func (g *viewGuest) boot(t *testing.T, disk, initrd string, seen func(number int, seen []string)) (done bool, log string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := exec.CommandContext(ctx, g.qemu, "-machine", "q35", "-accel", "tcg", "-cpu", "max,erms=off,fsrm=off,cx16=off", "-smp", "1", "-m", "512", "-nodefaults", "-display", "none",
		"-serial", "stdio", "-no-reboot", "-kernel", g.kernel, "-initrd", initrd, "-append", "console=ttyS0 quiet loglevel=1 panic=-1 oops=panic",
		"-drive", "file="+disk+",format=raw,if=virtio,readonly=on")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// A guest that says nothing for so long hangs.
	const patience = 3 * time.Minute
	watchdog := time.AfterFunc(patience, cancel)
	defer watchdog.Stop()
	var tail bytes.Buffer
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		watchdog.Reset(patience)
		line := strings.TrimSpace(lines.Text())
		if text, ok := strings.CutPrefix(line, "SEEN "); ok {
			fields := strings.Fields(text)
			if number, err := strconv.Atoi(fields[0]); err == nil {
				seen(number, fields[1:])
			}
			continue
		}
		done = done || line == "END <nil>"
		if tail.Len() < 1<<20 {
			fmt.Fprintln(&tail, line)
		}
	}
	_ = cmd.Wait() // what it wrote tells
	return done, tail.String()
}

// newcArchive makes a cpio archive (newc) of files that may be run.
func newcArchive(files map[string][]byte) []byte {
	var b bytes.Buffer
	entry := func(name string, mode int, content []byte) {
		fmt.Fprintf(&b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", 1, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		b.Write(make([]byte, -b.Len()&3))
		b.Write(content)
		b.Write(make([]byte, -b.Len()&3))
	}
	entry("modules", 0o40755, nil)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		entry(name, 0o100755, files[name])
	}
	entry("TRAILER!!!", 0, nil)
	return b.Bytes()
}
