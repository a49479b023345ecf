package kmspolicy

import (
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/org/attestable-image-action/internal/efi"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/nitrotpm"
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

// advisory is why PCR 4 alone is not enough.
const advisory = "GHSA-xrv8-2pf5-f3q7"

// Bind makes the conditions under which exactly the given generations may use a
// key, one for each statement that is needed. pcrs are the PCRs to bind; nil
// means nitrotpm.IdentityPCRs, but for those of without, which may name 2 and 13.
//
// Two generations share a condition only where they differ in no more than one
// PCR: a block that lists two values of two PCRs also lets in the images that
// mix them, which nobody measured.
func Bind(generations []Generation, pcrs, without []int) ([]Condition, error) {
	if len(generations) == 0 {
		return nil, errors.New("make KMS conditions: there are no measurements")
	}
	for _, n := range without {
		if !measure.MayLack(n) {
			return nil, fmt.Errorf("make KMS conditions: PCR %d cannot be left out: only 2 and 13 can", n)
		}
	}
	var conditions []Condition
	for _, g := range generations {
		c, err := bindOne(g, pcrs, without)
		if err != nil {
			return nil, fmt.Errorf("make KMS conditions for %s: %w", g.Name, err)
		}
		conditions = append(conditions, c)
	}
	return merge(conditions), nil
}

func bindOne(g Generation, pcrs, without []int) (Condition, error) {
	doc := g.Document
	if pcrs == nil {
		pcrs = nitrotpm.IdentityPCRs(doc.SecureBoot.Enabled)
		pcrs = slices.DeleteFunc(pcrs, func(n int) bool { return slices.Contains(without, n) })
	}
	if err := suffices(pcrs, without, doc.SecureBoot.Enabled); err != nil {
		return Condition{}, err
	}
	reference, err := g.Reference(pcrs)
	if err != nil {
		return Condition{}, err
	}
	for _, n := range pcrs {
		switch {
		case reference.PCRs[n] != nil:
		case n == 2:
			// Not of the image: what firmware records when nothing was added to it.
			reference.PCRs[n] = nitrotpm.UsualPCR(n)
		case n == 12:
			return Condition{}, fmt.Errorf("PCR 12 is not among the measurements, and without it a command line that a boot entry adds goes unnoticed (%s): measure with --pcr including 12", advisory)
		case n == 13:
			return Condition{}, errors.New("PCR 13 is not among the measurements, and whether the image has extensions is not guessed: measure again, have an artifact measured with --remeasure, or leave PCR 13 out with --without-pcr 13")
		default:
			return Condition{}, fmt.Errorf("PCR %d is not among the measurements: measure with --pcr including %d", n, n)
		}
	}
	// The rules for who verifies an instance are those for who lets one use a key.
	if err := reference.Validate(); err != nil {
		return Condition{}, err
	}
	c := Condition{Values: map[int][]string{}}
	for n, raw := range reference.PCRs {
		c.Values[n] = []string{hex.EncodeToString(raw)}
	}
	return c, nil
}

// Reference is what verifiers compare an instance with: those of pcrs that the
// measurements have. Its Validate says whether they identify an image.
func (g Generation) Reference(pcrs []int) (nitrotpm.Reference, error) {
	doc := g.Document
	r := nitrotpm.Reference{Name: g.Name, SecureBoot: doc.SecureBoot.Enabled, PCRs: map[int][]byte{}}
	if bank := doc.Measurements.HashAlgorithm; bank != measure.SHA384 {
		return r, fmt.Errorf("it has the PCRs of the %s bank, and NitroTPM attests those of the SHA384 bank: measure with --bank sha384", bank)
	}
	for _, n := range pcrs {
		value := doc.PCR(n)
		if value == "" {
			continue
		}
		raw, err := hex.DecodeString(value)
		if err != nil || len(raw) != measure.SHA384.Hash().Size() {
			return r, fmt.Errorf("the value of PCR %d is not a SHA384 digest in hex", n)
		}
		r.PCRs[n] = raw
	}
	if r.SecureBoot && r.PCRs[7] != nil {
		return r, checkSecureBootEvents(doc)
	}
	return r, nil
}

// lacks says what a condition lets in without a PCR.
var lacks = map[int]string{
	2:  "the same image with a driver that a UEFI variable of the AMI has firmware load, and which can change the kernel in memory",
	12: "the same image with a command line or credentials of somebody else's (" + advisory + ")",
	13: "the same image with an extension of somebody else's beside it",
}

// suffices refuses PCRs that would let in more than the image, or the signer.
func suffices(pcrs, without []int, secureBoot bool) error {
	has := func(n int) bool { return slices.Contains(pcrs, n) }
	switch {
	case has(7) && secureBoot || has(4):
	case has(7):
		return errors.New("PCR 7 is the same for every image while Secure Boot is off, and the measurements do not say that it is on: bind PCR 2, 4, 12 and 13")
	default:
		return errors.New("these PCRs do not say what was booted: bind PCR 2, 4, 12 and 13, or with Secure Boot PCR 7, 12 and 13")
	}
	for _, n := range nitrotpm.IdentityPCRs(has(7) && secureBoot) {
		switch {
		case slices.Contains(without, n) && has(n):
			return fmt.Errorf("PCR %d is to be bound and to be left out: choose", n)
		case has(n) || slices.Contains(without, n):
		case measure.MayLack(n):
			return fmt.Errorf("without PCR %d they let in %s: bind it, too, or leave it out by name with --without-pcr %d", n, lacks[n], n)
		default:
			return fmt.Errorf("without PCR %d they let in %s: bind it, too", n, lacks[n])
		}
	}
	return nil
}

// checkSecureBootEvents refuses measurements that say that Secure Boot is on while
// their events of PCR 7, if there are any, lead to another value, or record that it is
// off: such a value can be that of every instance with these keys.
func checkSecureBootEvents(doc *measure.Document) error {
	value, recorded := make([]byte, measure.SHA384.Hash().Size()), false
	for _, e := range doc.Events {
		if e.PCR != 7 {
			continue
		}
		digest, err := hex.DecodeString(e.Digest)
		if err != nil {
			return fmt.Errorf("the digest of an event of PCR 7 is not hex: %q", e.Digest)
		}
		sum := sha512.Sum384(append(value, digest...))
		value, recorded = sum[:], true
		data, err := hex.DecodeString(e.Data)
		if err != nil {
			return fmt.Errorf("the data of an event of PCR 7 is not hex: %q", e.Data)
		}
		_, name, content, err := efi.ParseVariableData(data)
		if err == nil && name == "SecureBoot" && !bytes.Equal(content, []byte{1}) {
			return errors.New("the measurements say that Secure Boot is on, and their events of PCR 7 that it is off: PCR 7 then says nothing of the image")
		}
	}
	if recorded && hex.EncodeToString(value) != strings.ToLower(doc.PCR(7)) {
		return errors.New("the events of PCR 7 do not lead to its value: these are no measurements of one boot")
	}
	return nil
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
