package e2e

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/dynblock"
	"github.com/hashicorp/hcl/v2/ext/tryfunc"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"

	"github.com/org/attestable-image-action/internal/kmspolicy"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
)

// registerActions are the IAM actions of the calls that register-ami makes.
var registerActions = []string{
	"ebs:StartSnapshot", "ebs:PutSnapshotBlock", "ebs:CompleteSnapshot",
	"ec2:CreateTags", "ec2:DescribeSnapshots", "ec2:DeleteSnapshot",
	"ec2:DescribeInstanceTypes", "ec2:DescribeImages", "ec2:RegisterImage", "ec2:ModifyImageAttribute", "ec2:DeregisterImage",
}

// repositoryTag is the tag that tells what is ours.
const repositoryTag = "attestable-image:repository"

// stringOrList is a JSON string, or a list of them, as policies have both.
type stringOrList []string

func (s *stringOrList) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '[' {
		return json.Unmarshal(b, (*[]string)(s))
	}
	*s = make(stringOrList, 1)
	return json.Unmarshal(b, &(*s)[0])
}

type iamStatement struct {
	Sid, Effect string
	Principal   map[string]stringOrList
	Action      stringOrList
	Resource    stringOrList
	Condition   map[string]map[string]stringOrList
}

// readPolicy reads a policy of the examples.
func readPolicy(t *testing.T, name string) (text []byte, statements []iamStatement) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(testenv.Root(t), "examples/aws", name))
	if err != nil {
		t.Fatal(err)
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	var policy struct {
		Version   string
		Statement []iamStatement
	}
	if err := decoder.Decode(&policy); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if policy.Version != "2012-10-17" || len(policy.Statement) == 0 {
		t.Errorf("%s: version %q, %d statements", name, policy.Version, len(policy.Statement))
	}
	return text, policy.Statement
}

// TestRegisterPolicy holds that the policy allows what register-ami calls and no
// more, and changes only what has the repository's tag.
func TestRegisterPolicy(t *testing.T) {
	_, statements := readPolicy(t, "iam-policy.json")
	var allowed []string
	for _, s := range statements {
		if s.Effect == "Deny" {
			continue
		}
		if s.Effect != "Allow" || s.Principal != nil {
			t.Errorf("%s: effect %s, principal %v", s.Sid, s.Effect, s.Principal)
		}
		allowed = append(allowed, s.Action...)
		var keys []string
		for _, condition := range s.Condition {
			for key := range condition {
				keys = append(keys, key)
			}
		}
		tagged := slices.Contains(keys, "aws:RequestTag/"+repositoryTag) || slices.Contains(keys, "aws:ResourceTag/"+repositoryTag)
		for _, action := range s.Action {
			switch {
			case strings.HasPrefix(action, "ec2:Describe"):
				continue // which knows no resource
			case slices.Contains(s.Resource, "*"):
				t.Errorf("%s: %s of every resource", s.Sid, action)
			case !tagged:
				t.Errorf("%s: %s without the tag", s.Sid, action)
			// Who may give the tag to anything may do everything to anything.
			case action == "ec2:CreateTags" && slices.Contains(keys, "aws:RequestTag/"+repositoryTag) && !slices.Contains(keys, "ec2:CreateAction"):
				t.Errorf("%s: the tag may be given to what is there already", s.Sid)
			}
		}
	}
	for _, action := range registerActions {
		if !slices.Contains(allowed, action) {
			t.Errorf("%s is not allowed", action)
		}
	}
	for _, action := range allowed {
		if !slices.Contains(registerActions, action) {
			t.Errorf("%s is allowed, and register-ami does not call it", action)
		}
	}
}

// TestTrustPolicy holds that the role is for one place of one repository.
func TestTrustPolicy(t *testing.T) {
	_, statements := readPolicy(t, "trust-policy.json")
	for _, s := range statements {
		const issuer = "token.actions.githubusercontent.com"
		if !slices.Equal(s.Action, stringOrList{"sts:AssumeRoleWithWebIdentity"}) || len(s.Principal) != 1 || !strings.HasSuffix(s.Principal["Federated"][0], ":oidc-provider/"+issuer) {
			t.Errorf("%s: %s of %v", s.Sid, s.Action, s.Principal)
		}
		// StringLike would let in patterns.
		if len(s.Condition) != 1 || !slices.Equal(s.Condition["StringEquals"][issuer+":aud"], stringOrList{"sts.amazonaws.com"}) {
			t.Errorf("%s: condition %v", s.Sid, s.Condition)
		}
		for _, sub := range s.Condition["StringEquals"][issuer+":sub"] {
			if strings.ContainsAny(sub, "*?") || !strings.HasPrefix(sub, "repo:OWNER/REPO:environment:") && !strings.HasPrefix(sub, "repo:OWNER/REPO:ref:refs/heads/") {
				t.Errorf("%s: sub %q", s.Sid, sub)
			}
		}
		if len(s.Condition["StringEquals"][issuer+":sub"]) == 0 {
			t.Errorf("%s: every repository", s.Sid)
		}
	}
}

// TestIAMTakesThePolicies lets moto, which checks the grammar as IAM does, make
// the role and give it the policy.
func TestIAMTakesThePolicies(t *testing.T) {
	testenv.StartAWS(t)
	trust, _ := readPolicy(t, "trust-policy.json")
	policy, _ := readPolicy(t, "iam-policy.json")
	broken := strings.Replace(string(policy), `"Allow"`, `"Perhaps"`, 1)
	for _, c := range []struct {
		name       string
		parameters map[string]string
		status     int
	}{
		{"trust policy", map[string]string{"Action": "CreateRole", "RoleName": "register-ami", "AssumeRolePolicyDocument": string(trust)}, http.StatusOK},
		{"IAM policy", map[string]string{"Action": "CreatePolicy", "PolicyName": "register-ami", "PolicyDocument": string(policy)}, http.StatusOK},
		{"no policy", map[string]string{"Action": "CreatePolicy", "PolicyName": "broken", "PolicyDocument": broken}, http.StatusBadRequest},
	} {
		if status, body := askAWS(t, "iam", "2010-05-08", c.parameters); status != c.status {
			t.Errorf("%s: status %d\n%s", c.name, status, body)
		}
	}
}

// askAWS calls an API of AWS's Query protocol at the stand-in.
func askAWS(t *testing.T, service, version string, parameters map[string]string) (status int, body string) {
	t.Helper()
	form := url.Values{"Version": {version}}
	for name, value := range parameters {
		form.Set(name, value)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, os.Getenv("AWS_ENDPOINT_URL"), strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	// moto takes from the scope of the signature which API is meant, and where.
	request.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=test/20260101/"+os.Getenv("AWS_REGION")+"/"+service+"/aws4_request, SignedHeaders=host, Signature=00")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

// terraformModule reads the examples' module: its blocks, in the order of files.
func terraformModule(t *testing.T) hclsyntax.Blocks {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(testenv.Root(t), "examples/terraform/*.tf"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no Terraform found: %v", err)
	}
	var blocks hclsyntax.Blocks
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if formatted := hclwrite.Format(text); !bytes.Equal(formatted, text) {
			t.Errorf("%s is not as terraform fmt would have it:\n%s", name, formatted)
		}
		file, diagnostics := hclsyntax.ParseConfig(text, filepath.Base(name), hcl.InitialPos)
		if diagnostics.HasErrors() {
			t.Fatal(diagnostics)
		}
		body, ok := file.Body.(*hclsyntax.Body)
		if !ok {
			t.Fatalf("the body is a %T", file.Body)
		}
		blocks = append(blocks, body.Blocks...)
	}
	return blocks
}

// blockOf finds a block by its type and labels, as "resource.aws_instance.image".
func blockOf(t *testing.T, blocks hclsyntax.Blocks, address string) *hclsyntax.Block {
	t.Helper()
	for _, b := range blocks {
		if strings.Join(append([]string{b.Type}, b.Labels...), ".") == address {
			return b
		}
	}
	t.Fatalf("there is no %s", address)
	return nil
}

// constant is the value of an attribute that needs nothing from elsewhere.
func constant(t *testing.T, body *hclsyntax.Body, name string) cty.Value {
	t.Helper()
	attribute := body.Attributes[name]
	if attribute == nil {
		t.Fatalf("there is no %s", name)
	}
	value, diagnostics := attribute.Expr.Value(nil)
	if diagnostics.HasErrors() {
		t.Fatal(diagnostics)
	}
	return value
}

// TestTerraformExample holds what the example promises of the instance, and that
// every name it uses is declared.
func TestTerraformExample(t *testing.T) {
	blocks := terraformModule(t)
	declared := map[string]bool{}
	for _, b := range blocks {
		switch b.Type {
		case "variable":
			declared["var."+b.Labels[0]] = true
		case "resource":
			declared[strings.Join(b.Labels, ".")] = true
		case "data":
			declared["data."+strings.Join(b.Labels, ".")] = true
		}
	}
	used := map[string]bool{}
	for _, b := range blocks {
		diagnostics := hclsyntax.VisitAll(b, func(node hclsyntax.Node) hcl.Diagnostics {
			expression, ok := node.(*hclsyntax.ScopeTraversalExpr)
			if !ok {
				return nil
			}
			var names []string
			for _, step := range expression.Traversal {
				switch step := step.(type) {
				case hcl.TraverseRoot:
					names = append(names, step.Name)
				case hcl.TraverseAttr:
					names = append(names, step.Name)
				}
			}
			length := 2
			switch {
			case names[0] == "data":
				length = 3
			case names[0] != "var" && !strings.HasPrefix(names[0], "aws_"):
				return nil // of a for expression or a dynamic block
			}
			name := strings.Join(names[:min(length, len(names))], ".")
			used[name] = true
			if !declared[name] {
				t.Errorf("%s: %s is declared nowhere", expression.SrcRange, name)
			}
			return nil
		})
		if diagnostics.HasErrors() {
			t.Error(diagnostics)
		}
	}
	for name := range declared {
		if strings.HasPrefix(name, "var.") && !used[name] {
			t.Errorf("%s is used nowhere", name)
		}
	}

	instance := blockOf(t, blocks, "resource.aws_instance.image").Body
	if _, there := instance.Attributes["key_name"]; there {
		t.Error("the instance has a key pair")
	}
	if constant(t, instance, "associate_public_ip_address").True() {
		t.Error("the instance has a public address")
	}
	inner := map[string]*hclsyntax.Body{}
	for _, b := range instance.Blocks {
		inner[b.Type] = b.Body
	}
	if got := constant(t, inner["metadata_options"], "http_tokens").AsString(); got != "required" {
		t.Errorf("IMDSv2 is %s", got)
	}
	if constant(t, inner["root_block_device"], "encrypted").False() {
		t.Error("the root volume is not encrypted")
	}
	if inner["lifecycle"] == nil {
		t.Error("an AMI without NitroTPM is not refused")
	}
	group := blockOf(t, blocks, "resource.aws_security_group.image").Body
	for _, b := range group.Blocks {
		if b.Type != "egress" {
			t.Errorf("the security group has a block %s", b.Type)
		}
	}
	for _, b := range blocks {
		if b.Type == "resource" && strings.Contains(b.Labels[0], "ingress") {
			t.Errorf("there is %s", b.Labels)
		}
	}
}

// TestTerraformExampleBindsTheImage expands the example's key policy as Terraform
// does, with what kms-policy prints for two generations that must not be mixed,
// and compares it with the policy that kms-policy would print.
func TestTerraformExampleBindsTheImage(t *testing.T) {
	generation := func(digit string) kmspolicy.Generation {
		value := func(second string) string { return digit + second + strings.Repeat("5", 94) }
		return kmspolicy.Generation{Name: digit, Document: &measure.Document{Measurements: measure.Measurements{
			HashAlgorithm: measure.SHA384, PCRs: map[int]string{4: value("4"), 12: value("c"), 13: value("d")},
		}}}
	}
	rolling := []kmspolicy.Generation{generation("a"), generation("b")}
	conditions, err := kmspolicy.Bind(rolling, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	var printed []cty.Value
	for _, c := range conditions {
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		printed = append(printed, cty.StringVal(string(text)))
	}
	const admin, role, seal = "arn:aws:iam::111122223333:role/key-admin", "arn:aws:iam::111122223333:role/image", "arn:aws:iam::111122223333:role/seal"
	encrypters := cty.ListValEmpty(cty.String)
	context := func(conditions []cty.Value) *hcl.EvalContext {
		return &hcl.EvalContext{
			Variables: map[string]cty.Value{
				"var": cty.ObjectVal(map[string]cty.Value{
					"kms_conditions": cty.ListVal(conditions), "key_administrators": cty.ListVal([]cty.Value{cty.StringVal(admin)}),
					"key_encrypters": encrypters,
				}),
				"aws_iam_role": cty.ObjectVal(map[string]cty.Value{"image": cty.ObjectVal(map[string]cty.Value{"arn": cty.StringVal(role)})}),
			},
			Functions: map[string]function.Function{
				"jsondecode": stdlib.JSONDecodeFunc, "flatten": stdlib.FlattenFunc, "length": stdlib.LengthFunc,
			},
		}
	}
	blocks := terraformModule(t)
	ctx := context(printed)
	content := func(body hcl.Body, schema *hcl.BodySchema) *hcl.BodyContent {
		t.Helper()
		c, diagnostics := dynblock.Expand(body, ctx).Content(schema)
		if diagnostics.HasErrors() {
			t.Fatal(diagnostics)
		}
		return c
	}
	texts := func(c *hcl.BodyContent, name string) stringOrList {
		t.Helper()
		value, diagnostics := c.Attributes[name].Expr.Value(ctx)
		if diagnostics.HasErrors() {
			t.Fatal(diagnostics)
		}
		if value.Type() == cty.String {
			return stringOrList{value.AsString()}
		}
		var list stringOrList
		for _, element := range value.AsValueSlice() {
			list = append(list, element.AsString())
		}
		return list
	}
	attributes := func(names ...string) (list []hcl.AttributeSchema) {
		for _, name := range names {
			list = append(list, hcl.AttributeSchema{Name: name, Required: true})
		}
		return list
	}
	statements := func() (got []iamStatement) {
		t.Helper()
		policy := content(blockOf(t, blocks, "data.aws_iam_policy_document.key").Body, &hcl.BodySchema{Blocks: []hcl.BlockHeaderSchema{{Type: "statement"}}})
		for _, block := range policy.Blocks {
			c := content(block.Body, &hcl.BodySchema{
				Attributes: attributes("sid", "actions", "resources"), Blocks: []hcl.BlockHeaderSchema{{Type: "principals"}, {Type: "condition"}},
			})
			s := iamStatement{Sid: texts(c, "sid")[0], Effect: "Allow", Principal: map[string]stringOrList{}, Action: texts(c, "actions"), Resource: texts(c, "resources")}
			for _, inner := range c.Blocks {
				switch inner.Type {
				case "principals":
					p := content(inner.Body, &hcl.BodySchema{Attributes: attributes("type", "identifiers")})
					s.Principal[texts(p, "type")[0]] = texts(p, "identifiers")
				case "condition":
					p := content(inner.Body, &hcl.BodySchema{Attributes: attributes("test", "variable", "values")})
					if s.Condition == nil {
						s.Condition = map[string]map[string]stringOrList{}
					}
					test := texts(p, "test")[0]
					if s.Condition[test] == nil {
						s.Condition[test] = map[string]stringOrList{}
					}
					s.Condition[test][texts(p, "variable")[0]] = texts(p, "values")
				}
			}
			got = append(got, s)
		}
		return got
	}

	administrator, err := kmspolicy.ParsePrincipal(admin)
	if err != nil {
		t.Fatal(err)
	}
	user, err := kmspolicy.ParsePrincipal(role)
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := kmspolicy.ParsePrincipal(seal)
	if err != nil {
		t.Fatal(err)
	}
	for number, mayEncrypt := range map[int][]kmspolicy.Principal{3: nil, 4: {sealer}} {
		if encrypters = cty.ListValEmpty(cty.String); mayEncrypt != nil {
			encrypters = cty.ListVal([]cty.Value{cty.StringVal(seal)})
		}
		ctx = context(printed)
		got := statements()
		text, err := (&kmspolicy.KeyPolicy{
			Administrators: []kmspolicy.Principal{administrator}, Encrypters: mayEncrypt, Users: []kmspolicy.Principal{user}, Conditions: conditions, Generations: rolling,
		}).JSON()
		if err != nil {
			t.Fatal(err)
		}
		var want struct{ Statement []iamStatement }
		if err := json.Unmarshal(text, &want); err != nil {
			t.Fatal(err)
		}
		if len(got) != number || !reflect.DeepEqual(got, want.Statement) {
			t.Errorf("the example makes\n%+v\nand kms-policy\n%+v", got, want.Statement)
		}
	}

	// What is no condition is refused by the variable.
	variable := blockOf(t, blocks, "variable.kms_conditions")
	for block, good := range map[string]bool{
		printed[0].AsString(): true,
		`{"StringEqualsIgnoreCase":{"kms:RecipientAttestation:NitroTPMPCR7":["aa","bb"],"kms:RecipientAttestation:NitroTPMPCR12":"00","kms:RecipientAttestation:NitroTPMPCR13":"00"}}`: true,
		`{"StringEqualsIgnoreCase":{"kms:RecipientAttestation:NitroTPMPCR7":["aa","bb"]}}`:                                                                                             false,
		`{"StringEqualsIgnoreCase":{"kms:RecipientAttestation:NitroTPMPCR4":"aa","kms:RecipientAttestation:NitroTPMPCR12":"00"}}`:                                                      false,
		`{"StringEqualsIgnoreCase":{}}`: false,
		`{}`:                            false,
		`no JSON`:                       false,
		`{"StringEqualsIgnoreCase":{"kms:RecipientAttestation:NitroTPMPCR4":"aa"}}`:                                        false,
		`{"StringNotEquals":{"kms:RecipientAttestation:NitroTPMPCR4":"aa","kms:RecipientAttestation:NitroTPMPCR12":"bb"}}`: false,
	} {
		ctx := context([]cty.Value{cty.StringVal(block)})
		ctx.Functions["alltrue"], ctx.Functions["anytrue"], ctx.Functions["can"] = truth(false), truth(true), tryfunc.CanFunc
		holds := true
		for _, b := range variable.Body.Blocks {
			value, diagnostics := b.Body.Attributes["condition"].Expr.Value(ctx)
			if diagnostics.HasErrors() {
				t.Fatal(diagnostics)
			}
			holds = holds && value.True()
		}
		if holds != good {
			t.Errorf("the variable takes %s: %t", block, holds)
		}
	}
}

// truth is Terraform's anytrue or, for false, alltrue: the one value that decides
// is the answer where the list has it.
func truth(decides bool) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "list", Type: cty.DynamicPseudoType}},
		Type:   function.StaticReturnType(cty.Bool),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			for _, element := range args[0].AsValueSlice() {
				if element.True() == decides {
					return cty.BoolVal(decides), nil
				}
			}
			return cty.BoolVal(!decides), nil
		},
	})
}
