package vm

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/nsm"
	"github.com/org/attestable-image-action/internal/testenv"
)

// TestBootNitroTPM boots a golden disk with an emulated NitroTPM and a network.
// The boot is measured as it is without them; Linux takes the emulator's list of
// commands; and a document that is asked for after the boot has its PCRs.
func TestBootNitroTPM(t *testing.T) {
	if testing.Short() {
		t.Skip("booting a golden disk is slow")
	}
	testenv.Tool(t, "qemu-system-x86_64")
	testenv.Tool(t, "swtpm")
	emulated, err := EmulateNitroTPM()
	if err != nil {
		t.Fatal(err)
	}
	port, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := uint16(port.Addr().(*net.TCPAddr).Port)
	port.Close()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var document []byte
	var listed bool
	// spy sees the guest's commands. When Linux has asked for the commands that
	// there are, it asks for a document in the guest's place, and ends the boot.
	spy := func(next transport.TPM) transport.TPM {
		return &hook{tpm: next, before: func(_ int, code uint32, cmd []byte) ([]byte, error) {
			if code != uint32(tpm2.TPMCCGetCapability) || listed || binary.BigEndian.Uint32(cmd[headerSize:]) != uint32(tpm2.TPMCapCommands) || binary.BigEndian.Uint32(cmd[headerSize+8:]) < 50 {
				return nil, nil
			}
			listed = true
			document, err = nsm.Get(next, nsm.Request{Nonce: []byte("n")})
			cancel()
			return nil, nil
		}}
	}
	result, booted := Boot(ctx, Options{
		Disk: testenv.GoldenDisk(t, "stub257"), TimeLimit: 5 * time.Minute, SerialLog: filepath.Join(t.TempDir(), "serial.log"),
		Layers: []Layer{emulated.Layer, spy}, Forwards: []Forward{{host, 8443}}, UntilDone: true,
	})
	if booted != nil || err != nil {
		t.Fatal(booted, err)
	}
	if !listed {
		t.Fatal("Linux did not ask for the TPM's commands")
	}
	d := verify(t, accept(emulated, []byte("n")), document)
	var want map[string]struct{ SHA384 map[string]string }
	content, err := os.ReadFile(filepath.Join(testenv.Root(t), "testdata/golden/golden.json"))
	if err == nil {
		err = json.Unmarshal(content, &want)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{4, 7, 11, 12} {
		value := want["stub257"].SHA384[strconv.Itoa(n)]
		if got := hex.EncodeToString(result.AtHandOver[measure.SHA384][n]); got != value {
			t.Errorf("PCR %d is %s at the hand-over, want %s", n, got, value)
		}
		if got := hex.EncodeToString(d.PCRs[n]); got != value {
			t.Errorf("PCR %d is %s in the document, want %s", n, got, value)
		}
	}
}
