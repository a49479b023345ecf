package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// TestUnits lets systemd read the service's units: every directive is known, and
// the sandbox leaves little open. (systemd-analyze rates from 0 to 100 with
// --threshold; an ordinary service has 92 to 96.)
func TestUnits(t *testing.T) {
	analyze := testenv.Tool(t, "systemd-analyze")
	dir := t.TempDir()
	for name, folder := range map[string]string{
		"attestable-image.service":        "kiwi-templates/serve/usr/lib/systemd/system",
		"attestable-image.socket":         "kiwi-templates/serve/usr/lib/systemd/system",
		"attestable-image-secret.service": "examples/systemd",
	} {
		content, err := os.ReadFile(filepath.Join(testenv.Root(t), folder, name))
		if err != nil {
			t.Fatal(err)
		}
		// A program that is there in place of the one that will be.
		unit := strings.ReplaceAll(string(content), "/usr/bin/attestable-image", "/bin/true")
		if err := os.WriteFile(filepath.Join(dir, name), []byte(unit), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	service, secret := filepath.Join(dir, "attestable-image.service"), filepath.Join(dir, "attestable-image-secret.service")
	for _, args := range [][]string{
		{"verify", "--man=no", "--recursive-errors=no", service, filepath.Join(dir, "attestable-image.socket"), secret},
		{"security", "--offline=yes", "--threshold=20", "--no-pager", service},
		{"security", "--offline=yes", "--threshold=20", "--no-pager", secret},
	} {
		if out, err := exec.Command(analyze, args...).CombinedOutput(); err != nil || args[0] == "verify" && len(out) > 0 {
			t.Errorf("systemd-analyze %s: %v\n%s", args[0], err, out)
		}
	}
}
