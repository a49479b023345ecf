// Package kmspolicy turns measurements documents into AWS KMS key policies: who
// may use a key only from an instance that booted a measured image, and who may
// administer it without being able to use it.
//
// A Condition is the Condition element of one policy statement, on the keys
// kms:RecipientAttestation:NitroTPMPCR<n> of the AWS KMS Developer Guide,
// "Condition keys for NitroTPM". IAM joins the keys of a block by AND and the
// values of a key by OR, and the statements of a policy by OR; that is all the
// logic there is, and why several images may need several statements.
//
// The package reads nothing and asks nobody: whether a document is to be trusted
// is for its caller to find out.
package kmspolicy
