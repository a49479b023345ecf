package vm

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"math/big"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// rsaExponent is the default one of TPMS_RSA_PARMS.
const rsaExponent = 65537

// isEndorsementKey says whether a public area is that of an RSA endorsement key:
// a restricted decryption key as large as the one that is shown.
func (n *NitroTPM) isEndorsementKey(public *tpm2.TPMTPublic) bool {
	return public.Type == tpm2.TPMAlgRSA && public.ObjectAttributes.Restricted && public.ObjectAttributes.Decrypt &&
		len(modulusOf(public)) == n.ek.Size()
}

func modulusOf(public *tpm2.TPMTPublic) []byte {
	unique, err := public.Unique.RSA()
	if err != nil {
		return nil
	}
	return unique.Buffer
}

// shown is the public area that the guest sees in the place of a real one.
func (n *NitroTPM) shown(public *tpm2.TPMTPublic) *tpm2.TPMTPublic {
	area := *public
	area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: n.ek.N.FillBytes(make([]byte, n.ek.Size()))})
	return &area
}

// objectName is the Name of an object (TPM 2.0 part 1, section 16).
func objectName(public *tpm2.TPMTPublic) ([]byte, error) {
	d, err := digest(public.NameAlg, tpm2.Marshal(*public))
	return append(binary.BigEndian.AppendUint16(nil, uint16(public.NameAlg)), d...), err
}

// resalt encrypts a salt to swtpm's endorsement key (TPM 2.0 part 1, annex B.10.2).
func (n *NitroTPM) resalt(salt []byte) ([]byte, error) {
	key := &rsa.PublicKey{N: new(big.Int).SetBytes(modulusOf(n.real)), E: rsaExponent}
	return rsa.EncryptOAEP(sha256.New(), rand.Reader, key, salt, []byte("SECRET\x00"))
}

// createPrimary shows the emulator's key in the response of TPM2_CreatePrimary
// (TPM 2.0 part 3, section 24.1), when it creates the endorsement key, and
// authorizes the response anew. A response that cannot be authorized stays as it
// is, and the key is then swtpm's own.
func (n *NitroTPM) createPrimary(cmd []byte) ([]byte, error) {
	p, err := parseCommand(cmd, 1)
	if err != nil || p.handles[0] != uint32(tpm2.TPMRHEndorsement) || len(p.authorizations) != 1 {
		return n.pass(cmd)
	}
	a := p.authorizations[0]
	session := n.sessions[a.handle] // which may be gone after the command
	response, err := n.pass(cmd)
	if err != nil || responseCode(response) != 0 || len(response) < headerSize {
		return response, err
	}
	if session == nil && a.handle != uint32(tpm2.TPMRSPW) {
		return response, nil
	}
	c := cursor{b: response[headerSize:]}
	handle := c.u32()
	parameters := cursor{b: c.bytes(int(min(c.u32(), maxMessage)))}
	area := slices.Clone(parameters.sized())
	encrypted := session != nil && a.attributes&sessionEncrypt != 0
	if encrypted && session.cfb(nil, session.nonceTPM, a.nonce, area, true) != nil {
		return response, nil
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](area)
	if err != nil || !n.isEndorsementKey(public) {
		return response, nil
	}
	shown := n.shown(public)
	name, err := objectName(shown)
	if err != nil {
		return response, nil
	}
	area = tpm2.Marshal(*shown)
	if encrypted && session.cfb(nil, session.nonceTPM, a.nonce, area, false) != nil {
		return response, nil
	}
	// creationData, creationHash and creationTicket say nothing of the public area.
	rest := slices.Concat(sized(parameters.sized()), sized(parameters.sized()), parameters.bytes(2+4), sized(parameters.sized()))
	if c.err != nil || parameters.err != nil {
		return response, nil
	}
	n.real = public
	out := slices.Concat(sized(area), rest, sized(name))
	return reauthorized(p, binary.BigEndian.AppendUint32(nil, handle), session, out), nil
}

// reauthorized writes a response with its handles and parameters, and with one
// authorization of an empty authorization value.
func reauthorized(p parsed, handles []byte, session *emulatedSession, out []byte) []byte {
	a := p.authorizations[0]
	body := append(binary.BigEndian.AppendUint32(handles, uint32(len(out))), out...)
	if session == nil {
		return command(tagSessions, 0, append(body, 0, 0, sessionContinue, 0, 0))
	}
	rpHash, err := digest(session.hash, []byte{0, 0, 0, 0}, binary.BigEndian.AppendUint32(nil, p.code), out)
	if err != nil {
		return errorResponse(tpm2.TPMRCHash)
	}
	mac, err := session.hmac(nil, rpHash, session.nonceTPM, a.nonce, a.attributes)
	if err != nil {
		return errorResponse(tpm2.TPMRCHash)
	}
	return command(tagSessions, 0, slices.Concat(body, sized(session.nonceTPM), []byte{a.attributes}, sized(mac)))
}

// readPublic shows the emulator's key in the response of TPM2_ReadPublic (TPM 2.0
// part 3, section 12.4).
func (n *NitroTPM) readPublic(cmd []byte) ([]byte, error) {
	p, err := parseCommand(cmd, 1)
	if err != nil || n.real == nil || len(p.authorizations) > 1 {
		return n.pass(cmd)
	}
	var session *emulatedSession // which may be gone after the command
	var a authorization
	if len(p.authorizations) == 1 {
		a = p.authorizations[0]
		if session = n.sessions[a.handle]; session == nil {
			return n.pass(cmd)
		}
		cmd = n.renamed(cmd, 1)
	}
	response, err := n.pass(cmd)
	if err != nil || responseCode(response) != 0 || len(response) < headerSize {
		return response, err
	}
	c := cursor{b: response[headerSize:]}
	if session != nil {
		c = cursor{b: c.bytes(int(min(c.u32(), maxMessage)))}
	}
	area := slices.Clone(c.sized())
	encrypted := session != nil && a.attributes&sessionEncrypt != 0
	if encrypted && session.cfb(nil, session.nonceTPM, a.nonce, area, true) != nil {
		return response, nil
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](area)
	if err != nil || !bytes.Equal(modulusOf(public), modulusOf(n.real)) {
		return response, nil
	}
	shown := n.shown(public)
	name, err := objectName(shown)
	if err != nil {
		return response, nil
	}
	qualified, err := digest(public.NameAlg, binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRHEndorsement)), name)
	if err != nil {
		return response, nil
	}
	area = tpm2.Marshal(*shown)
	if encrypted && session.cfb(nil, session.nonceTPM, a.nonce, area, false) != nil {
		return response, nil
	}
	algorithm := binary.BigEndian.AppendUint16(nil, uint16(public.NameAlg))
	out := slices.Concat(sized(area), sized(name), sized(slices.Concat(algorithm, qualified)))
	if session == nil {
		return command(tagNoSessions, 0, out), nil
	}
	return reauthorized(p, nil, session, out), nil
}

// renamed authorizes a command anew whose last handle is the endorsement key: the
// guest knows the key by the name of the shown one. Others stay as they are.
func (n *NitroTPM) renamed(cmd []byte, handles int) []byte {
	cmd = slices.Clone(cmd)
	p, err := parseCommand(cmd, handles)
	if err != nil || n.real == nil || len(p.authorizations) != 1 {
		return cmd
	}
	a := p.authorizations[0]
	s := n.sessions[a.handle]
	if s == nil || a.attributes&sessionDecrypt != 0 {
		return cmd
	}
	response, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(p.handles[handles-1])}.Execute(n.next)
	if err != nil {
		return cmd
	}
	public, err := response.OutPublic.Contents()
	if err != nil || !bytes.Equal(modulusOf(public), modulusOf(n.real)) {
		return cmd
	}
	mac := func(public *tpm2.TPMTPublic) []byte {
		name, err := objectName(public)
		if err != nil {
			return nil
		}
		parts := [][]byte{binary.BigEndian.AppendUint32(nil, p.code)}
		for _, h := range p.handles[:handles-1] { // permanent ones, which are their own names
			parts = append(parts, binary.BigEndian.AppendUint32(nil, h))
		}
		hash, err := digest(s.hash, append(parts, name, p.parameters)...)
		if err != nil {
			return nil
		}
		mac, err := s.hmac(nil, hash, a.nonce, s.nonceTPM, a.attributes)
		if err != nil {
			return nil
		}
		return mac
	}
	if hmac.Equal(mac(n.shown(public)), a.hmac) {
		copy(a.hmac, mac(public)) // which is a part of cmd
	}
	return cmd
}
