package nitrotpm

import (
	"encoding/hex"
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
	// PCR that it names.
	Accept []Reference
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
	// PCRs are values of 48 bytes by number.
	PCRs map[int][]byte
	// SecureBoot says that the values are those of a boot with Secure Boot on.
	SecureBoot bool
}

// noSecureBoot is PCR 7 of firmware with Secure Boot off and without keys, on EC2
// as well as under OVMF: it tells nothing of the image.
const noSecureBoot = "98441c7f7625d10058c47683aec486ce311c633235eb555593a7ee791121e3578ae72d04ecef661f272d59058b77af35"

// Validate says whether the values identify an image. With Secure Boot off that
// takes PCR 4 and 12; with Secure Boot on PCR 7 or 4, and 12. Without PCR 12 a
// command line from outside the unified kernel image goes unnoticed
// (GHSA-xrv8-2pf5-f3q7).
func (r Reference) Validate() error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("the reference %s %s", r.Name, fmt.Sprintf(format, args...))
	}
	for n, value := range r.PCRs {
		if n < 0 || n >= PCRCount {
			return fail("has a PCR %d; a TPM has 0 to %d", n, PCRCount-1)
		}
		if len(value) != PCRSize {
			return fail("has a PCR %d of %d bytes; one of the SHA-384 bank has %d", n, len(value), PCRSize)
		}
	}
	if r.PCRs[12] == nil {
		return fail("lacks PCR 12: without it a changed command line goes unnoticed")
	}
	if r.PCRs[4] != nil {
		return nil
	}
	switch {
	case !r.SecureBoot:
		return fail("lacks PCR 4: with Secure Boot off nothing else says which image was booted")
	case r.PCRs[7] == nil:
		return fail("lacks PCR 7, and PCR 4: nothing says which image was booted, or who signed it")
	case hex.EncodeToString(r.PCRs[7]) == noSecureBoot:
		return fail("has the PCR 7 of every instance with Secure Boot off, and lacks PCR 4: nothing says which image was booted")
	}
	return nil
}

// matches compares every PCR that the reference names.
func (r Reference) matches(d *Document) bool { return len(r.differences(d)) == 0 }

// differences are the PCRs that are not as the reference says, in order.
func (r Reference) differences(d *Document) []int {
	var numbers []int
	for _, n := range slices.Sorted(maps.Keys(r.PCRs)) {
		if d.PCRs[n] == nil || !slices.Equal(r.PCRs[n], d.PCRs[n]) {
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
