package audit

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	_ "github.com/owenrumney/go-sarif/v3/pkg/report/v210/sarif" // for its schema
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// sarifSchema is the schema of SARIF 2.1.0 (OASIS, errata 01), which go-sarif has
// as a constant of its own. Its validation takes only reports that it made.
func sarifSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", "github.com/owenrumney/go-sarif/v3/pkg/report/v210/sarif").Output()
	if err != nil {
		t.Fatalf("find go-sarif: %v", err)
	}
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(strings.TrimSpace(string(dir)), "schema.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	text := ""
	ast.Inspect(file, func(n ast.Node) bool {
		if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
			text, err = strconv.Unquote(l.Value)
		}
		return true
	})
	if err != nil || !strings.Contains(text, "errata01/os/schemas/sarif-schema-2.1.0.json") {
		t.Fatalf("go-sarif's schema is another one: %v", err)
	}
	document, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	const url = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	if err := compiler.AddResource(url, document); err != nil {
		t.Fatal(err)
	}
	schema, err := compiler.Compile(url)
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// TestSARIFSchema validates reports without findings, with some of every severity,
// and with one of every rule.
func TestSARIFSchema(t *testing.T) {
	schema := sarifSchema(t)
	validate := func(log []byte) error {
		document, err := jsonschema.UnmarshalJSON(bytes.NewReader(log))
		if err != nil {
			return err
		}
		return schema.Validate(document)
	}
	every := &Report{}
	for id, r := range rules {
		every.Findings = append(every.Findings,
			Finding{ID: id, Severity: r.severity, Detail: "x", Why: r.why, Fix: r.fix},
			Finding{ID: id, Severity: r.severity, Partition: 2, Path: "a b/#?%é\x01", Line: 3, Detail: "x", Why: r.why, Fix: r.fix})
	}
	every.sort()
	for name, r := range map[string]*Report{"none": {}, "weak": weakReport(t), "every rule": every} {
		log, err := r.SARIF()
		if err != nil {
			t.Fatal(err)
		}
		if err := validate(log); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if name == "none" {
			continue
		}
		// The schema has teeth.
		for good, bad := range map[string]string{
			`"version": "2.1.0"`: `"version": "2.2"`, `"level": "error"`: `"level": "awful"`, `"startLine": 1`: `"startLine": 0`,
			`"ruleId"`: `"ruleID2"`, `"executionSuccessful": true`: `"exitCode": 0`,
		} {
			changed := strings.Replace(string(log), good, bad, 1)
			if changed == string(log) {
				t.Errorf("%s: it has no %s", name, good)
			} else if validate([]byte(changed)) == nil {
				t.Errorf("%s: %s passes", name, bad)
			}
		}
	}
}
