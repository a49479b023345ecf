// Package measure predicts what a measured boot of a disk records in the PCRs
// of a TPM: first the events that firmware and systemd-stub will extend, in
// order, then the values that follow from them.
//
// It follows the TCG PC Client Platform Firmware Profile 1.06 as EDK II
// implements it, and systemd-stub as it was observed at boots. A PCR that
// cannot be told from the disk is never guessed: the error names the file that
// is the reason. It does not boot, mount or run anything.
package measure

import (
	"bytes"
	"crypto"
	_ "crypto/sha256" // for crypto.Hash
	_ "crypto/sha512" // for crypto.Hash
	"encoding/hex"
	"fmt"
	"strings"
)

// Bank names a bank of PCRs by its hash algorithm, as AWS's documents do.
type Bank string

// The banks that a NitroTPM has and that are predicted.
const (
	SHA384 Bank = "SHA384" // the one that attestation documents carry
	SHA256 Bank = "SHA256"
)

// ParseBank reads the name of a bank, in either case and with or without a
// hyphen.
func ParseBank(s string) (Bank, error) {
	switch b := Bank(strings.ToUpper(strings.ReplaceAll(s, "-", ""))); b {
	case SHA256, SHA384:
		return b, nil
	}
	return "", fmt.Errorf("there is no bank %q: give sha384 or sha256", s)
}

// Hash is the bank's hash function.
func (b Bank) Hash() crypto.Hash {
	if b == SHA256 {
		return crypto.SHA256
	}
	return crypto.SHA384
}

// digest hashes data with the bank's algorithm.
func (b Bank) digest(data []byte) []byte {
	h := b.Hash().New()
	h.Write(data)
	return h.Sum(nil)
}

// EventType is a TCG event type (TCG PC Client Platform Firmware Profile 1.06,
// section 10.4.1).
type EventType uint32

// The event types that are predicted.
const (
	EVSeparator                  EventType = 0x00000004
	EVEventTag                   EventType = 0x00000006
	EVIPL                        EventType = 0x0000000d
	EVEFIVariableDriverConfig    EventType = 0x80000001
	EVEFIBootServicesApplication EventType = 0x80000003
	EVEFIGPTEvent                EventType = 0x80000006
	EVEFIAction                  EventType = 0x80000007
	EVEFIVariableAuthority       EventType = 0x800000e0
)

var eventTypeNames = map[EventType]string{
	EVSeparator:                  "EV_SEPARATOR",
	EVEventTag:                   "EV_EVENT_TAG",
	EVIPL:                        "EV_IPL",
	EVEFIVariableDriverConfig:    "EV_EFI_VARIABLE_DRIVER_CONFIG",
	EVEFIBootServicesApplication: "EV_EFI_BOOT_SERVICES_APPLICATION",
	EVEFIGPTEvent:                "EV_EFI_GPT_EVENT",
	EVEFIAction:                  "EV_EFI_ACTION",
	EVEFIVariableAuthority:       "EV_EFI_VARIABLE_AUTHORITY",
}

// String is the name in the specification.
func (t EventType) String() string {
	if name, ok := eventTypeNames[t]; ok {
		return name
	}
	return fmt.Sprintf("%#x", uint32(t))
}

// Event is one extension of a PCR.
type Event struct {
	PCR         int
	Type        EventType
	Description string // for people: the variable, the image's path, the section
	Digest      []byte // what the PCR is extended with, in the bank of the prediction
	// Data is the event's data in the log when it is short: what the digest was
	// taken of, but for EV_EVENT_TAG, whose data names it. It is nil for an image
	// or a section.
	Data []byte
}

// pcrCount is the number of PCRs whose events firmware and systemd-stub make.
const pcrCount = 16

// replay extends PCRs 0 to 15, which start as zeros, with the events.
func replay(bank Bank, events []Event) [pcrCount][]byte {
	var pcrs [pcrCount][]byte
	for i := range pcrs {
		pcrs[i] = make([]byte, bank.Hash().Size())
	}
	for _, e := range events {
		pcrs[e.PCR] = bank.digest(append(bytes.Clone(pcrs[e.PCR]), e.Digest...))
	}
	return pcrs
}

// dataEvent is an event whose digest is that of its data.
func dataEvent(bank Bank, pcr int, t EventType, data []byte, description string) Event {
	return Event{PCR: pcr, Type: t, Description: description, Digest: bank.digest(data), Data: data}
}

// separator ends what firmware measures on its own behalf.
func separator(bank Bank, pcr int) Event {
	return dataEvent(bank, pcr, EVSeparator, make([]byte, 4), "end of the firmware's own events")
}

func hexDigest(b []byte) string { return hex.EncodeToString(b) }
