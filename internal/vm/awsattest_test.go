package vm

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/org/attestable-image-action/internal/nsm"
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
	device := testenv.TerminalDevice(t, tpm, time.Second) // of which the program waits three
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
	opened, err := nsm.Open(t.Context(), device)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	document, err := nsm.Get(opened, nsm.Request{Nonce: []byte("n")})
	if err != nil {
		t.Fatal(err)
	}
	verify(t, accept(n, []byte("n")), document)
}
