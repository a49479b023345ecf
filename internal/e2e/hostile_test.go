package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// TestHostileStep runs the step of action.yml that boots the image under hostile
// inputs, with a stand-in for the program: which boots it would make takes many minutes,
// and internal/hostile makes them.
func TestHostileStep(t *testing.T) {
	for _, name := range []string{"qemu-system-x86_64", "swtpm", "sgdisk", "mcopy", "mke2fs", "cryptsetup"} {
		testenv.Tool(t, name) // or the step would install it
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\nprintf '%s\\n' \"$@\"\nexit 1\n"), 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(testenv.Root(t), "scripts/action-hostile"))
	cmd.Env = append(os.Environ(), "BIN="+program, "WORK="+dir, "IMAGE_PATH=a disk.raw", "AUDIT_PATH="+dir+"/audit.json", "PK=", "KEK=", "DB=", "FAIL_ON=")
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("the step ends with %v, not as the program did\n%s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	want := []string{"boot", "--hostile", "--time-limit=20m", "--PK=", "--KEK=", "--db=", "--fail-on=", "--audit-output=" + dir + "/audit.json", "a disk.raw"}
	if strings.Join(lines, "|") != strings.Join(want, "|") {
		t.Errorf("the program is given %q, want %q", lines, want)
	}
}
