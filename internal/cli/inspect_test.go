package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/audit"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
)

// inspected is the JSON of inspect, as far as the tests look at it.
type inspected struct {
	Coverage audit.Coverage
	Audit    audit.Report
}

func inspectJSON(t *testing.T, disk string, args ...string) (status int, i inspected) {
	t.Helper()
	status, stdout, stderr := execute(t, append([]string{"inspect", "--format", "json", disk}, args...)...)
	if err := json.Unmarshal([]byte(stdout), &i); err != nil {
		t.Fatalf("inspect: status %d, %v: %s", status, err, stderr)
	}
	return status, i
}

// wholeDisk demands that the regions are the disk: ascending, without a gap.
func wholeDisk(t *testing.T, c audit.Coverage) {
	t.Helper()
	at := int64(0)
	for _, r := range c.Regions {
		if r.Offset != at || r.Length <= 0 || r.What == "" || r.Why == "" {
			t.Errorf("region %+v, want one at %d", r, at)
		}
		at = r.Offset + r.Length
	}
	if at != c.Size {
		t.Errorf("the regions end at %d of %d", at, c.Size)
	}
}

// TestInspectGolden inspects a disk that has nothing but a UKI.
func TestInspectGolden(t *testing.T) {
	disk := testenv.GoldenDisk(t, "stub257")
	status, i := inspectJSON(t, disk)
	if status != 0 || i.Coverage.Verity != nil {
		t.Errorf("status %d, verity %+v; want 0 and none", status, i.Coverage.Verity)
	}
	wholeDisk(t, i.Coverage)
	covered, _ := i.Coverage.Covered()
	const uki, table = 15056896, 92 + 128 // bytes
	const outside = 4 + 8                 // of the digest: the checksum, and the place of signatures
	if covered != uki+table-outside {
		t.Errorf("%d bytes are covered, want the UKI and the partition table: %d", covered, uki+table-outside)
	}
	if _, stdout, _ := execute(t, "inspect", disk); !strings.Contains(stdout, "NO PCR covers the root file system") {
		t.Errorf("the table does not say that no root hash is named:\n%s", stdout)
	}
	if status, _, _ := execute(t, "inspect", "--fail-on", "info", disk); status != 1 {
		t.Errorf("--fail-on info: status %d, want 1", status)
	}
	for _, args := range [][]string{{"--format", "xml"}, {"--fail-on", "awful"}} {
		if status, _, stderr := execute(t, append([]string{"inspect", disk}, args...)...); status != 2 || !strings.Contains(stderr, args[1]) {
			t.Errorf("%v: status %d, %s", args, status, stderr)
		}
	}
}

// TestInspectDebian inspects the template's disk, and copies of it of which one
// byte was changed.
func TestInspectDebian(t *testing.T) {
	disk := testenv.DebianDisk(t)
	status, i := inspectJSON(t, disk)
	v := i.Coverage.Verity
	if status != 0 || v == nil || !v.Holds {
		t.Fatalf("status %d, verity %+v", status, v)
	}
	wholeDisk(t, i.Coverage)
	if worst, ok := i.Audit.Worst(); ok && worst > audit.Low {
		t.Errorf("the template has findings above low: %+v", i.Audit.AtLeast(audit.Medium))
	}
	var root, superblock audit.Region
	for _, r := range i.Coverage.Regions {
		if strings.HasSuffix(r.What, "verity superblock, signature and version") {
			superblock = r
		}
		if strings.HasSuffix(r.What, "root file system") {
			root = r
		}
	}
	broken := filepath.Join(t.TempDir(), "disk.raw")
	if out, err := exec.Command("cp", "--sparse=always", disk, broken).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	flipByte(t, broken, superblock.Offset)
	if status, i := inspectJSON(t, broken); status != 1 || i.Coverage.Verity != nil || !strings.Contains(i.Coverage.VerityProblem, "was not found") {
		t.Errorf("without a tree: status %d, %q", status, i.Coverage.VerityProblem)
	}
	for _, block := range []int64{0, 1024, root.Length/4096 - 1} {
		copied := filepath.Join(t.TempDir(), "disk.raw")
		if out, err := exec.Command("cp", "--sparse=always", disk, copied).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v\n%s", err, out)
		}
		flipByte(t, copied, root.Offset+block*4096+100)
		status, stdout, stderr := execute(t, "inspect", copied)
		if want := fmt.Sprintf("data block %d of partition %d", block, v.Partition); status != 1 || !strings.Contains(stdout, want) {
			t.Errorf("block %d: status %d, want %q in\n%s%s", block, status, want, stdout, stderr)
		}
	}
}

func flipByte(t *testing.T, path string, offset int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, offset); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, offset); err != nil {
		t.Fatal(err)
	}
}

// TestInspectPrintsNoCommands shows that what stands on a disk cannot speak to
// the runner, wherever a line is broken.
func TestInspectPrintsNoCommands(t *testing.T) {
	i := &inspection{
		Measurements: &measure.Document{}, Coverage: &audit.Coverage{},
		Audit: &audit.Report{Findings: []audit.Finding{{
			ID: "test", Partition: 2, Path: "etc/##[set-output name=a]b",
			Detail: strings.Repeat("x", 66) + " ::set-output name=digest::evil ##[error]x", Why: "::error::x", Fix: "y",
		}}},
	}
	var out strings.Builder
	if err := i.write(&out, "table"); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(strings.TrimSpace(line), "::") || strings.Contains(line, "##[") {
			t.Errorf("a runner would obey %q", line)
		}
	}
	if !strings.Contains(out.String(), "set-output") {
		t.Errorf("the finding is not shown:\n%s", out.String())
	}
}
