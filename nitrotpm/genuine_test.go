package nitrotpm_test

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/org/attestable-image-action/nitrotpm"
)

// TestGenuineDocument verifies a document of AWS's, in the file that the variable
// ATTESTABLE_IMAGE_AWS_DOCUMENT names, against the pinned root, and refuses it when
// its time is over and after changes. Who has an EC2 instance gets one with
// "attestable-image attestation-document --nonce HEX -o FILE".
func TestGenuineDocument(t *testing.T) {
	path := os.Getenv("ATTESTABLE_IMAGE_AWS_DOCUMENT")
	if path == "" {
		t.Skip("ATTESTABLE_IMAGE_AWS_DOCUMENT names no document that AWS signed: there is none in the repository")
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d, err := nitrotpm.Parse(content)
	if err != nil {
		t.Fatal(err)
	}
	if len(d.PCRs) != nitrotpm.PCRCount {
		t.Errorf("it has %d PCRs", len(d.PCRs))
	}
	good := func() nitrotpm.Policy {
		return nitrotpm.Policy{
			At: d.Timestamp.Add(time.Second), MaxAge: time.Minute, Nonce: d.Nonce, AnyNonce: d.Nonce == nil, PublicKey: d.PublicKey, UserData: d.UserData,
			Accept: []nitrotpm.Reference{{Name: "itself", PCRs: map[int][]byte{4: d.PCRs[4], 7: d.PCRs[7], 12: d.PCRs[12]}}},
		}
	}
	if _, err := good().Verify(d); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		change func(*nitrotpm.Policy)
		check  string
	}{
		{"after the leaf's time", func(p *nitrotpm.Policy) { p.At = d.Certificate.NotAfter.Add(time.Second) }, "certificates"},
		{"before the leaf's time", func(p *nitrotpm.Policy) { p.At = d.Certificate.NotBefore.Add(-time.Second) }, "certificates"},
		{"older than it may be", func(p *nitrotpm.Policy) { p.At = d.Timestamp.Add(2 * time.Minute) }, "timestamp"},
		{"another nonce", func(p *nitrotpm.Policy) { p.Nonce, p.AnyNonce = []byte("another"), false }, "nonce"},
		{"another PCR 4", func(p *nitrotpm.Policy) { p.Accept[0].PCRs[4] = make([]byte, 48) }, "PCR 4"},
		{"another PCR 12", func(p *nitrotpm.Policy) { p.Accept[0].PCRs[12] = bytes.Repeat([]byte{1}, 48) }, "PCR 12"},
		{"another key", func(p *nitrotpm.Policy) { p.PublicKey = []byte("another") }, "public_key"},
		{"another root", func(p *nitrotpm.Policy) { p.Roots = []nitrotpm.Root{{1}} }, "root"},
	} {
		p := good()
		tc.change(&p)
		var refused *nitrotpm.RefusedError
		if _, err := p.Verify(d); !errors.As(err, &refused) || refused.Check.Name != tc.check {
			t.Errorf("%s: %v, want a failure of %s", tc.name, err, tc.check)
		}
	}
	// Whatever byte is changed, it is malformed or refused; every eleventh is.
	for i := 0; i < len(content); i += 11 {
		changed := bytes.Clone(content)
		changed[i] ^= 0x10
		other, err := nitrotpm.Parse(changed)
		if err != nil {
			continue
		}
		if _, err := good().Verify(other); err == nil {
			t.Errorf("accepted with byte %d changed", i)
		}
	}
}
