package vm

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/org/attestable-image-action/internal/measure"
)

// ccNSMRequest is TPM2_VENDOR_AWS_NSM_REQUEST, AWS's command.
const ccNSMRequest = 0x20000001

// NitroTPM makes a software TPM answer as a NitroTPM does. It passes commands on,
// and answers itself what swtpm cannot: NV indices of more than 2048 bytes, and
// AWS's command, for which it signs a document about the TPM's real PCRs.
//
// A session that is salted to the endorsement key has a key that only its two ends
// know. The emulator therefore stands in for the endorsement key: it shows the
// guest a key of its own in the place of swtpm's, and passes the salts on. Such a
// session then works with swtpm and with the emulator. What else the endorsement
// key is good for (TPM2_ActivateCredential) does not work.
//
// Whatever it signs says that it is emulated, and chains to a root that is made
// anew each time: who is to believe it has to be given that root.
type NitroTPM struct {
	issuer   *issuer
	ek       *rsa.PrivateKey  // shown in the place of swtpm's
	real     *tpm2.TPMTPublic // swtpm's, once it was created
	next     transport.TPM
	sessions map[uint32]*emulatedSession
	indices  map[uint32]*index
}

// EmulateNitroTPM makes an emulator with a chain of its own.
func EmulateNitroTPM() (*NitroTPM, error) {
	i, err := newIssuer(time.Now)
	if err != nil {
		return nil, fmt.Errorf("make the emulated NitroTPM: %w", err)
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, fmt.Errorf("make the emulated NitroTPM: %w", err)
	}
	return &NitroTPM{issuer: i, ek: key, sessions: map[uint32]*emulatedSession{}, indices: map[uint32]*index{}}, nil
}

// Root is the root of the emulator's chain.
func (n *NitroTPM) Root() *x509.Certificate { return n.issuer.chain[0].certificate }

// RootPEM is the root in PEM, with a line in front that says what it is.
func (n *NitroTPM) RootPEM() []byte {
	text := "Root of an EMULATED NitroTPM: it proves nothing of any machine. For tests only.\n"
	return append([]byte(text), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: n.Root().Raw})...)
}

// Layer puts the emulator in front of a TPM.
func (n *NitroTPM) Layer(next transport.TPM) transport.TPM {
	n.next = next
	return n
}

// Send implements transport.TPM. Commands come one at a time.
func (n *NitroTPM) Send(cmd []byte) ([]byte, error) {
	if len(cmd) < headerSize {
		return n.next.Send(cmd)
	}
	if response, ok := n.nv(cmd); ok {
		return response, nil
	}
	switch code := binary.BigEndian.Uint32(cmd[6:]); code {
	case uint32(tpm2.TPMCCStartAuthSession):
		return n.startAuthSession(cmd)
	case uint32(tpm2.TPMCCCreatePrimary):
		return n.createPrimary(cmd)
	case uint32(tpm2.TPMCCReadPublic):
		return n.readPublic(cmd)
	case uint32(tpm2.TPMCCEvictControl):
		return n.pass(n.renamed(cmd, 2))
	case uint32(tpm2.TPMCCGetCapability):
		return n.getCapability(cmd)
	case ccStartup:
		clear(n.sessions)
	case uint32(tpm2.TPMCCFlushContext):
		if len(cmd) >= headerSize+4 {
			delete(n.sessions, binary.BigEndian.Uint32(cmd[headerSize:]))
		}
	}
	return n.pass(cmd)
}

// Numbers of handles of commands that come with sessions, and of their responses,
// as far as they are not zero; TPM 2.0 part 3.
var (
	withResponseHandle = []tpm2.TPMCC{tpm2.TPMCCCreatePrimary, tpm2.TPMCCLoad, tpm2.TPMCCLoadExternal, tpm2.TPMCCHashSequenceStart, tpm2.TPMCCHMACStart, tpm2.TPMCCCreateLoaded}
)

// pass passes a command on, and follows the nonces of the sessions in it.
func (n *NitroTPM) pass(cmd []byte) ([]byte, error) {
	response, err := n.next.Send(cmd)
	if err != nil || len(n.sessions) == 0 || len(response) < headerSize || responseCode(response) != 0 || binary.BigEndian.Uint16(response) != tagSessions {
		return response, err
	}
	code := tpm2.TPMCC(binary.BigEndian.Uint32(cmd[6:]))
	handles := n.sessionHandles(cmd)
	c := cursor{b: response[headerSize:]}
	if slices.Contains(withResponseHandle, code) {
		c.u32()
	}
	c.bytes(int(min(c.u32(), maxMessage)))
	for _, h := range handles {
		nonce, attributes := c.sized(), c.u8()
		c.sized()
		if s := n.sessions[h]; s != nil && c.err == nil {
			s.nonceTPM = slices.Clone(nonce)
			if attributes&sessionContinue == 0 {
				delete(n.sessions, h)
			}
		}
	}
	return response, nil
}

// sessionHandles finds the authorization area of a command with up to three
// handles: the number of handles is that with which the area fits and begins with
// the handle of a session.
func (n *NitroTPM) sessionHandles(cmd []byte) []uint32 {
	for count := range 4 {
		p, err := parseCommand(cmd, count)
		if err != nil || len(p.authorizations) == 0 {
			continue
		}
		var handles []uint32
		for _, a := range p.authorizations {
			// TPM_HT_HMAC_SESSION, TPM_HT_POLICY_SESSION, or TPM_RS_PW.
			if kind := a.handle >> 24; kind != 2 && kind != 3 && a.handle != uint32(tpm2.TPMRSPW) {
				handles = nil
				break
			}
			handles = append(handles, a.handle)
		}
		if handles != nil {
			return handles
		}
	}
	return nil
}

// endSession ends a session of which the last command was answered here.
func (n *NitroTPM) endSession(handle uint32) {
	delete(n.sessions, handle)
	// The session may be gone already; there is nobody to tell.
	_, _ = tpm2.FlushContext{FlushHandle: tpm2.TPMHandle(handle)}.Execute(n.next)
}

// startAuthSession passes on the salt of a session that is salted to the key that
// the guest was shown (TPM 2.0 part 3, section 11.1).
func (n *NitroTPM) startAuthSession(cmd []byte) ([]byte, error) {
	p, err := parseCommand(cmd, 2)
	c := cursor{b: p.parameters}
	nonceCaller, encrypted, kind := c.sized(), c.sized(), c.u8()
	symmetric := c.u16()
	bits := uint16(0)
	if symmetric != uint16(tpm2.TPMAlgNull) {
		bits = c.u16()
		if symmetric != uint16(tpm2.TPMAlgXOR) {
			c.u16() // the mode
		}
	}
	hash := tpm2.TPMIAlgHash(c.u16())
	if err != nil || c.err != nil || len(p.authorizations) > 0 || kind != byte(tpm2.TPMSEHMAC) || p.handles[1] != uint32(tpm2.TPMRHNull) {
		return n.pass(cmd) // no session that can be followed
	}
	var salt []byte
	if len(encrypted) > 0 {
		if salt, err = unsalt(n.ek, encrypted); err != nil || n.real == nil {
			return n.pass(cmd) // salted to another key
		}
		if encrypted, err = n.resalt(salt); err != nil {
			return errorResponse(tpm2.TPMRCFailure), nil
		}
		rest := cursor{b: p.parameters}
		rest.sized()
		rest.sized()
		body := binary.BigEndian.AppendUint32(nil, p.handles[0])
		body = binary.BigEndian.AppendUint32(body, p.handles[1])
		cmd = command(tagNoSessions, p.code, slices.Concat(body, sized(nonceCaller), sized(encrypted), rest.b))
	}
	response, err := n.next.Send(cmd)
	if err != nil || responseCode(response) != 0 {
		return response, err
	}
	r := cursor{b: response[headerSize:]}
	handle, nonceTPM := r.u32(), slices.Clone(r.sized())
	s := &emulatedSession{hash: hash, nonceTPM: nonceTPM}
	if symmetric == uint16(tpm2.TPMAlgAES) {
		s.aesBits = int(bits)
	}
	if s.key, err = sessionKey(hash, salt, nonceTPM, nonceCaller); err == nil && r.err == nil && (s.aesBits == 0 || s.aesBits == 128 || s.aesBits == 256) {
		n.sessions[handle] = s
	}
	return response, nil
}

// getCapability adds to swtpm's answer what is emulated (TPM 2.0 part 3, section
// 30.2).
func (n *NitroTPM) getCapability(cmd []byte) ([]byte, error) {
	response, err := n.pass(cmd)
	if err != nil || responseCode(response) != 0 || binary.BigEndian.Uint16(response) != tagNoSessions || len(cmd) < headerSize+12 {
		return response, err
	}
	capability, property, count := binary.BigEndian.Uint32(cmd[headerSize:]), binary.BigEndian.Uint32(cmd[headerSize+4:]), binary.BigEndian.Uint32(cmd[headerSize+8:])
	c := cursor{b: response[headerSize:]}
	more, got := c.u8(), c.u32()
	entries := int(c.u32())
	width := 4
	if capability == uint32(tpm2.TPMCapTPMProperties) {
		width = 8
	}
	values := slices.Clone(c.bytes(min(entries, maxMessage) * width))
	if c.err != nil || got != capability {
		return response, nil
	}
	switch capability {
	case uint32(tpm2.TPMCapCommands):
		// The vendor's commands come last.
		if more == 0 && property <= ccNSMRequest && uint32(entries) < count {
			values, entries = append(values, attributesNSMRequest...), entries+1
		} else if more == 0 && property <= ccNSMRequest {
			more = 1
		}
	case uint32(tpm2.TPMCapTPMProperties):
		for v := values; len(v) >= 8; v = v[8:] {
			if p := binary.BigEndian.Uint32(v); p == uint32(tpm2.TPMPTTotalCommands) || p == uint32(tpm2.TPMPTVendorCommands) {
				binary.BigEndian.PutUint32(v[4:], binary.BigEndian.Uint32(v[4:])+1)
			}
		}
	case uint32(tpm2.TPMCapHandles):
		if property>>24 != 1 || len(n.indices) == 0 {
			return response, nil
		}
		var listed []uint32
		for v := values; len(v) >= 4; v = v[4:] {
			listed = append(listed, binary.BigEndian.Uint32(v))
		}
		listed = n.withIndices(property, listed)
		if uint32(len(listed)) > count {
			listed, more = listed[:count], 1
		}
		values, entries = nil, len(listed)
		for _, h := range listed {
			values = binary.BigEndian.AppendUint32(values, h)
		}
	default:
		return response, nil
	}
	body := append([]byte{more}, binary.BigEndian.AppendUint32(nil, capability)...)
	body = binary.BigEndian.AppendUint32(body, uint32(entries))
	return command(tagNoSessions, 0, append(body, values...)), nil
}

// attributesNSMRequest is the TPMA_CC of AWS's command (TPM 2.0 part 2, section
// 8.9): the vendor's, two handles, may write to NV.
var attributesNSMRequest = binary.BigEndian.AppendUint32(nil, ccNSMRequest|2<<25|1<<22)

// nsm answers the request in an index, in the index.
func (n *NitroTPM) nsm(x *index) tpm2.TPMRC {
	answer := any(map[string]string{"Error": "InvalidArgument"})
	request, ok := readNSMRequest(x.data)
	for _, value := range [][]byte{request.UserData, request.Nonce, request.PublicKey} {
		if ok && len(value) > 1024 {
			answer, ok = map[string]string{"Error": "InputTooLarge"}, false
		}
	}
	if ok {
		pcrs, err := readPCRs(n.next)
		if err != nil {
			return tpm2.TPMRCFailure
		}
		document, err := n.issuer.document(request, pcrs[measure.SHA384])
		if err != nil {
			return tpm2.TPMRCFailure
		}
		answer = map[string]map[string][]byte{"Attestation": {"document": document}}
	}
	encoded, err := cbor.Marshal(answer)
	if err != nil || len(encoded) > len(x.data) {
		return tpm2.TPMRCFailure
	}
	// What was there before stays behind the answer, as a reader has to bear.
	copy(x.data, encoded)
	x.attributes |= nvWritten
	return 0
}

// readNSMRequest reads the first CBOR item of an index.
func readNSMRequest(data []byte) (nsmRequest, bool) {
	var request map[string]nsmRequest
	if _, err := cbor.UnmarshalFirst(data, &request); err != nil {
		return nsmRequest{}, false
	}
	r, ok := request["Attestation"]
	return r, ok && len(request) == 1
}
