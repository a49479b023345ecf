package kmsstandin

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/org/attestable-image-action/internal/strictjson"
)

// maxPolicy is the size that KMS accepts of a key policy, in bytes.
const maxPolicy = 32768

// Policy is a key policy as kms-policy prints it: what of IAM's policy language it
// does not have is refused, so that nothing is misread.
type Policy struct {
	statements []statement
}

type statement struct {
	Sid       string
	Effect    string
	Principal map[string]oneOrMore
	Action    oneOrMore
	Resource  oneOrMore
	Condition map[string]map[string]oneOrMore
}

// oneOrMore is a JSON string, or a list of them, as policies have both.
type oneOrMore []string

// UnmarshalJSON implements json.Unmarshaler.
func (o *oneOrMore) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '[' {
		return strictjson.Unmarshal(b, (*[]string)(o))
	}
	*o = make(oneOrMore, 1)
	return strictjson.Unmarshal(b, &(*o)[0])
}

// operator is the one that conditions have.
const operator = "StringEqualsIgnoreCase"

// ParsePolicy reads a key policy: statements that allow, without wildcards, for
// principals of AWS, on the condition of StringEqualsIgnoreCase or on none.
func ParsePolicy(text []byte) (*Policy, error) {
	p, err := parsePolicy(text)
	if err != nil {
		return nil, fmt.Errorf("read key policy: %w", err)
	}
	return p, nil
}

func parsePolicy(text []byte) (*Policy, error) {
	if len(text) > maxPolicy {
		return nil, fmt.Errorf("it has %d bytes, more than %d", len(text), maxPolicy)
	}
	if err := strictjson.Check(text); err != nil {
		return nil, err
	}
	var document struct {
		Version   string
		Statement []statement
	}
	if err := strictjson.UnmarshalClosed(text, &document); err != nil {
		return nil, err
	}
	if document.Version != "2012-10-17" {
		return nil, fmt.Errorf("its version is %q and not 2012-10-17", document.Version)
	}
	for i, s := range document.Statement {
		if err := s.check(); err != nil {
			return nil, fmt.Errorf("statement %d (%q): %w", i, s.Sid, err)
		}
	}
	return &Policy{document.Statement}, nil
}

func (s *statement) check() error {
	if s.Effect != "Allow" {
		return fmt.Errorf("its effect is %q, and only Allow is evaluated", s.Effect)
	}
	if !slices.Equal(s.Resource, oneOrMore{"*"}) {
		return fmt.Errorf("its resource is %q; in a key policy it is the key, \"*\"", s.Resource)
	}
	if len(s.Principal["AWS"]) == 0 {
		return errors.New("it names no principal")
	}
	for kind, principals := range s.Principal {
		if kind != "AWS" {
			return fmt.Errorf("it has principals of the kind %q, and only AWS is evaluated", kind)
		}
		for _, principal := range principals {
			if strings.ContainsAny(principal, "*?") {
				return fmt.Errorf("its principal %q has a wildcard", principal)
			}
		}
	}
	for _, action := range s.Action {
		if strings.ContainsAny(action, "*?") {
			return fmt.Errorf("its action %q has a wildcard", action)
		}
	}
	for used, keys := range s.Condition {
		if used != operator {
			return fmt.Errorf("it has a condition %q, and only %s is evaluated", used, operator)
		}
		if len(keys) == 0 {
			return errors.New("it has a condition without keys")
		}
	}
	if s.Condition != nil && len(s.Condition) == 0 {
		return errors.New("it has an empty condition")
	}
	return nil
}

// AnyPrincipal is a principal that every statement has.
const AnyPrincipal = ""

// Allows evaluates the policy by the rules of the IAM User Guide, "Policy evaluation
// logic" and "Conditions with multiple context keys or values": all keys of a
// statement's condition must match, each by one of its values; a key that the
// context lacks does not match; one statement is enough.
func (p *Policy) Allows(principal, action string, context map[string]string) bool {
	return slices.ContainsFunc(p.statements, func(s statement) bool {
		if principal != AnyPrincipal && !slices.Contains(s.Principal["AWS"], principal) {
			return false
		}
		if !slices.Contains(s.Action, action) {
			return false
		}
		for key, values := range s.Condition[operator] {
			value, ok := context[key]
			if !ok || !slices.ContainsFunc(values, func(v string) bool { return strings.EqualFold(v, value) }) {
				return false
			}
		}
		return true
	})
}
