package vm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sys/unix"

	"github.com/org/attestable-image-action/internal/nitrotpm"
	"github.com/org/attestable-image-action/internal/testenv"
)

// TestAWSAttest has AWS's own nitro-tpm-attest, as it is published, ask the
// emulator for a document, and verifies it. The program is built with Rust, which
// not every machine has: where scripts/rust-tools did not build it, the test is
// left out.
func TestAWSAttest(t *testing.T) {
	attest, err := testenv.Program("nitro-tpm-attest")
	if err != nil {
		t.Skip("nitro-tpm-attest is not there: run scripts/rust-tools nitro-tpm-attest")
	}
	n, tpm := emulator(t)
	device := terminalDevice(t, tpm)
	dir := t.TempDir()
	data := map[string][]byte{"user-data": bytes.Repeat([]byte{0, 0xff}, 512), "nonce": []byte("a nonce"), "public-key": {4, 0}}
	var args []string
	for name, content := range data {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--"+name, path)
	}
	for _, tc := range []struct {
		name string
		args []string
	}{{"nothing", nil}, {"everything", args}} {
		t.Run(tc.name, func(t *testing.T) {
			var errs bytes.Buffer
			cmd := exec.CommandContext(t.Context(), attest, tc.args...)
			cmd.Env = append(os.Environ(), "TPM_DEVICE="+device)
			cmd.Stderr = &errs
			document, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %s", err, errs.String())
			}
			p := accept(n, data["nonce"])
			p.UserData, p.PublicKey = data["user-data"], data["public-key"]
			if tc.args == nil {
				p = accept(n, nil)
				p.AnyNonce = true
			}
			d := verify(t, p, document)
			if tc.args == nil && (d.Nonce != nil || d.UserData != nil || d.PublicKey != nil) {
				t.Errorf("nonce %x, user_data %x, public_key %x", d.Nonce, d.UserData, d.PublicKey)
			}
			left(t, tpm)
		})
	}
	// Our own client works on the same device.
	opened, err := nitrotpm.Open(t.Context(), device)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	document, err := nitrotpm.Get(opened, nitrotpm.Request{Nonce: []byte("n")})
	if err != nil {
		t.Fatal(err)
	}
	verify(t, accept(n, []byte("n")), document)
}

// terminalDevice stands in for /dev/tpm0, since AWS's tool opens a device by its
// path and nothing else: the end of a pseudo-terminal in raw mode, which any user
// can make. Like a TPM's device it has no more to read behind a response; it takes
// the terminal three seconds to say so.
func terminalDevice(t *testing.T, tpm transport.TPM) string {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		testenv.Missing(t, fmt.Sprintf("no pseudo-terminals: %v", err))
	}
	master := os.NewFile(uintptr(fd), "ptmx")
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/dev/pts/%d", number)
	slave, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0) // stays open, so that the settings stay
	if err != nil {
		t.Fatal(err)
	}
	settings, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	settings.Iflag, settings.Oflag, settings.Lflag = 0, 0, 0
	settings.Cflag = settings.Cflag&^unix.CSIZE | unix.CS8
	settings.Cc[unix.VMIN], settings.Cc[unix.VTIME] = 0, 30 // tenths of a second
	if err := unix.IoctlSetTermios(int(slave.Fd()), unix.TCSETS, settings); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		for {
			cmd, err := readMessage(master)
			if err != nil {
				ended <- err
				return
			}
			response, err := tpm.Send(cmd)
			if err == nil {
				_, err = master.Write(response)
			}
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	t.Cleanup(func() {
		slave.Close() // which ends the reading with EIO
		if err := <-ended; !errors.Is(err, unix.EIO) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Error(err)
		}
		master.Close()
	})
	return path
}
