package vm

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/google/go-tpm/tpm2"

	"github.com/org/attestable-image-action/internal/efi"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
)

// extendCommand is a TPM2_PCR_Extend as firmware sends it.
func extendCommand(pcr uint32, digests ...[]byte) []byte {
	body := binary.BigEndian.AppendUint32(nil, pcr)
	body = binary.BigEndian.AppendUint32(body, 9)
	body = append(body, 0x40, 0, 0, 9, 0, 0, 0, 0, 0) // TPM_RS_PW
	body = binary.BigEndian.AppendUint32(body, uint32(len(digests)))
	for _, d := range digests {
		alg := tpm2.TPMAlgSHA256
		if len(d) == 48 {
			alg = tpm2.TPMAlgSHA384
		}
		body = append(binary.BigEndian.AppendUint16(body, uint16(alg)), d...)
	}
	return command(tagSessions, ccPCRExtend, body)
}

// success is the header of a response without an error.
var success = []byte{0x80, 0x02, 0, 0, 0, 10, 0, 0, 0, 0}

func TestParseExtend(t *testing.T) {
	digest256, digest384 := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 48)
	whole := extendCommand(7, digest256, digest384)
	extend, ok, err := parseExtend(whole, success)
	if err != nil || !ok || extend.PCR != 7 ||
		!bytes.Equal(extend.Digests[measure.SHA256], digest256) || !bytes.Equal(extend.Digests[measure.SHA384], digest384) {
		t.Fatalf("parsed %+v, %v, %v", extend, ok, err)
	}
	for _, tc := range []struct {
		name     string
		command  []byte
		response []byte
		err      string // "" when it is no extension
	}{
		{"empty", nil, success, ""},
		{"it failed", whole, []byte{0x80, 0x01, 0, 0, 0, 10, 0, 0, 1, 1}, ""},
		{"no response", whole, nil, ""},
		{"another command", command(tagNoSessions, ccPCRReset, make([]byte, 8)), success, ""},
		{"TPM_RH_NULL", extendCommand(0x40000007, digest256), success, ""},
		{"no handle", whole[:headerSize], success, "command ends early"},
		{"authorisation too long", slices.Concat(whole[:headerSize+4], []byte{0xff, 0xff, 0xff, 0xff}, whole[headerSize+8:]), success, "command ends early"},
		{"digest cut off", whole[:len(whole)-1], success, "command ends early"},
		{"a thousand digests", slices.Concat(whole[:headerSize+4+4+9], []byte{0, 0, 3, 0xe8}), success, "1000 digests"},
		{"unknown algorithm", slices.Concat(whole[:headerSize+4+4+9], []byte{0, 0, 0, 1, 0xff, 0xee}), success, "digest algorithm 0xffee is not known"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, ok, err := parseExtend(tc.command, tc.response)
			if ok {
				t.Error("taken for an extension")
			}
			if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error %v, want %q", err, tc.err)
			}
		})
	}
}

func FuzzParseExtend(f *testing.F) {
	f.Add(extendCommand(4, bytes.Repeat([]byte{3}, 48)), success)
	f.Fuzz(func(t *testing.T, command, response []byte) {
		extend, ok, err := parseExtend(command, response)
		if err == nil && ok && (extend.PCR < 0 || extend.PCR >= pcrCount) {
			t.Errorf("PCR %d", extend.PCR)
		}
	})
}

// FuzzEventLog reads logs as a guest could plant them in its memory.
func FuzzEventLog(f *testing.F) {
	for _, name := range []string{"stub257", "sbA252"} {
		log, err := os.ReadFile(filepath.Join(testenv.Root(f), "testdata/golden", name+".eventlog"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(log)
	}
	f.Fuzz(func(t *testing.T, log []byte) {
		events, err := parseLog(log)
		if err != nil {
			return
		}
		for _, e := range events {
			if e.PCR < 0 || e.PCR >= pcrCount || len(e.Data) > len(log) {
				t.Errorf("event of PCR %d with %d bytes", e.PCR, len(e.Data))
			}
		}
	})
}

// TestFindLog plants two logs in a memory: the one that explains more of what
// the TPM saw is found, and one that lies is not believed.
func TestFindLog(t *testing.T) {
	log, err := os.ReadFile(filepath.Join(testenv.Root(t), "testdata/golden/stub257.eventlog"))
	if err != nil {
		t.Fatal(err)
	}
	events, err := parseLog(log)
	if err != nil {
		t.Fatal(err)
	}
	var extends []Extend
	for _, e := range events {
		if e.Type != evNoAction {
			extends = append(extends, Extend{PCR: e.PCR, Digests: e.Digests})
		}
	}
	lying := bytes.Clone(log)
	at := bytes.Index(lying, events[len(events)/2].Digests[measure.SHA384])
	lying[at] ^= 1
	memory, err := newMemory("test", 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	for offset, content := range map[int64][]byte{3 << 20: lying, searchWindow*9 - 20: log} {
		if _, err := memory.WriteAt(content, offset); err != nil {
			t.Fatal(err)
		}
	}
	found, err := findLog(memory, extends)
	if err != nil || found == nil {
		t.Fatalf("found %v, %v", found, err)
	}
	if found.matched != len(extends) || found.offset != searchWindow*9-20 {
		t.Errorf("the log at %d explains %d of %d", found.offset, found.matched, len(extends))
	}
	if _, err := memory.WriteAt(make([]byte, len(log)), searchWindow*9-20); err != nil {
		t.Fatal(err)
	}
	found, err = findLog(memory, extends)
	if err != nil || found == nil {
		t.Fatalf("found %v, %v", found, err)
	}
	if found.matched >= len(extends) {
		t.Errorf("the log that lies explains all %d extensions", found.matched)
	}
}

func TestHandOver(t *testing.T) {
	digest := sha512.Sum384([]byte(handOverAction))
	if e := (Extend{PCR: 5, Digests: map[measure.Bank][]byte{measure.SHA384: digest[:]}}); !isHandOver(e) {
		t.Error("the hand-over is not seen")
	}
	if e := (Extend{PCR: 4, Digests: map[measure.Bank][]byte{measure.SHA384: digest[:]}}); isHandOver(e) {
		t.Error("PCR 4 is taken for the hand-over")
	}
}

// TestEnroll writes variables into a store made here, and reads them back.
func TestEnroll(t *testing.T) {
	store := emptyStore(64 << 10)
	secure := measure.SecureBoot{PK: []byte("platform"), KEK: []byte("exchange"), DB: []byte("allowed"), DBX: []byte("forbidden")}
	once, err := enroll(secure, nil, store)
	if err != nil {
		t.Fatal(err)
	}
	again, err := enroll(measure.SecureBoot{PK: []byte("another")}, []efi.Variable{{Name: "Driver0000", Vendor: efi.GlobalVariable, Attributes: 7, Data: []byte("driver")}}, once)
	if err != nil {
		t.Fatal(err)
	}
	if got := liveVariables(t, again); got["PK"] != "another" || got["db"] != "allowed" || got["dbx"] != "forbidden" || got["SecureBootEnable"] != "\x01" || got["Driver0000"] != "driver" {
		t.Errorf("variables %q", got)
	}
	if _, err := enroll(measure.SecureBoot{PK: make([]byte, 64<<10)}, nil, store); err == nil || !strings.Contains(err.Error(), "do not fit") {
		t.Errorf("a variable larger than the store: %v", err)
	}
	for name, spoil := range map[string]func([]byte){
		"not a firmware volume":         func(b []byte) { b[volumeSignatureAt] = 'x' },
		"says it has":                   func(b []byte) { binary.LittleEndian.PutUint64(b[volumeLengthAt:], 1<<40) },
		"no authenticated variables":    func(b []byte) { b[72] ^= 1 },
		"the variable store is damaged": func(b []byte) { b[72+20] = 0 },
	} {
		bad := bytes.Clone(store)
		spoil(bad)
		if _, err := enroll(secure, nil, bad); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v, want %q", err, name)
		}
	}
}

// emptyStore is a firmware volume with an empty variable store.
func emptyStore(size int) []byte {
	b := bytes.Repeat([]byte{0xff}, size)
	clear(b[:72+storeHeaderSize])
	copy(b[16:], nvDataVolume)
	binary.LittleEndian.PutUint64(b[volumeLengthAt:], uint64(size))
	copy(b[volumeSignatureAt:], "_FVH")
	binary.LittleEndian.PutUint16(b[headerLengthAt:], 72)
	copy(b[72:], authenticatedStore)
	binary.LittleEndian.PutUint32(b[72+16:], uint32(size-72))
	b[72+20], b[72+21] = storeFormatted, storeHealthy
	return b
}

// liveVariables reads the variables of a store that were not deleted.
func liveVariables(t *testing.T, content []byte) map[string]string {
	t.Helper()
	area, err := variableArea(content)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for len(area) > variableHeaderSize && binary.LittleEndian.Uint16(area) == variableStart {
		nameSize, dataSize := binary.LittleEndian.Uint32(area[36:]), binary.LittleEndian.Uint32(area[40:])
		var units []uint16
		for i := uint32(0); i+2 < nameSize; i += 2 {
			units = append(units, binary.LittleEndian.Uint16(area[variableHeaderSize+i:]))
		}
		end := variableHeaderSize + nameSize + dataSize
		if area[2] == variableAdded {
			found[string(utf16.Decode(units))] = string(area[variableHeaderSize+nameSize : end])
		}
		area = area[(end+3)&^3:]
	}
	return found
}

// FuzzEnroll writes into stores of any content.
func FuzzEnroll(f *testing.F) {
	f.Add(emptyStore(4096), []byte("PK"))
	f.Fuzz(func(t *testing.T, store, pk []byte) {
		out, err := enroll(measure.SecureBoot{PK: pk}, nil, store)
		if err == nil && len(out) != len(store) {
			t.Errorf("a store of %d bytes became one of %d", len(store), len(out))
		}
	})
}
