package nitrotpm_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/org/attestable-image-action/nitrotpm"
)

// The PCRs of the image that the examples expect. Those of an image of yours are
// what "attestable-image measure" prints, or its attested measurements.
const (
	pcr4  = "050000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
	pcr12 = "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
)

func fromHex(digits string) []byte {
	b, err := hex.DecodeString(digits)
	if err != nil {
		panic(err)
	}
	return b
}

// A document that was stored is verified at the time at which it was made, since
// the certificate that signed it is valid for three hours. It came as the answer to
// a nonce, which was stored beside it.
func ExamplePolicy_Verify() {
	stored, err := os.ReadFile("testdata/plain.cbor")
	if err != nil {
		panic(err)
	}
	document, err := nitrotpm.Parse(stored)
	if err != nil {
		panic(err)
	}
	// This document was made for the example, by a root of its own. Without Roots
	// that of AWS is believed, and no other.
	pem, err := os.ReadFile("testdata/root.pem")
	if err != nil {
		panic(err)
	}
	root, err := nitrotpm.ParseRoot(pem)
	if err != nil {
		panic(err)
	}

	policy := nitrotpm.Policy{
		Roots:  []nitrotpm.Root{root},
		At:     time.Date(2026, 3, 1, 12, 0, 30, 0, time.UTC),
		MaxAge: 5 * time.Minute,
		Nonce:  []byte("0123456789abcdef0123456789abcdef"),
		Accept: []nitrotpm.Reference{
			{Name: "v2", PCRs: map[int][]byte{4: bytes.Repeat([]byte{2}, 48), 12: fromHex(pcr12)}},
			{Name: "v1", PCRs: map[int][]byte{4: fromHex(pcr4), 12: fromHex(pcr12)}},
		},
	}
	verdict, err := policy.Verify(document)
	if err != nil {
		panic(err)
	}
	fmt.Println(document.ModuleID, "runs", verdict.Generation)
	for _, check := range verdict.Checks[:2] {
		fmt.Println(check.Name+":", check.OK)
	}
	// Output:
	// i-0123456789abcdef0-tpm0000000000000000 runs v1
	// root: true
	// certificates: true
}

// The same image with a command line that was added to it has another PCR 12. The
// error names the first check that does not hold.
func ExamplePolicy_Verify_refused() {
	received, err := os.ReadFile("testdata/plain.cbor")
	if err != nil {
		panic(err)
	}
	document, err := nitrotpm.Parse(received)
	if err != nil {
		panic(err)
	}
	policy := nitrotpm.Policy{
		Roots:    []nitrotpm.Root{nitrotpm.Fingerprint(document.CABundle[0])}, // no policy for anything but an example
		At:       document.Timestamp,
		AnyNonce: true,
		Accept:   []nitrotpm.Reference{{Name: "v1", PCRs: map[int][]byte{4: fromHex(pcr4), 12: bytes.Repeat([]byte{1}, 48)}}},
	}
	_, err = policy.Verify(document)
	var refused *nitrotpm.RefusedError
	if errors.As(err, &refused) {
		fmt.Println("refused:", refused.Check.Name)
	}

	// And nobody believes its root who was not given it.
	policy.Roots = nil
	_, err = policy.Verify(document)
	if errors.As(err, &refused) {
		fmt.Println("refused:", refused.Check.Name)
	}
	// Output:
	// refused: PCR 12
	// refused: root
}

// A policy that leaves something open without saying so is refused.
func ExamplePolicy_Validate() {
	policy := nitrotpm.Policy{Accept: []nitrotpm.Reference{{Name: "v1", PCRs: map[int][]byte{4: fromHex(pcr4)}}}}
	fmt.Println(policy.Validate())
	policy.Nonce = []byte("drawn for this request")
	fmt.Println(policy.Validate())
	// Output:
	// the policy says nothing of the nonce: give one, or say that any will do
	// the reference v1 lacks PCR 12: without it a changed command line goes unnoticed
}

func ExampleParseRoot() {
	// As AWS's documentation prints it.
	root, err := nitrotpm.ParseRoot([]byte("64:1A:03:21:A3:E2:44:EF:E4:56:46:31:95:D6:06:31:7E:D7:CD:CC:3C:17:56:E0:98:93:F3:C6:8F:79:BB:5B"))
	fmt.Println(root == nitrotpm.AWSRoot(), err)
	// Output: true <nil>
}
