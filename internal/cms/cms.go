// Package cms opens the messages in which AWS KMS returns a secret to the recipient
// that an attestation document names (CiphertextForRecipient): CMS EnvelopedData of
// one form, and no other.
//
// The form is that of RFC 5652, section 6, with one recipient, who is named by a
// key identifier; its key is encrypted with RSAES-OAEP, with SHA-256 and MGF1 with
// SHA-256 (RFC 4055, section 4.1), and the content with AES-256 in CBC mode (RFC
// 3565). The encoding is BER (X.690), with indefinite lengths and content in parts
// as KMS writes it, or DER.
//
// EnvelopedData proves nothing of who made it: everyone who knows the public key can
// make such a message. That it is KMS's is for the TLS session to say.
package cms

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
)

// MaxMessage bounds a message, in bytes. KMS encrypts at most 4096 bytes, and a
// private key of 4096 bits has some 2400.
const MaxMessage = 16 << 10

// Contents of OBJECT IDENTIFIER.
var (
	oidEnvelopedData = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x03} // 1.2.840.113549.1.7.3
	oidData          = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01} // 1.2.840.113549.1.7.1
	oidRSAESOAEP     = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x07} // 1.2.840.113549.1.1.7
	oidMGF1          = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08} // 1.2.840.113549.1.1.8
	oidSHA256        = []byte{0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01} // 2.16.840.1.101.3.4.2.1
	oidAES256CBC     = []byte{0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a} // 2.16.840.1.101.3.4.1.42
)

// contentKeySize is that of AES-256, in bytes.
const contentKeySize = 32

// envelope is what a message says.
type envelope struct {
	encryptedKey []byte
	iv           []byte // 16 bytes
	content      []byte // a multiple of 16 bytes
}

// Open decrypts a message with the recipient's key.
func Open(message []byte, key *rsa.PrivateKey) ([]byte, error) {
	e, err := parse(message)
	if err != nil {
		return nil, fmt.Errorf("read CMS EnvelopedData: %w", err)
	}
	plaintext, err := e.open(key)
	if err != nil {
		return nil, fmt.Errorf("open CMS EnvelopedData: %w", err)
	}
	return plaintext, nil
}

// errNotOpened is all that is said of a message that cannot be decrypted: which step
// failed is nobody's business.
var errNotOpened = errors.New("it is not encrypted for this key, or was changed")

func (e *envelope) open(key *rsa.PrivateKey) ([]byte, error) {
	contentKey, err := rsa.DecryptOAEP(sha256.New(), nil, key, e.encryptedKey, nil)
	if err != nil || len(contentKey) != contentKeySize {
		return nil, errNotOpened
	}
	block, err := aes.NewCipher(contentKey)
	if err != nil {
		return nil, err
	}
	plaintext := make([]byte, len(e.content))
	cipher.NewCBCDecrypter(block, e.iv).CryptBlocks(plaintext, e.content)
	// RFC 5652, section 6.3: as many bytes as they say, 1 to 16.
	n := int(plaintext[len(plaintext)-1])
	if n == 0 || n > aes.BlockSize || !bytes.Equal(plaintext[len(plaintext)-n:], bytes.Repeat([]byte{byte(n)}, n)) {
		return nil, errNotOpened
	}
	return plaintext[:len(plaintext)-n], nil
}

// Seal encrypts for a recipient, in the form and encoding in which KMS does it. KMS
// names the recipient by the SHA-256 of its SubjectPublicKeyInfo. This is for what
// stands in for KMS; nobody else needs it.
func Seal(plaintext []byte, recipient *rsa.PublicKey) ([]byte, error) {
	message, err := seal(plaintext, recipient)
	if err != nil {
		return nil, fmt.Errorf("make CMS EnvelopedData: %w", err)
	}
	return message, nil
}

func seal(plaintext []byte, recipient *rsa.PublicKey) ([]byte, error) {
	if len(plaintext) > MaxMessage/2 {
		return nil, fmt.Errorf("the plaintext has %d bytes, more than %d", len(plaintext), MaxMessage/2)
	}
	spki, err := x509.MarshalPKIXPublicKey(recipient)
	if err != nil {
		return nil, err
	}
	identifier := sha256.Sum256(spki)
	contentKey, iv := make([]byte, contentKeySize), make([]byte, aes.BlockSize)
	for _, b := range [][]byte{contentKey, iv} {
		if _, err := rand.Read(b); err != nil {
			return nil, err
		}
	}
	encryptedKey, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, recipient, contentKey, nil)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(contentKey)
	if err != nil {
		return nil, err
	}
	n := aes.BlockSize - len(plaintext)%aes.BlockSize
	content := append(bytes.Clone(plaintext), bytes.Repeat([]byte{byte(n)}, n)...)
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(content, content) //nolint:gosec // G407: the IV was drawn above

	digest := encode(tagSequence, encode(tagOID, oidSHA256), encode(tagNull))
	return indefinite(tagSequence,
		encode(tagOID, oidEnvelopedData),
		indefinite(tagContext0,
			indefinite(tagSequence,
				encode(tagInteger, []byte{2}),
				encode(tagSet, encode(tagSequence,
					encode(tagInteger, []byte{2}),
					encode(tagContext0Primitive, identifier[:]),
					encode(tagSequence, encode(tagOID, oidRSAESOAEP), encode(tagSequence,
						encode(tagContext0, digest),
						encode(tagContext1, encode(tagSequence, encode(tagOID, oidMGF1), digest)),
					)),
					encode(tagOctetString, encryptedKey),
				)),
				indefinite(tagSequence,
					encode(tagOID, oidData),
					encode(tagSequence, encode(tagOID, oidAES256CBC), encode(tagOctetString, iv)),
					indefinite(tagContext0, encode(tagOctetString, content)),
				),
			),
		),
	), nil
}

// parse reads a message.
func parse(message []byte) (*envelope, error) {
	if len(message) > MaxMessage {
		return nil, fmt.Errorf("it has %d bytes, more than %d", len(message), MaxMessage)
	}
	root, rest, err := readElement(message, maxDepth)
	if err != nil {
		return nil, err
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%d bytes follow it", len(rest))
	}
	// ContentInfo (RFC 5652, section 3).
	content, err := root.members("ContentInfo", tagSequence, tagOID, tagContext0)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(content[0].content, oidEnvelopedData) {
		return nil, errors.New("its content is not EnvelopedData")
	}
	explicit, err := content[1].members("content", tagContext0, tagSequence)
	if err != nil {
		return nil, err
	}
	// EnvelopedData (section 6.1), without originatorInfo and unprotectedAttrs.
	data, err := explicit[0].members("EnvelopedData", tagSequence, tagInteger, tagSet, tagSequence)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(data[0].content, []byte{2}) {
		return nil, errors.New("EnvelopedData is not of version 2")
	}
	recipients, err := data[1].members("recipientInfos", tagSet, tagSequence)
	if err != nil {
		return nil, err
	}
	e := new(envelope)
	if e.encryptedKey, err = readRecipient(recipients[0]); err != nil {
		return nil, err
	}
	if err := e.readContent(data[2]); err != nil {
		return nil, err
	}
	return e, nil
}

// readRecipient reads KeyTransRecipientInfo (section 6.2.1) and returns the
// encrypted key.
func readRecipient(recipient element) ([]byte, error) {
	info, err := recipient.members("KeyTransRecipientInfo", tagSequence, tagInteger, tagContext0Primitive, tagSequence, tagOctetString)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(info[0].content, []byte{2}) {
		return nil, errors.New("KeyTransRecipientInfo is not of version 2")
	}
	algorithm, err := info[2].members("keyEncryptionAlgorithm", tagSequence, tagOID, tagSequence)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(algorithm[0].content, oidRSAESOAEP) {
		return nil, errors.New("the key is not encrypted with RSAES-OAEP")
	}
	// RSAES-OAEP-params (RFC 4055, section 4.1). The default for both is SHA-1, so
	// that both are there; pSourceAlgorithm has the default that is wanted, and is not.
	parameters, err := algorithm[1].members("RSAES-OAEP-params", tagSequence, tagContext0, tagContext1)
	if err != nil {
		return nil, err
	}
	hash, err := parameters[0].members("hashAlgorithm", tagContext0, tagSequence)
	if err != nil {
		return nil, err
	}
	if !hash[0].isSHA256() {
		return nil, errors.New("RSAES-OAEP is not with SHA-256")
	}
	outer, err := parameters[1].members("maskGenAlgorithm", tagContext1, tagSequence)
	if err != nil {
		return nil, err
	}
	mask, err := outer[0].members("maskGenAlgorithm", tagSequence, tagOID, tagSequence)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(mask[0].content, oidMGF1) || !mask[1].isSHA256() {
		return nil, errors.New("RSAES-OAEP is not with MGF1 with SHA-256")
	}
	return info[3].content, nil
}

// isSHA256 reads an AlgorithmIdentifier, whose parameters may be absent or NULL (RFC
// 5754, section 2).
func (e element) isSHA256() bool {
	if e.tag != tagSequence || len(e.children) == 0 || len(e.children) > 2 {
		return false
	}
	if len(e.children) == 2 && (e.children[1].tag != tagNull || len(e.children[1].content) > 0) {
		return false
	}
	return e.children[0].tag == tagOID && bytes.Equal(e.children[0].content, oidSHA256)
}

// readContent reads EncryptedContentInfo (RFC 5652, section 6.1). The content is an
// OCTET STRING with an implicit tag: primitive, or in parts.
func (e *envelope) readContent(info element) error {
	if info.tag != tagSequence || len(info.children) != 3 {
		return errors.New("EncryptedContentInfo is not one of a type, an algorithm and content")
	}
	kind, encryption, content := info.children[0], info.children[1], info.children[2]
	if kind.tag != tagOID || !bytes.Equal(kind.content, oidData) {
		return errors.New("EncryptedContentInfo: the content is not of the type data")
	}
	algorithm, err := encryption.members("contentEncryptionAlgorithm", tagSequence, tagOID, tagOctetString)
	if err != nil {
		return err
	}
	if !bytes.Equal(algorithm[0].content, oidAES256CBC) {
		return errors.New("the content is not encrypted with AES-256 in CBC mode")
	}
	if e.iv = algorithm[1].content; len(e.iv) != aes.BlockSize {
		return fmt.Errorf("the initialization vector has %d bytes and not %d", len(e.iv), aes.BlockSize)
	}
	switch content.tag {
	case tagContext0Primitive:
		e.content = content.content
	case tagContext0:
		for _, part := range content.children {
			if part.tag != tagOctetString {
				return fmt.Errorf("a part of the content has the tag %#x and is no OCTET STRING", part.tag)
			}
			e.content = append(e.content, part.content...)
		}
	default:
		return fmt.Errorf("the content has the tag %#x and not [0]", content.tag)
	}
	if len(e.content) == 0 || len(e.content)%aes.BlockSize != 0 {
		return fmt.Errorf("the content has %d bytes, which are no blocks of AES", len(e.content))
	}
	return nil
}
