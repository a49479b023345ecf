package disk

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

func TestErofs(t *testing.T) {
	if testing.Short() {
		t.Skip("making erofs file systems with every option takes more than a minute")
	}
	root := oddTree(t)
	for _, options := range []string{
		"",
		"-b1024", "-b512",
		"-Eforce-inode-extended",
		"-Enoinline_data",
		"--chunksize=4096", "--chunksize=65536", "--chunksize=65536 -Eforce-chunk-indexes",
		"-zlz4", "-zlz4hc,12", "-zlz4hc,level=12", "-zlz4hc,12 -Elegacy-compress",
		"-zlz4hc,12 -C65536", "-zlz4hc,12 -C1048576", "-zlz4hc -C65536 -Elegacy-compress",
		"-zlz4hc,12 -Eztailpacking", "-zlz4hc,12 -C65536 -Eztailpacking",
		"-zlz4hc,12 -Efragments", "-zlz4hc,12 -C65536 -Efragments", "-zlz4hc,12 -Eall-fragments", "-zlz4hc,12 -C131072 -Eall-fragments,ztailpacking",
		"-zlz4hc,12 -Ededupe", "-zlz4hc,12 -C65536 -Ededupe", "-zlz4hc,12 -C65536 -Eztailpacking,fragments,dedupe", "-zlz4hc,12 -Eztailpacking,all-fragments,dedupe",
		"-zlz4hc,12 -b1024 -C4096 -Eztailpacking",
		"-zdeflate,9", "-zdeflate,9 -C65536 -Efragments",
		"-zzstd,9", "-zzstd,9 -C65536 -Eztailpacking,dedupe",
		"-zlz4hc:deflate -C65536",
		"--xattr-prefix=user.a.long. --xattr-prefix=user.b", "--xattr-prefix=user.a.long. -zlz4 -Efragments",
		"-Exattr-name-filter",
	} {
		t.Run(options, func(t *testing.T) {
			args := append([]string{"-U00112233-4455-6677-8899-aabbccddeeff", "--quiet", "-x1"}, strings.Fields(options)...)
			image := makeImage(t, root, "mkfs.erofs", append(args, "IMAGE", "TREE")...)
			f := openImage(t, image)
			if f.Kind != "erofs" || f.UUID != "00112233-4455-6677-8899-aabbccddeeff" {
				t.Errorf("it is %s %s", f.Kind, f.UUID)
			}
			if n := compareTree(t, root, f, true); n < 800 {
				t.Errorf("%d files were compared", n)
			}
			checkLinks(t, f)
			checkRandomReads(t, root, f)
		})
	}
}

// TestErofsDebian compares the root file system that KIWI makes with what
// fsck.erofs takes out of it.
func TestErofsDebian(t *testing.T) {
	path := testenv.DebianDisk(t)
	d := open(t, path)
	gpt, err := d.GPT()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range gpt.Partitions {
		section := io.NewSectionReader(d, p.Offset, p.Size)
		f, err := OpenFilesystem(section, p.Size)
		if errors.Is(err, ErrNoFilesystem) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		image, err := os.Create(filepath.Join(t.TempDir(), "root.erofs"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(image, section)
		if err := errors.Join(err, image.Close()); err != nil {
			t.Fatal(err)
		}
		tree := filepath.Join(t.TempDir(), "tree")
		out, err := exec.Command(testenv.Tool(t, "fsck.erofs"), "--extract="+tree, "--preserve", image.Name()).CombinedOutput()
		if err != nil {
			t.Fatalf("fsck.erofs: %v\n%s", err, out)
		}
		if n := compareTree(t, tree, f, false); n < 5000 {
			t.Errorf("%d files were compared", n)
		}
		return
	}
	t.Error("no partition has a file system")
}
