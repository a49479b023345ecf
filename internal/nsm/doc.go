// Package nsm asks the NitroTPM of this machine for an attestation document.
//
// A NitroTPM is a TPM 2.0 with one command of AWS's, TPM2_VENDOR_AWS_NSM_REQUEST:
// it takes a request of the Nitro Secure Module out of an NV index, and puts the
// answer there. Open opens the TPM, Get carries a request out and leaves nothing
// behind. What a document says, and whether to believe it, is for package nitrotpm.
//
// Specifications: TPM 2.0 Library, parts 1 to 3; RFC 8949 (CBOR). AWS publishes the
// protocol as the source of nitro-tpm-attest.
package nsm
