package vm

import (
	"crypto/hmac"
	"encoding/binary"
	"maps"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// libtpmsIndexMax is the largest NV index that libtpms allows, in bytes. What is
// larger is kept here.
const libtpmsIndexMax = 2048

// Limits of the emulator's indices.
const (
	indexSizeMax  = 16 << 10
	indexCountMax = 16
	nvBufferMax   = 1024 // of one read or write, as libtpms has it
)

// Bits of TPMA_NV (TPM 2.0 part 2, section 13.4).
const (
	nvAuthWrite = 1 << 2
	nvTypeMask  = 0xf << 4
	nvAuthRead  = 1 << 18
	nvWritten   = 1 << 29
)

// ownerHandle is TPM_RH_OWNER.
const ownerHandle = uint32(tpm2.TPMRHOwner)

// index is an NV index that the emulator keeps: an ordinary one, read and written
// with its own authorization value.
type index struct {
	handle     uint32
	nameAlg    tpm2.TPMIAlgHash
	attributes uint32
	policy     []byte
	auth       []byte
	data       []byte
}

// public is its TPMS_NV_PUBLIC.
func (x *index) public() []byte {
	b := binary.BigEndian.AppendUint32(nil, x.handle)
	b = binary.BigEndian.AppendUint16(b, uint16(x.nameAlg))
	b = binary.BigEndian.AppendUint32(b, x.attributes)
	b = append(b, sized(x.policy)...)
	return binary.BigEndian.AppendUint16(b, uint16(len(x.data)))
}

// name is the Name of an index (TPM 2.0 part 1, section 16).
func (x *index) name() ([]byte, error) {
	d, err := digest(x.nameAlg, x.public())
	return append(binary.BigEndian.AppendUint16(nil, uint16(x.nameAlg)), d...), err
}

// handleName is the Name of a permanent handle, or of an index.
func (n *NitroTPM) handleName(handle uint32) ([]byte, error) {
	if x := n.indices[handle]; x != nil {
		return x.name()
	}
	return binary.BigEndian.AppendUint32(nil, handle), nil
}

// authOf is the authorization value of a handle: the owner's is empty.
func (n *NitroTPM) authOf(handle uint32) []byte {
	if x := n.indices[handle]; x != nil {
		return x.auth
	}
	return nil
}

// nvCommands are the commands that can concern an emulated index: how many handles
// they have, which of them is the index, and who has to authorize.
var nvCommands = map[uint32]struct{ handles, index, authorized int }{
	uint32(tpm2.TPMCCNVDefineSpace):   {1, -1, 1},
	uint32(tpm2.TPMCCNVUndefineSpace): {2, 1, 1},
	uint32(tpm2.TPMCCNVWrite):         {2, 1, 1},
	uint32(tpm2.TPMCCNVRead):          {2, 1, 1},
	uint32(tpm2.TPMCCNVReadPublic):    {1, 0, 0},
	ccNSMRequest:                      {2, 1, 1},
}

// nv answers a command about an emulated index; ok is false when it is about
// something else and swtpm's.
func (n *NitroTPM) nv(cmd []byte) (response []byte, ok bool) {
	code := binary.BigEndian.Uint32(cmd[6:])
	shape, known := nvCommands[code]
	if !known {
		return nil, false
	}
	p, err := parseCommand(cmd, shape.handles)
	if err != nil {
		return nil, false // which is swtpm's to refuse
	}
	if code == uint32(tpm2.TPMCCNVDefineSpace) {
		if !definesLarge(p.parameters) {
			return nil, false
		}
	} else if n.indices[p.handles[shape.index]] == nil && code != ccNSMRequest {
		return nil, false
	}
	return n.answer(p, shape.authorized), true
}

// definesLarge says whether the parameters of TPM2_NV_DefineSpace are those of an
// index that libtpms would refuse. The first, the authorization value, may be
// encrypted; the second never is.
func definesLarge(parameters []byte) bool {
	c := cursor{b: parameters}
	c.sized()
	public := cursor{b: c.sized()}
	public.bytes(4 + 2 + 4)
	public.sized()
	return public.u16() > libtpmsIndexMax && public.err == nil && c.err == nil
}

// answer authorizes a command, carries it out, and writes the response.
func (n *NitroTPM) answer(p parsed, authorized int) []byte {
	names := make([][]byte, len(p.handles))
	for i, h := range p.handles {
		var err error
		if names[i], err = n.handleName(h); err != nil {
			return errorResponse(tpm2.TPMRCFailure)
		}
	}
	sessions, rc := n.authorize(p, names, authorized)
	if rc != 0 {
		return errorResponse(rc)
	}
	// The handles' values are needed for the response, too, when the index is gone.
	var auth []byte
	if authorized > 0 {
		auth = slices.Clone(n.authOf(p.handles[0]))
	}
	out, rc := n.execute(p)
	if rc != 0 {
		return errorResponse(rc)
	}
	return n.respond(p, sessions, authorized, auth, out)
}

// authorize checks each authorization, and decrypts the first parameter in place.
// It returns the sessions, nil for passwords.
func (n *NitroTPM) authorize(p parsed, names [][]byte, authorized int) ([]*emulatedSession, tpm2.TPMRC) {
	if len(p.authorizations) < authorized {
		return nil, tpm2.TPMRCAuthMissing
	}
	sessions := make([]*emulatedSession, len(p.authorizations))
	for i, a := range p.authorizations {
		var auth []byte
		if i < authorized {
			auth = n.authOf(p.handles[i])
		}
		if a.handle == uint32(tpm2.TPMRSPW) {
			if i >= authorized || !hmac.Equal(trimmed(a.hmac), auth) {
				return nil, tpm2.TPMRCBadAuth
			}
			continue
		}
		s := n.sessions[a.handle]
		if s == nil {
			return nil, tpm2.TPMRCAuthFail // a session that is not known here
		}
		sessions[i] = s
		code := binary.BigEndian.AppendUint32(nil, p.code)
		cpHash, err := digest(s.hash, append(append([][]byte{code}, names...), p.parameters)...)
		if err != nil {
			return nil, tpm2.TPMRCHash
		}
		// With several sessions, the first one's HMAC has the nonces of the others
		// that encrypt (TPM 2.0 part 1, section 19.6.5).
		older := slices.Clone(s.nonceTPM)
		if i == 0 {
			for _, other := range p.authorizations[1:] {
				if o := n.sessions[other.handle]; o != nil && other.attributes&(sessionDecrypt|sessionEncrypt) != 0 {
					older = append(older, o.nonceTPM...)
				}
			}
		}
		expected, err := s.hmac(auth, cpHash, a.nonce, older, a.attributes)
		if err != nil || !hmac.Equal(expected, a.hmac) {
			return nil, tpm2.TPMRCAuthFail
		}
	}
	for i, a := range p.authorizations {
		if sessions[i] == nil || a.attributes&sessionDecrypt == 0 {
			continue
		}
		var auth []byte
		if i < authorized {
			auth = n.authOf(p.handles[i])
		}
		c := cursor{b: p.parameters}
		if first := c.sized(); c.err != nil || sessions[i].cfb(auth, a.nonce, sessions[i].nonceTPM, first, true) != nil {
			return nil, tpm2.TPMRCSize
		}
	}
	return sessions, 0
}

// respond writes a response with its authorizations.
func (n *NitroTPM) respond(p parsed, sessions []*emulatedSession, authorized int, auth, out []byte) []byte {
	if len(p.authorizations) == 0 {
		return command(tagNoSessions, 0, out)
	}
	of := func(i int) []byte {
		if i < authorized {
			return auth
		}
		return nil
	}
	for i, a := range p.authorizations {
		if s := sessions[i]; s != nil && a.attributes&sessionEncrypt != 0 && len(out) > 2 {
			c := cursor{b: out}
			if first := c.sized(); c.err != nil || s.cfb(of(i), s.nonceTPM, a.nonce, first, false) != nil {
				return errorResponse(tpm2.TPMRCSize)
			}
		}
	}
	area := binary.BigEndian.AppendUint32(nil, uint32(len(out)))
	area = append(area, out...)
	for i, a := range p.authorizations {
		s := sessions[i]
		if s == nil {
			area = append(area, 0, 0, sessionContinue, 0, 0)
			continue
		}
		rpHash, err := digest(s.hash, []byte{0, 0, 0, 0}, binary.BigEndian.AppendUint32(nil, p.code), out)
		if err != nil {
			return errorResponse(tpm2.TPMRCHash)
		}
		mac, err := s.hmac(of(i), rpHash, s.nonceTPM, a.nonce, a.attributes)
		if err != nil {
			return errorResponse(tpm2.TPMRCHash)
		}
		area = append(append(area, sized(s.nonceTPM)...), a.attributes)
		area = append(area, sized(mac)...)
		if a.attributes&sessionContinue == 0 {
			n.endSession(a.handle)
		}
	}
	return command(tagSessions, 0, area)
}

// execute carries out a command that is authorized, and returns the response's
// parameters.
func (n *NitroTPM) execute(p parsed) ([]byte, tpm2.TPMRC) {
	c := cursor{b: p.parameters}
	switch p.code {
	case uint32(tpm2.TPMCCNVDefineSpace):
		return nil, n.defineSpace(p.handles[0], &c)
	case uint32(tpm2.TPMCCNVReadPublic):
		x := n.indices[p.handles[0]]
		name, err := x.name()
		if err != nil {
			return nil, tpm2.TPMRCHash
		}
		return append(sized(x.public()), sized(name)...), 0
	case uint32(tpm2.TPMCCNVUndefineSpace):
		if p.handles[0] != ownerHandle {
			return nil, tpm2.TPMRCNVAuthorization
		}
		delete(n.indices, p.handles[1])
		return nil, 0
	case ccNSMRequest:
		x := n.indices[p.handles[1]]
		if x == nil || p.handles[0] != p.handles[1] {
			return nil, tpm2.TPMRCNVAuthorization
		}
		return nil, n.nsm(x)
	}
	x := n.indices[p.handles[1]]
	if p.handles[0] != p.handles[1] {
		return nil, tpm2.TPMRCNVAuthorization
	}
	if p.code == uint32(tpm2.TPMCCNVWrite) {
		data, offset := c.sized(), int(c.u16())
		switch {
		case c.err != nil || len(c.b) > 0 || len(data) > nvBufferMax:
			return nil, tpm2.TPMRCSize
		case offset+len(data) > len(x.data):
			return nil, tpm2.TPMRCNVRange
		}
		copy(x.data[offset:], data)
		x.attributes |= nvWritten
		return nil, 0
	}
	size, offset := int(c.u16()), int(c.u16())
	switch {
	case c.err != nil || len(c.b) > 0 || size > nvBufferMax:
		return nil, tpm2.TPMRCSize
	case x.attributes&nvWritten == 0:
		return nil, tpm2.TPMRCNVUninitialized
	case offset+size > len(x.data):
		return nil, tpm2.TPMRCNVRange
	}
	return sized(slices.Clone(x.data[offset : offset+size])), 0
}

func (n *NitroTPM) defineSpace(hierarchy uint32, c *cursor) tpm2.TPMRC {
	auth, area := c.sized(), cursor{b: c.sized()}
	x := &index{handle: area.u32(), nameAlg: tpm2.TPMIAlgHash(area.u16()), attributes: area.u32(), policy: slices.Clone(area.sized()), auth: slices.Clone(trimmed(auth))}
	size := int(area.u16())
	_, err := x.nameAlg.Hash()
	switch {
	case c.err != nil || area.err != nil || len(c.b) > 0 || len(area.b) > 0:
		return tpm2.TPMRCSize
	case err != nil:
		return tpm2.TPMRCHash
	case hierarchy != ownerHandle:
		return tpm2.TPMRCHierarchy
	case size > indexSizeMax:
		return tpm2.TPMRCSize
	case x.attributes&^nvTypeMask&^(nvAuthRead|nvAuthWrite) != 0 || x.attributes&nvAuthRead == 0 || x.attributes&nvAuthWrite == 0 || x.attributes&nvTypeMask != 0:
		return tpm2.TPMRCAttributes // more is not emulated
	case x.handle>>24 != 1:
		return tpm2.TPMRCValue
	case n.indices[x.handle] != nil:
		return tpm2.TPMRCNVDefined
	case len(n.indices) >= indexCountMax:
		return tpm2.TPMRCNVSpace
	}
	x.data = make([]byte, size)
	n.indices[x.handle] = x
	return 0
}

// withIndices adds the emulated indices to those that swtpm lists.
func (n *NitroTPM) withIndices(first uint32, listed []uint32) []uint32 {
	for _, h := range slices.Sorted(maps.Keys(n.indices)) {
		if h >= first {
			listed = append(listed, h)
		}
	}
	slices.Sort(listed)
	return listed
}

// errorResponse is a response that is an error.
func errorResponse(rc tpm2.TPMRC) []byte { return command(tagNoSessions, uint32(rc), nil) }
