package kmspolicy

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"
)

// TestTerraformIsThePolicy reads the Terraform text with HCL's own parser, makes
// of its statements what the provider would, and compares with the JSON policy.
func TestTerraformIsThePolicy(t *testing.T) {
	with12 := func(pcr4, pcr12 string) Generation {
		return generation("off", false, map[int]string{2: separator, 4: value(pcr4), 12: value(pcr12), 13: zero})
	}
	for name, generations := range map[string][]Generation{
		"one": {build("image", "4a")}, "two values": {build("a", "4a"), build("b", "4b")},
		"two statements": {with12("4a", "ca"), with12("4b", "cb")},
		"hostile names":  {build("a\n}\nresource \"x\" \"y\" {}\r# */ ${file(\"/etc/passwd\")}\u2028x", "4a")},
	} {
		t.Run(name, func(t *testing.T) {
			p := policyOf(t, generations, nil)
			out, err := p.Terraform()
			if err != nil {
				t.Fatal(err)
			}
			if formatted := hclwrite.Format(out); !bytes.Equal(formatted, out) {
				t.Errorf("terraform fmt would write\n%s\nand it is\n%s", formatted, out)
			}
			blocks := parseHCL(t, out)
			if len(blocks) != 2 {
				t.Fatalf("there are %d blocks:\n%s", len(blocks), out)
			}
			if data := blocks[0]; data.Type != "data" || !reflect.DeepEqual(data.Labels, []string{"aws_iam_policy_document", "attestable_image"}) {
				t.Errorf("the first block is %s %q", data.Type, data.Labels)
			}
			key := blocks[1]
			if key.Type != "resource" || !reflect.DeepEqual(key.Labels, []string{"aws_kms_key", "attestable_image"}) {
				t.Errorf("the second block is %s %q", key.Type, key.Labels)
			}
			if got := reference(t, key.Body.Attributes["policy"].Expr); got != "data.aws_iam_policy_document.attestable_image.json" {
				t.Errorf("the key's policy is %s", got)
			}
			want, err := p.statements()
			if err != nil {
				t.Fatal(err)
			}
			var got []statement
			for _, block := range blocks[0].Body.Blocks {
				got = append(got, statementOf(t, block))
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("the statements are\n%+v\nwant\n%+v", got, want)
			}
		})
	}
}

func parseHCL(t testing.TB, text []byte) hclsyntax.Blocks {
	t.Helper()
	file, diagnostics := hclsyntax.ParseConfig(text, "policy.tf", hcl.InitialPos)
	if diagnostics.HasErrors() {
		t.Fatalf("%v\n%s", diagnostics, text)
	}
	body, ok := file.Body.(*hclsyntax.Body)
	if !ok {
		t.Fatalf("the body is a %T", file.Body)
	}
	return body.Blocks
}

// statementOf reads a statement block as the provider does: Terraform Registry,
// hashicorp/aws, aws_iam_policy_document.
func statementOf(t *testing.T, block *hclsyntax.Block) statement {
	t.Helper()
	body := block.Body
	s := statement{
		Sid: stringsOf(t, body, "sid")[0], Effect: stringsOf(t, body, "effect")[0],
		Action: stringsOf(t, body, "actions"), Resource: stringsOf(t, body, "resources")[0], Principal: map[string][]string{},
	}
	for _, inner := range body.Blocks {
		switch inner.Type {
		case "principals":
			s.Principal[stringsOf(t, inner.Body, "type")[0]] = stringsOf(t, inner.Body, "identifiers")
		case "condition":
			if s.Condition == nil {
				s.Condition = &Condition{Values: map[int][]string{}}
			}
			if test := stringsOf(t, inner.Body, "test")[0]; test != "StringEqualsIgnoreCase" {
				t.Errorf("the operator is %q", test)
			}
			variable := stringsOf(t, inner.Body, "variable")[0]
			for n := range 24 {
				if variable == conditionKey(n) {
					s.Condition.Values[n] = stringsOf(t, inner.Body, "values")
				}
			}
		default:
			t.Errorf("a statement has a block %q", inner.Type)
		}
	}
	return s
}

// stringsOf is the value of an attribute that is a string or a list of them.
func stringsOf(t *testing.T, body *hclsyntax.Body, name string) []string {
	t.Helper()
	attribute := body.Attributes[name]
	if attribute == nil {
		t.Fatalf("there is no %s", name)
	}
	v, diagnostics := attribute.Expr.Value(nil)
	if diagnostics.HasErrors() {
		t.Fatal(diagnostics)
	}
	if v.Type() == cty.String {
		return []string{v.AsString()}
	}
	var list []string
	for _, element := range v.AsValueSlice() {
		list = append(list, element.AsString())
	}
	return list
}

// reference is a traversal as it is written.
func reference(t *testing.T, expression hclsyntax.Expression) string {
	t.Helper()
	traversal, diagnostics := hcl.AbsTraversalForExpr(expression)
	if diagnostics.HasErrors() {
		t.Fatal(diagnostics)
	}
	var parts []string
	for _, step := range traversal {
		switch step := step.(type) {
		case hcl.TraverseRoot:
			parts = append(parts, step.Name)
		case hcl.TraverseAttr:
			parts = append(parts, step.Name)
		}
	}
	return strings.Join(parts, ".")
}

// FuzzTerraformComment holds that a generation's name stays a comment.
func FuzzTerraformComment(f *testing.F) {
	f.Add("ghcr.io/octo-org/image@sha256:00")
	f.Add("a\n}\nresource \"x\" \"y\" {}")
	f.Add("\u2028\u0085\x00\xff*/")
	f.Fuzz(func(t *testing.T, name string) {
		out, err := policyOf(t, []Generation{build(name, "4a")}, nil).Terraform()
		if err != nil {
			t.Fatal(err)
		}
		if blocks := parseHCL(t, out); len(blocks) != 2 {
			t.Errorf("%q makes %d blocks", name, len(blocks))
		}
	})
}
