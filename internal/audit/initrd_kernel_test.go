package audit

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// rawEntry is an entry of a cpio archive as a test wants it.
type rawEntry struct {
	name            string // without its NUL
	mode            uint32
	ino, links, uid uint32
	content         string
	size            int // of the content as the header has it, when that differs
	nameSize        int // likewise
	magic           string
}

// rawCpio makes an archive of entries as they are.
func rawCpio(entries ...rawEntry) []byte {
	var b bytes.Buffer
	for _, e := range entries {
		links, size, nameSize, magic := max(e.links, 1), len(e.content), len(e.name)+1, "070701"
		if e.size > 0 {
			size = e.size
		}
		if e.nameSize > 0 {
			nameSize = e.nameSize
		}
		if e.magic != "" {
			magic = e.magic
		}
		fmt.Fprintf(&b, "%s%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", magic, e.ino, e.mode, e.uid, 0, links, 1700000000, size, 0, 0, 1, 3, nameSize, 0)
		b.WriteString(e.name + "\x00")
		b.Write(make([]byte, -b.Len()&3))
		b.WriteString(e.content)
		b.Write(make([]byte, -b.Len()&3))
	}
	return b.Bytes()
}

var trailer = rawEntry{name: "TRAILER!!!"}

// randomCase makes entries below a directory of their own.
func randomCase(r *rand.Rand, top string) []rawEntry {
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	name := func() string {
		text := top
		for range 1 + r.IntN(3) {
			text += pick("/", "/", "/", "/", "//", "/./") + pick("a", "b", "c", "l", "l", "a", "b", "..", ".", "d"+strings.Repeat("x", 250))
		}
		return pick("", "", "", "/", "./", "//", "../") + text + pick("", "", "", "", "", "", "/", "/.")
	}
	target := func() string {
		return pick("a", "b", "../"+top, "../"+top+"/a", "/"+top+"/b", "/"+top, ".", "..", "a/b", "l", "missing", "/", "c/", "//"+top+"//a", strings.Repeat("./", 300)+"a")
	}
	entries := []rawEntry{{name: top, mode: typeDirectory | 0o755}}
	for range 4 + r.IntN(14) {
		e := rawEntry{name: name(), ino: 1 + uint32(r.IntN(3)), links: 1, uid: uint32(r.IntN(3))}
		switch r.IntN(12) {
		case 0, 1, 2, 3:
			e.mode, e.content = typeRegular|0o644, strings.Repeat(pick("x", "y", "z"), r.IntN(9))
		case 4, 5:
			e.mode = typeDirectory | 0o750
		case 6, 7:
			e.mode, e.content = typeLink|0o777, target()
		case 8:
			e.mode, e.links, e.content = typeRegular|0o4711, 2, strings.Repeat(pick("h", "i"), r.IntN(5))
		case 9:
			e.mode = []uint32{0o010600, 0o020640, 0o140600}[r.IntN(3)]
			e.links = 1 + uint32(r.IntN(2))
		case 10: // of a type that there is none of, or with more bits than are kept
			e.mode = []uint32{0, 0o150000, 0x10000 | typeRegular | 0o600}[r.IntN(3)]
		case 11:
			e = pickEntry(r, trailer, rawEntry{name: top + "/a\x00hidden", mode: typeRegular | 0o600, content: "n"}, rawEntry{name: top + "/e", mode: typeLink})
		}
		entries = append(entries, e)
	}
	return entries
}

func pickEntry(r *rand.Rand, of ...rawEntry) rawEntry { return of[r.IntN(len(of))] }

// lister is the guest's init.
func lister(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "init")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "./testdata/lister")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the guest's init: %v\n%s", err, out)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return rawCpio(rawEntry{name: "init", mode: typeRegular | 0o755, content: string(content)}, trailer)
}

// kernelLists boots a kernel with an initrd and returns what its init lists.
func kernelLists(t *testing.T, kernel, initrd []byte) []string {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	guest := exec.CommandContext(t.Context(), testenv.Tool(t, "qemu-system-x86_64"), "-accel", "tcg", "-cpu", "max", "-m", "512", "-nodefaults",
		"-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", write("kernel", kernel), "-initrd", write("initrd", initrd),
		"-append", "console=ttyS0 quiet loglevel=0 panic=-1 reboot=t")
	out, err := guest.Output()
	if err != nil {
		t.Fatalf("boot: %v\n%s", err, out)
	}
	_, text, began := strings.Cut(strings.ReplaceAll(string(out), "\r", ""), "BEGIN\n")
	text, _, ended := strings.Cut(text, "END\n")
	if !began || !ended {
		t.Fatalf("the guest listed nothing:\n%s", out)
	}
	var lines []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "FILE ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	slices.Sort(lines)
	return lines
}

// modelLists is the same of the model.
func modelLists(t *testing.T, initrd []byte) ([]string, error) {
	t.Helper()
	u := newUnpacker()
	u.digests = true
	err := u.unpack([]initrdPart{{bytes.NewReader(initrd), int64(len(initrd))}})
	var lines []string
	u.tree.all(0, func(name string, n *rootfsNode, alias bool) {
		if alias || name == "init" || strings.HasPrefix(name, "dev/") || strings.HasPrefix(name, "root/") {
			return
		}
		digest := n.digest
		if n.kind() != typeRegular && n.kind() != typeLink {
			digest = sha256.Sum256(nil)
		}
		lines = append(lines, fmt.Sprintf("FILE %q %o %d %d %d %x", "/"+name, n.mode, n.uid, n.gid, n.size, digest))
	})
	slices.Sort(lines)
	return lines, err
}

// sameLists says what one has and the other lacks.
func sameLists(t *testing.T, kernel, model []string, cases map[string][]rawEntry) {
	t.Helper()
	shown, told := 0, map[string]bool{}
	differ := func(line, who string) {
		if shown++; shown > 20 {
			return
		}
		t.Errorf("only the %s has %s", who, line)
		quoted := strings.Fields(line)[1]
		if name, err := strconv.Unquote(quoted); err == nil {
			top, _, _ := strings.Cut(strings.TrimPrefix(name, "/"), "/")
			if told[top] {
				return
			}
			told[top] = true
			for _, e := range cases[top] {
				t.Logf("  %q mode %o ino %d links %d %q", e.name, e.mode, e.ino, e.links, e.content)
			}
		}
	}
	for _, line := range kernel {
		if _, found := slices.BinarySearch(model, line); !found {
			differ(line, "kernel")
		}
	}
	for _, line := range model {
		if _, found := slices.BinarySearch(kernel, line); !found {
			differ(line, "model")
		}
	}
}

// TestInitrdAgainstKernel boots a kernel with archives in which names, links and
// types are at odds, and finds the model to have unpacked the same. One boot has
// many cases, each in a directory of its own, and in other archives: with
// ATTESTABLE_IMAGE_INITRDS=N there are N boots (see scripts/initrd-kernel).
func TestInitrdAgainstKernel(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: a boot takes a while")
	}
	testenv.Tool(t, "qemu-system-x86_64")
	init := lister(t)
	boots, first := 1, uint64(1)
	if n, err := strconv.Atoi(os.Getenv("ATTESTABLE_IMAGE_INITRDS")); err == nil {
		boots, first = n, rand.Uint64N(1<<40)
	}
	for _, suite := range []string{"trixie", "bookworm"} {
		if suite == "bookworm" && os.Getenv("ATTESTABLE_IMAGE_INITRDS") == "" {
			continue
		}
		name := "linux-image-cloud-amd64"
		kernel := testenv.DebianFile(t, suite, "amd64", testenv.DebianDepends(t, suite, "amd64", name), "boot/vmlinuz-*")
		for n := range boots {
			seed := first + uint64(n)
			t.Run(fmt.Sprintf("%s, random %d", suite, seed), func(t *testing.T) {
				r := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // cases of a test
				initrd, cases := slices.Clone(init), map[string][]rawEntry{}
				var pending []rawEntry
				for i := range 200 {
					top := fmt.Sprintf("t%03d", i)
					cases[top] = randomCase(r, top)
					pending = append(pending, cases[top]...)
					if i%20 != 19 {
						continue
					}
					archive := rawCpio(append(pending, trailer)...)
					switch pending = nil; i / 20 % 4 {
					case 1:
						archive = compress(archive)
					case 2:
						archive = pipe(t, ".", archive, "gzip", "-9c")
					case 3:
						archive = pipe(t, ".", archive, "xz", "--check=crc32", "-c")
					}
					initrd = append(append(initrd, archive...), make([]byte, -len(archive)&3+4*r.IntN(3))...)
				}
				model, err := modelLists(t, initrd)
				if err != nil {
					t.Fatal(err)
				}
				sameLists(t, kernelLists(t, kernel, initrd), model, cases)
			})
		}
		file := func(name, content string) rawEntry {
			return rawEntry{name: name, mode: typeRegular | 0o644, content: content}
		}
		// Where the kernel stops, the model must have doubts, and have unpacked as much.
		for name, tail := range map[string][]byte{
			"junk behind":          slices.Concat(rawCpio(file("a", "1"), trailer), []byte("rubbish!"), rawCpio(file("b", "2"), trailer)),
			"not aligned":          slices.Concat(rawCpio(file("a", "1"), trailer), []byte{0, 0}, rawCpio(file("b", "2"), trailer)),
			"old magic":            rawCpio(file("a", "1"), rawEntry{name: "b", mode: typeRegular, magic: "070707"}, file("c", "3"), trailer),
			"name without NUL":     rawCpio(file("a", "1"), rawEntry{name: "bcdefg", nameSize: 6, mode: typeRegular}, file("c", "3"), trailer),
			"cut in a file":        rawCpio(file("a", "1"), rawEntry{name: "b", mode: typeRegular | 0o600, content: "12345678", size: 4000}),
			"cut in a stream":      slices.Concat(compress(rawCpio(file("a", "1"), file("b", "12345678"))[:120]), rawCpio(file("c", "3"), trailer)),
			"without a trailer":    slices.Concat(rawCpio(file("a", "1")), compress(rawCpio(file("b", "2"))), rawCpio(file("c", "3"))),
			"a stream in an entry": slices.Concat(rawCpio(file("a", "1")), compress(rawCpio(file("b", "2"), trailer)), []byte{0, 0, 0, 0, 0}, compress(rawCpio(file("c", "3"), trailer))),
			"odd entries":          rawCpio(file("a", "1"), rawEntry{name: "b", mode: typeDirectory | 0o755, content: "body"}, rawEntry{name: "c", mode: typeLink | 0o777, content: strings.Repeat("x", 5000)}, file("d", "4"), rawEntry{name: strings.Repeat("e", 5000), mode: typeRegular}, file("f", "5"), trailer),
			"gzip with a comment":  slices.Concat(rawCpio(file("a", "1")), commentedGzip(t, rawCpio(file("b", "2"), trailer))),
			"check sums":           rawCpio(rawEntry{name: "a", mode: typeRegular | 0o600, magic: "070702"}, rawEntry{name: "b", mode: typeRegular | 0o600, magic: "070702", content: "1"}, file("c", "3"), trailer),
			"boot configuration":   slices.Concat(rawCpio(file("a", "1"), trailer), bootConfigOf("kernel.x = y\n")),
		} {
			if boots < 2 && name != "a stream in an entry" && name != "odd entries" {
				continue // each takes a boot
			}
			t.Run(suite+", "+name, func(t *testing.T) {
				initrd := slices.Concat(init, tail)
				model, err := modelLists(t, initrd)
				kernelList := kernelLists(t, kernel, initrd)
				t.Logf("the model: %v", err)
				if name == "check sums" && err != nil {
					return // the model goes on, with doubts
				}
				sameLists(t, kernelList, model, nil)
			})
		}
	}
}

// commentedGzip compresses with a comment in the header, which Linux does not skip.
func commentedGzip(t *testing.T, b []byte) []byte {
	z := pipe(t, ".", b, "gzip", "-9nc")
	return slices.Concat(z[:3], []byte{0x10}, z[4:10], []byte("a comment\x00"), z[10:])
}

// bootConfigOf makes a boot configuration as it lies behind an initrd.
func bootConfigOf(text string) []byte {
	text += strings.Repeat("\x00", -len(text)&3)
	sum := 0
	for _, b := range []byte(text) {
		sum += int(b)
	}
	le := func(v int) []byte { return []byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)} }
	return slices.Concat([]byte(text), le(len(text)), le(sum), []byte(bootConfigMagic))
}
