package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// TestHiddenEntries boots a disk whose directories firmware reads otherwise than
// most readers do: entries behind what looks like the end, long names that do not
// hold, a kernel that its short name alone leads to. Every PCR must be as
// predicted, and inspect must show the files that firmware uses.
func TestHiddenEntries(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: a boot takes a while")
	}
	disk := testenv.GoldenDisk(t, "stub257")
	const start = 1 << 20 // bytes, of its EFI system partition
	const extra = "::/EFI/BOOT/BOOTX64.EFI.extra.d"
	mtools := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(testenv.Tool(t, name), append([]string{"-i", fmt.Sprintf("%s@@%d", disk, start)}, args...)...)
		cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
	}
	mtools("mmd", extra)
	// With the two dots these fill three clusters of sixteen entries each.
	const files = 3*16 - 2
	dir, args := t.TempDir(), []string{}
	for i := range files {
		name := filepath.Join(dir, fmt.Sprintf("FILE%04d", i))
		if err := os.WriteFile(name, fmt.Appendf(nil, "content of file %d\n", i), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, name)
	}
	mtools("mcopy", append(args, extra+"/")...)
	content, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	place := func(short string) int {
		at := bytes.Index(content, []byte(short))
		if at < 0 || bytes.Contains(content[at+1:], []byte(short)) {
			t.Fatalf("%q is not one entry", short)
		}
		return at
	}
	slots, used := make([]int, files), 0
	for i := range slots {
		slots[i] = place(fmt.Sprintf("FILE%04d   \x20", i))
	}
	originals := make([][]byte, files)
	for i, at := range slots {
		originals[i] = slices.Clone(content[at : at+32])
	}
	put := func(entries ...[]byte) {
		for _, e := range entries {
			copy(content[slots[used]:], e)
			used++
		}
	}
	next := 0
	file := func(short string, attributes byte) []byte { // with the content of the next one
		e := slices.Clone(originals[next])
		next++
		copy(e, short)
		e[11] = attributes
		return e
	}
	with := func(e []byte, at int, value byte) []byte {
		e = slices.Clone(e)
		e[at] = value
		return e
	}
	label := make([]byte, 32)
	label[11] = 0x08
	deleted := bytes.Repeat([]byte{0xe5}, 32)

	// The expected names are checked by hand below; the boot says whether the
	// prediction has them.
	put(label)
	e := file("A~1     CRE", 0x20)
	put(longEntry("a.cred", e), e)
	put(with(longEntry("x", e), 0, 0)) // a long name's entry that begins as an end
	e = file("B~1     CRE", 0x20)
	put(with(longEntry("b.cred", e), 11, 0x4f), e)
	e = file("C~1     CRE", 0x20)
	put(with(longEntry("c.cred", e), 26, 1), e)
	e = file("D~1     CRE", 0x20)
	put(with(longEntry("d.cred", e), 12, 1), e)
	e = file("E~1     CRE", 0x20)
	put(longEntry("e.cred", e), deleted, e)
	e = file("..         ", 0x20)
	put(longEntry("f.cred", e), e)
	put(with(file("G       RAW", 0x20), 12, 0x18))
	put(file("H\x00JUNK  RAW", 0x20))
	e = file("I~1     CRE", 0xc6)
	put(longEntry("i.cred", e), e)
	e = file("J~1     CRE", 0x20)
	put(with(longEntry("j.cred", e), 13, longEntry("j.cred", e)[13]+1), e)
	e = file("K~1     CRE", 0x20)
	put(with(longEntry("x", e), 0, 0x43), longEntry("k.cred", e), e)
	e = file("L~1     CRE", 0x28)
	put(longEntry("l.cred", e), e)
	e = file("N       RAW", 0x20)
	put(longEntry("", e), e)
	e = file("Z~1     CRE", 0x20)
	for used < files-2 {
		put(deleted)
	}
	put(longEntry("z.cred", e), e) // the last ones of the last cluster: nothing ends the directory

	// Another name for the kernel: firmware finds it by the short one.
	at := place("BOOTX64 EFI\x20")
	cluster := slices.Clone(content[at : at+8*32])
	if cluster[32+11] != 0x0f {
		t.Fatal("the directory EFI/BOOT is not as expected")
	}
	copy(content[at:], slices.Concat(longEntry("data.bin", cluster[:32]), cluster[:7*32]))
	if err := os.WriteFile(disk, content, 0o600); err != nil {
		t.Fatal(err)
	}

	result := run(t, nil, command(t), "inspect", "--format", "json", disk)
	var report struct {
		Audit struct{ Findings []struct{ ID, Path string } }
	}
	if begin := strings.Index(result.output, "{"); begin < 0 || json.NewDecoder(strings.NewReader(result.output[begin:])).Decode(&report) != nil {
		t.Fatalf("inspect: %v\n%s", result.err, result.output)
	}
	found := map[string]bool{}
	for _, f := range report.Audit.Findings {
		found[f.ID+" "+f.Path] = true
	}
	for _, name := range []string{"a", "d", "f", "i", "k", "z"} {
		if !found["esp-credential EFI/BOOT/BOOTX64.EFI.extra.d/"+name+".cred"] {
			t.Errorf("inspect does not show the credential %s.cred", name)
		}
	}
	for _, name := range []string{"g.raw", "H.RAW"} {
		if !found["esp-addon EFI/BOOT/BOOTX64.EFI.extra.d/"+name] {
			t.Errorf("inspect does not show %s", name)
		}
	}
	if found["uki-not-found "] || t.Failed() {
		t.Fatalf("inspect:\n%s", result.output)
	}
	bootsAsPredicted(t, disk, "--pcr", allPCRs)
}

// longEntry makes the one entry of a long name of up to twelve characters.
func longEntry(name string, short []byte) []byte {
	var sum byte
	for _, c := range short[:11] {
		sum = sum>>1 | sum<<7
		sum += c
	}
	e := make([]byte, 32)
	e[0], e[11], e[13] = 0x41, 0x0f, sum
	for i, at := range []int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30} {
		unit := uint16(0xffff)
		switch {
		case i < len(name):
			unit = uint16(name[i])
		case i == len(name):
			unit = 0
		}
		binary.LittleEndian.PutUint16(e[at:], unit)
	}
	return e
}
