package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/org/attestable-image-action/internal/testenv"
	"github.com/org/attestable-image-action/internal/vm"
)

// runTPM puts an emulated NitroTPM in front of the swtpm that listens on a Unix
// socket, with two devices before it, whose paths it prints: one for programs that
// read a response once, and one for programs that read until it ends, which they
// learn after 100 ms. The root of the documents goes to a file. On ADDRESS it tells
//
//	GET /busy   how long the TPM worked since it was asked before, in seconds: for
//	            all commands, and for each
//	GET /left   what is in the TPM: "KIND HANDLE" lines, for NV indices, sessions
//	            and transient objects
func runTPM(args []string) error {
	if len(args) != 3 {
		return errors.New("usage: serve-load tpm SWTPM ADDRESS ROOT")
	}
	conn, err := net.Dial("unix", args[0]) //nolint:gosec // a socket of whoever measures
	if err != nil {
		return err
	}
	emulated, err := vm.EmulateNitroTPM()
	if err != nil {
		return err
	}
	if err := os.WriteFile(args[2], emulated.RootPEM(), 0o600); err != nil { //nolint:gosec // likewise
		return err
	}
	tpm := &timed{next: emulated.Layer(transport.FromReadWriter(conn)), busy: map[uint32]time.Duration{}, calls: map[uint32]int{}}
	for _, end := range []time.Duration{0, 100 * time.Millisecond} {
		terminal, err := testenv.OpenTerminal(tpm, end)
		if err != nil {
			return err
		}
		fmt.Println(terminal.Path)
	}
	http.HandleFunc("GET /busy", tpm.tell)
	http.HandleFunc("GET /left", func(w http.ResponseWriter, _ *http.Request) {
		if err := left(w, tpm); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	server := &http.Server{Addr: args[1], ReadHeaderTimeout: time.Minute}
	return server.ListenAndServe()
}

// timed is a TPM for several users, and how long it worked.
type timed struct {
	mu    sync.Mutex
	next  transport.TPM
	busy  map[uint32]time.Duration // by command code
	calls map[uint32]int
}

// Send implements transport.TPM.
func (t *timed) Send(cmd []byte) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	began := time.Now()
	response, err := t.next.Send(cmd)
	code := binary.BigEndian.Uint32(cmd[6:])
	t.busy[code] += time.Since(began)
	t.calls[code]++
	return response, err
}

func (t *timed) tell(w http.ResponseWriter, _ *http.Request) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var total time.Duration
	for _, d := range t.busy {
		total += d
	}
	fmt.Fprintf(w, "all %.6f\n", total.Seconds())
	for _, code := range slices.Sorted(maps.Keys(t.busy)) {
		fmt.Fprintf(w, "%#x %.6f %d\n", code, t.busy[code].Seconds(), t.calls[code])
	}
	clear(t.busy)
	clear(t.calls)
}

// left writes what a TPM holds.
func left(w http.ResponseWriter, tpm transport.TPM) error {
	for _, kind := range []struct {
		name  string
		first uint32 // TPM 2.0 part 2, section 7.2
	}{{"index", 0x01000000}, {"session", 0x02000000}, {"saved-session", 0x03000000}, {"object", 0x80000000}, {"persistent", 0x81000000}} {
		response, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: kind.first, PropertyCount: 64}.Execute(tpm)
		if err != nil {
			return err
		}
		list, err := response.CapabilityData.Data.Handles()
		if err != nil {
			return err
		}
		for _, h := range list.Handle {
			fmt.Fprintf(w, "%s %#x\n", kind.name, uint32(h))
		}
	}
	return nil
}
