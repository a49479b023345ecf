package vm

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"slices"
	"sync"

	"github.com/google/go-tpm/tpm2/transport"

	"github.com/org/attestable-image-action/internal/measure"
)

// handOverPCR and handOverAction are the last event of the firmware: it is
// extended when ExitBootServices has succeeded, so what comes later is the
// operating system's (TCG PC Client Platform Firmware Profile, section 3.3.4.6).
const (
	handOverPCR    = 5
	handOverAction = "Exit Boot Services Returned with Success"
)

// recorder passes commands on to the TPM and keeps every extension.
type recorder struct {
	next transport.TPM
	// atHandOver is called once, while the guest waits for the response of the
	// extension that is the hand-over.
	atHandOver func()

	mu       sync.Mutex
	extends  []Extend
	handOver int // number of extensions up to and with the hand-over; 0 when not reached
	err      error
	failed   chan struct{} // closed when the TPM fails
}

func newRecorder() *recorder { return &recorder{failed: make(chan struct{})} }

// Send implements transport.TPM.
func (r *recorder) Send(cmd []byte) ([]byte, error) {
	response, err := r.next.Send(cmd)
	if err != nil {
		return nil, err
	}
	extend, ok, err := parseExtend(cmd, response)
	if err != nil {
		return nil, err
	}
	if !ok {
		return response, nil
	}
	r.mu.Lock()
	r.extends = append(r.extends, extend)
	first := r.handOver == 0 && isHandOver(extend)
	if first {
		r.handOver = len(r.extends)
	}
	r.mu.Unlock()
	if first && r.atHandOver != nil {
		r.atHandOver()
	}
	return response, nil
}

// isHandOver says whether an extension is the firmware's last.
func isHandOver(e Extend) bool {
	if e.PCR != handOverPCR {
		return false
	}
	if digest := e.Digests[measure.SHA384]; digest != nil {
		want := sha512.Sum384([]byte(handOverAction))
		return bytes.Equal(digest, want[:])
	}
	want := sha256.Sum256([]byte(handOverAction))
	return bytes.Equal(e.Digests[measure.SHA256], want[:])
}

// reset forgets everything: the TPM was switched on anew.
func (r *recorder) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.extends, r.handOver = nil, 0
}

// fail records that the TPM can no longer serve.
func (r *recorder) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = err
		close(r.failed)
	}
}

// snapshot returns what was recorded so far.
func (r *recorder) snapshot() (extends []Extend, handOver int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.extends), r.handOver, r.err
}

// replay computes the PCRs that a sequence of extensions leaves behind on a TPM
// that was just started (TPM 2.0 part 1, section 17.6; TCG PC Client Platform
// TPM Profile, section 4.6: PCR 17 to 22 start with all bits set).
func replay(extends []Extend) PCRs {
	values := PCRs{}
	for _, bank := range banks {
		var pcrs [pcrCount][]byte
		for i := range pcrs {
			pcrs[i] = make([]byte, bank.Hash().Size())
			if i >= 17 && i <= 22 {
				pcrs[i] = bytes.Repeat([]byte{0xff}, bank.Hash().Size())
			}
		}
		for _, extend := range extends {
			digest := extend.Digests[bank]
			if digest == nil {
				continue
			}
			h := bank.Hash().New()
			h.Write(pcrs[extend.PCR])
			h.Write(digest)
			pcrs[extend.PCR] = h.Sum(nil)
		}
		values[bank] = pcrs
	}
	return values
}
