package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// execute runs a command line as the program would, outside of Actions.
func execute(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	t.Setenv("GITHUB_ACTIONS", "")
	return executeHere(t, args...)
}

// executeHere runs a command line in the environment as it is.
func executeHere(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	status = run(t.Context(), &app{stdout: &out, stderr: &errs, templates: os.DirFS(filepath.Join(testenv.Root(t), "kiwi-templates"))}, args)
	return status, out.String(), errs.String()
}

func TestMeasureCommandLine(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.esl")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		args   []string
		status int
		stderr string
	}{
		{"no disk", []string{"measure"}, 2, "give the raw disk to measure"},
		{"unknown flag", []string{"measure", "--pcrs", "4", "x"}, 2, "unknown flag: --pcrs"},
		{"no such format", []string{"measure", "--format", "yaml", "x"}, 2, `there is no format "yaml": give table or json`},
		{"no such bank", []string{"measure", "--bank", "sha1", "x"}, 2, `there is no bank "sha1"`},
		{"no number", []string{"measure", "--pcr", "4,x", "x"}, 2, `"x" is not the number of a PCR`},
		{"no such architecture", []string{"measure", "--arch", "riscv64", "x"}, 2, `there is no architecture "riscv64"`},
		{"no such disk", []string{"measure", "/nonexistent.raw"}, 1, "/nonexistent.raw: no such file"},
		{"a directory", []string{"measure", t.TempDir()}, 1, "is a directory"},
		{"db without PK", []string{"measure", "--db", filepath.Join(testenv.Root(t), "testdata/golden/sbA252.db.esl"), "x"}, 2, "give --PK too"},
		{"empty variable", []string{"measure", "--PK", empty, "x"}, 1, "is empty; leave --PK out"},
		{"no such command", []string{"mesure"}, 2, `unknown command "mesure": did you mean measure?`},
		{"boot without a disk", []string{"boot"}, 2, "give the raw disk to boot"},
		{"boot two", []string{"boot", "a", "b"}, 2, `"b" is one argument too many`},
		{"NitroTPM without its root", []string{"boot", "--nitrotpm", "a"}, 2, "--nitrotpm and --nitrotpm-root belong together"},
		{"root without NitroTPM", []string{"boot", "--nitrotpm-root", "b", "a"}, 2, "--nitrotpm and --nitrotpm-root belong together"},
		{"forward no port", []string{"boot", "--forward", "0:443", "a"}, 2, `"0:443" is neither a port nor two`},
		{"hostile inputs that nobody asked for", []string{"boot", "--fail-on", "high", "a"}, 2, "--fail-on is for --hostile"},
		{"a hostile input alone", []string{"boot", "--hostile-input", "efi-driver", "a"}, 2, "--hostile-input is for --hostile"},
		{"no such hostile input", []string{"boot", "--hostile", "--hostile-input", "efi", "a"}, 2, `there is no input "efi"`},
		{"no such severity", []string{"boot", "--hostile", "--fail-on", "grave", "a"}, 2, `there is no severity "grave"`},
		{"hostile with a port", []string{"boot", "--hostile", "--forward", "8443", "a"}, 2, "leave out --forward"},
		{"no such accelerator", []string{"boot", "--accel", "hvf", "a"}, 2, `there is no accelerator "hvf"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, stdout, stderr := execute(t, tc.args...)
			if status != tc.status || !strings.Contains(stderr, tc.stderr) {
				t.Errorf("status %d, stderr %q; want status %d and %q", status, stderr, tc.status, tc.stderr)
			}
			if stdout != "" {
				t.Errorf("standard output is %q, want nothing", stdout)
			}
		})
	}
}

// TestMeasureOutputs runs the command as a step of the action does.
func TestMeasureOutputs(t *testing.T) {
	disk := testenv.GoldenDisk(t, "stub257")
	output := filepath.Join(t.TempDir(), "output")
	if err := os.WriteFile(output, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GITHUB_ACTIONS", "true")
	t.Setenv("GITHUB_OUTPUT", output)
	status, stdout, stderr := executeHere(t, "measure", "--format", "json", disk)
	if status != 0 {
		t.Fatalf("status %d: %s", status, stderr)
	}
	var doc struct{ Measurements map[string]string }
	if err := json.Unmarshal([]byte(stdout), &doc); err != nil {
		t.Fatal(err)
	}
	const pcr4 = "352f78001f431cebc542d42b006e15b60da28f7aba7dd1fe25af698158a8e51ee9d51f37e9cf30c6d91e50fc69469790"
	if doc.Measurements["PCR4"] != pcr4 || doc.Measurements["HashAlgorithm"] != "SHA384" {
		t.Errorf("Measurements are %v", doc.Measurements)
	}
	outputs, err := os.ReadFile(output)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"pcr4<<", "\n" + pcr4 + "\n", "pcr7<<", "pcr11<<", "pcr12<<", "measurements<<", "kms-conditions<<", "NitroTPMPCR4"} {
		if !bytes.Contains(outputs, []byte(want)) {
			t.Errorf("the step's outputs lack %q", want)
		}
	}
}
