package nitrotpm_test

import (
	"os/exec"
	"strings"
	"testing"
)

// TestDependencies holds that a program which imports the package gets a CBOR
// decoder with it, and nothing else that is not in Go's standard library.
func TestDependencies(t *testing.T) {
	const template = "{{if not .Standard}}{{.ImportPath}}{{end}}"
	out, err := exec.Command("go", "list", "-deps", "-f", template, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for path := range strings.FieldsSeq(string(out)) {
		switch path {
		case "github.com/org/attestable-image-action/nitrotpm", "github.com/fxamacker/cbor/v2", "github.com/x448/float16":
		default:
			t.Errorf("it imports %s", path)
		}
	}
}
