package measure

import (
	"slices"

	"github.com/org/attestable-image-action/nitrotpm"
)

// IdentityPCRs are the PCRs that identify an image in one or the other state of
// Secure Boot (nitrotpm.IdentityPCRs). The annotations of an artifact and the tags of
// an AMI carry them.
var IdentityPCRs = union(nitrotpm.IdentityPCRs(false), nitrotpm.IdentityPCRs(true))

// DefaultPCRs are those that are predicted unless others are asked for: IdentityPCRs,
// and PCR 11, which shows what of a unified kernel image differs.
var DefaultPCRs = union(IdentityPCRs, []int{11})

// MayLack says whether documents and artifacts may lack one of IdentityPCRs: those
// that were made before PCR 2 and 13 were predicted do.
func MayLack(n int) bool { return n == 2 || n == 13 }

func union(a, b []int) []int {
	return slices.Compact(slices.Sorted(slices.Values(slices.Concat(a, b))))
}
