package e2e

import (
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"testing"
)

// TestDiff compares two small disks with the command, whose identifiers differ
// because sgdisk makes new ones.
func TestDiff(t *testing.T) {
	a, b := smallDisk(t), smallDisk(t)
	run(t, nil, command(t), "diff", "--exit-code", a, a).accepts(t)

	table := run(t, nil, command(t), "diff", a, b)
	table.accepts(t)
	for _, want := range []string{"~ disk, GUID", "~ partition 1, GUID", "Not compared", "packages (A): ", "packages (B): "} {
		if !strings.Contains(table.output, want) {
			t.Errorf("%q is missing from\n%s", want, table.output)
		}
	}

	differs := run(t, nil, command(t), "diff", "--exit-code", "--pcr", "4,5", "--format", "json", a, b)
	var exit *exec.ExitError
	if !errors.As(differs.err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("--exit-code: %v", differs.err)
	}
	var report struct {
		Identical bool
		Boot      []any
		PCRs      []struct {
			PCR    int
			Events []struct{ What, Because string }
		}
	}
	if err := json.Unmarshal([]byte(differs.output), &report); err != nil {
		t.Fatalf("%v: %s", err, differs.output)
	}
	if report.Identical || len(report.Boot) > 0 || len(report.PCRs) != 1 || report.PCRs[0].PCR != 5 ||
		report.PCRs[0].Events[0].What != "GUID partition table" || report.PCRs[0].Events[0].Because != "GUID of the disk, GUID of partition 1" {
		t.Errorf("the report is %+v", report)
	}
}
