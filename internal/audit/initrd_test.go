package audit

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/org/attestable-image-action/internal/testenv"
)

// toolCpio makes an archive with cpio(1).
func toolCpio(t testing.TB, files map[string]string) []byte {
	t.Helper()
	dir := t.TempDir()
	var names strings.Builder
	for _, name := range slices.Sorted(maps.Keys(files)) {
		path := filepath.Join(dir, name)
		for i, c := range name {
			if c == '/' {
				names.WriteString("./" + name[:i] + "\n") // cpio passes over what it has had
			}
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(files[name], "-> "); ok {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(files[name]), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		names.WriteString("./" + name + "\n")
	}
	return pipe(t, dir, []byte(names.String()), "cpio", "--quiet", "--create", "--format=newc")
}

// pipe sends data through a program.
func pipe(t testing.TB, dir string, data []byte, program string, args ...string) []byte {
	t.Helper()
	c := exec.Command(testenv.Tool(t, program), args...)
	c.Dir, c.Stdin, c.Stderr = dir, bytes.NewReader(data), os.Stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%s: %v", program, err)
	}
	return out
}

func read(b []byte) (*initrd, error) {
	return readInitrd(initrdPart{bytes.NewReader(b), int64(len(b))})
}

func TestInitrd(t *testing.T) {
	first := toolCpio(t, map[string]string{
		"etc/veritytab": "old", "etc/fstab": "kept", "lib": "-> usr/lib", "usr/lib/x": strings.Repeat("many bytes ", 30000), "usr/sbin/a": "-> /lib/x", "loop": "-> loop",
	})
	second := toolCpio(t, map[string]string{"etc/veritytab": "new", "etc/passwd": "root:x\n"})
	zip := func(program string, args ...string) func([]byte) []byte {
		return func(b []byte) []byte { return pipe(t, ".", b, program, args...) }
	}
	packers := map[string]func([]byte) []byte{
		"plain":   func(b []byte) []byte { return b },
		"gzip":    zip("gzip", "-9nc"),
		"zstd":    zip("zstd", "-q", "-19", "-c"),
		"zstd -T": zip("zstd", "-q", "-T2", "--no-check", "-c"),
		"xz":      zip("xz", "--check=crc32", "--lzma2=dict=1MiB", "-c"),
		"xz -9":   zip("xz", "-9", "--check=none", "-c"),
		"xz bcj":  zip("xz", "--check=crc32", "--x86", "--lzma2=dict=512KiB", "-c"),
	}
	for a, packFirst := range packers {
		for b, packSecond := range packers {
			t.Run(a+" then "+b, func(t *testing.T) {
				one, two := packFirst(first), packSecond(second)
				one = append(one, make([]byte, -len(one)&3+8)...)
				rd, err := read(append(one, two...))
				if err != nil {
					t.Fatal(err)
				}
				for name, want := range map[string]string{"etc/veritytab": "new", "etc/fstab": "kept", "etc/passwd": "root:x\n"} {
					if file, err := rd.file(name); err != nil || string(file.content) != want {
						t.Errorf("%s is %q, %v", name, file.content, err)
					}
				}
				if file, err := rd.file("usr/sbin/a"); err != nil || file.size != 330000 || file.content != nil {
					t.Errorf("usr/sbin/a leads to %d bytes, %v", file.size, err)
				}
				if _, err := rd.file("loop"); err == nil || errors.Is(err, fs.ErrNotExist) {
					t.Errorf("loop: %v", err)
				}
				if _, err := rd.file("nothing"); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("nothing: %v", err)
				}
			})
		}
	}
	t.Run("both in one stream", func(t *testing.T) {
		rd, err := read(compress(append(append(bytes.Clone(first), make([]byte, 512)...), second...)))
		if err != nil {
			t.Fatal(err)
		}
		if file, err := rd.file("etc/veritytab"); err != nil || string(file.content) != "new" {
			t.Errorf("etc/veritytab is %q, %v", file.content, err)
		}
	})
}

// TestInitrdFiles lists what cpio wrote, of two archives with a file in both.
func TestInitrdFiles(t *testing.T) {
	first := toolCpio(t, map[string]string{"etc/twice": "first", "etc/long": strings.Repeat("long ", 5000), "link": "-> etc"})
	archive := slices.Concat(first, compress(toolCpio(t, map[string]string{"etc/twice": "second", "empty": ""})))
	files, err := InitrdFiles(bytes.NewReader(archive), int64(len(archive)))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"etc/twice": "second", "etc/long": strings.Repeat("long ", 5000), "link": "etc", "empty": ""}
	if len(files) != len(want)+1 || files["etc"].Mode&typeMask != typeDirectory {
		t.Errorf("files are %v", slices.Sorted(maps.Keys(files)))
	}
	for name, content := range want {
		f := files[name]
		if f.Size != int64(len(content)) || f.SHA256 != sha256.Sum256([]byte(content)) {
			t.Errorf("%s has %d bytes with the digest %x", name, f.Size, f.SHA256)
		}
		if f.UID != uint32(os.Getuid()) || time.Since(f.ModTime) > time.Hour {
			t.Errorf("%s belongs to %d and is of %s", name, f.UID, f.ModTime)
		}
	}
	if _, err := InitrdFiles(bytes.NewReader(first[:len(first)/2]), int64(len(first)/2)); err == nil {
		t.Error("half an archive is listed")
	}
}

func TestInitrdRefuses(t *testing.T) {
	good := cpio(map[string]string{"a": "b"})
	change := func(at int, text string) []byte {
		b := bytes.Clone(good)
		copy(b[at:], text)
		return b
	}
	for name, c := range map[string]struct {
		content []byte
		want    string
	}{
		"empty":           {nil, "read initrd: it is empty"},
		"zeros":           {make([]byte, 100), "read initrd: it is empty"},
		"text":            {[]byte("hello world"), "read initrd at byte 0: 68656c6c6f20 is the beginning of nothing known"},
		"old cpio":        {change(0, "070707"), `read initrd at byte 0: "070707" does not begin a cpio archive in the newc format`},
		"cut":             {good[:len(good)-20], "read initrd at byte 0: a cpio archive is cut off or damaged: unexpected EOF"},
		"number":          {change(54, "zzzzzzzz"), `read initrd at byte 0: "zzzzzzzz" is no number of a cpio header`},
		"name":            {change(94, "00010000"), "read initrd: an entry with a name of 65536 bytes and 1 bytes of content is one that the kernel passes over"},
		"size":            {change(54, "FFFFFFFF"), `read initrd at byte 0: "a": it is longer than 4294967296 bytes when unpacked`},
		"bzip2":           {[]byte("BZh91AY&SY"), "read initrd at byte 0: it is compressed with bzip2, which this version does not read: use zstd, gzip or xz"},
		"lz4":             {[]byte("\x02\x21\x4c\x18abcdef"), "read initrd at byte 0: it is compressed with LZ4, which this version does not read: use zstd, gzip or xz"},
		"zstd cut":        {compress(good)[:40], "read initrd at byte 0: a Zstandard frame is cut off"},
		"behind":          {append(bytes.Clone(good), "rubbish"...), "is the beginning of nothing known"},
		"long link":       {cpio(map[string]string{"a": "-> " + strings.Repeat("x", 70000)}), "read initrd: an entry with a name of 2 bytes and 70000 bytes of content is one that the kernel passes over"},
		"text compressed": {compress([]byte(strings.Repeat("hello ", 100))), `read initrd at byte 0: "hello " does not begin a cpio archive in the newc format`},
	} {
		if _, err := read(c.content); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

func FuzzInitrd(f *testing.F) {
	plain := cpio(map[string]string{"etc/veritytab": "a b c d", "etc/passwd": "root::0:0::/:\n", "lib": "-> usr/lib", "usr/lib/x": "y"})
	f.Add(plain)
	f.Add(compress(plain))
	f.Add(append(compress(plain), plain...))
	f.Fuzz(func(t *testing.T, b []byte) {
		rd, err := read(b)
		for name := range rd.files {
			_, _ = rd.file(name)
		}
		_, _ = bootConfigWords(rd.config)
		if err != nil {
			return
		}
		listed, err := InitrdFiles(bytes.NewReader(b), int64(len(b)))
		if err == nil && len(listed) != rd.count() {
			t.Errorf("%d files are listed of %d", len(listed), rd.count())
		}
	})
}

// TestBootConfig takes what a boot configuration adds to command lines.
func TestBootConfig(t *testing.T) {
	for text, want := range map[string][]string{
		"kernel.rd.break":                         {"rd.break"},
		"kernel { rd { break } }":                 {"rd.break"},
		"kernel {\n # x\n a = \"b c\", 'd'; e\n}": {"a=b c", "a=d", "e"},
		"init.systemd.unit := x.target # y\n":     {"systemd.unit=x.target"},
		"user.x = 1; kernelx.y; ftrace { z = 2 }": nil,
		"kernel.a = 1,\n 2\nkernel.b += 3":        {"a=1", "a=2", "b=3"},
		"":                                        nil,
	} {
		words, err := bootConfigWords([]byte(text))
		if err != nil || !slices.Equal(words, want) {
			t.Errorf("%q: %q, %v, want %q", text, words, err, want)
		}
	}
	for _, text := range []string{"kernel {", "}", "kernel.a = \"b", "=", strings.Repeat("a{", 20), "kernel.a = 'b' c"} {
		if words, err := bootConfigWords([]byte(text)); err == nil {
			t.Errorf("%q is read as %q", text, words)
		}
	}
}

func FuzzBootConfig(f *testing.F) {
	f.Add([]byte("kernel {\n rd { break }\n a = \"b\", 'c'\n}\ninit.x := y # z\n"))
	f.Fuzz(func(t *testing.T, config []byte) {
		words, err := bootConfigWords(config)
		if err == nil && len(strings.Join(words, "")) > bootConfigDepth*(len(config)+1)*(len(config)+1) {
			t.Error("the words are longer than keys and values could be")
		}
	})
}
