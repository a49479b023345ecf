package testenv

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// SoftwareTPM starts swtpm with a fresh state and returns what speaks to it. It is
// started up, with all its banks, and ends with the test.
func SoftwareTPM(t testing.TB) transport.TPM {
	t.Helper()
	tpm, _ := ResettableTPM(t)
	return tpm
}

// Extend extends a PCR of the SHA-384 bank.
func Extend(t testing.TB, tpm transport.TPM, pcr int, digest []byte) {
	t.Helper()
	if _, err := (tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)}, //nolint:gosec // a PCR's number is small
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA384, Digest: digest}}},
	}).Execute(tpm); err != nil {
		t.Fatal(err)
	}
}

// ResettableTPM is SoftwareTPM, and what resets it as a machine does: with
// TPM_SU_CLEAR, as at a reset; with TPM_SU_STATE, as at a suspend and a resume (TPM
// 2.0 part 1, section 12.2.3). The commands for it go through what stands before the
// TPM.
func ResettableTPM(t testing.TB) (tpm transport.TPM, reset func(before transport.TPM, kind tpm2.TPMSU)) {
	t.Helper()
	swtpm := Tool(t, "swtpm")
	dir := t.TempDir()
	socket, control := filepath.Join(dir, "s"), filepath.Join(dir, "c")
	cmd := exec.Command(swtpm, "socket", "--tpm2", "--tpmstate", "dir="+dir, "--server", "type=unixio,path="+socket,
		"--ctrl", "type=unixio,path="+control, "--flags", "not-need-init,startup-clear")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	dial := func(path string) net.Conn {
		var conn net.Conn
		var err error
		for range 600 {
			if conn, err = net.Dial("unix", path); err == nil {
				t.Cleanup(func() { conn.Close() })
				return conn
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Fatalf("swtpm does not listen: %v", err)
		return nil
	}
	tpm = transport.FromReadWriter(dial(socket))
	return tpm, func(before transport.TPM, kind tpm2.TPMSU) {
		t.Helper()
		_, err := tpm2.Shutdown{ShutdownType: kind}.Execute(before)
		if err == nil {
			err = initialize(dial(control))
		}
		if err == nil {
			_, err = tpm2.Startup{StartupType: kind}.Execute(before)
		}
		if err != nil {
			t.Errorf("reset swtpm: %v", err)
		}
	}
}

// initialize sends CMD_INIT over swtpm's control channel (swtpm_ioctls(3)): the
// command and its flags, 32 bits each, big-endian; the answer is a result.
func initialize(control net.Conn) error {
	defer control.Close()
	if _, err := control.Write(binary.BigEndian.AppendUint64(nil, 2<<32)); err != nil {
		return err
	}
	result := make([]byte, 4)
	if _, err := io.ReadFull(control, result); err != nil {
		return err
	}
	if code := binary.BigEndian.Uint32(result); code != 0 {
		return fmt.Errorf("swtpm's result is %#x", code)
	}
	return nil
}
