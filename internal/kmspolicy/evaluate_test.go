package kmspolicy

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// request is what IAM knows of a call: who asks for what, and the context keys.
// An attestation document's PCRs are context keys; without one they are missing.
type request struct {
	principal, action string
	context           map[string]string
}

// attested is the context of a call with an attestation document of these PCRs.
func attested(pcrs map[int]string) map[string]string {
	context := map[string]string{}
	for n, value := range pcrs {
		context[conditionKey(n)] = value
	}
	return context
}

// oneOrMore is a JSON string, or a list of them, as policies have both.
type oneOrMore []string

func (o *oneOrMore) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '[' {
		return json.Unmarshal(b, (*[]string)(o))
	}
	*o = make(oneOrMore, 1)
	return json.Unmarshal(b, &(*o)[0])
}

// evaluated is a policy as IAM reads it.
type evaluated struct {
	Version   string
	Statement []struct {
		Sid, Effect string
		Principal   map[string]oneOrMore
		Action      oneOrMore
		Resource    oneOrMore
		Condition   map[string]map[string]oneOrMore
	}
}

// allows evaluates a policy by the IAM User Guide's rules, "Policy evaluation
// logic" and "Conditions with multiple context keys or values": all operators
// and keys of a statement must match, each by one of its values; a key that the
// call lacks does not match; one statement is enough; a denial outweighs all. It
// knows the elements that the policies here have, and fails on any other.
func allows(t testing.TB, policy []byte, r request) bool {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(string(policy)))
	decoder.DisallowUnknownFields()
	var p evaluated
	if err := decoder.Decode(&p); err != nil {
		t.Fatalf("the policy is no policy: %v\n%s", err, policy)
	}
	if p.Version != "2012-10-17" {
		t.Fatalf("version %q", p.Version)
	}
	allowed := false
	for _, s := range p.Statement {
		if s.Effect != "Allow" || !slices.Equal(s.Resource, oneOrMore{"*"}) {
			t.Fatalf("statement %s: effect %q, resource %q", s.Sid, s.Effect, s.Resource)
		}
		for kind, principals := range s.Principal {
			for _, principal := range principals {
				if kind != "AWS" || strings.Contains(principal, "*") {
					t.Fatalf("statement %s: principal %s %q", s.Sid, kind, principal)
				}
			}
		}
		for _, action := range s.Action {
			if strings.Contains(action, "*") {
				t.Fatalf("statement %s: action %q", s.Sid, action)
			}
		}
		if slices.Contains(s.Principal["AWS"], r.principal) && slices.Contains(s.Action, r.action) && matches(t, s.Condition, r.context) {
			allowed = true
		}
	}
	return allowed
}

func matches(t testing.TB, conditions map[string]map[string]oneOrMore, context map[string]string) bool {
	t.Helper()
	for operator, keys := range conditions {
		if operator != "StringEqualsIgnoreCase" {
			t.Fatalf("operator %q", operator)
		}
		for key, values := range keys {
			value, ok := context[key]
			if !ok || !slices.ContainsFunc(values, func(v string) bool { return strings.EqualFold(v, value) }) {
				return false
			}
		}
	}
	return true
}
