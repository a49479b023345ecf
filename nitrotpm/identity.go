package nitrotpm

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"slices"
	"unicode/utf16"
)

// IdentityPCRs are the PCRs that together say which image an instance booted.
//
// With Secure Boot off: 4 (the images that firmware started), 2 (drivers that a UEFI
// variable or an option ROM had it load before, any of which can change the kernel in
// memory), 12 and 13 (what systemd-stub took from outside the unified kernel image:
// command lines and credentials, and system extensions).
//
// With Secure Boot on: 7 (whose signature firmware demands, and which entry of db let
// images and drivers run), 12 and 13. PCR 2 is not among them: a driver has to be
// signed, too, and a key that is bound to the signer outlives the image.
func IdentityPCRs(secureBoot bool) []int {
	if secureBoot {
		return []int{7, 12, 13}
	}
	return []int{2, 4, 12, 13}
}

// optional are those of IdentityPCRs that a policy may leave out by name. Their value
// does not depend on the image where nothing was added to it from outside.
var optional = []int{2, 13}

// UsualPCR is the value of PCR 2 or 13 of an instance to which nothing was added:
// firmware's separator alone in PCR 2, which does not depend on the image, and zero in
// PCR 13.
func UsualPCR(n int) []byte {
	if n == 2 {
		return extend(nil, separator)
	}
	return make([]byte, PCRSize)
}

// explained says in words what another value of a PCR means.
var explained = map[int]string{
	2:  "the firmware loaded a driver that is not part of the image, or this instance type has an option ROM",
	13: "an extension image lies beside the unified kernel image, and is not part of what was measured",
}

// separator is the data of EV_SEPARATOR where firmware met no error (TCG PC Client
// Platform Firmware Profile 1.06, section 10.4.1).
var separator = make([]byte, 4)

// extend is a PCR that began as zero, after the events with these data.
func extend(events ...[]byte) []byte {
	value := make([]byte, PCRSize)
	for _, data := range events {
		if data == nil {
			continue
		}
		digest := sha512.Sum384(data)
		next := sha512.Sum384(append(value, digest[:]...))
		value = next[:]
	}
	return value
}

// common are values of PCR 4 and 7 that fit every image: what firmware of any make,
// x86_64 and aarch64 alike, records before it starts something, and without keys.
var common = func() map[int][]commonValue {
	calling := []byte("Calling EFI Application from Boot Option")
	const globalVariable = "\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c"
	const securityDatabase = "\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f"
	// UEFI_VARIABLE_DATA: vendor, lengths of name and data, name, data.
	variable := func(vendor, name string, data ...byte) []byte {
		units := utf16.Encode([]rune(name))
		b := binary.LittleEndian.AppendUint64([]byte(vendor), uint64(len(units)))
		b = binary.LittleEndian.AppendUint64(b, uint64(len(data)))
		for _, unit := range units {
			b = binary.LittleEndian.AppendUint16(b, unit)
		}
		return append(b, data...)
	}
	noKeys := func(enabled byte) [][]byte {
		return [][]byte{
			variable(globalVariable, "SecureBoot", enabled), variable(globalVariable, "PK"), variable(globalVariable, "KEK"),
			variable(securityDatabase, "db"), variable(securityDatabase, "dbx"),
		}
	}
	const nothingStarted = "of every machine on which firmware has started nothing yet"
	return map[int][]commonValue{
		4: {
			{extend(separator), nothingStarted}, {extend(calling), nothingStarted}, {extend(calling, separator), nothingStarted},
		},
		7: {
			{extend(append(noKeys(0), separator)...), "of every instance with Secure Boot off"},
			{extend(noKeys(0)...), "of every instance with Secure Boot off"},
			{extend(append(noKeys(1), separator)...), "of firmware without a key"},
			{extend(separator), "of firmware that records no variable"},
		},
	}
}()

type commonValue struct {
	value []byte
	whose string
}

// impossible says why no instance has this value of a PCR; "" where one may.
func impossible(n int, value []byte) string {
	is := func(b byte) bool { return !slices.ContainsFunc(value, func(v byte) bool { return v != b }) }
	switch {
	case n <= 7 && is(0): // TCG PC Client Platform Firmware Profile 1.06, section 3.3.4: each gets a separator
		return "zero, which no machine has after its firmware ran"
	case n < 16 && is(0xff):
		return "all ones, which no machine has"
	}
	return ""
}

// checkValues refuses values that identify nothing: those that no instance can have,
// and in the PCR that says which image it is those of every instance.
func (r Reference) checkValues(identity int) error {
	for n, value := range r.PCRs {
		if reason := impossible(n, value); reason != "" {
			return fmt.Errorf("PCR %d is %s: these are no measurements of a boot", n, reason)
		}
	}
	for _, c := range common[identity] {
		if bytes.Equal(c.value, r.PCRs[identity]) {
			return fmt.Errorf("PCR %d is that %s: it says nothing of the image", identity, c.whose)
		}
	}
	return nil
}
