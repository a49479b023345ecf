package kmsstandin

import (
	"slices"
	"testing"
)

// FuzzParsePolicy holds that a policy lets nobody in who has no document, unless a
// statement of it has no condition.
func FuzzParsePolicy(f *testing.F) {
	for _, condition := range []string{``, `,"Condition":{"StringEqualsIgnoreCase":{"k":[]}}`, `,"Condition":{"StringEqualsIgnoreCase":{"k":"v","l":["w","x"]}}`, `,"Condition":{}`} {
		f.Add(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"a"},"Action":"kms:Decrypt","Resource":"*"` + condition + `}]}`)
	}
	f.Add(`{"Version":"2012-10-17","Statement":[]}`)
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePolicy([]byte(text))
		if err != nil {
			return
		}
		open := slices.ContainsFunc(p.statements, func(s statement) bool { return s.Condition == nil })
		if !open && p.Allows(AnyPrincipal, "kms:Decrypt", nil) {
			t.Errorf("%q lets everybody in", text)
		}
	})
}
