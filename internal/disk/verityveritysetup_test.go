package disk

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// TestVerityAgainstVeritysetup recomputes trees that veritysetup makes in every
// form that it knows, in a partition that lies anywhere on the disk: salts,
// digests, block sizes, data whose size is no power of two, with a superblock
// and without, the tree behind the data or in a partition of its own. Then
// veritysetup is asked about the same disk with a byte flipped.
func TestVerityAgainstVeritysetup(t *testing.T) {
	veritysetup := testenv.Tool(t, "veritysetup")
	salts := []string{"-", "00", strings.Repeat("a5", 32), strings.Repeat("0123456789abcdef", 32)} // up to 256 bytes
	type form struct {
		hash                 string
		format               int
		dataBlock, hashBlock int64
		blocks               int64
		salt                 string
		superblock, apart    bool  // apart: the tree has a partition of its own
		gap                  int64 // sectors between the data and the hash offset
	}
	var forms []form
	// Each pair of block sizes with each digest, all else in turn.
	sizes := []int64{512, 1024, 4096}
	counts := []int64{1, 2, 3, 31, 33, 127, 129, 1000, 4097}
	n := 0
	for _, hash := range []string{"sha256", "sha512"} {
		for _, data := range sizes {
			for _, tree := range sizes {
				for _, superblock := range []bool{true, false} {
					for format := range 2 {
						forms = append(forms, form{
							hash, format, data, tree, counts[n%len(counts)], salts[n%len(salts)], superblock, n%5 == 0, int64(n % 7),
						})
						n++
					}
				}
			}
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	for _, f := range forms {
		t.Run(fmt.Sprintf("%+v", f), func(t *testing.T) {
			// The partition begins at a sector that is no multiple of any block.
			const start = 35 * 512
			content := make([]byte, start+f.blocks*f.dataBlock)
			for i := range content[start:] {
				content[start+i] = byte(random.Uint32())
			}
			if f.blocks > 4 {
				clear(content[start+f.dataBlock : start+2*f.dataBlock])
			}
			data := content[start:]
			offset := int64(0)
			if !f.apart {
				offset = f.blocks*f.dataBlock + f.gap*512
				if !f.superblock { // must then be a multiple of the hash block
					offset = (offset + f.hashBlock - 1) / f.hashBlock * f.hashBlock
				}
			}
			dir := t.TempDir()
			dataFile, hashFile := filepath.Join(dir, "data"), filepath.Join(dir, "data")
			if f.apart {
				hashFile = filepath.Join(dir, "hash")
			}
			if err := os.WriteFile(dataFile, data, 0o600); err != nil {
				t.Fatal(err)
			}
			// As a partition has: room behind the tree, too.
			room, err := os.OpenFile(hashFile, os.O_RDWR|os.O_CREATE, 0o600)
			if err == nil {
				err = room.Truncate(offset + 16*f.hashBlock + 2*f.blocks*f.hashBlock)
			}
			if err != nil {
				t.Fatal(err)
			}
			room.Close()
			common := []string{
				"--hash", f.hash, "--format", strconv.Itoa(f.format), "--salt", f.salt,
				"--data-block-size", strconv.FormatInt(f.dataBlock, 10), "--hash-block-size", strconv.FormatInt(f.hashBlock, 10),
				"--data-blocks", strconv.FormatInt(f.blocks, 10), "--hash-offset", strconv.FormatInt(offset, 10),
			}
			if !f.superblock {
				common = append(common, "--no-superblock")
			}
			out, err := exec.Command(veritysetup, append(append([]string{"format"}, common...), dataFile, hashFile)...).CombinedOutput()
			if err != nil {
				t.Fatalf("veritysetup: %v\n%s", err, out)
			}
			root := rootHashOf(t, out)
			// The disk: the partition, and the other one behind it.
			written, err := os.ReadFile(dataFile)
			if err != nil {
				t.Fatal(err)
			}
			image := append(bytes.Clone(content[:start]), written...)
			device := Extent{start, int64(len(written))}
			if f.apart {
				tree, err := os.ReadFile(hashFile)
				if err != nil {
					t.Fatal(err)
				}
				device = Extent{int64(len(image)), int64(len(tree))}
				image = append(image, tree...)
			}
			path := filepath.Join(dir, "disk.raw")
			if err := os.WriteFile(path, image, 0o600); err != nil {
				t.Fatal(err)
			}
			ours := func() *VerityReport {
				d := openTest(t, path)
				var v *Verity
				if f.superblock {
					v, err = d.Verity(device, offset)
				} else {
					salt, hexErr := hex.DecodeString(strings.Trim(f.salt, "-"))
					if hexErr != nil {
						t.Fatal(hexErr)
					}
					v, err = d.VerityTree(VerityParameters{f.hash, uint32(f.format), f.dataBlock, f.hashBlock, f.blocks, salt}, device, offset)
				}
				if err != nil {
					t.Fatal(err)
				}
				report, err := v.Verify(t.Context(), start)
				if err != nil {
					t.Fatal(err)
				}
				if got, ok, err := v.RootHash(); err != nil || ok && !bytes.Equal(got, report.RootHash) {
					t.Errorf("the topmost block leads to %x, %v", got, err)
				}
				return report
			}
			if report := ours(); !report.Holds(root) {
				t.Errorf("root hash %x, %d bad data blocks, %d bad hash blocks; veritysetup says %x", report.RootHash, report.BadDataCount, report.BadTreeCount, root)
			}
			// One byte of the data, which veritysetup finds, too.
			at := int64(random.Uint64N(uint64(f.blocks * f.dataBlock)))
			image[start+at] ^= 0x20
			written[at] ^= 0x20
			if err := os.WriteFile(path, image, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(dataFile, written, 0o600); err != nil {
				t.Fatal(err)
			}
			report := ours()
			if report.Holds(root) || f.blocks > 1 && (report.BadDataCount != 1 || report.BadData[0] != at/f.dataBlock) {
				t.Errorf("byte %d of the data was flipped: %+v", at, report)
			}
			if out, err := exec.Command(veritysetup, append(append([]string{"verify"}, common...), dataFile, hashFile, hex.EncodeToString(root))...).CombinedOutput(); err == nil {
				t.Errorf("veritysetup finds nothing:\n%s", out)
			}
		})
	}
}

// rootHashOf reads the root hash from what veritysetup prints.
func rootHashOf(t testing.TB, out []byte) []byte {
	t.Helper()
	found := regexp.MustCompile(`Root hash:\s+([0-9a-f]+)`).FindSubmatch(out)
	if found == nil {
		t.Fatalf("veritysetup printed no root hash:\n%s", out)
	}
	root, err := hex.DecodeString(string(found[1]))
	if err != nil {
		t.Fatal(err)
	}
	return root
}
