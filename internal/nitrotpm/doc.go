// Package nitrotpm gets attestation documents from a NitroTPM, reads them, and
// verifies them.
//
// A document is a COSE_Sign1 object (RFC 9052, section 4.2) around a CBOR map
// with the PCRs of the SHA-384 bank, signed with ES384 by a key whose certificate
// chains to a root of AWS. Parse reads one and believes nothing; Policy.Verify
// says, check by check, whether to believe it. Request asks the TPM of this
// machine for one.
//
// A Policy is data that the caller builds: what nonce, which PCRs, what time. It
// is refused as long as it does not say how freshness and the image are to be
// proved, so nothing is left unchecked by omission. There is no revocation list to
// ask: a leaf is valid for about three hours.
//
// Specifications: AWS, "NitroTPM attestation document contents"; RFC 8949 (CBOR);
// RFC 9052 and RFC 9053 (COSE); RFC 5280 (X.509); TPM 2.0 Library part 3.
package nitrotpm
