package e2e

import (
	"context"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/org/attestable-image-action/internal/server"
	"github.com/org/attestable-image-action/internal/testenv"
	"github.com/org/attestable-image-action/internal/vm"
	"github.com/org/attestable-image-action/nitrotpm"
)

// stalling is a TPM that stops at a command until it may go on. As a device does, it
// carries the command out, and drops the response: who asked is gone.
type stalling struct {
	transport.TPM
	at      atomic.Uint32 // the command's code; 0 for none
	reached chan struct{}
	proceed chan struct{}
}

// Send implements transport.TPM.
func (s *stalling) Send(cmd []byte) ([]byte, error) {
	if code := binary.BigEndian.Uint32(cmd[6:]); s.at.CompareAndSwap(code, 0) {
		s.reached <- struct{}{}
		<-s.proceed
		_, err := s.TPM.Send(cmd)
		s.proceed <- struct{}{}
		return nil, err
	}
	return s.TPM.Send(cmd)
}

// TestServeIsKilled kills the process of `serve` with SIGKILL between the definition
// of its NV index and its removal, while each of the commands between is carried
// out, and starts it again: the first request finds what the killed one left,
// removes it, and is answered. There is no resource manager before this TPM, so the
// keys and sessions of the killed processes stay in it, too, until room is needed.
func TestServeIsKilled(t *testing.T) {
	program := command(t)
	emulated, err := vm.EmulateNitroTPM()
	if err != nil {
		t.Fatal(err)
	}
	tpm := &stalling{TPM: emulated.Layer(testenv.SoftwareTPM(t)), reached: make(chan struct{}), proceed: make(chan struct{})}
	device := testenv.TerminalDevice(t, tpm, 0)
	nonce := []byte("0123456789abcdef")
	policy := nitrotpm.Policy{Roots: []nitrotpm.Root{nitrotpm.Fingerprint(emulated.Root())}, Nonce: nonce, AnyPCRs: true}
	const index = tpm2.TPMHandle(0x01a17e00)
	indices := func() []tpm2.TPMHandle {
		t.Helper()
		response, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x01000000, PropertyCount: 16}.Execute(tpm.TPM)
		if err != nil {
			t.Fatal(err)
		}
		list, err := response.CapabilityData.Data.Handles()
		if err != nil {
			t.Fatal(err)
		}
		return list.Handle
	}
	// NV_UndefineSpace itself is not among them: what was sent is carried out.
	for _, at := range []struct {
		name string
		code tpm2.TPMCC
	}{
		{"NV_Write", tpm2.TPMCCNVWrite},
		{"NV_ReadPublic", tpm2.TPMCCNVReadPublic},
		{"AWS's command", 0x20000001},
		{"NV_Read", tpm2.TPMCCNVRead},
	} {
		t.Run(at.name, func(t *testing.T) {
			url, kill := startServe(t, program, device)
			if _, _, err := server.Fetch(t.Context(), url, nonce); err != nil {
				t.Fatal(err)
			}
			if left := indices(); len(left) > 0 {
				t.Fatalf("NV indices %x before the kill", left)
			}
			tpm.at.Store(uint32(at.code))
			failed := make(chan error, 1)
			go func() {
				_, _, err := server.Fetch(t.Context(), url, nonce)
				failed <- err
			}()
			select {
			case <-tpm.reached:
			case err := <-failed:
				t.Fatalf("the command is not reached: %v", err)
			}
			kill()
			if err := <-failed; err == nil {
				t.Error("a service that was killed answers")
			}
			tpm.proceed <- struct{}{}
			<-tpm.proceed
			if left := indices(); !slices.Equal(left, []tpm2.TPMHandle{index}) {
				t.Errorf("NV indices %x after the kill, want one of ours", left)
			}
			url, _ = startServe(t, program, device)
			document, key, err := server.Fetch(t.Context(), url, nonce)
			if err != nil {
				t.Fatal(err)
			}
			d, err := nitrotpm.Parse(document)
			if err != nil {
				t.Fatal(err)
			}
			p := policy
			p.PublicKey = key
			if _, err := p.Verify(d); err != nil {
				t.Error(err)
			}
			if left := indices(); len(left) > 0 {
				t.Errorf("NV indices left behind: %x", left)
			}
		})
	}
}

// startServe runs `serve` in front of a device until the test ends, or until kill
// kills it with SIGKILL.
func startServe(t *testing.T, program, device string) (url string, kill func()) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	file, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := exec.Command(program, "serve", "--listen", "127.0.0.1:0", "--device", device)
	cmd.Stderr = file
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(func() {
		kill()
		if content, err := os.ReadFile(log); err == nil && t.Failed() {
			t.Logf("serve says:\n%s", content)
		}
	})
	address := regexp.MustCompile(`"address":"([^"]+)"`)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		content, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		if match := address.FindSubmatch(content); match != nil {
			return "https://" + string(match[1]), kill
		}
		select {
		case <-ctx.Done():
			t.Fatalf("serve does not listen: %s", content)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
