package kmspolicy

import (
	"bytes"
	"fmt"
	"strings"
	"unicode"
)

// Terraform is the same policy for Terraform and OpenTofu: the data source
// aws_iam_policy_document.attestable_image and a key that has it, in the form
// that `terraform fmt` gives them.
func (p *KeyPolicy) Terraform() ([]byte, error) {
	statements, err := p.statements()
	if err != nil {
		return nil, err
	}
	// What the provider makes of it is as long as the policy.
	if _, err := p.JSON(); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "# Only instances that booted these images may use the key:\n")
	for _, g := range p.Generations {
		fmt.Fprintf(&out, "#   %s\n", comment(g.Name))
	}
	out.WriteString("data \"aws_iam_policy_document\" \"attestable_image\" {\n")
	for i, s := range statements {
		if i > 0 {
			out.WriteByte('\n')
		}
		out.WriteString("  statement {\n")
		attributes(&out, "    ", "sid", quote(s.Sid), "effect", quote(s.Effect), "actions", list(s.Action, "    "), "resources", list([]string{s.Resource}, "    "))
		out.WriteString("\n    principals {\n")
		attributes(&out, "      ", "type", quote("AWS"), "identifiers", list(s.Principal["AWS"], "      "))
		out.WriteString("    }\n")
		if s.Condition != nil {
			for _, n := range s.Condition.PCRs() {
				out.WriteString("\n    condition {\n")
				attributes(&out, "      ", "test", quote(operator), "variable", quote(conditionKey(n)), "values", list(s.Condition.Values[n], "      "))
				out.WriteString("    }\n")
			}
		}
		out.WriteString("  }\n")
	}
	out.WriteString(`}

resource "aws_kms_key" "attestable_image" {
  description         = "Used by attested instances only"
  enable_key_rotation = true
  policy              = data.aws_iam_policy_document.attestable_image.json
}
`)
	return out.Bytes(), nil
}

// attributes writes pairs of a name and an expression, aligned as terraform fmt
// has it: the equals signs of lines that follow one another stand below one
// another, and an expression of several lines has none beside it.
func attributes(out *bytes.Buffer, indent string, pairs ...string) {
	for len(pairs) > 0 {
		n, width := 0, 0
		for ; n < len(pairs) && !strings.Contains(pairs[n+1], "\n"); n += 2 {
			width = max(width, len(pairs[n]))
		}
		if n == 0 {
			n = 2
		}
		for i := 0; i < n; i += 2 {
			fmt.Fprintf(out, "%s%-*s = %s\n", indent, width, pairs[i], pairs[i+1])
		}
		pairs = pairs[n:]
	}
}

// list is a tuple of strings, on one line where there is only one.
func list(items []string, indent string) string {
	if len(items) == 1 {
		return "[" + quote(items[0]) + "]"
	}
	var b strings.Builder
	b.WriteString("[\n")
	for _, item := range items {
		fmt.Fprintf(&b, "%s  %s,\n", indent, quote(item))
	}
	return b.String() + indent + "]"
}

// quote is a quoted template of HCL's native syntax without anything to expand.
// What is quoted here are ARNs, action names and digests, all ASCII.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "${", "$${", "%{", "%%{", "\n", `\n`, "\r", `\r`).Replace(s) + `"`
}

// comment keeps a name of somebody else's on its line.
func comment(name string) string {
	runes := []rune(strings.ToValidUTF8(name, "?"))
	for i, r := range runes {
		if !unicode.IsPrint(r) {
			runes[i] = '?'
		}
	}
	return string(runes)
}
