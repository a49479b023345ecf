package vm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/org/attestable-image-action/internal/nsm"
	"github.com/org/attestable-image-action/internal/testenv"
	"github.com/org/attestable-image-action/nitrotpm"
)

func emulator(t *testing.T) (*NitroTPM, transport.TPM) {
	t.Helper()
	n, err := EmulateNitroTPM()
	if err != nil {
		t.Fatal(err)
	}
	return n, n.Layer(testenv.SoftwareTPM(t))
}

// accept is the policy that believes an emulator.
func accept(n *NitroTPM, nonce []byte) nitrotpm.Policy {
	return nitrotpm.Policy{Roots: []nitrotpm.Root{nitrotpm.Fingerprint(n.Root())}, Nonce: nonce, AnyPCRs: true}
}

func verify(t *testing.T, p nitrotpm.Policy, document []byte) *nitrotpm.Document {
	t.Helper()
	d, err := nitrotpm.Parse(document)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Verify(d); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestEmulatedDocument gets documents from the emulator in front of a real
// software TPM, and finds in them what was asked for and the TPM's PCRs.
func TestEmulatedDocument(t *testing.T) {
	n, tpm := emulator(t)
	extended := bytes.Repeat([]byte{0xab}, 48)
	if _, err := (tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: 12, Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA384, Digest: extended}}},
	}).Execute(tpm); err != nil {
		t.Fatal(err)
	}
	pcrs, err := readPCRs(n.next)
	if err != nil {
		t.Fatal(err)
	}
	nonce := []byte("a nonce")
	for _, request := range []nsm.Request{
		{Nonce: nonce},
		{Nonce: nonce, UserData: []byte{}, PublicKey: bytes.Repeat([]byte{1}, 1024)},
		{Nonce: nonce, UserData: bytes.Repeat([]byte{2}, 1024), PublicKey: bytes.Repeat([]byte{3}, 1024)},
	} {
		document, err := nsm.Get(tpm, request)
		if err != nil {
			t.Fatal(err)
		}
		p := accept(n, nonce)
		p.UserData, p.PublicKey = request.UserData, request.PublicKey
		d := verify(t, p, document)
		for i, value := range d.PCRs {
			if !bytes.Equal(value, pcrs["SHA384"][i]) {
				t.Errorf("PCR %d is %x, and %x in the TPM", i, value, pcrs["SHA384"][i])
			}
		}
		if d.PCRs[12][0] == 0 && d.PCRs[12][1] == 0 {
			t.Error("PCR 12 was not extended")
		}
		if !strings.Contains(d.Certificate.Subject.String(), "EMULATED") || !strings.Contains(d.ModuleID, "emulated") {
			t.Errorf("%s of %s does not say that it is emulated", d.Certificate.Subject, d.ModuleID)
		}
	}
	left(t, tpm)
}

// TestEmulatedIsNotBelieved says that nobody believes an emulator who was not
// given its root.
func TestEmulatedIsNotBelieved(t *testing.T) {
	n, tpm := emulator(t)
	document, err := nsm.Get(tpm, nsm.Request{Nonce: []byte("n")})
	if err != nil {
		t.Fatal(err)
	}
	d, err := nitrotpm.Parse(document)
	if err != nil {
		t.Fatal(err)
	}
	other, err := EmulateNitroTPM()
	if err != nil {
		t.Fatal(err)
	}
	p := accept(n, []byte("n"))
	for name, roots := range map[string][]nitrotpm.Root{"AWS's": nil, "another emulator's": {nitrotpm.Fingerprint(other.Root())}} {
		p.Roots = roots
		_, err := p.Verify(d)
		var refused *nitrotpm.RefusedError
		if !errors.As(err, &refused) || refused.Check.Name != "root" || !strings.Contains(refused.Check.Found, "EMULATED") {
			t.Errorf("%s root: %v", name, err)
		}
	}
}

// left fails when something of ours is left in the TPM.
func left(t *testing.T, tpm transport.TPM) {
	t.Helper()
	for name, first := range map[string]uint32{"NV index": 0x01000000, "HMAC session": 0x02000000, "transient object": 0x80000000} {
		response, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 32}.Execute(tpm)
		if err != nil {
			t.Fatal(err)
		}
		list, err := response.CapabilityData.Data.Handles()
		if err != nil {
			t.Fatal(err)
		}
		if len(list.Handle) > 0 {
			t.Errorf("%s left behind: %x", name, list.Handle)
		}
	}
}

// hook is a TPM whose answers a test changes. It stands in for what a real TPM
// does when it is busy, reset or broken, which none can be made to do.
type hook struct {
	tpm    transport.TPM
	before func(n int, code uint32, cmd []byte) ([]byte, error) // nil, nil to go on
	n      int
}

func (h *hook) Send(cmd []byte) ([]byte, error) {
	h.n++
	if response, err := h.before(h.n, binary.BigEndian.Uint32(cmd[6:]), cmd); response != nil || err != nil {
		return response, err
	}
	return h.tpm.Send(cmd)
}

// TestErrorsLeaveNothing lets each command of a request fail in turn. What was
// made before is gone afterwards, unless it is the clean-up itself that failed,
// and then the next request removes it.
func TestErrorsLeaveNothing(t *testing.T) {
	_, tpm := emulator(t)
	count := &hook{tpm: tpm, before: func(int, uint32, []byte) ([]byte, error) { return nil, nil }}
	if _, err := nsm.Get(count, nsm.Request{}); err != nil {
		t.Fatal(err)
	}
	for k := 1; k <= count.n; k++ {
		var failed uint32
		h := &hook{tpm: tpm, before: func(n int, code uint32, _ []byte) ([]byte, error) {
			if n == k {
				failed = code
				return errorResponse(tpm2.TPMRCFailure), nil
			}
			return nil, nil
		}}
		if _, err := nsm.Get(h, nsm.Request{}); !errors.Is(err, tpm2.TPMRCFailure) && !strings.Contains(err.Error(), "TPM_RC_FAILURE") {
			t.Errorf("command %d (%#x) failed: error %v", k, failed, err)
		}
		if failed == uint32(tpm2.TPMCCFlushContext) || failed == uint32(tpm2.TPMCCNVUndefineSpace) {
			flushAll(t, tpm) // as the kernel's resource manager does when the device is closed
			if err := nsm.Sweep(tpm); err != nil {
				t.Fatal(err)
			}
		}
		left(t, tpm)
	}
}

// flushAll is what the kernel's resource manager does when a device is closed.
func flushAll(t *testing.T, tpm transport.TPM) {
	t.Helper()
	for _, first := range []uint32{0x02000000, 0x80000000} {
		response, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 32}.Execute(tpm)
		if err != nil {
			t.Fatal(err)
		}
		list, err := response.CapabilityData.Data.Handles()
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range list.Handle {
			if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(tpm); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestKilled ends a request between its commands, as a kill does, and lets the
// next one find what it left.
func TestKilled(t *testing.T) {
	_, tpm := emulator(t)
	killed := errors.New("killed")
	for _, after := range []uint32{uint32(tpm2.TPMCCNVDefineSpace), uint32(tpm2.TPMCCNVWrite), ccNSMRequest, uint32(tpm2.TPMCCNVRead)} {
		dead := false
		h := &hook{tpm: tpm}
		h.before = func(_ int, code uint32, cmd []byte) ([]byte, error) {
			if dead {
				return nil, killed
			}
			if dead = code == after; dead {
				if _, err := tpm.Send(cmd); err != nil {
					return nil, err
				}
				return nil, killed
			}
			return nil, nil
		}
		if _, err := nsm.Get(h, nsm.Request{}); !errors.Is(err, killed) {
			t.Fatalf("error %v", err)
		}
		flushAll(t, tpm)
		if _, err := nsm.Get(tpm, nsm.Request{}); err != nil {
			t.Fatalf("after a kill at %#x: %v", after, err)
		}
		left(t, tpm)
	}
}

// TestSweepLeavesOthers defines an index that is not ours in our range.
func TestSweepLeavesOthers(t *testing.T) {
	_, tpm := emulator(t)
	public := tpm2.TPMSNVPublic{
		NVIndex: 0x01a17e00, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8192,
		Attributes: tpm2.TPMANV{AuthRead: true, AuthWrite: true},
	}
	if _, err := (tpm2.NVDefineSpace{AuthHandle: tpm2.TPMRHOwner, PublicInfo: tpm2.New2B(public)}).Execute(tpm); err != nil {
		t.Fatal(err)
	}
	if _, err := nsm.Get(tpm, nsm.Request{}); err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.NVReadPublic{NVIndex: public.NVIndex}).Execute(tpm); err != nil {
		t.Errorf("the index of somebody else is gone: %v", err)
	}
}

func TestBusyTPM(t *testing.T) {
	_, tpm := emulator(t)
	busy := map[uint32]int{}
	h := &hook{tpm: tpm, before: func(_ int, code uint32, _ []byte) ([]byte, error) {
		if busy[code]++; busy[code] <= 2 {
			return errorResponse(tpm2.TPMRCRetry), nil
		}
		return nil, nil
	}}
	if _, err := nsm.Get(h, nsm.Request{}); err != nil {
		t.Fatal(err)
	}
	left(t, tpm)
}

func TestNotNitroTPM(t *testing.T) {
	tpm := testenv.SoftwareTPM(t)
	if _, err := nsm.Get(tpm, nsm.Request{}); !errors.Is(err, nsm.ErrNotNitroTPM) {
		t.Errorf("error %v", err)
	}
	left(t, tpm)
	// One that lists the command and does not know it, through the kernel's resource
	// manager, which puts its layer on the code.
	_, emulated := emulator(t)
	h := &hook{tpm: emulated, before: func(_ int, code uint32, _ []byte) ([]byte, error) {
		if code == ccNSMRequest {
			return errorResponse(tpm2.TPMRCCommandCode | 0xb0000), nil
		}
		return nil, nil
	}}
	if _, err := nsm.Get(h, nsm.Request{}); !errors.Is(err, nsm.ErrNotNitroTPM) {
		t.Errorf("error %v", err)
	}
	left(t, emulated)
}

// TestAnswers lets the NitroTPM answer what is no document.
func TestAnswers(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer []byte
		err    string
	}{
		{"an error", []byte("\xa1\x65Error\x6dInputTooLarge"), `refuses the request: "InputTooLarge"`},
		{"nothing", bytes.Repeat([]byte{0xff}, 8192), "read the answer"},
		{"endless", bytes.Repeat([]byte{0x9f}, 8192), "read the answer"},
		{"longer than the index", []byte{0xa1, 0x65, 'E', 'r', 'r', 'o', 'r', 0x7a, 0x7f, 0xff, 0xff, 0xff}, "does not end"},
		{"neither", []byte{0xa0}, "neither a document nor an error"},
		{"a document of text", []byte("\xa1\x6bAttestation\xa1\x68document\x61a"), "neither a document nor an error"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, tpm := emulator(t)
			h := &hook{tpm: tpm, before: func(_ int, code uint32, _ []byte) ([]byte, error) {
				if code == uint32(tpm2.TPMCCNVRead) {
					for _, x := range n.indices {
						copy(x.data, tc.answer)
					}
				}
				return nil, nil
			}}
			if _, err := nsm.Get(h, nsm.Request{}); err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error %v, want %q", err, tc.err)
			}
			left(t, tpm)
		})
	}
}

func TestRequestTooLarge(t *testing.T) {
	_, tpm := emulator(t)
	large := make([]byte, 1025)
	for name, request := range map[string]nsm.Request{"user_data": {UserData: large}, "nonce": {Nonce: large}, "public_key": {PublicKey: large}} {
		if _, err := nsm.Get(tpm, request); err == nil || !strings.Contains(err.Error(), name+" has 1025 bytes") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// TestEmulatorLists says that the emulator's command and index are listed as a
// kernel expects to find them: as many as the TPM says that it has.
func TestEmulatorLists(t *testing.T) {
	_, tpm := emulator(t)
	response, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTTotalCommands), PropertyCount: 1}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
	properties, err := response.CapabilityData.Data.TPMProperties()
	if err != nil {
		t.Fatal(err)
	}
	total := properties.TPMProperty[0].Value
	var listed []uint32
	for property, more := uint32(0x11f), true; more; {
		response, err := tpm2.GetCapability{Capability: tpm2.TPMCapCommands, Property: property, PropertyCount: 50}.Execute(tpm)
		if err != nil {
			t.Fatal(err)
		}
		commands, err := response.CapabilityData.Data.Command()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range commands.CommandAttributes {
			listed = append(listed, binary.BigEndian.Uint32(tpm2.Marshal(c))&0x2000ffff)
		}
		more = bool(response.MoreData)
		property = listed[len(listed)-1] + 1
	}
	if len(listed) != int(total) || !slices.IsSorted(listed) || listed[len(listed)-1] != ccNSMRequest {
		t.Errorf("%d commands listed, the last %#x; the TPM says that it has %d", len(listed), listed[len(listed)-1], total)
	}
}

// TestEmulatedChainIsRenewed lets the instance's certificate expire.
func TestEmulatedChainIsRenewed(t *testing.T) {
	now := time.Now()
	i, err := newIssuer(func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	root := nitrotpm.Fingerprint(i.chain[0].certificate)
	for range 4 {
		now = now.Add(22 * time.Hour)
		var pcrs [pcrCount][]byte
		for n := range pcrs {
			pcrs[n] = make([]byte, 48)
		}
		document, err := i.document(nsmRequest{}, pcrs)
		if err != nil {
			t.Fatal(err)
		}
		verify(t, nitrotpm.Policy{Roots: []nitrotpm.Root{root}, At: now, AnyNonce: true, AnyPCRs: true}, document)
	}
}

// FuzzNitroTPM sends commands to an emulator in front of a TPM that refuses all.
func FuzzNitroTPM(f *testing.F) {
	public := tpm2.Marshal(tpm2.New2B(tpm2.TPMSNVPublic{NVIndex: 0x01000001, NameAlg: tpm2.TPMAlgSHA512, DataSize: 8192, Attributes: tpm2.TPMANV{AuthRead: true, AuthWrite: true}}))
	password := []byte{0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0}
	owner := []byte{0x40, 0, 0, 1}
	handles := []byte{1, 0, 0, 1, 1, 0, 0, 1}
	define := command(tagSessions, uint32(tpm2.TPMCCNVDefineSpace), slices.Concat(owner, password, []byte{0, 0}, public))
	for _, seed := range [][]byte{
		define,
		command(tagSessions, uint32(tpm2.TPMCCNVWrite), slices.Concat(handles, password, []byte{0, 1, 0xa0, 0, 0})),
		command(tagSessions, uint32(tpm2.TPMCCNVRead), slices.Concat(handles, password, []byte{0, 1, 0, 0})),
		command(tagNoSessions, uint32(tpm2.TPMCCNVReadPublic), handles[:4]),
		command(tagSessions, ccNSMRequest, slices.Concat(handles, password)),
		command(tagNoSessions, uint32(tpm2.TPMCCGetCapability), []byte{0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 9}),
	} {
		f.Add(seed)
	}
	refuses := &hook{before: func(int, uint32, []byte) ([]byte, error) { return errorResponse(tpm2.TPMRCFailure), nil }}
	n, err := EmulateNitroTPM()
	if err != nil {
		f.Fatal(err)
	}
	tpm := n.Layer(refuses)
	f.Fuzz(func(t *testing.T, cmd []byte) {
		clear(n.indices)
		if _, err := tpm.Send(define); err != nil || len(n.indices) != 1 {
			t.Fatalf("the index is not defined: %v", err)
		}
		if len(cmd) < headerSize {
			return
		}
		response, err := tpm.Send(cmd)
		if err != nil || len(response) < headerSize {
			t.Errorf("response %x, %v", response, err)
		}
	})
}

// BenchmarkGet measures one document: the protocol, swtpm and the emulator.
func BenchmarkGet(b *testing.B) {
	n, err := EmulateNitroTPM()
	if err != nil {
		b.Fatal(err)
	}
	tpm := n.Layer(testenv.SoftwareTPM(b))
	for b.Loop() {
		if _, err := nsm.Get(tpm, nsm.Request{Nonce: []byte("n")}); err != nil {
			b.Fatal(err)
		}
	}
}

// TestAttester asks with a kept endorsement key, which the TPM creates once; after
// a reset it is created anew, and after a suspend it is not.
func TestAttester(t *testing.T) {
	n, err := EmulateNitroTPM()
	if err != nil {
		t.Fatal(err)
	}
	soft, reset := testenv.ResettableTPM(t)
	created := 0
	h := &hook{tpm: n.Layer(soft), before: func(_ int, code uint32, _ []byte) ([]byte, error) {
		if code == uint32(tpm2.TPMCCCreatePrimary) {
			created++
		}
		return nil, nil
	}}
	var a nsm.Attester
	for _, step := range []struct {
		name    string
		before  func()
		created int
	}{
		{"first", func() {}, 1},
		{"second", func() {}, 1},
		{"after a suspend", func() { reset(n, tpm2.TPMSUState) }, 1},
		{"after a reset", func() { reset(n, tpm2.TPMSUClear) }, 2},
		{"again", func() {}, 2},
		{"without room for the key", func() { fill(t, soft) }, 4}, // once in vain
		{"last", func() {}, 4},
	} {
		step.before()
		document, err := a.Get(h, nsm.Request{Nonce: []byte(step.name)})
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		verify(t, accept(n, []byte(step.name)), document)
		if created != step.created {
			t.Errorf("%s: the key was created %d times, want %d", step.name, created, step.created)
		}
		left(t, h)
	}
}

// fill loads keys and sessions until the TPM has no room left, as programs do that
// are killed where there is no resource manager.
func fill(t *testing.T, tpm transport.TPM) {
	t.Helper()
	for k := range 10 {
		if _, err := (tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}).Execute(tpm); err != nil {
			break
		}
		if k == 9 {
			t.Fatal("the TPM has room for ten keys")
		}
	}
	for k := range 10 {
		if _, _, err := tpm2.HMACSession(tpm, tpm2.TPMAlgSHA256, 16); err != nil {
			break
		}
		if k == 9 {
			t.Fatal("the TPM has room for ten sessions")
		}
	}
}

// TestErrorsOfAttester lets each command of a request with a kept key fail in turn,
// as TestErrorsLeaveNothing does without one. The next request is answered.
func TestErrorsOfAttester(t *testing.T) {
	_, tpm := emulator(t)
	var a nsm.Attester
	if _, err := a.Get(tpm, nsm.Request{}); err != nil {
		t.Fatal(err)
	}
	count := &hook{tpm: tpm, before: func(int, uint32, []byte) ([]byte, error) { return nil, nil }}
	if _, err := a.Get(count, nsm.Request{}); err != nil {
		t.Fatal(err)
	}
	for k := 1; k <= count.n; k++ {
		var failed uint32
		_, err := a.Get(&hook{tpm: tpm, before: func(n int, code uint32, _ []byte) ([]byte, error) {
			if n == k {
				failed = code
				return errorResponse(tpm2.TPMRCFailure), nil
			}
			return nil, nil
		}}, nsm.Request{})
		// A kept key that is refused is created.
		if survives := failed == uint32(tpm2.TPMCCContextLoad); (err == nil) != survives {
			t.Errorf("command %d (%#x) failed: error %v", k, failed, err)
		}
		if failed == uint32(tpm2.TPMCCFlushContext) {
			flushAll(t, tpm)
		}
		if _, err := a.Get(tpm, nsm.Request{}); err != nil {
			t.Errorf("after command %d (%#x): %v", k, failed, err)
		}
		left(t, tpm)
	}
}
