package efi

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	efilib "github.com/canonical/go-efilib"

	"github.com/org/attestable-image-action/internal/testenv"
)

// Offsets of fields in the images that testenv.PE makes.
const (
	atSections      = 64 + 4 + 2
	atOptionalSize  = 64 + 4 + 16
	atOptional      = 64 + 4 + 20
	atHeadersSize   = atOptional + 60
	atDirectories   = atOptional + 108
	atCertDirectory = atOptional + 112 + 8*4
	atTable         = atOptional + 240
)

// goldenUKI is the signed unified kernel image of a golden disk, cut out by
// mcopy.
func goldenUKI(t testing.TB, name string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "uki.efi")
	disk := testenv.GoldenDisk(t, name)
	if printed, err := exec.Command(testenv.Tool(t, "mcopy"), "-n", "-i", disk+"@@1048576", "::/EFI/BOOT/BOOTX64.EFI", out).CombinedOutput(); err != nil {
		t.Fatalf("mcopy: %v\n%s", err, printed)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func authenticode(b []byte, algorithms ...crypto.Hash) ([][]byte, error) {
	image, err := ParseImage(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, err
	}
	hashes := make([]hash.Hash, len(algorithms))
	for i, a := range algorithms {
		hashes[i] = a.New()
	}
	if err := image.Authenticode(hashes...); err != nil {
		return nil, err
	}
	digests := make([][]byte, len(hashes))
	for i, h := range hashes {
		digests[i] = h.Sum(nil)
	}
	return digests, nil
}

// section is the header of section i of an image of testenv.PE.
func section(b []byte, i int) []byte { return b[atTable+40*i : atTable+40*(i+1)] }

// images are PE images with every peculiarity that a digest depends on.
func images(t testing.TB) map[string][]byte {
	le := binary.LittleEndian
	uki := testenv.UKI(0x8664, "257.13-1")
	changed := func(change func(b []byte) []byte) []byte { return change(bytes.Clone(uki)) }
	return map[string][]byte{
		"golden stub257": goldenUKI(t, "stub257"),
		"golden sbA252":  goldenUKI(t, "sbA252"),
		"UKI":            uki,
		"aarch64":        testenv.UKI(0xaa64, "252"),
		"empty section":  testenv.UKI(0x8664, "257", testenv.PESection{Name: ".none"}),
		"trailing data":  append(bytes.Clone(uki), "trailing data of odd length"...),
		"sections out of order": changed(func(b []byte) []byte {
			first, last := bytes.Clone(section(b, 0)), bytes.Clone(section(b, 5))
			copy(section(b, 0), last)
			copy(section(b, 5), first)
			return b
		}),
		"empty section of a wild offset": changed(func(b []byte) []byte {
			le.PutUint32(section(b, 2)[16:], 0)
			le.PutUint32(section(b, 2)[20:], 0xfffffff0)
			return b
		}),
		"overlapping sections": changed(func(b []byte) []byte {
			le.PutUint32(section(b, 1)[16:], 1024)
			return append(b, make([]byte, 4096)...)
		}),
		"gap between sections": changed(func(b []byte) []byte {
			le.PutUint32(section(b, 3)[16:], 0)
			return b
		}),
		"no certificate directory": func() []byte {
			b := testenv.PE(0x8664, testenv.PESection{Name: ".text", Data: []byte("code")})
			table := bytes.Clone(section(b, 0))
			le.PutUint16(b[atOptionalSize:], 112+8*4)
			le.PutUint32(b[atDirectories:], 4)
			clear(b[atOptional+112 : 1024])
			copy(b[atOptional+112+8*4:], table)
			return b
		}(),
		"a checksum": changed(func(b []byte) []byte { le.PutUint32(b[atOptional+64:], 0xdeadbeef); return b }),
	}
}

// goUEFIIsWrong has the images of which go-uefi takes another digest than
// firmware, and what it hashes instead: a copy of the image for which the digest
// by the rules is that one.
var goUEFIIsWrong = map[string]func(b []byte) []byte{
	// It pads every file to a multiple of 8 bytes, as the paper on Authenticode
	// says for signing. EDK II's HashPeImage hashes what is there: a boot of such
	// an image (TestOddLength in internal/e2e) shows it.
	"trailing data": func(b []byte) []byte { return append(b, make([]byte, -len(b)&7)...) },
}

// TestAuthenticodeAgainstOthers takes the digests of images as go-efilib and
// go-uefi take them and, where sbsign signs the image, as sbsign embeds them.
func TestAuthenticodeAgainstOthers(t *testing.T) {
	signer := testenv.NewSigner(t, "signer", nil)
	for name, b := range images(t) {
		t.Run(name, func(t *testing.T) {
			switch hashes := goUEFIIsWrong[name]; {
			case hashes != nil:
				comparePeers(t, b, testenv.GoUEFI)
				by, err := authenticode(hashes(bytes.Clone(b)), crypto.SHA256)
				if err != nil {
					t.Fatal(err)
				}
				if theirs := testenv.AuthenticodePeers(crypto.SHA256, b)[testenv.GoUEFI]; !bytes.Equal(theirs, by[0]) {
					t.Errorf("go-uefi says %x, its own way gives %x", theirs, by[0])
				}
			case name == "no certificate directory":
				// go-uefi leaves out the 8 bytes where the fifth directory would be.
				// The headers have four, and here the section table is in that
				// place. EDK II's HashPeImage hashes all of the headers but the
				// checksum when NumberOfRvaAndSizes says that there is none.
				comparePeers(t, b, testenv.GoUEFI)
				h := crypto.SHA256.New()
				h.Write(slices.Concat(b[:atOptional+64], b[atOptional+68:atCertDirectory], b[atCertDirectory+8:]))
				if theirs := testenv.AuthenticodePeers(crypto.SHA256, b)[testenv.GoUEFI]; !bytes.Equal(theirs, h.Sum(nil)) {
					t.Errorf("go-uefi says %x, its own way gives %x", theirs, h.Sum(nil))
				}
			default:
				comparePeers(t, b)
			}
			if strings.Contains(name, "overlapping") || strings.Contains(name, "gap") || strings.Contains(name, "no certificate") || strings.Contains(name, "wild") {
				return // sbsign refuses it, or hashes what EDK II does not
			}
			signed := signer.Sign(t, b)
			comparePeers(t, signed)
			digests, err := authenticode(signed, crypto.SHA256)
			if err != nil {
				t.Fatal(err)
			}
			image, err := ParseImage(bytes.NewReader(signed), int64(len(signed)))
			if err != nil {
				t.Fatal(err)
			}
			ders, err := image.Signatures()
			if err != nil || len(ders) == 0 {
				t.Fatalf("%d signatures, and %v", len(ders), err)
			}
			// sbsign puts its signature behind those that there are.
			s, err := ParseAuthenticode(ders[len(ders)-1])
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(s.Digest, digests[0]) {
				t.Errorf("digest of the signed image is %x, sbsign says %x", digests[0], s.Digest)
			}
			if !signer.Verify(t, signed) {
				t.Error("sbverify refuses it")
			}
		})
	}
}

// TestAuthenticodeCoverage changes each kind of byte and looks whether the
// digest changes, as firmware's would.
func TestAuthenticodeCoverage(t *testing.T) {
	signed := testenv.NewSigner(t, "signer", nil).Sign(t, testenv.UKI(0x8664, "257"))
	before, err := authenticode(signed, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	certificates := int(binary.LittleEndian.Uint32(signed[atCertDirectory:]))
	for name, test := range map[string]struct {
		at      int
		covered bool
	}{
		"DOS stub":              {2, true},
		"file header":           {64 + 8, true},
		"checksum":              {atOptional + 64, false},
		"subsystem version":     {atOptional + 48, true},
		"section table":         {atTable + 36, true},
		"end of headers":        {1023, true},
		"section":               {1024, true},
		"end of last section":   {certificates - 1, true},
		"certificate table":     {certificates + 100, false},
		"end of certificate":    {len(signed) - 1, false},
		"other data directory":  {atOptional + 112, true},
		"behind cert directory": {atCertDirectory + 8, true},
	} {
		t.Run(name, func(t *testing.T) {
			b := bytes.Clone(signed)
			b[test.at] ^= 1
			after, err := authenticode(b, crypto.SHA256)
			if err != nil {
				t.Fatal(err)
			}
			if changed := !bytes.Equal(before[0], after[0]); changed != test.covered {
				t.Errorf("digest changed: %t, want %t", changed, test.covered)
			}
		})
	}
}

func TestParseImageRefuses(t *testing.T) {
	le := binary.LittleEndian
	put16 := func(off int, v uint16) func([]byte) []byte {
		return func(b []byte) []byte { le.PutUint16(b[off:], v); return b }
	}
	put32 := func(off int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { le.PutUint32(b[off:], v); return b }
	}
	for name, test := range map[string]struct {
		change func([]byte) []byte
		want   string
	}{
		"empty":                    {func(b []byte) []byte { return nil }, "DOS header at byte 0 lies outside the file of 0 bytes: it is truncated"},
		"cut off in DOS header":    {func(b []byte) []byte { return b[:63] }, "DOS header at byte 0 lies outside the file of 63 bytes"},
		"cut off in PE header":     {func(b []byte) []byte { return b[:80] }, "PE header at byte 64 lies outside the file of 80 bytes: it is truncated"},
		"cut off in optional":      {func(b []byte) []byte { return b[:200] }, "optional header at byte 88 lies outside the file of 200 bytes"},
		"cut off in section table": {func(b []byte) []byte { return b[:400] }, "SizeOfHeaders 1024 does not lie between"},
		"cut off in a section":     {func(b []byte) []byte { return b[:len(b)-1] }, `section ".linux" at byte 3584 of 1536 bytes lies outside the file of 5119 bytes`},
		"text":                     {func([]byte) []byte { return bytes.Repeat([]byte("text"), 100) }, `it does not start with "MZ"`},
		"DOS program":              {put32(60, 2048), `there is no "PE" signature at byte 2048`},
		"PE header far away":       {put32(60, 0xffffffff), "PE header at byte 4294967295 lies outside the file"},
		"no sections":              {put16(atSections, 0), "0 sections, not between 1 and 256"},
		"many sections":            {put16(atSections, 0xffff), "65535 sections, not between 1 and 256"},
		"sections beyond headers":  {put16(atSections, 250), "SizeOfHeaders 1024 does not lie between the end of the section table (10328)"},
		"PE32":                     {put16(atOptional, 0x10b), "optional header magic 0x10b is not PE32+ (0x20b)"},
		"no optional header":       {put16(atOptionalSize, 0), "optional header of 0 bytes is shorter than PE32+ has"},
		"optional header shorter":  {put16(atOptionalSize, 120), "optional header of 120 bytes with 16 data directories: firmware would not load it"},
		"optional header longer":   {put16(atOptionalSize, 248), "optional header of 248 bytes with 16 data directories: firmware would not load it"},
		"many directories":         {put32(atDirectories, 0xffffffff), "with 4294967295 data directories"},
		"headers too small":        {put32(atHeadersSize, 100), "SizeOfHeaders 100 does not lie between"},
		"headers too large":        {put32(atHeadersSize, 0xffffffff), "SizeOfHeaders 4294967295 does not lie between"},
		"section outside":          {put32(atTable+20, 0xffffff00), `section ".text" at byte 4294967040 of 512 bytes lies outside the file`},
		"section too long":         {put32(atTable+16, 0xffffffff), `section ".text" at byte 1024 of 4294967295 bytes lies outside the file`},
		"certificates outside":     {func(b []byte) []byte { return put32(atCertDirectory, 0xfffffff0)(put32(atCertDirectory+4, 0x20)(b)) }, "certificate table at byte 4294967280 of 32 bytes lies outside the file"},
		"certificates too long":    {func(b []byte) []byte { return put32(atCertDirectory, 4096)(put32(atCertDirectory+4, 0xffffffff)(b)) }, "certificate table at byte 4096 of 4294967295 bytes lies outside"},
		"certificates in headers":  {func(b []byte) []byte { return put32(atCertDirectory, 8)(put32(atCertDirectory+4, 64)(b)) }, "certificate table at byte 8 of 64 bytes lies outside"},
	} {
		t.Run(name, func(t *testing.T) {
			b := test.change(testenv.UKI(0x8664, "257.13-1"))
			_, err := ParseImage(bytes.NewReader(b), int64(len(b)))
			wantError(t, err, "read PE image: ")
			wantError(t, err, test.want)
		})
	}
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", want)
	}
	if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		t.Errorf("error is %q, want one line with %q", err, want)
	}
}

// TestAuthenticodeRefuses has images whose headers are right one by one, and
// wrong together.
func TestAuthenticodeRefuses(t *testing.T) {
	le := binary.LittleEndian
	b := testenv.UKI(0x8664, "257")
	le.PutUint32(b[atCertDirectory:], 2048) // the certificate table lies in sections
	le.PutUint32(b[atCertDirectory+4:], 1024)
	b = append(b, make([]byte, 512)...)
	_, err := authenticode(b, crypto.SHA256)
	wantError(t, err, "sections and certificate table are 512 bytes longer than the file: firmware would not load it")

	b = testenv.UKI(0x8664, "257")
	image, err := ParseImage(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	image.r = bytes.NewReader(b[:2000]) // the file shrinks
	wantError(t, image.Authenticode(crypto.SHA256.New()), "take Authenticode digest: unexpected EOF")
	image.r = failing{}
	wantError(t, image.Authenticode(crypto.SHA256.New()), "file does not exist")
	linux, _ := image.Section(".linux")
	if _, err := io.ReadAll(image.Content(linux)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("reading a section of an unreadable file gives %v", err)
	}
}

type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, fs.ErrNotExist }

func TestSectionContent(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789"), 100) // 1000 bytes, 1024 in the file
	for name, test := range map[string]struct {
		virtual uint32
		want    []byte
	}{
		"as long as in the file":   {1000, data},
		"shorter than in the file": {10, data[:10]},
		"longer than in the file":  {3000, append(bytes.Clone(data), make([]byte, 2000)...)},
		"empty":                    {0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			b := testenv.PE(0x8664, testenv.PESection{Name: ".data", Data: data}, testenv.PESection{Name: ".next", Data: []byte("next")})
			binary.LittleEndian.PutUint32(section(b, 0)[8:], test.virtual)
			image, err := ParseImage(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			s, _ := image.Section(".data")
			content, err := io.ReadAll(image.Content(s))
			if err != nil || !bytes.Equal(content, test.want) {
				t.Errorf("content is %d bytes and %v, want %d", len(content), err, len(test.want))
			}
			for off := range int64(test.virtual) + 2 { // the reader's own bounds
				p := []byte{0xaa, 0xaa}
				n, err := image.Content(s).ReadAt(p, off)
				want := max(0, min(2, len(test.want)-int(off)))
				if n != want || n > 0 && !bytes.Equal(p[:n], test.want[off:int(off)+n]) || n < 2 && !errors.Is(err, io.EOF) {
					t.Fatalf("2 bytes at %d: %d, %x and %v", off, n, p, err)
				}
			}
		})
	}
}

func TestStubVersion(t *testing.T) {
	amazon := []byte("NAME=\"Amazon Linux\"\nVERSION=\"2023\"\nID=amzn\n\x00\x00")
	kernel := testenv.PESection{Name: ".linux", Data: []byte("kernel")}
	magic := func(s string) testenv.PESection { return testenv.PESection{Name: ".sdmagic", Data: []byte(s)} }
	for name, test := range map[string]struct {
		machine  uint16
		sections []testenv.PESection
		version  int
		ok       bool
		loader   string
		want     string
	}{
		"Debian":            {0x8664, []testenv.PESection{magic("#### LoaderInfo: systemd-stub 257.13-1 ####\x00"), kernel}, 257, true, "", ""},
		"bare":              {0x8664, []testenv.PESection{magic("#### LoaderInfo: systemd-stub 252"), kernel}, 252, true, "", ""},
		"release candidate": {0x8664, []testenv.PESection{magic("#### LoaderInfo: systemd-stub 259~rc1-2 ####"), kernel}, 259, true, "", ""},
		"systemd-boot":      {0x8664, []testenv.PESection{magic("#### LoaderInfo: systemd-boot 257.13-1 ####\x00")}, 0, false, "systemd-boot 257.13-1", ""},
		"nothing":           {0x8664, []testenv.PESection{{Name: ".text", Data: []byte("code")}}, 0, false, "", ""},
		"kernel alone":      {0x8664, []testenv.PESection{kernel}, 0, false, "", ""},
		"Amazon aarch64":    {0xaa64, []testenv.PESection{{Name: ".osrel", Data: amazon}, kernel}, 252, true, "", ""},
		"Amazon x86_64":     {0x8664, []testenv.PESection{{Name: ".osrel", Data: amazon}, kernel}, 0, false, "", ""},
		"Amazon, no kernel": {0xaa64, []testenv.PESection{{Name: ".osrel", Data: amazon}}, 0, false, "", ""},
		"no version":        {0x8664, []testenv.PESection{magic("#### LoaderInfo: systemd-stub trixie ####"), kernel}, 0, false, "", `read version of systemd-stub from .sdmagic: "trixie ####" has none`},
		"version too long":  {0x8664, []testenv.PESection{magic("LoaderInfo: systemd-stub " + strings.Repeat("9", 40)), kernel}, 0, false, "", "has none"},
		"magic too long":    {0x8664, []testenv.PESection{magic(strings.Repeat("#", 5000)), kernel}, 0, false, "", "section .sdmagic of 5000 bytes is longer than the 4096 bytes expected"},
	} {
		t.Run(name, func(t *testing.T) {
			b := testenv.PE(test.machine, test.sections...)
			image, err := ParseImage(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			version, ok, err := image.StubVersion()
			if test.want != "" {
				wantError(t, err, test.want)
				return
			}
			if err != nil || version != test.version || ok != test.ok {
				t.Errorf("version %d, %t, %v; want %d, %t", version, ok, err, test.version, test.ok)
			}
			if loader, ok := image.BootLoader(); ok != (test.loader != "") || ok && loader != test.loader {
				t.Errorf("boot loader %q, want %q", loader, test.loader)
			}
		})
	}
	if got := MachineAArch64.String() + MachineX64.String() + Machine(0x14c).String(); got != "aarch64x86_64machine 0x014c" {
		t.Error(got)
	}
}

func FuzzParseImage(f *testing.F) {
	for _, seed := range [][]byte{
		testenv.UKI(0x8664, "257.13-1"),
		testenv.UKI(0xaa64, "252")[:1500],
		testenv.PE(0x8664, testenv.PESection{Name: ".sdmagic", Data: []byte("LoaderInfo: systemd-stub ")}, testenv.PESection{Name: ".none"}),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		image, err := ParseImage(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		_, _, _ = image.StubVersion()
		image.BootLoader()
		if ders, err := image.Signatures(); err == nil {
			for _, der := range ders {
				_, _ = ParseAuthenticode(der)
			}
		}
		for _, s := range image.Sections {
			n, err := io.Copy(io.Discard, io.LimitReader(image.Content(s), 1<<20))
			if want := min(int64(s.VirtualSize), 1<<20); err != nil || n != want {
				t.Fatalf("section %+v of a file of %d bytes: %d bytes, and %v", s, len(b), n, err)
			}
		}
		h := crypto.SHA256.New()
		if err := image.Authenticode(h); err != nil {
			return
		}
		// Another implementation must agree, where it reads the image at all. It
		// wants a longer DOS header, and takes no count of directories above 16.
		theirs, err := efilib.ComputePeImageDigest(crypto.SHA256, bytes.NewReader(b), int64(len(b)))
		if err == nil && !bytes.Equal(h.Sum(nil), theirs) {
			t.Fatalf("digest %s, go-efilib says %s", hex.EncodeToString(h.Sum(nil)), hex.EncodeToString(theirs))
		}
	})
}

func BenchmarkAuthenticode(b *testing.B) {
	uki := goldenUKI(b, "sbA252")
	b.SetBytes(int64(len(uki)))
	for b.Loop() {
		if _, err := authenticode(uki, crypto.SHA256, crypto.SHA384); err != nil {
			b.Fatal(err)
		}
	}
}
