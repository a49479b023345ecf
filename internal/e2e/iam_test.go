package e2e

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// What the role of examples/aws may be asked for: its repository's tag, and another's.
const (
	ourRepository   = "https://github.com/OWNER/REPO"
	otherRepository = "https://github.com/OWNER/OTHER"
)

// step is a call of an API with the decisions that it asks IAM for.
type step struct {
	call     string
	requests []testenv.IAMRequest
}

// in is a request in a region.
func in(region, action, kind string, context map[string]any) testenv.IAMRequest {
	resource := "*"
	if kind != "" {
		id := map[string]string{"image": "ami-0123456789abcdef0", "snapshot": "snap-0123456789abcdef0"}[kind]
		resource = "arn:aws:ec2:" + region + "::" + kind + "/" + id
	}
	all := map[string]any{"aws:RequestedRegion": region}
	if service, _, _ := strings.Cut(action, ":"); service == "ec2" {
		all["ec2:Region"] = region
	}
	maps.Copy(all, context)
	return testenv.IAMRequest{Action: action, Resource: resource, Context: all}
}

// request is one in the region that the example's workflow registers in.
func request(action, kind string, context map[string]any) testenv.IAMRequest {
	return in("eu-central-1", action, kind, context)
}

// tagged is the context of a resource that has the tag of a repository.
func tagged(repository string) map[string]any {
	if repository == "" {
		return nil
	}
	return map[string]any{"aws:ResourceTag/" + repositoryTag: repository, "ec2:ResourceTag/" + repositoryTag: repository}
}

// tagging is the context of a call that sets tags, the repository's among them unless
// it is "", on what has that of another, or none.
func tagging(repository, has string, keys ...string) map[string]any {
	context := map[string]any{}
	maps.Copy(context, tagged(has))
	if repository != "" {
		context["aws:RequestTag/"+repositoryTag] = repository
		keys = append(keys, repositoryTag)
	}
	for _, key := range keys {
		if key != repositoryTag {
			context["aws:RequestTag/"+key] = "value"
		}
	}
	context["aws:TagKeys"] = keys
	return context
}

// with adds keys to a context.
func with(context map[string]any, more ...string) map[string]any {
	for i := 0; i < len(more); i += 2 {
		context[more[i]] = more[i+1]
	}
	return context
}

// ourTags are the other tags that register-ami sets on what it makes.
var ourTags = []string{"Name", "attestable-image:digest", "attestable-image:run", "attestable-image:alive", "team"}

// registering are the calls of register-ami in a region, with every flag, and those of
// deregister-ami.
func registering(region string) []step {
	r := func(action, kind string, context map[string]any) testenv.IAMRequest {
		return in(region, action, kind, context)
	}
	made := func(create string) map[string]any {
		return with(tagging(ourRepository, "", ourTags...), "ec2:CreateAction", create)
	}
	return []step{
		{"DescribeImages", []testenv.IAMRequest{r("ec2:DescribeImages", "", nil)}},
		{"DescribeInstanceTypes", []testenv.IAMRequest{r("ec2:DescribeInstanceTypes", "", nil)}},
		{"DescribeSnapshots", []testenv.IAMRequest{r("ec2:DescribeSnapshots", "", nil)}},
		{"StartSnapshot", []testenv.IAMRequest{r("ebs:StartSnapshot", "snapshot", tagging(ourRepository, "", ourTags...)), r("ec2:CreateTags", "snapshot", made("StartSnapshot"))}},
		{"PutSnapshotBlock", []testenv.IAMRequest{r("ebs:PutSnapshotBlock", "snapshot", tagged(ourRepository))}},
		{"CompleteSnapshot", []testenv.IAMRequest{r("ebs:CompleteSnapshot", "snapshot", tagged(ourRepository))}},
		{"CreateTags of a sign of life", []testenv.IAMRequest{r("ec2:CreateTags", "snapshot", tagging("", ourRepository, "attestable-image:alive"))}},
		{"RegisterImage", []testenv.IAMRequest{
			r("ec2:RegisterImage", "image", tagging(ourRepository, "", ourTags...)), r("ec2:RegisterImage", "snapshot", tagged(ourRepository)),
			r("ec2:CreateTags", "image", made("RegisterImage")),
		}},
		{"ModifyImageAttribute", []testenv.IAMRequest{r("ec2:ModifyImageAttribute", "image", tagged(ourRepository))}},
		{"DeregisterImage with its snapshots", []testenv.IAMRequest{r("ec2:DeregisterImage", "image", tagged(ourRepository)), r("ec2:DeleteSnapshot", "snapshot", tagged(ourRepository))}},
		{"DeleteSnapshot", []testenv.IAMRequest{r("ec2:DeleteSnapshot", "snapshot", tagged(ourRepository))}},
	}
}

// attacks are what somebody does who has the role: each has a step that is refused,
// named here. Of the steps before it AWS may allow each.
func attacks() map[string]struct {
	steps   []step
	refused string
} {
	one := func(call, action, kind string, context map[string]any) step {
		return step{call, []testenv.IAMRequest{request(action, kind, context)}}
	}
	copied := func(create string) map[string]any {
		return with(tagging(ourRepository, ""), "ec2:CreateAction", create)
	}
	share := one("share", "ec2:ModifyImageAttribute", "image", tagged(ourRepository))
	type attack = struct {
		steps   []step
		refused string
	}
	list := map[string]attack{
		"publish an AMI of the account by a copy with the tag": {[]step{
			{"copy", []testenv.IAMRequest{
				request("ec2:CopyImage", "image", with(tagging(ourRepository, otherRepository), "ec2:Owner", "111122223333")),
				request("ec2:CopyImage", "snapshot", tagging(ourRepository, "")),
			}}, share,
		}, "copy"},
		"publish an AMI of the account by a copy that is tagged after": {[]step{
			{"copy", []testenv.IAMRequest{request("ec2:CopyImage", "image", nil), request("ec2:CopyImage", "snapshot", nil)}},
			one("tag", "ec2:CreateTags", "image", tagging(ourRepository, "")), share,
		}, "copy"},
		"tag a copy that another policy allows":              {[]step{one("tag", "ec2:CreateTags", "image", copied("CopyImage")), share}, "tag"},
		"tag a copied snapshot that another policy allows":   {[]step{one("tag", "ec2:CreateTags", "snapshot", copied("CopySnapshot"))}, "tag"},
		"tag an image of an instance":                        {[]step{one("tag", "ec2:CreateTags", "image", copied("CreateImage")), share}, "tag"},
		"copy an AMI of another account":                     {[]step{one("copy", "ec2:CopyImage", "image", with(tagging(ourRepository, ""), "ec2:Owner", "999999999999"))}, "copy"},
		"copy a snapshot":                                    {[]step{one("copy", "ec2:CopySnapshot", "snapshot", with(tagging(ourRepository, ""), "ec2:Owner", "111122223333"))}, "copy"},
		"give the tag to an AMI without one":                 {[]step{one("tag", "ec2:CreateTags", "image", tagging(ourRepository, "")), share}, "tag"},
		"give the tag to another's AMI":                      {[]step{one("tag", "ec2:CreateTags", "image", tagging(ourRepository, otherRepository)), share}, "tag"},
		"give the tag to another's snapshot":                 {[]step{one("tag", "ec2:CreateTags", "snapshot", tagging(ourRepository, otherRepository))}, "tag"},
		"change the tag of one's own AMI":                    {[]step{one("tag", "ec2:CreateTags", "image", tagging(otherRepository, ourRepository))}, "tag"},
		"change the tag of one's own snapshot":               {[]step{one("tag", "ec2:CreateTags", "snapshot", tagging(otherRepository, ourRepository))}, "tag"},
		"change it beside a sign of life":                    {[]step{one("tag", "ec2:CreateTags", "snapshot", tagging(otherRepository, ourRepository, "attestable-image:alive"))}, "tag"},
		"change the commit of one's own AMI":                 {[]step{one("tag", "ec2:CreateTags", "image", tagging("", ourRepository, "attestable-image:commit"))}, "tag"},
		"change the digest of one's own snapshot":            {[]step{one("tag", "ec2:CreateTags", "snapshot", tagging("", ourRepository, "attestable-image:digest"))}, "tag"},
		"a sign of life for another's snapshot":              {[]step{one("tag", "ec2:CreateTags", "snapshot", tagging("", otherRepository, "attestable-image:alive"))}, "tag"},
		"remove the tag":                                     {[]step{one("untag", "ec2:DeleteTags", "image", with(tagging("", ourRepository, repositoryTag)))}, "untag"},
		"share another's AMI":                                {[]step{one("share", "ec2:ModifyImageAttribute", "image", tagged(otherRepository))}, "share"},
		"share an AMI without a tag":                         {[]step{one("share", "ec2:ModifyImageAttribute", "image", nil)}, "share"},
		"share one's own snapshot":                           {[]step{one("share", "ec2:ModifySnapshotAttribute", "snapshot", tagged(ourRepository))}, "share"},
		"share another's snapshot":                           {[]step{one("share", "ec2:ModifySnapshotAttribute", "snapshot", tagged(otherRepository))}, "share"},
		"delete another's snapshot":                          {[]step{one("delete", "ec2:DeleteSnapshot", "snapshot", tagged(otherRepository))}, "delete"},
		"delete a snapshot without a tag":                    {[]step{one("delete", "ec2:DeleteSnapshot", "snapshot", nil)}, "delete"},
		"deregister another's AMI":                           {[]step{one("deregister", "ec2:DeregisterImage", "image", tagged(otherRepository))}, "deregister"},
		"deregister an AMI without a tag":                    {[]step{one("deregister", "ec2:DeregisterImage", "image", nil)}, "deregister"},
		"write into another's snapshot":                      {[]step{one("put", "ebs:PutSnapshotBlock", "snapshot", tagged(otherRepository))}, "put"},
		"complete another's snapshot":                        {[]step{one("complete", "ebs:CompleteSnapshot", "snapshot", tagged(otherRepository))}, "complete"},
		"read a snapshot":                                    {[]step{one("read", "ebs:GetSnapshotBlock", "snapshot", tagged(ourRepository))}, "read"},
		"list a snapshot's blocks":                           {[]step{one("list", "ebs:ListSnapshotBlocks", "snapshot", tagged(otherRepository))}, "list"},
		"start a snapshot without the tag":                   {[]step{one("start", "ebs:StartSnapshot", "snapshot", nil)}, "start"},
		"start a snapshot with another's tag":                {[]step{one("start", "ebs:StartSnapshot", "snapshot", tagging(otherRepository, ""))}, "start"},
		"start a snapshot upon another one, with its blocks": {[]step{one("start", "ebs:StartSnapshot", "snapshot", with(tagging(ourRepository, ""), "ebs:ParentSnapshot", "arn:aws:ec2:eu-central-1::snapshot/snap-0fedcba9876543210")), share}, "start"},
		"register an AMI with another's tag":                 {[]step{one("register", "ec2:RegisterImage", "image", tagging(otherRepository, ""))}, "register"},
		"register an AMI without the tag":                    {[]step{one("register", "ec2:RegisterImage", "image", nil)}, "register"},
		"make another's tag on what is being made":           {[]step{one("tag", "ec2:CreateTags", "image", with(tagging(otherRepository, ""), "ec2:CreateAction", "RegisterImage"))}, "tag"},
		"an image of an instance":                            {[]step{one("make", "ec2:CreateImage", "image", tagging(ourRepository, ""))}, "make"},
		"launch an instance":                                 {[]step{one("launch", "ec2:RunInstances", "image", tagged(ourRepository))}, "launch"},
	}
	for name, has := range map[string]string{"another's snapshot": otherRepository, "a snapshot without a tag": ""} {
		list["publish "+name+" by registering it"] = attack{[]step{
			{"register", []testenv.IAMRequest{request("ec2:RegisterImage", "image", tagging(ourRepository, "")), request("ec2:RegisterImage", "snapshot", tagged(has))}}, share,
		}, "register"}
	}
	for _, s := range registering("us-east-1") {
		list[s.call+" in a region that is not named"] = attack{[]step{s}, s.call}
	}
	return list
}

// TestRegisterPolicyEvaluated has the policy evaluated for every call of register-ami and
// deregister-ami, which it allows, and for attacks with the role, which it stops.
func TestRegisterPolicyEvaluated(t *testing.T) {
	policy, err := os.ReadFile(filepath.Join(testenv.Root(t), "examples/aws", "iam-policy.json"))
	if err != nil {
		t.Fatal(err)
	}
	type question struct {
		name     string // of the attack, or "" for what has to be allowed
		region   string
		of       step
		requests int
	}
	// All at once: node takes its time to start.
	var questions []question
	var requests []testenv.IAMRequest
	ask := func(name, region string, s step) {
		questions = append(questions, question{name, region, s, len(s.requests)})
		requests = append(requests, s.requests...)
	}
	var called []string
	for _, region := range []string{"eu-central-1", "eu-west-1"} {
		for _, s := range registering(region) {
			ask("", region, s)
			for _, r := range s.requests {
				called = append(called, r.Action)
			}
		}
	}
	for _, action := range registerActions {
		if !slices.Contains(called, action) {
			t.Errorf("%s, which register-ami calls, was not evaluated", action)
		}
	}
	for name, attack := range attacks() {
		i := slices.IndexFunc(attack.steps, func(s step) bool { return s.call == attack.refused })
		if i < 0 {
			t.Fatalf("%s has no step %s", name, attack.refused)
		}
		ask(name, "", attack.steps[i])
	}
	results := testenv.EvaluateIAM(t, policy, requests)
	for _, q := range questions {
		allowed := !slices.Contains(results[:q.requests], false)
		results = results[q.requests:]
		switch {
		case q.name == "" && !allowed:
			t.Errorf("%s in %s is refused", q.of.call, q.region)
		case q.name != "" && allowed:
			t.Errorf("%s: %s is allowed", q.name, q.of.call)
		}
	}
}
