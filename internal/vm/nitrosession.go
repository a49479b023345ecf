package vm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// Bits of TPMA_SESSION (TPM 2.0 part 2, section 8.4).
const (
	sessionContinue = 0x01
	sessionDecrypt  = 0x20 // the command's first parameter is encrypted
	sessionEncrypt  = 0x40 // the response's
)

// emulatedSession is an HMAC session between the guest and swtpm whose key is
// known, so that a command of it can be answered here. swtpm must not notice: its
// nonce stays the session's as long as only commands are answered that it never
// sees.
type emulatedSession struct {
	hash     tpm2.TPMIAlgHash
	key      []byte
	aesBits  int // of parameter encryption with CFB; 0 for none
	nonceTPM []byte
}

// authorization is one element of a command's authorization area
// (TPMS_AUTH_COMMAND; TPM 2.0 part 2, section 10.13.2).
type authorization struct {
	handle     uint32
	nonce      []byte
	attributes byte
	hmac       []byte
}

// errShort marks what ends before what it must contain.
var errShort = errors.New("ends early")

// cursor reads big-endian values. After the first that is not there all others are
// zero, and err says so.
type cursor struct {
	b   []byte
	err error
}

func (c *cursor) bytes(n int) []byte {
	if c.err != nil || n > len(c.b) {
		c.err = errShort
		return nil
	}
	value := c.b[:n]
	c.b = c.b[n:]
	return value
}

func (c *cursor) u8() byte {
	if b := c.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if b := c.bytes(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if b := c.bytes(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// sized reads a TPM2B: a length of two bytes, and that many.
func (c *cursor) sized() []byte { return c.bytes(int(c.u16())) }

// sized writes a TPM2B.
func sized(value []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(value))), value...)
}

// parsed is a command, taken apart.
type parsed struct {
	code           uint32
	handles        []uint32
	authorizations []authorization
	parameters     []byte
}

// parseCommand takes a command with a known number of handles apart.
func parseCommand(cmd []byte, handles int) (parsed, error) {
	c := cursor{b: cmd}
	tag := c.u16()
	c.u32()
	p := parsed{code: c.u32()}
	for range handles {
		p.handles = append(p.handles, c.u32())
	}
	if tag == tagSessions {
		area := cursor{b: c.bytes(int(min(c.u32(), maxMessage)))}
		for len(area.b) > 0 && area.err == nil {
			p.authorizations = append(p.authorizations, authorization{area.u32(), area.sized(), area.u8(), area.sized()})
		}
		if area.err != nil || len(p.authorizations) > 3 {
			return p, errShort
		}
	}
	p.parameters = slices.Clone(c.b)
	return p, c.err
}

// unsalt opens the salt of a session that is encrypted to the emulator's
// endorsement key (TPM 2.0 part 1, annex B.10.3).
func unsalt(key *rsa.PrivateKey, encrypted []byte) ([]byte, error) {
	return rsa.DecryptOAEP(sha256.New(), nil, key, encrypted, []byte("SECRET\x00"))
}

// sessionKey derives a session's key (TPM 2.0 part 1, section 19.6.8).
func sessionKey(hash tpm2.TPMIAlgHash, salt, nonceTPM, nonceCaller []byte) ([]byte, error) {
	h, err := hash.Hash()
	if err != nil || len(salt) == 0 {
		return nil, err
	}
	return tpm2.KDFa(h, salt, "ATH", nonceTPM, nonceCaller, h.Size()*8), nil
}

// digest hashes parts.
func digest(hash tpm2.TPMIAlgHash, parts ...[]byte) ([]byte, error) {
	h, err := hash.Hash()
	if err != nil {
		return nil, err
	}
	w := h.New()
	for _, part := range parts {
		w.Write(part)
	}
	return w.Sum(nil), nil
}

// hmac is the authorization HMAC of a command or response (TPM 2.0 part 1,
// section 19.6.5). auth is the authorization value of what the session authorizes.
func (s *emulatedSession) hmac(auth, parameterHash, newer, older []byte, attributes byte) ([]byte, error) {
	h, err := s.hash.Hash()
	if err != nil {
		return nil, err
	}
	w := hmac.New(h.New, slices.Concat(s.key, auth))
	for _, part := range [][]byte{parameterHash, newer, older, {attributes}} {
		w.Write(part)
	}
	return w.Sum(nil), nil
}

// cfb en- or decrypts a parameter in place (TPM 2.0 part 1, section 21.3).
func (s *emulatedSession) cfb(auth, newer, older, parameter []byte, decrypt bool) error {
	h, err := s.hash.Hash()
	if err != nil {
		return err
	}
	if s.aesBits == 0 {
		return errors.New("the session has no cipher")
	}
	material := tpm2.KDFa(h, slices.Concat(s.key, auth), "CFB", newer, older, s.aesBits+128)
	block, err := aes.NewCipher(material[:s.aesBits/8])
	if err != nil {
		return err
	}
	stream := cipher.NewCFBEncrypter(block, material[s.aesBits/8:]) //nolint:staticcheck // what TPM 2.0 specifies
	if decrypt {
		stream = cipher.NewCFBDecrypter(block, material[s.aesBits/8:]) //nolint:staticcheck // likewise
	}
	stream.XORKeyStream(parameter, parameter)
	return nil
}

// trimmed is an authorization value without the zeros at its end, which count for
// nothing (TPM 2.0 part 1, section 19.6.4.3).
func trimmed(auth []byte) []byte { return bytes.TrimRight(auth, "\x00") }
