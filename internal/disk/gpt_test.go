package disk

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"
)

// entry is a partition of a table that gptDisk writes, in sectors.
type entry struct {
	guidType    GUID
	first, last uint64
	name        string
}

// linuxType is the partition type of Linux file systems,
// 0fc63daf-8483-4772-8e79-3d69d8477de4.
var linuxType = GUID{0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4}

// gptDisk writes a disk with a protective MBR and a primary GUID partition
// table. TestGPTAgainstOthers shows that others read it, too.
func gptDisk(size, sector int, entries ...entry) []byte {
	le := binary.LittleEndian
	disk := make([]byte, size)
	sectors := uint64(size / sector)
	record := disk[446:]
	record[4] = 0xee
	le.PutUint32(record[8:], 1)
	le.PutUint32(record[12:], uint32(sectors-1))
	disk[510], disk[511] = 0x55, 0xaa
	header := disk[sector:]
	copy(header, gptSignature)
	le.PutUint32(header[8:], 0x10000)
	le.PutUint32(header[12:], gptHeaderSize)
	le.PutUint64(header[24:], 1)
	le.PutUint64(header[32:], sectors-1)
	tableSectors := uint64(128 * 128 / sector)
	le.PutUint64(header[40:], 2+tableSectors)
	le.PutUint64(header[48:], sectors-2-tableSectors)
	copy(header[56:72], "the disk's GUID.")
	le.PutUint64(header[72:], 2)
	le.PutUint32(header[80:], 128)
	le.PutUint32(header[84:], 128)
	for i, e := range entries {
		raw := disk[2*sector+128*i:]
		copy(raw, e.guidType[:])
		copy(raw[16:32], fmt.Sprintf("partition no.%3d", i+1))
		le.PutUint64(raw[32:], e.first)
		le.PutUint64(raw[40:], e.last)
		for n, u := range utf16.Encode([]rune(e.name)) {
			le.PutUint16(raw[56+2*n:], u)
		}
	}
	// The backup, which firmware would write anew if it were missing.
	backup := disk[size-sector:]
	copy(disk[size-sector-128*128:], disk[2*sector:2*sector+128*128])
	copy(backup[:gptHeaderSize], header)
	le.PutUint64(backup[24:], sectors-1)
	le.PutUint64(backup[32:], 1)
	le.PutUint64(backup[72:], sectors-1-tableSectors)
	fixCRCs(disk, sector)
	le.PutUint32(backup[88:], le.Uint32(header[88:]))
	le.PutUint32(backup[16:], crc32.ChecksumIEEE(backup[:gptHeaderSize]))
	return disk
}

// fixCRCs makes the checksums of a primary table right, as far as its sizes lie
// within the disk.
func fixCRCs(disk []byte, sector int) {
	le := binary.LittleEndian
	if len(disk) < sector+512 {
		return
	}
	header := disk[sector:]
	table := le.Uint64(header[72:]) * uint64(sector)
	size := uint64(le.Uint32(header[80:])) * uint64(le.Uint32(header[84:]))
	if table < uint64(len(disk)) && size <= uint64(len(disk))-table {
		le.PutUint32(header[88:], crc32.ChecksumIEEE(disk[table:table+size]))
	}
	if n := le.Uint32(header[12:]); n >= 20 && n <= 512 {
		le.PutUint32(header[16:], 0)
		le.PutUint32(header[16:], crc32.ChecksumIEEE(header[:n]))
	}
}

// TestGPTAgainstOthers reads tables as sgdisk and partx do, made by sgdisk and
// by gptDisk.
func TestGPTAgainstOthers(t *testing.T) {
	dir := t.TempDir()
	bySgdisk := filepath.Join(dir, "sgdisk.raw")
	if err := os.WriteFile(bySgdisk, make([]byte, 16<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "sgdisk", "--clear", "--new=1:2048:8191", "--typecode=1:ef00", "--change-name=1:EFI System",
		"--new=5:8192:16383", "--change-name=5:Wurzel žluť 🌱", "--new=128:16384:0", "--typecode=128:8304", bySgdisk)
	ours := []entry{{ESPType, 256, 511, "EFI"}, {linuxType, 512, 767, "root"}}
	by512, by4096 := filepath.Join(dir, "512.raw"), filepath.Join(dir, "4096.raw")
	for path, sector := range map[string]int{by512: 512, by4096: 4096} {
		if err := os.WriteFile(path, gptDisk(8<<20, sector, ours...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out := tool(t, "sgdisk", "--verify", by512); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk finds fault with the table that the tests write:\n%s", out)
	}
	for path, want := range map[string]struct {
		sector     int64
		partitions int
	}{bySgdisk: {512, 3}, by512: {512, 2}, by4096: {4096, 2}} {
		t.Run(filepath.Base(path), func(t *testing.T) {
			g, err := open(t, path).GPT()
			if err != nil {
				t.Fatal(err)
			}
			if g.SectorSize != want.sector || len(g.Partitions) != want.partitions || len(g.Header) != 92 {
				t.Fatalf("sectors of %d bytes, %d partitions, header of %d bytes; want %d, %d, 92", g.SectorSize, len(g.Partitions), len(g.Header), want.sector, want.partitions)
			}
			var read strings.Builder
			for _, p := range g.Partitions {
				fmt.Fprintf(&read, "%d %d %d %s %s %s\n", p.Number, p.Offset/512, (p.Offset+p.Size)/512-1, p.GUID, p.Type, p.Name)
			}
			others := tool(t, "partx", "--sector-size", fmt.Sprint(want.sector), "--raw", "--noheadings", "--output", "NR,START,END,UUID,TYPE,NAME", path)
			// partx counts in sectors of 512 bytes, and escapes what is not ASCII.
			others = regexp.MustCompile(`\\x[0-9a-f]{2}`).ReplaceAllStringFunc(others, func(s string) string {
				b, err := strconv.ParseUint(s[2:], 16, 8)
				if err != nil {
					t.Fatal(err)
				}
				return string([]byte{byte(b)})
			})
			if read.String() != others {
				t.Errorf("partx reads\n%sand we read\n%s", others, read.String())
			}
			esp, err := g.ESP()
			if err != nil || esp.Number != 1 {
				t.Errorf("ESP is %+v, and %v; want partition 1", esp, err)
			}
			if want.sector == 512 {
				info := tool(t, "sgdisk", "--info=1", path)
				for _, line := range []string{
					"Partition unique GUID: " + strings.ToUpper(esp.GUID.String()),
					fmt.Sprintf("First sector: %d ", esp.Offset/512),
					fmt.Sprintf("Partition size: %d sectors", esp.Size/512),
					"Partition name: '" + esp.Name + "'",
				} {
					if !strings.Contains(info, line) {
						t.Errorf("sgdisk does not print %q, but:\n%s", line, info)
					}
				}
			}
		})
	}
}

func TestGPTRefuses(t *testing.T) {
	le := binary.LittleEndian
	good := []entry{{ESPType, 64, 127, "EFI"}, {linuxType, 128, 255, "root"}}
	const size = 1 << 20
	for name, test := range map[string]struct {
		entries []entry
		change  func(disk []byte) []byte // before the checksums are made right
		after   func(disk []byte) []byte // after that
		want    string
	}{
		"empty file":        {after: func([]byte) []byte { return nil }, want: `there is no GUID partition table: no "EFI PART" at sector 1`},
		"cut off in MBR":    {after: func(d []byte) []byte { return d[:300] }, want: "there is no GUID partition table"},
		"cut off in header": {after: func(d []byte) []byte { return d[:1000] }, want: "there is no GUID partition table"},
		"cut off in table":  {after: func(d []byte) []byte { return d[:4096] }, want: "table at sector 2 lies outside the disk of 4096 bytes"},
		"no signature":      {after: func(d []byte) []byte { d[512] = 'e'; return d }, want: "there is no GUID partition table"},
		"MBR only":          {after: func(d []byte) []byte { clear(d[512:]); return d }, want: "there is no GUID partition table"},
		"no protective MBR": {after: func(d []byte) []byte { d[450] = 0x83; return d }, want: "there is no protective MBR (a partition of type 0xee at sector 1): firmware would pass over"},
		"header CRC":        {after: func(d []byte) []byte { d[512+60] ^= 1; return d }, want: "the table is damaged"},
		"entries CRC":       {after: func(d []byte) []byte { d[1024+60] ^= 1; return d }, want: "CRC-32 of the entries is"},
		"header too small":  {change: func(d []byte) []byte { le.PutUint32(d[512+12:], 91); return d }, want: "header size 91 is not between 92 and 512"},
		"header too large":  {change: func(d []byte) []byte { le.PutUint32(d[512+12:], 1<<31); return d }, want: "header size 2147483648 is not between 92 and 512"},
		"header elsewhere":  {change: func(d []byte) []byte { le.PutUint64(d[512+24:], 7); return d }, want: "primary header says that it is at sector 7, not 1"},
		"entries too small": {change: func(d []byte) []byte { le.PutUint32(d[512+84:], 64); return d }, want: "entry size 64 is not 128 times a power of two"},
		"entries odd":       {change: func(d []byte) []byte { le.PutUint32(d[512+84:], 384); return d }, want: "entry size 384 is not 128 times a power of two"},
		"table too large":   {change: func(d []byte) []byte { le.PutUint32(d[512+80:], 1<<31); return d }, want: "table of 2147483648 entries of 128 bytes is larger than"},
		"table too far":     {change: func(d []byte) []byte { le.PutUint64(d[512+72:], 1<<62); return d }, want: "lies outside the disk of 1048576 bytes"},
		"table at the end":  {change: func(d []byte) []byte { le.PutUint64(d[512+72:], 2047); return d }, want: "table at sector 2047 lies outside the disk"},
		"partition outside": {entries: []entry{{ESPType, 64, 1 << 40, "EFI"}}, want: "partition 1, sectors 64 to 1099511627776, lies outside the disk"},
		"partition wraps":   {entries: []entry{{ESPType, 64, 1<<64 - 1, "EFI"}}, want: "lies outside the disk"},
		"partition reverse": {entries: []entry{{ESPType, 64, 63, "EFI"}}, want: "partition 1, sectors 64 to 63, lies outside the disk"},
		"partition early":   {entries: []entry{{ESPType, 1, 63, "EFI"}}, want: "lies outside the usable sectors 34 to 2014: firmware would pass over it"},
		"overlap":           {entries: []entry{{linuxType, 100, 200, "root"}, {ESPType, 64, 100, "EFI"}}, want: "partitions 1 and 2 overlap"},
		"no ESP":            {entries: good[1:], want: "there is no EFI system partition (type c12a7328-f81f-11d2-ba4b-00a0c93ec93b)"},
		"no partition":      {entries: []entry{}, want: "there is no EFI system partition"},
		"two ESPs":          {entries: append([]entry{{ESPType, 300, 400, ""}}, good...), want: "partitions 1 and 2 are both EFI system partitions"},
	} {
		t.Run(name, func(t *testing.T) {
			entries := test.entries
			if entries == nil {
				entries = good
			}
			content := gptDisk(size, 512, entries...)
			if test.change != nil {
				content = test.change(content)
				fixCRCs(content, 512)
			}
			if test.after != nil {
				content = test.after(content)
			}
			d := openBytes(t, content)
			g, err := d.GPT()
			if err == nil {
				_, err = g.ESP()
			} else {
				wantError(t, err, d.Name())
			}
			wantError(t, err, test.want)
		})
	}
}

// TestGPTHeader shows that a header that is longer than UEFI's is measured as
// firmware does: by the part that UEFI defines.
func TestGPTHeader(t *testing.T) {
	content := gptDisk(1<<20, 512, entry{ESPType, 64, 127, "EFI"})
	binary.LittleEndian.PutUint32(content[512+12:], 128)
	fixCRCs(content, 512)
	g, err := openBytes(t, content).GPT()
	if err != nil {
		t.Fatal(err)
	}
	if len(g.Header) != 92 || len(g.Partitions[0].Entry) != 128 {
		t.Errorf("header of %d bytes, entry of %d; want 92 and 128", len(g.Header), len(g.Partitions[0].Entry))
	}
}

func FuzzGPT(f *testing.F) {
	good := []entry{{ESPType, 64, 127, "EFI"}, {linuxType, 128, 200, "root"}}
	f.Add(gptDisk(128<<10, 512, good...)[:20<<10], false)
	f.Add(gptDisk(256<<10, 4096, entry{ESPType, 10, 20, "EFI"})[:30<<10], true)
	f.Fuzz(func(t *testing.T, head []byte, large bool) {
		sector, size := 512, max(len(head), 128<<10)
		if large {
			sector, size = 4096, max(len(head), 256<<10)
		}
		content := make([]byte, size)
		copy(content, head)
		fixCRCs(content, sector)
		g, err := openBytes(t, content).GPT()
		if err != nil {
			return
		}
		end := int64(0)
		for _, p := range g.Partitions {
			if p.Offset < 0 || p.Size <= 0 || p.Offset+p.Size > int64(size) || p.Number < 1 {
				t.Errorf("partition %+v on a disk of %d bytes", p, size)
			}
			end += p.Size
		}
		if end > int64(size) {
			t.Errorf("partitions of %d bytes on a disk of %d", end, size)
		}
		if esp, err := g.ESP(); err == nil && esp.Type != ESPType {
			t.Errorf("ESP of type %s", esp.Type)
		}
	})
}
