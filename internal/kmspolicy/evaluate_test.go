package kmspolicy

import (
	"testing"

	"github.com/org/attestable-image-action/internal/kmsstandin"
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

// allows evaluates a policy as IAM does.
func allows(t testing.TB, policy []byte, r request) bool {
	t.Helper()
	p, err := kmsstandin.ParsePolicy(policy)
	if err != nil {
		t.Fatalf("%v\n%s", err, policy)
	}
	return p.Allows(r.principal, r.action, r.context)
}
