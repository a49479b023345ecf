package efi

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
)

// TestLoadOption compares with the bytes that a boot manager reads: the layout of
// UEFI 2.10, sections 3.1.3 and 10.3.5.
func TestLoadOption(t *testing.T) {
	guid := MustGUID("00112233-4455-6677-8899-aabbccddeeff")
	path := HardDriveFile(1, 2048, 409600, guid, "/a.efi")
	want := "01000000" + "4000" + "640000" + "00" + // active, 64 bytes of path, "d"
		"04012a00" + "01000000" + "0008000000000000" + "0040060000000000" + "33221100554477668899aabbccddeeff" + "0202" +
		"04041200" + "5c0061002e006500660069000000" + "7fff0400" + "beef"
	got := LoadOption("d", path, []byte{0xbe, 0xef})
	wanted, err := hex.DecodeString(want)
	if err != nil || !bytes.Equal(got, wanted) {
		t.Errorf("the option is\n%x\nwant (%v)\n%s", got, err, want)
	}
	if text := DevicePathText(path); text != `partition 1 (00112233-4455-6677-8899-aabbccddeeff), \a.efi` {
		t.Errorf("the path reads %q", text)
	}
}

func TestDevicePathText(t *testing.T) {
	for name, c := range map[string]struct{ path, want string }{
		"nothing":       {"", ""},
		"a PCI device":  {"02010c00d041030a00000000" + "010106000003" + "7fff0400", "PCI device 3.0"},
		"cut short":     {"010106000003" + "0404ff00", "PCI device 3.0"},
		"length zero":   {"01010000", ""},
		"unknown":       {"03170800aabbccdd" + "7fff0400", "node 3.23"},
		"control signs": {"04040a001b005b000000" + "7fff0400", `"\x1b["`},
	} {
		b, err := hex.DecodeString(c.path)
		if err != nil {
			t.Fatal(err)
		}
		if got := DevicePathText(b); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// FuzzDevicePathText holds that a device path of somebody else's never reaches a
// terminal as it is.
func FuzzDevicePathText(f *testing.F) {
	f.Add(HardDriveFile(1, 2048, 409600, GUID{1}, `\EFI\driver.efi`))
	f.Add([]byte{4, 4, 6, 0, 0x1b, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		text := DevicePathText(b)
		if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0x9b }) {
			t.Errorf("%q", text)
		}
	})
}
