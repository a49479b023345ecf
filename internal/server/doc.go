// Package server is the service inside an instance that proves to a client, over
// HTTPS, which image the instance booted.
//
//	POST /v1/attestation    {"nonce": "…", "user_data": "…"}, both base64; the
//	                        answer is a document (application/cose)
//	GET  /v1/measurements   the measurements document of the image, where it has one
//	GET  /healthz           that the service runs, which says nothing of the TPM
//
// The TLS key is made at start and never leaves the process. Its public key
// (SubjectPublicKeyInfo in DER, RFC 5280, section 4.1) is public_key in every
// document, so a client that finds there the key of its session knows that the
// session ends inside the instance that is attested. A caller cannot choose
// public_key: who could, would get documents that vouch for a key of its own.
//
// Everybody may ask, so everything is bounded: connections, sizes, times, the
// requests that wait for the TPM, and their rate. The TPM has one user at a time.
package server
