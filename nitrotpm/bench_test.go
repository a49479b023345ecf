package nitrotpm_test

import (
	"testing"

	"github.com/org/attestable-image-action/nitrotpm"
)

// BenchmarkVerify measures reading a document and checking all of it.
func BenchmarkVerify(b *testing.B) {
	i := newIssuer(b)
	document, policy := i.newDocument().bytes(b), i.policy()
	b.SetBytes(int64(len(document)))
	b.ReportAllocs()
	for b.Loop() {
		d, err := nitrotpm.Parse(document)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := policy.Verify(d); err != nil {
			b.Fatal(err)
		}
	}
}
