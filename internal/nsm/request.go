package nsm

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/org/attestable-image-action/nitrotpm"
)

// Request is what the caller wants to have in a document. Each may be nil, and has
// at most 1024 bytes.
type Request struct {
	UserData  []byte
	Nonce     []byte
	PublicKey []byte
}

// ErrNotNitroTPM means that the TPM does not know AWS's command.
var ErrNotNitroTPM = errors.New("the TPM of this machine is not a NitroTPM: attestation documents are to be had on EC2 instances of an AMI with TpmSupport v2.0 only")

// The protocol of AWS: a request is written into an NV index, the vendor command
// replaces it by the answer, and the answer is read from there.
const (
	// ccNSMRequest is TPM2_VENDOR_AWS_NSM_REQUEST: the vendor's bit and number 1.
	ccNSMRequest = tpm2.TPMCC(0x20000001)
	// ccMask are the bits of a TPMA_CC that make the command code (TPM 2.0 part 2,
	// section 8.9): the vendor's bit and the number.
	ccMask = 0x2000ffff

	bufferSize = 8192 // of the NV index
	authSize   = 64   // of its authorization value
	nonceSize  = 64   // of sessions with SHA-512
	chunkSize  = 1024 // of one NV_Read or NV_Write, unless the TPM says less

	// Our indices are in the owner's range (TCG "Registry of Reserved TPM 2.0
	// Handles and Localities", section 2.2), where nobody else's tool looks for a
	// free one, so that what is left there by a kill can be told to be ours.
	firstIndex = tpm2.TPMHandle(0x01a17e00)
	indexCount = 8
)

// Get asks a NitroTPM for a document. The TPM must not be in use by somebody else
// at the same time; Open sees to that. Whatever happens, nothing stays in the TPM.
func Get(tpm transport.TPM, request Request) (document []byte, err error) {
	return request.ask(tpm, nil)
}

// An Attester asks the same NitroTPM for one document after another. To create the
// endorsement key takes the TPM longer than all the rest (it searches for the same
// primes each time), so an Attester keeps the key between two documents: as a
// saved context (TPM 2.0 part 1, section 30), which is in this process's memory,
// encrypted by the TPM, and takes no room there. A context ends with a reset of the
// TPM, not with a suspend; the key is then created anew. The zero value is ready to
// use, by one at a time.
type Attester struct{ ek *savedKey }

// savedKey is the endorsement key between two documents.
type savedKey struct {
	context tpm2.TPMSContext
	public  tpm2.TPMTPublic
}

// Get does what the function Get does.
func (a *Attester) Get(tpm transport.TPM, request Request) (document []byte, err error) {
	return request.ask(tpm, &a.ek)
}

// ask carries out a request. kept is where the endorsement key is kept between two
// requests; nil is nowhere.
func (request Request) ask(tpm transport.TPM, kept **savedKey) (document []byte, err error) {
	for _, f := range []struct {
		name  string
		value []byte
	}{{"user_data", request.UserData}, {"nonce", request.Nonce}, {"public_key", request.PublicKey}} {
		if len(f.value) > nitrotpm.MaxField {
			return nil, fmt.Errorf("request attestation document: %s has %d bytes, more than %d", f.name, len(f.value), nitrotpm.MaxField)
		}
	}
	tpm = patient{tpm}
	if err := Probe(tpm); err != nil {
		return nil, err
	}
	if err := Sweep(tpm); err != nil {
		return nil, err
	}
	document, err = get(tpm, request, kept)
	if err != nil {
		return nil, fmt.Errorf("request attestation document: %w", err)
	}
	return document, nil
}

// Probe says whether a TPM is a NitroTPM: nil, ErrNotNitroTPM, or that it does not
// answer.
func Probe(tpm transport.TPM) error {
	response, err := tpm2.GetCapability{Capability: tpm2.TPMCapCommands, Property: uint32(ccNSMRequest), PropertyCount: 1}.Execute(tpm)
	switch {
	case errors.Is(err, tpm2.TPMRCCommandCode) || isRC(err, tpm2.TPMRCValue):
		return ErrNotNitroTPM
	case err != nil:
		return fmt.Errorf("ask the TPM for its commands: %w", err)
	}
	commands, err := response.CapabilityData.Data.Command()
	if err != nil {
		return fmt.Errorf("ask the TPM for its commands: %w", err)
	}
	for _, c := range commands.CommandAttributes {
		if binary.BigEndian.Uint32(tpm2.Marshal(c))&ccMask == uint32(ccNSMRequest) {
			return nil
		}
	}
	return ErrNotNitroTPM
}

// Sweep removes NV indices that this program left in the TPM when it was killed.
// Others' are not touched: ours are in a range of their own and have a public area
// of their own.
func Sweep(tpm transport.TPM) error {
	handles, err := indices(tpm)
	if err != nil {
		return err
	}
	for _, h := range handles {
		public, err := tpm2.NVReadPublic{NVIndex: h}.Execute(tpm)
		if err != nil {
			return fmt.Errorf("look at NV index %#x: %w", uint32(h), err)
		}
		contents, err := public.NVPublic.Contents()
		if err != nil {
			return fmt.Errorf("look at NV index %#x: %w", uint32(h), err)
		}
		if !ours(contents) {
			continue
		}
		if err := undefine(tpm, h, public.NVName); err != nil {
			return err
		}
	}
	return nil
}

// indices are the NV indices that exist in our range.
func indices(tpm transport.TPM) ([]tpm2.TPMHandle, error) {
	response, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: uint32(firstIndex), PropertyCount: indexCount}.Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("ask the TPM for its NV indices: %w", err)
	}
	list, err := response.CapabilityData.Data.Handles()
	if err != nil {
		return nil, fmt.Errorf("ask the TPM for its NV indices: %w", err)
	}
	return slices.DeleteFunc(list.Handle, func(h tpm2.TPMHandle) bool { return h < firstIndex || h >= firstIndex+indexCount }), nil
}

// publicArea is that of our indices.
func publicArea(h tpm2.TPMHandle) tpm2.TPMSNVPublic {
	return tpm2.TPMSNVPublic{
		NVIndex: h, NameAlg: tpm2.TPMAlgSHA512, DataSize: bufferSize,
		Attributes: tpm2.TPMANV{AuthRead: true, AuthWrite: true, NT: tpm2.TPMNTOrdinary},
	}
}

// ours says whether a public area is that of one of our indices, written to or not.
func ours(p *tpm2.TPMSNVPublic) bool {
	expected := publicArea(p.NVIndex)
	expected.Attributes.Written = p.Attributes.Written
	return slices.Equal(tpm2.Marshal(expected), tpm2.Marshal(*p))
}

// buffer is the NV index of one request.
type buffer struct {
	tpm       transport.TPM
	ek        tpm2.TPMHandle
	ekPublic  tpm2.TPMTPublic
	handle    tpm2.TPMHandle
	name      tpm2.TPM2BName
	auth      []byte
	chunkSize int
}

// get carries out a request, and leaves nothing behind.
func get(tpm transport.TPM, request Request, kept **savedKey) (document []byte, err error) {
	encoded, err := request.encode()
	if err != nil {
		return nil, err
	}
	b := &buffer{tpm: tpm}
	if b.auth, err = newAuth(); err != nil {
		return nil, err
	}
	if b.chunkSize, err = maxChunk(tpm); err != nil {
		return nil, err
	}

	if err := b.loadEK(kept); err != nil {
		return nil, err
	}
	defer func() {
		if _, flushed := (tpm2.FlushContext{FlushHandle: b.ek}).Execute(tpm); flushed != nil {
			err = errors.Join(err, fmt.Errorf("flush the endorsement key: %w", flushed))
		}
	}()
	err = b.define()
	if b.handle != 0 {
		defer func() { err = errors.Join(err, undefine(tpm, b.handle, b.name)) }()
	}
	if err != nil {
		return nil, err
	}
	if err := b.write(encoded); err != nil {
		return nil, err
	}
	if err := b.ask(); err != nil {
		return nil, err
	}
	return b.read()
}

// newAuth is an authorization value that nobody can guess, without a zero in it:
// the TPM drops zeros at the end (TPM 2.0 part 1, section 19.6.4.3), and go-tpm up
// to 0.9.8 cuts the value at its first zero wherever that stands.
func newAuth() ([]byte, error) {
	auth := make([]byte, authSize)
	for i := range auth {
		for auth[i] == 0 {
			if _, err := rand.Read(auth[i : i+1]); err != nil {
				return nil, fmt.Errorf("draw a random value: %w", err)
			}
		}
	}
	return auth, nil
}

// encode is the request in CBOR, as the Nitro Secure Module takes it.
func (r Request) encode() ([]byte, error) {
	orNull := func(b []byte) any {
		if b == nil {
			return nil
		}
		return b
	}
	return cbor.Marshal(map[string]any{"Attestation": map[string]any{
		"user_data": orNull(r.UserData), "nonce": orNull(r.Nonce), "public_key": orNull(r.PublicKey),
	}})
}

// maxChunk is how much may be read or written at once, in bytes.
func maxChunk(tpm transport.TPM) (int, error) {
	response, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTNVBufferMax), PropertyCount: 1}.Execute(tpm)
	if err != nil {
		return 0, fmt.Errorf("ask the TPM for its NV buffer: %w", err)
	}
	properties, err := response.CapabilityData.Data.TPMProperties()
	if err != nil {
		return 0, fmt.Errorf("ask the TPM for its NV buffer: %w", err)
	}
	for _, p := range properties.TPMProperty {
		if p.Property == tpm2.TPMPTNVBufferMax && p.Value > 0 {
			return min(int(p.Value), chunkSize), nil
		}
	}
	return 512, nil // which every TPM takes
}

// loadEK loads the endorsement key, to which the salts of sessions are encrypted:
// the one that was kept, where there is one and the TPM still takes it.
func (b *buffer) loadEK(kept **savedKey) error {
	if kept == nil {
		return b.createEK()
	}
	if *kept != nil {
		if response, err := (tpm2.ContextLoad{Context: (*kept).context}).Execute(b.tpm); err == nil {
			b.ek, b.ekPublic = response.LoadedHandle, (*kept).public
			return nil
		}
		// It was reset since, or has no room: what creates the key finds out.
		*kept = nil
	}
	if err := b.createEK(); err != nil {
		return err
	}
	// Where the key cannot be saved, each request creates it.
	if response, err := (tpm2.ContextSave{SaveHandle: b.ek}).Execute(b.tpm); err == nil {
		*kept = &savedKey{response.Context, b.ekPublic}
	}
	return nil
}

// createEK creates the endorsement key. It is the same each time.
func (b *buffer) createEK() error {
	create := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tpm2.RSAEKTemplate)}
	response, err := create.Execute(b.tpm)
	if isRC(err, tpm2.TPMRCObjectMemory) || isRC(err, tpm2.TPMRCObjectHandles) {
		// Without a resource manager what a killed program loaded stays, and the
		// device is ours alone: nobody misses it.
		flush(b.tpm, transientHandles)
		response, err = create.Execute(b.tpm)
	}
	if err != nil {
		return fmt.Errorf("create the endorsement key: %w", err)
	}
	b.ek = response.ObjectHandle
	public, err := response.OutPublic.Contents()
	if err != nil {
		_, _ = tpm2.FlushContext{FlushHandle: b.ek}.Execute(b.tpm) // the first error says more
		return fmt.Errorf("read the endorsement key: %w", err)
	}
	b.ekPublic = *public
	return nil
}

// The first handles of what a killed program can leave in a TPM without a resource
// manager (TPM 2.0 part 2, section 7.2).
const (
	sessionHandles   = 0x02000000 // loaded sessions
	transientHandles = 0x80000000
)

// flush flushes everything of a kind from a TPM without a resource manager. Errors
// show at the next command.
func flush(tpm transport.TPM, first uint32) {
	response, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 16}.Execute(tpm)
	if err != nil {
		return
	}
	list, err := response.CapabilityData.Data.Handles()
	if err != nil {
		return
	}
	for _, h := range list.Handle {
		_, _ = tpm2.FlushContext{FlushHandle: h}.Execute(tpm)
	}
}

// define makes the index, through a session that hides its authorization value
// from whoever listens on the way to the TPM.
func (b *buffer) define() (err error) {
	taken, err := indices(b.tpm)
	if err != nil {
		return err
	}
	s, end, err := b.session(b.salted(), tpm2.AESEncryption(128, tpm2.EncryptIn))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	for h := firstIndex; h < firstIndex+indexCount; h++ {
		if slices.Contains(taken, h) {
			continue
		}
		public := publicArea(h)
		name, err := tpm2.NVName(&public)
		if err != nil {
			return err
		}
		_, err = tpm2.NVDefineSpace{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: s},
			Auth:       tpm2.TPM2BAuth{Buffer: b.auth},
			PublicInfo: tpm2.New2B(public),
		}.Execute(b.tpm)
		switch {
		case isRC(err, tpm2.TPMRCNVDefined):
			continue
		case isRC(err, tpm2.TPMRCNVSpace):
			return fmt.Errorf("define an NV index of %d bytes: the TPM has no room left: remove indices that nobody needs (tpm2_nvundefine): %w", bufferSize, err)
		case isRC(err, tpm2.TPMRCAuthFail) || isRC(err, tpm2.TPMRCBadAuth):
			return fmt.Errorf("define an NV index: the owner hierarchy of the TPM has a password, and an empty one is needed: %w", err)
		case err != nil:
			return fmt.Errorf("define an NV index of %d bytes: %w", bufferSize, err)
		}
		b.handle, b.name = h, *name
		return nil
	}
	return fmt.Errorf("define an NV index: %#x to %#x are all taken by somebody else", uint32(firstIndex), uint32(firstIndex+indexCount-1))
}

func (b *buffer) salted() tpm2.AuthOption { return tpm2.Salted(b.ek, b.ekPublic) }

// authorized is an option of a session that authorizes the use of the index. What
// only this process and the TPM know is the index's authorization value, which came
// to the TPM through a salted session; so the session needs no salt of its own, which
// would cost the TPM another operation with its RSA key.
func (b *buffer) authorized() tpm2.AuthOption { return tpm2.Auth(b.auth) }

// session starts a session.
func (b *buffer) session(options ...tpm2.AuthOption) (tpm2.Session, func() error, error) {
	s, end, err := tpm2.HMACSession(b.tpm, tpm2.TPMAlgSHA512, nonceSize, options...)
	if isRC(err, tpm2.TPMRCSessionMemory) || isRC(err, tpm2.TPMRCSessionHandles) {
		// As with the endorsement key. With a resource manager no session of
		// another program is loaded while this one's command is carried out.
		flush(b.tpm, sessionHandles)
		s, end, err = tpm2.HMACSession(b.tpm, tpm2.TPMAlgSHA512, nonceSize, options...)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("start a session: %w", err)
	}
	return s, end, nil
}

// write puts the request into the index, and takes the index's new name.
func (b *buffer) write(data []byte) (err error) {
	s, end, err := b.session(b.authorized(), tpm2.AESEncryption(128, tpm2.EncryptIn))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	for offset := 0; offset < len(data); offset += b.chunkSize {
		_, err := tpm2.NVWrite{
			AuthHandle: tpm2.AuthHandle{Handle: b.handle, Name: b.name, Auth: s},
			NVIndex:    tpm2.NamedHandle{Handle: b.handle, Name: b.name},
			Data:       tpm2.TPM2BMaxNVBuffer{Buffer: data[offset:min(offset+b.chunkSize, len(data))]},
			Offset:     uint16(offset),
		}.Execute(b.tpm)
		if err != nil {
			return fmt.Errorf("write the request: %w", err)
		}
		if offset > 0 {
			continue
		}
		// The first write sets TPMA_NV_WRITTEN, which is a part of the name.
		public, err := tpm2.NVReadPublic{NVIndex: b.handle}.Execute(b.tpm)
		if err != nil {
			return fmt.Errorf("read the name of the NV index: %w", err)
		}
		contents, err := public.NVPublic.Contents()
		if err != nil || contents.NVIndex != b.handle || !ours(contents) {
			return fmt.Errorf("read the name of the NV index: the TPM says that %#x is another index than was defined", uint32(b.handle))
		}
		b.name = public.NVName
	}
	return nil
}

// ask sends the vendor command: two handles and a session, no parameters.
func (b *buffer) ask() (err error) {
	// Without parameters there is nothing to encrypt. AWS's own program salts this
	// session, too, and no other way is known to be taken.
	s, end, err := b.session(b.salted(), b.authorized())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	if err := s.NewNonceCaller(); err != nil {
		return err
	}
	authorization, err := s.Authorize(ccNSMRequest, nil, nil, []tpm2.TPM2BName{b.name, b.name}, 0)
	if err != nil {
		return fmt.Errorf("authorize the request: %w", err)
	}
	area := tpm2.Marshal(authorization)
	body := binary.BigEndian.AppendUint32(nil, uint32(b.handle))
	body = binary.BigEndian.AppendUint32(body, uint32(b.handle))
	body = append(binary.BigEndian.AppendUint32(body, uint32(len(area))), area...)
	command := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTSessions))
	command = binary.BigEndian.AppendUint32(command, uint32(10+len(body)))
	command = append(binary.BigEndian.AppendUint32(command, uint32(ccNSMRequest)), body...)
	response, err := b.tpm.Send(command)
	if err != nil {
		return fmt.Errorf("send the request: %w", err)
	}
	if len(response) < 10 {
		return fmt.Errorf("send the request: the TPM's response has %d bytes", len(response))
	}
	// What the response is authorized with is not looked at: the document is
	// signed, and the session is used for nothing else.
	rc := tpm2.TPMRC(binary.BigEndian.Uint32(response[6:]))
	switch {
	case isRC(rc, tpm2.TPMRCCommandCode):
		return ErrNotNitroTPM
	case rc != tpm2.TPMRCSuccess:
		return fmt.Errorf("send the request: %w", rc)
	}
	return nil
}

// read takes the answer from the index: one CBOR item, and rubbish behind it.
func (b *buffer) read() (document []byte, err error) {
	s, end, err := b.session(b.authorized(), tpm2.AESEncryption(128, tpm2.EncryptOut))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	var answer []byte
	for len(answer) < bufferSize {
		chunk, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: b.handle, Name: b.name, Auth: s},
			NVIndex:    tpm2.NamedHandle{Handle: b.handle, Name: b.name},
			Size:       uint16(min(b.chunkSize, bufferSize-len(answer))),
			Offset:     uint16(len(answer)),
		}.Execute(b.tpm)
		if err != nil {
			return nil, fmt.Errorf("read the answer: %w", err)
		}
		if len(chunk.Data.Buffer) == 0 {
			return nil, errors.New("read the answer: the TPM returns nothing")
		}
		answer = append(answer, chunk.Data.Buffer...)
		var item cbor.RawMessage
		switch _, err := answers.UnmarshalFirst(answer, &item); {
		case err == nil:
			return readAnswer(item)
		case !errors.Is(err, io.ErrUnexpectedEOF):
			return nil, fmt.Errorf("read the answer: %w", err)
		}
	}
	return nil, errors.New("read the answer: it does not end")
}

// answers reads what a NitroTPM writes into the index, where maps may have an
// indefinite length. It refuses whatever could be read in two ways.
var answers = func() cbor.DecMode {
	mode, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		TagsMd:            cbor.TagsForbidden,
		UTF8:              cbor.UTF8RejectInvalid,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
		MaxNestedLevels:   4,
		MaxArrayElements:  32,
		MaxMapPairs:       32,
	}.DecMode()
	if err != nil {
		panic(err) // the options are constants
	}
	return mode
}()

// isByteString tells a byte string (CBOR major type 2) from what the decoder would
// also put into a slice of bytes, such as an array of small numbers.
func isByteString(item []byte) bool { return len(item) > 0 && item[0]>>5 == 2 }

// readAnswer reads {"Attestation": {"document": bytes}} or {"Error": text}.
func readAnswer(item []byte) ([]byte, error) {
	var answer map[string]cbor.RawMessage
	if err := answers.Unmarshal(item, &answer); err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if raw, failed := answer["Error"]; failed {
		var code string
		if err := answers.Unmarshal(raw, &code); err != nil {
			return nil, fmt.Errorf("read the answer's error: %w", err)
		}
		return nil, fmt.Errorf("the NitroTPM refuses the request: %q", code)
	}
	var attestation map[string]cbor.RawMessage
	if err := answers.Unmarshal(answer["Attestation"], &attestation); err != nil || !isByteString(attestation["document"]) {
		return nil, errors.New("read the answer: it has neither a document nor an error")
	}
	var document []byte
	if err := answers.Unmarshal(attestation["document"], &document); err != nil {
		return nil, fmt.Errorf("read the answer: document: %w", err)
	}
	return document, nil
}

// undefine removes an index of ours.
func undefine(tpm transport.TPM, h tpm2.TPMHandle, name tpm2.TPM2BName) error {
	_, err := tpm2.NVUndefineSpace{AuthHandle: tpm2.TPMRHOwner, NVIndex: tpm2.NamedHandle{Handle: h, Name: name}}.Execute(tpm)
	if err != nil {
		return fmt.Errorf("remove NV index %#x: %w", uint32(h), err)
	}
	return nil
}

// isRC compares a response code without the layer that a resource manager put on
// it (bits 16 to 23) and without the number of the handle, session or parameter.
func isRC(err error, want tpm2.TPMRC) bool {
	var rc tpm2.TPMRC
	if !errors.As(err, &rc) {
		return false
	}
	return errors.Is(rc&0xfff, want)
}

// patient repeats commands to which the TPM says that it is busy (TPM 2.0 part 2,
// section 6.6.3: TPM_RC_RETRY, TPM_RC_YIELDED, TPM_RC_TESTING).
type patient struct{ tpm transport.TPM }

// How often, and how long apart.
const (
	busyTries = 20
	busyWait  = 50 * time.Millisecond
)

// Send implements transport.TPM.
func (p patient) Send(command []byte) (response []byte, err error) {
	for range busyTries {
		response, err = p.tpm.Send(command)
		if err != nil || len(response) < 10 {
			return response, err
		}
		switch tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])) & 0xfff {
		case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting:
			time.Sleep(busyWait)
		default:
			return response, nil
		}
	}
	return response, nil
}
