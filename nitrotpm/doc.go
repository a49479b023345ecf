// Package nitrotpm reads and verifies attestation documents of AWS NitroTPM: which
// image an EC2 instance booted, signed by AWS.
//
// A document is a COSE_Sign1 object (RFC 9052, section 4.2) around a CBOR map with
// the PCRs of the SHA-384 bank, signed with ES384 by a key whose certificate chains
// to a root of AWS. [Parse] reads one and believes nothing. [Policy.Verify] says
// whether to believe it, and shows every check:
//
//	document, err := nitrotpm.Parse(received)
//	if err != nil {
//		return err
//	}
//	policy := nitrotpm.Policy{
//		Nonce:  nonce, // that was drawn for this request, and sent with it
//		Accept: []nitrotpm.Reference{{Name: "v1", PCRs: map[int][]byte{4: pcr4, 12: pcr12}}},
//	}
//	if _, err := policy.Verify(document); err != nil {
//		return err
//	}
//	// Only now does document mean anything.
//
// A [Policy] is data that the caller builds: what nonce, which PCRs, what time. It
// is refused as long as it does not say how freshness and the image are to be
// proved, so that nothing is left unchecked by omission. PCR 12 is among what has to
// be compared: without it a command line from outside the unified kernel image goes
// unnoticed (GHSA-xrv8-2pf5-f3q7). So are PCR 2 and 13, with the values that they have
// where nothing was added ([IdentityPCRs]): with Secure Boot off, a UEFI variable of the
// AMI can have firmware load a driver that shows in PCR 2 alone. There is no revocation list to ask: the
// certificate that signs a document is valid for about three hours.
//
// What a document does not say: that the instance still is in this state (ask
// again, with a new nonce), or who made the image (that is what the attestation of
// the image's measurements is for). UserData is chosen by whoever asked the
// instance, and is the instance's word only if the image lets nobody choose it.
//
// Documents of Nitro Enclaves have another shape and the same root. They are
// refused.
//
// Everything here is safe for use by several goroutines at once, as long as none
// changes a Policy or Document. The package reads no file and asks nobody.
//
// Specifications: Amazon EC2 User Guide, "NitroTPM Attestation Document" and
// "Validate a NitroTPM Attestation Document"; RFC 8949 (CBOR); RFC 9052 and RFC 9053
// (COSE); RFC 5280 (X.509).
package nitrotpm
