package testenv

import (
	"os/exec"
	"strings"
	"testing"
)

// ValidateSPDX lets SPDX's own tools (spdx-tools) validate a document, a file named
// *.spdx.json.
func ValidateSPDX(t testing.TB, path string) {
	t.Helper()
	if out, err := exec.Command(Tool(t, "pyspdxtools"), "--infile", path).CombinedOutput(); err != nil {
		t.Errorf("pyspdxtools takes %s for wrong: %v\n%.4000s", path, err, out)
	}
}

// validateCycloneDX prints what is wrong with a document by the strict schema of
// CycloneDX 1.6 as CycloneDX's own library has it.
const validateCycloneDX = `
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1], encoding="utf-8").read())
sys.exit(str(error.data) if error else 0)
`

// ValidateCycloneDX lets CycloneDX's own library (cyclonedx-python-lib) validate a
// document of version 1.6.
func ValidateCycloneDX(t testing.TB, path string) {
	t.Helper()
	python, err := interpreter(Tool(t, "pyspdxtools"))
	if err != nil {
		Missing(t, err)
	}
	if out, err := exec.Command(python, "-c", validateCycloneDX, path).CombinedOutput(); err != nil {
		t.Errorf("cyclonedx-python-lib takes %s for wrong: %v\n%.4000s", path, err, strings.TrimSpace(string(out)))
	}
}
