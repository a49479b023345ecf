// Package kmsstandin stands in for AWS KMS, for tests and for trying things on a
// laptop: KMS cannot be asked about an emulated NitroTPM, and emulators of AWS do not
// know recipients. It is not AWS KMS, keeps nothing safe, and is part of no program
// that is released.
//
// What it does as KMS does: of a call of Decrypt it verifies the attestation
// document, takes the document's PCRs for the condition keys
// kms:RecipientAttestation:NitroTPMPCR<n>, evaluates the key's policy with them, and
// encrypts the answer to the document's public_key as CMS EnvelopedData. Like KMS it
// looks at neither nonce nor user_data.
//
// What it does not: it knows no signature of a request (SigV4) to be right or wrong,
// and takes every caller for the role that may use the key; it knows no other call;
// and where AWS does not document how KMS refuses a document, it answers with a
// ValidationException that says why.
package kmsstandin
