package nitrotpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"
)

// Check is one thing that was demanded: what was expected, and what was found. Both
// are for people, and their wording may change; Name and OK are for programs.
type Check struct {
	// Name is "root", "certificates", "chain", "leaf key", "leaf usage", "module",
	// "signature", "timestamp", "nonce", "PCRs" or "PCR 4" and so on, "user_data" or
	// "public_key".
	Name     string `json:"name"`
	Expected string `json:"expected"`
	Found    string `json:"found"`
	OK       bool   `json:"ok"`
}

// Verdict is everything that was demanded of a document, in order. One check that
// does not hold makes the document worthless, whatever the others say. Later
// versions may check more.
type Verdict struct {
	Checks []Check `json:"checks"`
	// Generation is the name of the accepted reference that matches; empty where
	// none does.
	Generation string `json:"generation,omitempty"`
	// Notes are for people: what was seen and decides nothing.
	Notes []string `json:"notes,omitempty"`
}

// RefusedError says that a document is not what the policy demands.
type RefusedError struct {
	Check Check // the first one that does not hold
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("attestation document refused: %s: expected %s, found %s", e.Check.Name, e.Check.Expected, e.Check.Found)
}

func (v *Verdict) add(name, expected, found string, ok bool) {
	v.Checks = append(v.Checks, Check{Name: name, Expected: expected, Found: found, OK: ok})
}

// clockSkew is how far a document may seem to come from the future: the clock of
// the one who checks may be slow.
const clockSkew = time.Minute

const (
	any0    = "any"
	leftOut = "any: the policy leaves it out"
	nothing = "nothing"
)

// Verify checks a document. Only without an error may it be believed: a
// *RefusedError names the first check that does not hold, and then the verdict has
// them all. Any other error is about the policy, or about a document that Parse did
// not make; then there is no verdict.
func (p Policy) Verify(d *Document) (*Verdict, error) {
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("verify attestation document: %w", err)
	}
	if d == nil || d.signature == nil {
		return nil, errors.New("verify attestation document: it was not read by Parse")
	}
	if p.At.IsZero() {
		p.At = time.Now()
	}
	v := new(Verdict)
	p.checkChain(v, d)
	checkLeaf(v, d)
	checkSignature(v, d)
	p.checkTime(v, d)
	if p.AnyNonce {
		v.add("nonce", any0, show(d.Nonce), true)
	} else {
		v.add("nonce", show(p.Nonce), show(d.Nonce), d.Nonce != nil && bytes.Equal(p.Nonce, d.Nonce))
	}
	p.checkPCRs(v, d)
	checkBytes(v, "user_data", p.UserData, d.UserData)
	checkBytes(v, "public_key", p.PublicKey, d.PublicKey)
	for _, c := range v.Checks {
		if !c.OK {
			return v, &RefusedError{c}
		}
	}
	return v, nil
}

// checkChain demands a chain from the leaf to a pinned root, all of it valid now.
// Certificates of cabundle other than the pinned one are intermediates and never
// roots: cabundle is what the other side says.
func (p Policy) checkChain(v *Verdict, d *Document) {
	pinned, words := p.roots()
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	var root *x509.Certificate
	for _, c := range d.CABundle {
		if slices.Contains(pinned, Fingerprint(c)) {
			roots.AddCert(c)
			root = c
		} else {
			intermediates.AddCert(c)
		}
	}
	if root == nil {
		v.add("root", words, Fingerprint(d.CABundle[0]).String()+" "+strconv.Quote(d.CABundle[0].Subject.String()), false)
	} else {
		v.add("root", words, words, true)
	}

	at := p.At.UTC()
	expected := "all valid at " + at.Format(time.RFC3339)
	found := expected
	for _, c := range append([]*x509.Certificate{d.Certificate}, d.CABundle...) {
		if at.Before(c.NotBefore) || at.After(c.NotAfter) {
			found = fmt.Sprintf("%q is valid from %s to %s", c.Subject.CommonName, c.NotBefore.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339))
			break
		}
	}
	v.add("certificates", expected, found, found == expected)

	const chain = "from the root to the leaf"
	chains, err := d.Certificate.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	switch {
	case err != nil:
		v.add("chain", chain, err.Error(), false)
	default:
		reason := issuers(chains[0])
		if reason == "" {
			reason = chain
		}
		v.add("chain", chain, reason, reason == chain)
	}
}

// issuers says what is wrong with the certificates above the leaf beyond what
// x509 looks at: it passes a certificate without any keyUsage.
func issuers(chain []*x509.Certificate) string {
	for _, c := range chain[1:] {
		if c.KeyUsage&x509.KeyUsageCertSign == 0 {
			return fmt.Sprintf("%q may not sign certificates (keyUsage)", c.Subject.CommonName)
		}
	}
	return ""
}

// checkLeaf demands a leaf that may sign documents, and those of this module. Its
// keyUsage is not critical in a genuine document.
func checkLeaf(v *Verdict, d *Document) {
	leaf := d.Certificate
	found := leaf.PublicKeyAlgorithm.String()
	key, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if ok {
		found += " " + key.Curve.Params().Name
	}
	v.add("leaf key", "ECDSA P-384", found, ok && key.Curve == elliptic.P384())

	const usage = "signs, and is no authority"
	found = usage
	switch {
	case leaf.IsCA:
		found = "a certificate authority"
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		found = "its keyUsage lacks digitalSignature"
	}
	v.add("leaf usage", usage, found, found == usage)

	// The subject is MODULE.REGION.aws, and its issuer's INSTANCE.REGION.aws.….
	expected := strconv.Quote(d.ModuleID + ".…")
	v.add("module", expected, strconv.Quote(leaf.Subject.CommonName), strings.HasPrefix(leaf.Subject.CommonName, d.ModuleID+"."))
}

// checkSignature checks ES384 (RFC 9053, section 2.1) over the Sig_structure (RFC
// 9052, section 4.4) with the payload and the protected header as received.
func checkSignature(v *Verdict, d *Document) {
	const expected = "ES384 by the leaf"
	found := expected
	switch key, ok := d.Certificate.PublicKey.(*ecdsa.PublicKey); {
	case !ok || key.Curve != elliptic.P384():
		found = "the leaf's key cannot make ES384"
	default:
		signed, err := sigStructure(d.protected, d.payload)
		if err != nil {
			found = err.Error()
			break
		}
		digest := sha512.Sum384(signed)
		r, s := new(big.Int).SetBytes(d.signature[:signatureSize/2]), new(big.Int).SetBytes(d.signature[signatureSize/2:])
		if !ecdsa.Verify(key, digest[:], r, s) {
			found = "not by the leaf, or of other bytes"
		}
	}
	v.add("signature", expected, found, found == expected)
}

// sigStructure is what a COSE_Sign1 signature is about.
func sigStructure(protected, payload []byte) ([]byte, error) {
	return cbor.Marshal([]any{"Signature1", protected, []byte{}, payload})
}

// checkTime demands a timestamp that is not in the future, of the time in which
// the leaf is valid, and not older than it may be.
func (p Policy) checkTime(v *Verdict, d *Document) {
	at, leaf := p.At.UTC(), d.Certificate
	age := at.Sub(d.Timestamp)
	limit := "within its certificate's time"
	if p.MaxAge > 0 {
		limit = "at most " + p.MaxAge.String() + " old"
	}
	expected := limit + " at " + at.Format(time.RFC3339)
	ok := age >= -clockSkew &&
		!d.Timestamp.Before(leaf.NotBefore.Add(-clockSkew)) && !d.Timestamp.After(leaf.NotAfter) &&
		(p.MaxAge == 0 || age <= p.MaxAge)
	v.add("timestamp", expected, d.Timestamp.Format(time.RFC3339), ok)
}

// checkPCRs compares with each accepted generation. What does not match is shown
// beside the generation that comes closest.
func (p Policy) checkPCRs(v *Verdict, d *Document) {
	if p.AnyPCRs {
		v.add("PCRs", any0, strconv.Itoa(len(d.PCRs))+" PCRs", true)
		return
	}
	closest := p.Accept[0]
	for _, r := range p.Accept {
		if len(differences(p.expected(r), d)) == 0 {
			v.Generation, closest = r.Name, r
			break
		}
		if len(differences(p.expected(r), d)) < len(differences(p.expected(closest), d)) {
			closest = r
		}
	}
	expected := p.expected(closest)
	differ := differences(expected, d)
	for _, n := range slices.Sorted(slices.Values(slices.Concat(slices.Collect(maps.Keys(expected)), p.WithoutPCRs))) {
		found := nothing
		if d.PCRs[n] != nil {
			found = hex.EncodeToString(d.PCRs[n])
		}
		name, wrong := "PCR "+strconv.Itoa(n), slices.Contains(differ, n)
		switch {
		case expected[n] == nil:
			v.add(name, leftOut, found, true)
			continue
		case wrong && explained[n] != "":
			found += ": " + explained[n]
		}
		v.add(name, hex.EncodeToString(expected[n]), found, !wrong)
	}
	// With Secure Boot on a driver had to be signed, and may belong to the signer's
	// images: it is told, and refuses nothing.
	if closest.bySigner() && expected[2] == nil && !slices.Contains(p.WithoutPCRs, 2) && d.PCRs[2] != nil && !bytes.Equal(d.PCRs[2], UsualPCR(2)) {
		v.Notes = append(v.Notes, "PCR 2 is "+hex.EncodeToString(d.PCRs[2])+", not firmware's separator alone: the firmware loaded a driver that Secure Boot let run, or this instance type has an option ROM")
	}
}

func checkBytes(v *Verdict, name string, expected, found []byte) {
	if expected == nil {
		v.add(name, any0, show(found), true)
		return
	}
	v.add(name, show(expected), show(found), found != nil && bytes.Equal(expected, found))
}

// show writes bytes for people: text in quotes where it is short and printable,
// hex where it is not.
func show(b []byte) string {
	switch {
	case b == nil:
		return nothing
	case len(b) == 0:
		return "an empty string"
	case len(b) <= 64 && utf8.Valid(b) && !bytes.ContainsFunc(b, func(r rune) bool { return !strconv.IsPrint(r) }):
		return strconv.Quote(string(b))
	case len(b) <= 96:
		return hex.EncodeToString(b)
	}
	digest := sha512.Sum384(b)
	return fmt.Sprintf("%d bytes, SHA-384 %x", len(b), digest)
}
