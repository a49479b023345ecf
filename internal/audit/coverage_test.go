package audit

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
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

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/efi"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
)

// coverageShape is a small disk that real tools make: sgdisk, mkfs.vfat, mtools,
// mkfs.erofs, veritysetup and sbsign.
type coverageShape struct {
	name      string
	fat       []string // arguments of mkfs.vfat
	espSize   int64    // bytes
	loader    bool     // systemd-boot in front
	secure    bool     // Secure Boot on; the images are signed in any case
	trailing  int      // bytes behind the certificate table
	verity    []string // arguments of veritysetup format
	apart     bool     // the hash tree has a partition of its own
	veritytab bool     // the root hash stands in the initrd
	bare      bool     // no superblock
	beside    bool     // credentials, an extension and an add-on, which has the root hash
}

var coverageShapes = []coverageShape{
	{name: "direct", fat: []string{"-F", "12", "-s", "4"}, espSize: 3 << 20, trailing: 24, verity: []string{"--salt", strings.Repeat("5a", 32)}},
	{name: "through systemd-boot with Secure Boot", fat: []string{"-F", "32", "-s", "1"}, espSize: 36 << 20, loader: true, secure: true,
		verity: []string{"--salt", "-", "--hash", "sha512", "--data-block-size", "1024", "--hash-block-size", "512"}, apart: true},
	{name: "as KIWI does", fat: []string{"-F", "16", "-s", "1"}, espSize: 9 << 20, veritytab: true, verity: []string{"--salt", "0011223344556677"}},
	{name: "without a superblock", fat: []string{"-F", "12", "-s", "8"}, espSize: 3 << 20, bare: true, verity: []string{"--salt", strings.Repeat("0f", 256), "--no-superblock"}},
	{name: "with companions", fat: []string{"-F", "12", "-s", "2"}, espSize: 3 << 20, beside: true, verity: []string{"--salt", "77"}},
}

// coverageDisk is such a disk, and what is known of it from making it.
type coverageDisk struct {
	path   string
	size   int64
	secure measure.SecureBoot
	hashed int64 // bytes of the images that their Authenticode digests cover
	blocks int64 // bytes under verity
	tree   int64 // bytes of the tree
}

const sectorSize = 512

// makeCoverageDisk makes a disk that has every class of bytes: gaps between
// partitions, one that holds nothing known, and space behind the backup of the
// partition table.
func makeCoverageDisk(t *testing.T, shape coverageShape) *coverageDisk {
	t.Helper()
	dir := t.TempDir()
	d := &coverageDisk{path: filepath.Join(dir, "disk.raw")}
	random := rand.New(rand.NewPCG(1, 3))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return b
	}
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}

	// The root: a file system, and its tree behind it or apart.
	write("tree/etc/os-release", []byte("ID=coverage\n"))
	write("tree/usr/bin/program", noise(150_000))
	root := filepath.Join(dir, "root")
	run(t, "mkfs.erofs", "-U"+rootUUID, root, filepath.Join(dir, "tree"))
	content, err := os.ReadFile(root)
	if err != nil {
		t.Fatal(err)
	}
	d.blocks = int64(len(content))
	offset := int64(0)
	hashFile := root
	if shape.apart {
		hashFile = write("hash", nil)
	} else {
		offset = d.blocks + 8192 // a gap behind the data
	}
	out, err := exec.Command(testenv.Tool(t, "veritysetup"), append(append([]string{"format"}, shape.verity...),
		"--hash-offset", strconv.FormatInt(offset, 10), "--data-blocks", strconv.FormatInt(d.blocks/blockSizeOf(shape), 10), root, hashFile)...).CombinedOutput()
	if err != nil {
		t.Fatalf("veritysetup: %v\n%s", err, out)
	}
	rootHash := string(regexp.MustCompile(`Root hash:\s+([0-9a-f]+)`).FindSubmatch(out)[1])
	rootPartition, err := os.ReadFile(root)
	if err != nil {
		t.Fatal(err)
	}
	hashPartition, err := os.ReadFile(hashFile)
	if err != nil {
		t.Fatal(err)
	}
	d.tree = int64(len(hashPartition)) - offset
	if !shape.bare { // the superblock has a hash block
		d.tree -= int64(4096)
		if slices.Contains(shape.verity, "--hash-block-size") {
			d.tree += 4096 - 512
		}
	}

	// The unified kernel image.
	options := fmt.Sprintf("hash-offset=%d,panic-on-corruption", offset)
	if shape.bare {
		options += fmt.Sprintf(",superblock=no,salt=%s,data-blocks=%d", shape.verity[1], d.blocks/4096)
	}
	cmdline := "ro roothash=" + rootHash + " systemd.verity_root_options=" + options
	initrd := cpio(map[string]string{"init": "x"})
	addon := cmdline
	if shape.beside {
		cmdline = "ro quiet"
	}
	if shape.veritytab {
		cmdline = "ro root=overlay:MAPPER=root"
		initrd = compress(cpio(map[string]string{"init": "x", "etc/veritytab": "root UUID=x UUID=x " + rootHash + " " + options + "\n"}))
	}
	uki := testenv.PE(0x8664,
		testenv.PESection{Name: ".text", Data: []byte{0xc3}},
		testenv.PESection{Name: ".sdmagic", Data: []byte("#### LoaderInfo: systemd-stub 257.13-1 ####\x00")},
		testenv.PESection{Name: ".osrel", Data: []byte("ID=coverage\n")},
		testenv.PESection{Name: ".cmdline", Data: []byte(cmdline)},
		testenv.PESection{Name: ".initrd", Data: initrd},
		testenv.PESection{Name: ".linux", Data: testenv.PE(0x8664, testenv.PESection{Name: ".text", Data: noise(20_000)})},
	)
	signer := testenv.NewSigner(t, "coverage", nil)
	list := testenv.SignatureList(efi.CertX509, signer.Certificate.Raw)
	if shape.secure {
		d.secure = measure.SecureBoot{PK: list, KEK: list, DB: list}
	}
	sign := func(image []byte) []byte {
		signed := signer.Sign(t, image)
		parsed, err := efi.ParseImage(bytes.NewReader(signed), int64(len(signed)))
		if err != nil {
			t.Fatal(err)
		}
		certificates, _ := parsed.CertificateTable()
		d.hashed += certificates - 4 - 8
		return signed
	}
	files := map[string][]byte{"EFI/other/unused.efi": testenv.PE(0x8664, testenv.PESection{Name: ".text", Data: noise(700)}), "notes.txt": noise(3000)}
	if shape.beside {
		const beside = "EFI/BOOT/BOOTX64.EFI.extra.d/"
		files["loader/credentials/all.cred"], files[beside+"one.cred"], files[beside+"x.raw"] = noise(900), noise(10), noise(5000)
		d.hashed += 900 + 10 + 5000
		files[beside+"a.addon.efi"] = sign(testenv.PE(0x8664, testenv.PESection{Name: ".cmdline", Data: []byte(addon)}))
	}
	image := append(sign(uki), noise(shape.trailing)...)
	// A table that is not last: as many bytes of it are hashed as lie behind.
	d.hashed += int64(shape.trailing)
	if shape.loader {
		files["EFI/BOOT/BOOTX64.EFI"] = sign(testenv.PE(0x8664, testenv.PESection{Name: ".text", Data: noise(5000)},
			testenv.PESection{Name: ".sdmagic", Data: []byte("#### LoaderInfo: systemd-boot 257.13-1 ####\x00")}))
		files["EFI/Linux/coverage.efi"] = image
		files["loader/loader.conf"] = []byte("timeout 0\nconsole-mode keep\n")
		d.hashed += int64(len(files["loader/loader.conf"]))
	} else {
		files["EFI/BOOT/BOOTX64.EFI"] = image
	}

	// The EFI system partition.
	esp := filepath.Join(dir, "esp")
	run(t, "mkfs.vfat", append(append([]string{"-C", "--invariant"}, shape.fat...), esp, strconv.FormatInt(shape.espSize>>10, 10))...)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		write("esp.d/"+name, files[name])
	}
	top, err := filepath.Glob(filepath.Join(dir, "esp.d", "*"))
	if err != nil {
		t.Fatal(err)
	}
	run(t, "mcopy", append(append([]string{"-s", "-i", esp}, top...), "::/")...)
	run(t, "mdel", "-i", esp, "::/notes.txt") // its clusters keep what they had
	espContent, err := os.ReadFile(esp)
	if err != nil {
		t.Fatal(err)
	}

	// The disk.
	partitions := [][]byte{espContent, rootPartition, noise(50_000)}
	if shape.apart {
		partitions = append(partitions, hashPartition)
	}
	arguments := []string{"--clear", "--set-alignment=1"}
	var starts []int64
	at := int64(2048) // sectors
	for i, content := range partitions {
		sectors := (int64(len(content)) + 4095) / sectorSize
		arguments = append(arguments, fmt.Sprintf("--new=%d:%d:%d", i+1, at, at+sectors-1))
		starts = append(starts, at)
		at += sectors + 77 // and a gap
	}
	arguments = append(arguments, "--typecode=1:ef00", "--change-name=1:EFI")
	if err := os.WriteFile(d.path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.path, (at+200)*sectorSize); err != nil {
		t.Fatal(err)
	}
	run(t, "sgdisk", append(arguments, d.path)...)
	// Space that came after the table was made.
	d.size = (at+200)*sectorSize + 300_000/sectorSize*sectorSize
	if err := os.Truncate(d.path, d.size); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(d.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i, content := range partitions {
		if _, err := f.WriteAt(content, starts[i]*sectorSize); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func blockSizeOf(shape coverageShape) int64 {
	if i := slices.Index(shape.verity, "--data-block-size"); i >= 0 {
		n, _ := strconv.ParseInt(shape.verity[i+1], 10, 64)
		return n
	}
	return 4096
}

// outcome is all that a verifier gets to see of a disk: the PCRs that a boot of
// it gives, and what verity says of its root.
type outcome struct {
	pcrs    map[int]string
	refused string // why nothing boots, or nothing can be predicted
	verity  string
}

var coveragePCRs = []int{4, 5, 7, 9, 11, 12, 13}

// look predicts the boot of the disk and measures its coverage.
func (d *coverageDisk) look(t *testing.T) (outcome, *Coverage) {
	t.Helper()
	raw, err := disk.Open(d.path)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	o := outcome{pcrs: map[int]string{}}
	p, err := measure.Disk(t.Context(), raw, measure.Options{PCRs: coveragePCRs, SecureBoot: d.secure})
	if err != nil {
		o.refused = err.Error()
		return o, nil
	}
	for _, n := range coveragePCRs {
		o.pcrs[n] = fmt.Sprintf("%x", p.Value(n))
	}
	c, err := MeasureCoverage(t.Context(), raw, p.Architecture)
	if err != nil {
		o.refused = err.Error()
		return o, nil
	}
	o.verity = c.VerityProblem
	if c.Verity != nil {
		o.verity = fmt.Sprintf("%s holds: %t, bad blocks %d %d", c.Verity.RootHash, c.Verity.Holds, c.Verity.Report.BadData, c.Verity.Report.BadTree)
	}
	return o, c
}

// sectionEnds are the bytes of the unified kernel image around the ends of its
// sections: the last of the content, and those that only fill the file up.
func (d *coverageDisk) sectionEnds(t *testing.T, c *Coverage) []int64 {
	t.Helper()
	i := slices.IndexFunc(c.Regions, func(r Region) bool { return r.What == "EFI/BOOT/BOOTX64.EFI" || r.What == "EFI/Linux/coverage.efi" })
	start := c.Regions[i].Offset // mcopy writes one run of clusters
	b := d.bytes(t, start, 40_000)
	image, err := efi.ParseImage(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	var ends []int64
	slack := 0
	for _, s := range image.Sections {
		begin := start + int64(s.RawOffset)
		ends = append(ends, begin, begin+int64(s.VirtualSize)-1, begin+int64(s.RawSize)-1)
		if s.RawSize > s.VirtualSize {
			slack++
			ends = append(ends, begin+int64(s.VirtualSize))
		}
	}
	if slack < 4 {
		t.Errorf("%d sections have slack, want more", slack)
	}
	return ends
}

func (o outcome) equal(other outcome) bool {
	return o.refused == other.refused && o.verity == other.verity && maps.Equal(o.pcrs, other.pcrs)
}

// change writes other bytes to the disk for the time of a call.
func (d *coverageDisk) change(t *testing.T, edits map[int64][]byte, while func()) {
	t.Helper()
	f, err := os.OpenFile(d.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before := map[int64][]byte{}
	for at, b := range edits {
		before[at] = d.bytes(t, at, len(b))
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	while()
	for at, b := range before {
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
}

func (d *coverageDisk) bytes(t *testing.T, at int64, n int) []byte {
	t.Helper()
	f, err := os.Open(d.path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatalf("read %d bytes at %d: %v", n, at, err)
	}
	return b
}

// tiles demands that the regions are the disk: ascending, without a gap, and
// that the sum over them is its size.
func tiles(t *testing.T, c *Coverage, size int64) {
	t.Helper()
	at := int64(0)
	for _, r := range c.Regions {
		if r.Offset != at || r.Length <= 0 || r.What == "" || r.Why == "" || r.Steers && r.PCR != NoPCR {
			t.Fatalf("region %+v, want one at %d", r, at)
		}
		at += r.Length
	}
	if at != size || c.Size != size {
		t.Fatalf("the regions end at %d, the disk of %d bytes is said to have %d", at, size, c.Size)
	}
}

// TestCoverage changes single bytes of disks and looks at them again, as the
// verifier of an instance would. Where a byte is said to be covered, the PCR that
// is named has another value, or verity says no, or nothing boots; where it is
// said to be neither covered nor steering, all stays as it was. Bytes are chosen
// at both ends and at random within every region, and at random over the disk.
func TestCoverage(t *testing.T) {
	for _, shape := range coverageShapes {
		t.Run(shape.name, func(t *testing.T) {
			d := makeCoverageDisk(t, shape)
			base, c := d.look(t)
			if base.refused != "" || !strings.Contains(base.verity, "holds: true") {
				t.Fatalf("the disk as it is: %+v", base)
			}
			tiles(t, c, d.size)
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			positions := map[int64]bool{}
			for _, r := range c.Regions {
				positions[r.Offset], positions[r.Offset+r.Length-1] = true, true
				for range 10 {
					positions[r.Offset+random.Int64N(r.Length)] = true
				}
			}
			for range 100 {
				positions[random.Int64N(d.size)] = true
			}
			for _, at := range d.sectionEnds(t, c) {
				positions[at] = true
			}
			count := map[string]int{}
			for _, at := range slices.Sorted(maps.Keys(positions)) {
				i, _ := slices.BinarySearchFunc(c.Regions, at, func(r Region, at int64) int {
					if r.Offset+r.Length <= at {
						return -1
					}
					return 1
				})
				r := c.Regions[i]
				flipped := d.bytes(t, at, 1)
				flipped[0] ^= byte(1 + random.IntN(255))
				var after outcome
				d.change(t, map[int64][]byte{at: flipped}, func() { after, _ = d.look(t) })
				switch {
				case r.PCR != NoPCR:
					count["covered"]++
					if after.refused == "" && after.pcrs[r.PCR] == base.pcrs[r.PCR] && (after.verity == base.verity || !strings.Contains(r.What, "root file system") && !strings.Contains(r.What, "hash tree") && !strings.Contains(r.What, "verity")) {
						t.Errorf("byte %d of %s is said to be covered by PCR %d; with %#x there nothing changed", at, r.What, r.PCR, flipped)
					}
					if file := strings.HasSuffix(r.What, "root file system"); file && !strings.Contains(after.verity, "holds: false") {
						t.Errorf("byte %d of %s is changed, verity says %s", at, r.What, after.verity)
					}
				case r.Steers:
					count["steering"]++
				default:
					count["neither"]++
					if !after.equal(base) {
						t.Errorf("byte %d of %s is said to be covered by nothing; with %#x there %+v became %+v", at, r.What, flipped, base, after)
					}
				}
			}
			t.Logf("bytes changed: %v", count)
			if count["covered"] < 50 || count["neither"] < 50 {
				t.Errorf("too few bytes were changed: %v", count)
			}
			if after, _ := d.look(t); !after.equal(base) {
				t.Fatalf("the disk was not restored: %+v", after)
			}
		})
	}
}

// TestCoverageNamesTheBlock flips one byte in each of several blocks of the root.
func TestCoverageNamesTheBlock(t *testing.T) {
	d := makeCoverageDisk(t, coverageShapes[0])
	_, c := d.look(t)
	root := regionsOf(c, "root file system")[0]
	for _, block := range []int64{0, 1, 17, root.Length/4096 - 1} {
		at := root.Offset + block*4096 + 4095
		d.change(t, map[int64][]byte{at: {d.bytes(t, at, 1)[0] ^ 1}}, func() {
			_, c := d.look(t)
			if v := c.Verity; v.Holds || !slices.Equal(v.Report.BadData, []int64{block}) || v.Partition != 2 {
				t.Errorf("block %d: %+v", block, v.Report)
			}
			tiles(t, c, d.size)
			if len(regionsOf(c, "root file system")) != 0 {
				t.Error("blocks that the tree does not confirm are said to be covered")
			}
		})
	}
}

// regionsOf returns the regions whose name has a part.
func regionsOf(c *Coverage, what string) []Region {
	var found []Region
	for _, r := range c.Regions {
		if strings.Contains(r.What, what) {
			found = append(found, r)
		}
	}
	return found
}

// TestCoverageClasses counts bytes by class, and compares with what is known
// from making the disk.
func TestCoverageClasses(t *testing.T) {
	for _, shape := range coverageShapes {
		t.Run(shape.name, func(t *testing.T) {
			d := makeCoverageDisk(t, shape)
			_, c := d.look(t)
			table := int64(92 + 3*128)
			superblock := int64(0)
			if shape.apart {
				table += 128
			}
			if !shape.bare {
				// Signature, version, type, algorithm, block sizes, salt and its length.
				superblock = 12 + 4 + 7 + 8 + 2
				salt := strings.TrimPrefix(shape.verity[1], "-")
				if superblock += int64(len(salt) / 2); salt == "" {
					superblock -= 4
				}
			}
			covered, total := c.Covered()
			if want := table + d.hashed + d.blocks + d.tree + superblock; covered != want || total != d.size {
				t.Errorf("%d of %d bytes are covered, want %d of %d", covered, total, want, d.size)
			}
			for what, steers := range map[string]bool{
				"boot code": false, "protective MBR": true, "GPT entry 1": false, unusedEntries: true, "backup GPT": false, "outside of partitions": false,
				"FAT boot sector": true, "file allocation table": true, "copy of the file allocation table": false, "FAT reserved sectors": false,
				"directories": true, "unused entries of directories": false, "behind the ends of files": false, "free space": false,
				"EFI/other/unused.efi": shape.loader, "outside of its digest": false, "place of the signatures": true, "signatures": true, "partition 3": false,
			} {
				found := regionsOf(c, what)
				if len(found) == 0 && (what != "FAT reserved sectors" || shape.fat[1] == "32") {
					t.Errorf("there are no bytes of the class %s", what)
				}
				for _, r := range found {
					if r.What == what && r.Steers != steers {
						t.Errorf("%+v steers: %t, want %t", r, r.Steers, steers)
					}
				}
			}
			if backup := regionsOf(c, "backup GPT"); len(backup) == 2 && (backup[0].Length != 128*128 || backup[1].Length != 512) {
				t.Errorf("the backup of the table is %+v", backup)
			}
			if last := c.Regions[len(c.Regions)-1]; last.What != "outside of partitions" || last.Length < 200_000 {
				t.Errorf("the disk ends with %+v", last)
			}
		})
	}
}

// TestCoverageSteering shows why steering bytes do not count as covered: some
// change of each leaves every PCR and verity's verdict as they were, beside those
// that show.
func TestCoverageSteering(t *testing.T) {
	direct, secure := makeCoverageDisk(t, coverageShapes[0]), makeCoverageDisk(t, coverageShapes[1])
	for name, test := range map[string]struct {
		disk *coverageDisk
		what string
		edit func(b []byte) []byte // of the region
	}{
		"size of the protective partition": {direct, "protective MBR", flipAt(12)},
		"unused GPT entry":                 {direct, unusedEntries, mendedCRC},
		"name in the boot sector":          {direct, "FAT boot sector", flipAt(3)},
		"time of a file":                   {direct, "directories", func(b []byte) []byte { return flipAt(bytes.Index(b, []byte("EFI        ")) + 22)(b) }},
		"signature":                        {direct, ", signatures", flipAt(40)},
		"offset of the signatures":         {direct, "place of the signatures", flipAt(0)},
		"free cluster marked as used":      {secure, "file allocation table", func(b []byte) []byte { return flipAt(len(b) - 4)(b) }},
		"number of data blocks": {direct, "number of data blocks", func(b []byte) []byte {
			binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)-1)
			return b
		}},
		"hash type without a salt": {secure, "hash type", flipAt(0)},
	} {
		t.Run(name, func(t *testing.T) {
			base, c := test.disk.look(t)
			var r Region
			for _, found := range regionsOf(c, test.what) {
				if found.Steers && r.Length == 0 {
					r = found
				}
			}
			if r.Length == 0 {
				t.Fatalf("no region %s steers", test.what)
			}
			before := test.disk.bytes(t, r.Offset, int(r.Length))
			changed := test.edit(bytes.Clone(before))
			if bytes.Equal(before, changed) {
				t.Fatal("the change changes nothing")
			}
			test.disk.change(t, map[int64][]byte{r.Offset: changed}, func() {
				if after, _ := test.disk.look(t); !after.equal(base) {
					t.Errorf("it shows: %+v became %+v", base, after)
				}
			})
		})
	}
}

func flipAt(at int) func([]byte) []byte {
	return func(b []byte) []byte { b[at] ^= 1; return b }
}

// mendedCRC changes the first byte of unused partition entries, and the last four
// so that the CRC-32 of the whole table stays.
func mendedCRC(b []byte) []byte {
	want := crc32.ChecksumIEEE(b)
	b[0] ^= 0x41 // also makes it a used entry unless its type stays zero
	b[0] ^= 0x41
	b[60] ^= 0x41 // of the name
	// A CRC is linear: which of the last 32 bits change which of its bits?
	patch := b[len(b)-4:]
	base := crc32.ChecksumIEEE(b)
	var columns [32]uint32
	for bit := range columns {
		patch[bit/8] ^= 1 << (bit % 8)
		columns[bit] = crc32.ChecksumIEEE(b) ^ base
		patch[bit/8] ^= 1 << (bit % 8)
	}
	// Gaussian elimination: each row keeps the bits that it is made of.
	var rows [32]struct{ value, bits uint32 }
	for bit, column := range columns {
		value, bits := column, uint32(1)<<bit
		for i := 31; i >= 0; i-- {
			if value>>i&1 == 0 {
				continue
			}
			if rows[i].value == 0 {
				rows[i].value, rows[i].bits = value, bits
				break
			}
			value, bits = value^rows[i].value, bits^rows[i].bits
		}
	}
	need, chosen := want^base, uint32(0)
	for i := 31; i >= 0; i-- {
		if need>>i&1 == 1 {
			need, chosen = need^rows[i].value, chosen^rows[i].bits
		}
	}
	binary.LittleEndian.PutUint32(patch, binary.LittleEndian.Uint32(patch)^chosen)
	return b
}

// TestCoverageOfCompanions says which PCR has what systemd-stub picks up beside
// the image, and a root hash that comes from there.
func TestCoverageOfCompanions(t *testing.T) {
	d := makeCoverageDisk(t, coverageShapes[len(coverageShapes)-1])
	_, c := d.look(t)
	for name, pcr := range map[string]int{
		"loader/credentials/all.cred": 12, "EFI/BOOT/BOOTX64.EFI.extra.d/one.cred": 12, "EFI/BOOT/BOOTX64.EFI.extra.d/x.raw": 13,
		"EFI/BOOT/BOOTX64.EFI.extra.d/a.addon.efi": 4, "partition 2, root file system": 12, "partition 2, hash tree": 12,
	} {
		found := regionsOf(c, name)
		if len(found) == 0 || found[0].PCR != pcr {
			t.Errorf("%s: %+v, want PCR %d", name, found, pcr)
		}
	}
}

// TestCoverageIgnoresCorruption counts no block as covered that verity lets pass
// when it is changed.
func TestCoverageIgnoresCorruption(t *testing.T) {
	d := makeCoverageDisk(t, coverageShapes[0])
	base, _ := d.look(t)
	uki, err := os.ReadFile(d.path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(uki, []byte("panic-on-corruption"))
	d.change(t, map[int64][]byte{int64(at): []byte("x,ignore-corruption")}, func() {
		after, c := d.look(t)
		if after.refused != "" || after.pcrs[4] == base.pcrs[4] {
			t.Fatalf("%+v", after)
		}
		for _, r := range regionsOf(c, "root file system") {
			if r.PCR != NoPCR || !r.Steers || !strings.Contains(r.Why, "ignore-corruption") {
				t.Errorf("%+v", r)
			}
		}
	})
}
