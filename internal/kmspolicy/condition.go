package kmspolicy

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/org/attestable-image-action/internal/measure"
)

// Generation is one build of an image that may use the key.
type Generation struct {
	Name     string // REF@DIGEST or a file: for errors and comments
	Document *measure.Document
}

// Condition is the Condition element of a policy statement: every PCR must have
// one of its values.
type Condition struct {
	Values map[int][]string // by number of the PCR; lower-case hex of SHA-384, in the order of the generations
}

// Default PCRs of a condition. With Secure Boot off, PCR 4 holds the digest of
// what was booted; with Secure Boot on, PCR 7 holds who may sign it, so that a
// new image by the same signer keeps the key. PCR 12 belongs to both: it records
// what systemd-stub took from outside the unified kernel image, a command line
// (which it takes with Secure Boot off) or credentials on the EFI system
// partition (which no signature covers).
var (
	standardBootPCRs = []int{4, 12}
	secureBootPCRs   = []int{7, 12}
)

// advisory is why PCR 4 alone is not enough.
const advisory = "GHSA-xrv8-2pf5-f3q7"

// Bind makes the conditions under which exactly the given generations may use a
// key, one for each statement that is needed. pcrs are the PCRs to bind; nil
// means 4 and 12 where Secure Boot is off, 7 and 12 where it is on.
//
// Two generations share a condition only where they differ in no more than one
// PCR: a block that lists two values of two PCRs also lets in the images that
// mix them, which nobody measured.
func Bind(generations []Generation, pcrs []int) ([]Condition, error) {
	if len(generations) == 0 {
		return nil, errors.New("make KMS conditions: there are no measurements")
	}
	var conditions []Condition
	for _, g := range generations {
		c, err := bindOne(g, pcrs)
		if err != nil {
			return nil, fmt.Errorf("make KMS conditions for %s: %w", g.Name, err)
		}
		conditions = append(conditions, c)
	}
	return merge(conditions), nil
}

func bindOne(g Generation, pcrs []int) (Condition, error) {
	doc := g.Document
	if pcrs == nil {
		pcrs = standardBootPCRs
		if doc.SecureBoot.Enabled {
			pcrs = secureBootPCRs
		}
	}
	if err := suffices(pcrs, doc.SecureBoot.Enabled); err != nil {
		return Condition{}, err
	}
	if bank := doc.Measurements.HashAlgorithm; bank != measure.SHA384 {
		return Condition{}, fmt.Errorf("it has the PCRs of the %s bank, and NitroTPM attests those of the SHA384 bank: measure with --bank sha384", bank)
	}
	c := Condition{Values: map[int][]string{}}
	for _, n := range pcrs {
		value, ok := doc.Measurements.PCRs[n]
		switch {
		case !ok && n == 12:
			return Condition{}, fmt.Errorf("PCR 12 is not among the measurements, and without it a command line that a boot entry adds goes unnoticed (%s): measure with --pcr including 12", advisory)
		case !ok:
			return Condition{}, fmt.Errorf("PCR %d is not among the measurements: measure with --pcr including %d", n, n)
		}
		raw, err := hex.DecodeString(value)
		if err != nil || len(raw) != measure.SHA384.Hash().Size() {
			return Condition{}, fmt.Errorf("the value of PCR %d is not a SHA384 digest in hex", n)
		}
		// Firmware measures EV_SEPARATOR into each of PCR 0 to 7 (TCG PC Client
		// Platform Firmware Profile): none of them stays zero.
		if n <= 7 && !slices.ContainsFunc(raw, func(b byte) bool { return b != 0 }) {
			return Condition{}, fmt.Errorf("the value of PCR %d is zero, which no machine has after its firmware ran: these are no measurements of a boot", n)
		}
		c.Values[n] = []string{hex.EncodeToString(raw)}
	}
	return c, nil
}

// suffices refuses PCRs that would let in more than the image, or the signer.
func suffices(pcrs []int, secureBoot bool) error {
	has := func(n int) bool { return slices.Contains(pcrs, n) }
	switch {
	case has(4) && has(12), has(7) && secureBoot:
		return nil
	case has(4):
		return fmt.Errorf("PCR 4 without PCR 12 lets in the same image with a command line of somebody else's (%s): bind both", advisory)
	case has(7):
		return errors.New("PCR 7 is the same for every image while Secure Boot is off, and the measurements do not say that it is on: bind PCR 4 and 12")
	}
	return errors.New("these PCRs do not say what was booted: bind PCR 4 and 12, or with Secure Boot PCR 7")
}

// merge joins conditions as long as two of them differ in one PCR only, which
// lets in no more than both did.
func merge(conditions []Condition) []Condition {
	for {
		i, j, joined := joinable(conditions)
		if i < 0 {
			return conditions
		}
		conditions[i] = joined
		conditions = slices.Delete(conditions, j, j+1)
	}
}

// joinable finds two conditions that can be one; i is -1 where there are none.
func joinable(conditions []Condition) (i, j int, joined Condition) {
	for i := range conditions {
		for j := i + 1; j < len(conditions); j++ {
			if joined, ok := join(conditions[i], conditions[j]); ok {
				return i, j, joined
			}
		}
	}
	return -1, -1, Condition{}
}

// join makes one condition of two that bind the same PCRs and have the same
// values in all of them but one at most.
func join(a, b Condition) (Condition, bool) {
	if len(a.Values) != len(b.Values) {
		return Condition{}, false
	}
	joined := Condition{Values: maps.Clone(a.Values)}
	different := 0
	for n, values := range a.Values {
		others, ok := b.Values[n]
		if !ok {
			return Condition{}, false
		}
		union := slices.Clone(values)
		for _, value := range others {
			if !slices.Contains(union, value) {
				union = append(union, value)
			}
		}
		if len(union) == len(values) && len(union) == len(others) {
			continue
		}
		joined.Values[n] = union
		different++
	}
	return joined, different <= 1
}

// operator compares without regard to case: AWS asks for it with PCR values.
const operator = "StringEqualsIgnoreCase"

// conditionKey is the condition key of a PCR.
func conditionKey(n int) string { return "kms:RecipientAttestation:NitroTPMPCR" + strconv.Itoa(n) }

// PCRs are the numbers of the PCRs that are bound, in order.
func (c Condition) PCRs() []int { return slices.Sorted(maps.Keys(c.Values)) }

// MarshalJSON writes the block as a policy has it: {"StringEqualsIgnoreCase":
// {KEY: VALUE or [VALUES]}}.
func (c Condition) MarshalJSON() ([]byte, error) {
	keys := make(map[string]any, len(c.Values))
	for n, values := range c.Values {
		if len(values) == 1 {
			keys[conditionKey(n)] = values[0]
		} else {
			keys[conditionKey(n)] = values
		}
	}
	return json.Marshal(map[string]any{operator: keys})
}
