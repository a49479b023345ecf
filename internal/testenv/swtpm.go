package testenv

import (
	"net"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
)

// SoftwareTPM starts swtpm with a fresh state and returns what speaks to it. It is
// started up, with all its banks, and ends with the test.
func SoftwareTPM(t testing.TB) transport.TPM {
	t.Helper()
	swtpm := Tool(t, "swtpm")
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	cmd := exec.Command(swtpm, "socket", "--tpm2", "--tpmstate", "dir="+dir, "--server", "type=unixio,path="+socket,
		"--flags", "not-need-init,startup-clear")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	var conn net.Conn
	var err error
	for range 600 {
		if conn, err = net.Dial("unix", socket); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		t.Fatalf("swtpm does not listen: %v", err)
	}
	t.Cleanup(func() { conn.Close() })
	return transport.FromReadWriter(conn)
}
