package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// TestActionSummarizesFailure holds that a job whose image is refused shows what was
// refused, and why: KIWI has a stand-in.
func TestActionSummarizesFailure(t *testing.T) {
	if testing.Short() {
		t.Skip("act is not run with -short")
	}
	testenv.Tool(t, "act")
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "docker"), []byte(strings.ReplaceAll(standInEngine, "DISK", smallDisk(t))), 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+string(filepath.ListSeparator)+os.Getenv("PATH"))
	dir, run := checkout(t, actionWorkflow(map[string]string{
		"template": "debian", "builder-image": "builder", "sbom": "none", "attest": "false", "fail-on": "info", "image": "127.0.0.1:1/octo-org/image",
	}, ""))
	result := act(t, dir, run, "dummy", nil)
	if !result.failed {
		t.Error("the workflow succeeded")
	}
	for _, want := range []string{"**Nothing was pushed, because the inspection failed**", "\nPCR4=", "| severity |", "| build with KIWI NG |"} {
		if !strings.Contains(result.summary, want) {
			t.Errorf("the summary lacks %q:\n%s", want, result.summary)
		}
	}
	if pushed := result.outputs["image.artifact"]; pushed != "" {
		t.Errorf("%s was pushed", pushed)
	}
}
