package nitrotpm

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Policy is what a document must be. Every part that would weaken the verdict by
// being left out has to be left out in words: AnyNonce, AnyPCRs. The zero value
// therefore is refused.
type Policy struct {
	// Roots are the roots to believe; none means that of AWSRoot. Giving others is
	// for emulators, and then AWS's is not believed.
	Roots []Root
	// At is the time of the check; the zero value means now.
	At time.Time
	// MaxAge is how old the document may be at the time of the check. 0 means as
	// long as its certificate is valid, about three hours.
	MaxAge time.Duration
	// Nonce is what the document must carry: bytes that nobody could foresee when
	// an older document was made.
	Nonce []byte
	// AnyNonce accepts any nonce and none: somebody else's document, or one that
	// was stored. A replay is then noticed by its age only.
	AnyNonce bool
	// Accept are the generations of the image, of which one must match in every
	// PCR that it names, and in those of IdentityPCRs.
	Accept []Reference
	// WithoutPCRs are PCRs that are not compared although they belong to
	// IdentityPCRs: 2, for an instance type with an option ROM, or 13. The verdict
	// says that they were left out.
	WithoutPCRs []int
	// AnyPCRs accepts every image. The verdict then says who the instance is, and
	// not what it runs.
	AnyPCRs bool
	// UserData and PublicKey are what the document must carry; nil accepts any and
	// none.
	UserData  []byte
	PublicKey []byte
}

// Reference is one generation of an image: the PCRs that an instance of it has.
type Reference struct {
	// Name says where the values come from, for people.
	Name string
	// PCRs are values of 48 bytes by number. A reference that lacks PCR 2 or 13 of
	// IdentityPCRs means an instance to which nothing was added: the separator in PCR 2,
	// zero in PCR 13.
	PCRs map[int][]byte
	// SecureBoot says that the values are those of a boot with Secure Boot on.
	SecureBoot bool
}

// Validate says whether the values identify an image. With Secure Boot off that
// takes PCR 4 and 12; with Secure Boot on PCR 7 or 4, and 12. Without PCR 12 a
// command line from outside the unified kernel image goes unnoticed
// (GHSA-xrv8-2pf5-f3q7). Values that fit every image, such as PCR 7 of an instance
// without Secure Boot, identify none.
func (r Reference) Validate() error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("the reference %s %w", r.Name, fmt.Errorf(format, args...))
	}
	for n, value := range r.PCRs {
		if n < 0 || n >= PCRCount {
			return fail("has a PCR %d; a TPM has 0 to %d", n, PCRCount-1)
		}
		if len(value) != PCRSize {
			return fail("has a PCR %d of %d bytes; one of the SHA-384 bank has %d", n, len(value), PCRSize)
		}
	}
	identity := 4
	switch {
	case r.PCRs[12] == nil:
		return fail("lacks PCR 12: without it a changed command line goes unnoticed")
	case r.bySigner():
		identity = 7
	case r.PCRs[4] != nil:
	case !r.SecureBoot:
		return fail("lacks PCR 4: with Secure Boot off nothing else says which image was booted")
	default:
		return fail("lacks PCR 7, and PCR 4: nothing says which image was booted, or who signed it")
	}
	if err := r.checkValues(identity); err != nil {
		return fail("does not identify an image: %w", err)
	}
	return nil
}

// bySigner says whether PCR 7 with Secure Boot on identifies what was booted.
func (r Reference) bySigner() bool { return r.SecureBoot && r.PCRs[7] != nil }

// expected are the values that an instance must have for the policy to accept it as
// one of r: those that r names and those of IdentityPCRs that it lacks, without what
// the policy leaves out.
func (p Policy) expected(r Reference) map[int][]byte {
	values := maps.Clone(r.PCRs)
	for _, n := range IdentityPCRs(r.bySigner()) {
		if values[n] == nil && slices.Contains(optional, n) {
			values[n] = UsualPCR(n)
		}
	}
	for _, n := range p.WithoutPCRs {
		delete(values, n)
	}
	return values
}

// differences are the PCRs of a document that are not as expected, in order.
func differences(expected map[int][]byte, d *Document) []int {
	var numbers []int
	for _, n := range slices.Sorted(maps.Keys(expected)) {
		if d.PCRs[n] == nil || !slices.Equal(expected[n], d.PCRs[n]) {
			numbers = append(numbers, n)
		}
	}
	return numbers
}

// Validate says whether the policy can give a verdict that means something.
func (p Policy) Validate() error {
	switch {
	case p.Nonce == nil && !p.AnyNonce:
		return errors.New("the policy says nothing of the nonce: give one, or say that any will do")
	case p.Nonce != nil && p.AnyNonce:
		return errors.New("the policy demands a nonce and says that any will do")
	case len(p.Accept) == 0 && !p.AnyPCRs:
		return errors.New("the policy says nothing of the PCRs: give those of an image, or say that any will do")
	case len(p.Accept) > 0 && p.AnyPCRs:
		return errors.New("the policy demands PCRs and says that any will do")
	case p.MaxAge < 0:
		return errors.New("the policy's highest age is negative")
	}
	if p.Nonce != nil && (len(p.Nonce) == 0 || len(p.Nonce) > MaxField) {
		return fmt.Errorf("the policy's nonce has %d bytes; between 1 and %d are possible", len(p.Nonce), MaxField)
	}
	for _, n := range p.WithoutPCRs {
		if !slices.Contains(optional, n) {
			return fmt.Errorf("the policy leaves out PCR %d: of those that identify an image only PCR 2 and 13 can be left out", n)
		}
	}
	for _, r := range p.Accept {
		if err := r.Validate(); err != nil {
			return err
		}
	}
	return nil
}

// roots are those that are believed, and how to say so.
func (p Policy) roots() (roots []Root, words string) {
	if len(p.Roots) == 0 {
		return []Root{AWSRoot()}, "AWS's, " + AWSRoot().String()
	}
	hexes := make([]string, len(p.Roots))
	for i, r := range p.Roots {
		hexes[i] = r.String()
		if r == AWSRoot() {
			hexes[i] = "AWS's, " + hexes[i]
		}
	}
	return p.Roots, strings.Join(hexes, " or ")
}
