package sbom

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// verified puts content under verity and returns it with its hash tree, and a unified
// kernel image that names the root hash.
func verified(t *testing.T, content []byte, words string) (partition, uki []byte) {
	t.Helper()
	content = append(bytes.Clone(content), make([]byte, -len(content)&4095)...)
	path := filepath.Join(t.TempDir(), "root")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(testenv.Tool(t, "veritysetup"), "format", "--salt", "-", fmt.Sprintf("--data-blocks=%d", len(content)/4096), fmt.Sprintf("--hash-offset=%d", len(content)), path, path).Output()
	if err != nil {
		t.Fatal(err)
	}
	hash := regexp.MustCompile(`Root hash:\s+([0-9a-f]{64})`).FindSubmatch(out)[1]
	if partition, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	return partition, testenv.PE(0x8664,
		testenv.PESection{Name: ".sdmagic", Data: []byte("#### LoaderInfo: systemd-stub 257.13-1 ####\x00")},
		testenv.PESection{Name: ".cmdline", Data: fmt.Appendf(nil, "roothash=%s systemd.verity_root_options=hash-offset=%d %s", hash, len(content), words)},
		testenv.PESection{Name: ".linux", Data: testenv.PE(0x8664, testenv.PESection{Name: ".text", Data: []byte{0xc3}})})
}

// TestDecoy puts a file system with a package database beside a root that verity
// covers.
func TestDecoy(t *testing.T) {
	files := map[string]string{"usr/lib/os-release": debian, "etc/os-release": "-> ../usr/lib/os-release", dpkgStatus: bash, "usr/share/doc/bash/copyright": format + "\nFiles: *\nLicense: GPL-3+\n"}
	decoy := makeFilesystem(t, "squashfs", files)
	files[dpkgStatus] = strings.ReplaceAll(bash, "Package: bash", "Package: dash")
	real := makeFilesystem(t, "erofs", files)
	xfs := append([]byte("XFSB"), bytes.Repeat([]byte("?"), 65532)...)
	both := bytes.Clone(real)
	copy(both, "hsqs")
	for _, c := range []struct {
		name, words   string
		content       []byte
		broken        bool // a block behind the tree's back
		want, problem string
	}{
		{name: "the root that verity covers", content: real, want: "dash"},
		{name: "XFS", content: xfs, problem: "partition 2, the root file system by the root hash of roothash= on the kernel command line: there is no erofs, squashfs or ext4 file system"},
		{name: "damaged", content: append(bytes.Clone(real[:1024+80]), append([]byte{0xff}, real[1024+81:]...)...), problem: "partition 2, the root file system"},
		{name: "blocks that the tree does not confirm", content: real, broken: true, problem: "the hash tree in partition 2 does not confirm its blocks"},
		{name: "two file systems", content: both, problem: "there are signatures of erofs and of squashfs"},
		{name: "two file systems and rootfstype=", content: both, words: "rootfstype=erofs", want: "dash"},
	} {
		t.Run(c.name, func(t *testing.T) {
			partition, uki := verified(t, c.content, c.words)
			if c.broken {
				partition[len(c.content)-1] ^= 1
			}
			i, err := Read(context.Background(), makeBootDisk(t, uki, partition, decoy), func(int64) {})
			switch {
			case c.problem != "":
				if err == nil || !strings.Contains(err.Error(), c.problem) {
					t.Errorf("%v, want %s", err, c.problem)
				}
			case err != nil:
				t.Error(err)
			case i.Packages[0].Name != c.want:
				t.Errorf("it lists %s", i.Packages[0].Name)
			}
		})
	}
	// Without a root hash what is not read may be the root.
	if _, err := Read(context.Background(), makeDisk(t, xfs, decoy), func(int64) {}); err == nil || !strings.Contains(err.Error(), "partition 2: it holds XFS, which this version does not read") {
		t.Errorf("%v", err)
	}
}
