package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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

// TestApplicationUnits lets systemd read the units of the templates and of the
// examples of applications: every directive is known, and what answers on a port is
// in a sandbox. The shell for debugging is in none.
func TestApplicationUnits(t *testing.T) {
	analyze := testenv.Tool(t, "systemd-analyze")
	command := regexp.MustCompile(`(?m)^(Exec\w+=)\S+`)
	root := regexp.MustCompile(`(?m)^RootDirectory=.*$`)
	seen := 0
	for _, file := range trackedFiles(t, "examples/overlays/*.service", "kiwi-templates/*.service") { // of any depth
		name := filepath.Base(file)
		if name == "attestable-image.service" { // TestUnits has it
			continue
		}
		seen++
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		// A program and a directory that are there in place of those that will be.
		unit := root.ReplaceAll(command.ReplaceAll(content, []byte("${1}/bin/true")), []byte("RootDirectory=/"))
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, unit, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(analyze, "verify", "--man=no", "--recursive-errors=no", path).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("systemd-analyze verify %s: %v\n%s", file, err, out)
		}
		out, err := exec.Command(analyze, "security", "--offline=yes", "--threshold=30", "--no-pager", path).CombinedOutput()
		if open := name == "debug-console.service"; (err != nil) != open {
			t.Errorf("systemd-analyze security %s: %v\n%s", file, err, out)
		}
	}
	if seen < 5 {
		t.Errorf("%d units are found", seen)
	}
}
