package measure

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/org/attestable-image-action/internal/strictjson"
)

// SchemaVersion is the version of the document's form. It grows when a reader
// of an older one would misunderstand a newer one.
const SchemaVersion = 1

// Document is measurements.json: the predicted PCRs, and all that a reader
// needs to see where they come from. schema/measurements.v1.json describes it.
// Digests are lower-case hex, sizes are bytes.
type Document struct {
	Measurements  Measurements
	SchemaVersion int
	Architecture  string    `json:",omitempty"` // "x86_64" or "aarch64"
	Disk          *DiskInfo `json:",omitempty"` // absent when PE files were measured
	BootChain     []ImageInfo
	CommandLine   string `json:",omitempty"` // what the kernel gets; absent when it cannot be told
	SecureBoot    SecureBootInfo
	Events        []EventInfo
	Builder       *BuilderInfo `json:",omitempty"` // absent when it is not known
}

// Measurements is AWS's own form, as nitro-tpm-pcr-compute prints it.
type Measurements struct {
	HashAlgorithm Bank
	PCRs          map[int]string // by number; members "PCR4" and so on in JSON
}

// DiskInfo identifies the raw disk.
type DiskInfo struct {
	SHA256 string // of the whole disk, holes included
	Size   int64
}

// ImageInfo is a PE image of the boot chain.
type ImageInfo struct {
	Path         string // on the EFI system partition; "PATH#.section" inside another image
	Size         int64
	Authenticode map[Bank]string // digests by hash algorithm
	StubVersion  int             `json:",omitempty"` // of systemd-stub
}

// SecureBootInfo is the state of Secure Boot that was assumed.
type SecureBootInfo struct {
	Enabled     bool
	Variables   []VariableInfo  `json:",omitempty"`
	Authorities []AuthorityInfo `json:",omitempty"`
}

// VariableInfo identifies the content of a Secure Boot variable.
type VariableInfo struct {
	Name   string
	Size   int
	SHA256 string
}

// AuthorityInfo identifies a db entry that lets an image run.
type AuthorityInfo struct {
	Owner   string // GUID
	Type    string // EFI_CERT_X509, EFI_CERT_SHA256, …
	Subject string `json:",omitempty"` // of a certificate
	SHA256  string // of the entry without its owner
}

// EventInfo is a predicted event.
type EventInfo struct {
	PCR         int
	Type        string // TCG name
	Description string
	Digest      string
	Data        string `json:",omitempty"` // hex, when the digest is that of these bytes
}

// MarshalJSON writes the members in the order of AWS's tool.
func (m Measurements) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"HashAlgorithm":%q`, string(m.HashAlgorithm))
	for _, n := range slices.Sorted(maps.Keys(m.PCRs)) {
		fmt.Fprintf(&b, `,"PCR%d":%q`, n, m.PCRs[n])
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// UnmarshalJSON reads the members and checks each value.
func (m *Measurements) UnmarshalJSON(b []byte) error {
	var members map[string]string
	if err := strictjson.Unmarshal(b, &members); err != nil {
		return err
	}
	bank, err := ParseBank(members["HashAlgorithm"])
	if err != nil {
		return fmt.Errorf("HashAlgorithm: %w", err)
	}
	m.HashAlgorithm, m.PCRs = bank, map[int]string{}
	for name, value := range members {
		if name == "HashAlgorithm" {
			continue
		}
		digits, ok := strings.CutPrefix(name, "PCR")
		n, err := strconv.Atoi(digits)
		if !ok || err != nil || n < 0 || n > 23 || strconv.Itoa(n) != digits {
			return fmt.Errorf("member %q is no PCR", name)
		}
		value = strings.ToLower(value)
		if raw, err := hex.DecodeString(value); err != nil || len(raw) != bank.Hash().Size() {
			return fmt.Errorf("the value of PCR%d is not a %s digest in hex", n, bank)
		}
		m.PCRs[n] = value
	}
	return nil
}

// ParseDocument reads measurements.json. Members that it does not know are
// passed over; a document of a newer form is refused.
func ParseDocument(b []byte) (*Document, error) {
	var d Document
	if err := strictjson.Unmarshal(b, &d); err != nil {
		return nil, fmt.Errorf("read measurements: %w", err)
	}
	switch {
	case d.Measurements.HashAlgorithm == "":
		return nil, errors.New("read measurements: the document has no Measurements")
	case len(d.Measurements.PCRs) == 0:
		return nil, errors.New("read measurements: the document has no PCR")
	case d.SchemaVersion < 0 || d.SchemaVersion > SchemaVersion:
		return nil, fmt.Errorf("read measurements: the document is of version %d, this program knows up to %d: use a newer one", d.SchemaVersion, SchemaVersion)
	}
	if d.Disk != nil {
		if raw, err := hex.DecodeString(d.Disk.SHA256); err != nil || len(raw) != 32 || d.Disk.Size < 0 {
			return nil, errors.New("read measurements: Disk is not a SHA-256 digest and a size")
		}
		d.Disk.SHA256 = strings.ToLower(d.Disk.SHA256)
	}
	if d.Builder != nil {
		if err := d.Builder.check(); err != nil {
			return nil, fmt.Errorf("read measurements: Builder: %w", err)
		}
	}
	return &d, nil
}

// Marshal is the document as measurements.json: indented JSON and a newline.
// The same document always gives the same bytes.
func (d *Document) Marshal() ([]byte, error) {
	b, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write measurements: %w", err)
	}
	return append(b, '\n'), nil
}

// PCR is the value of a PCR in lower-case hex, "" when the document has none.
func (d *Document) PCR(n int) string { return d.Measurements.PCRs[n] }

// Document makes the document of a prediction.
func (p *Prediction) Document() *Document {
	d := &Document{
		Measurements:  Measurements{HashAlgorithm: p.Bank, PCRs: map[int]string{}},
		SchemaVersion: SchemaVersion,
		Architecture:  p.Architecture,
		BootChain:     []ImageInfo{},
		CommandLine:   p.CommandLine,
		SecureBoot:    p.SecureBoot.describe(p.Authorities),
		Events:        []EventInfo{},
	}
	for _, n := range p.PCRs {
		d.Measurements.PCRs[n] = hexDigest(p.values[n])
	}
	for _, i := range p.Images {
		info := ImageInfo{Path: i.Path, Size: i.Size, StubVersion: i.Stub, Authenticode: map[Bank]string{}}
		for bank, digest := range map[Bank][]byte{SHA256: i.SHA256, SHA384: i.SHA384} {
			if digest != nil {
				info.Authenticode[bank] = hexDigest(digest)
			}
		}
		d.BootChain = append(d.BootChain, info)
	}
	for _, e := range p.Events {
		if slices.Contains(p.PCRs, e.PCR) {
			d.Events = append(d.Events, EventInfo{
				PCR: e.PCR, Type: e.Type.String(), Description: e.Description, Digest: hexDigest(e.Digest), Data: hexDigest(e.Data),
			})
		}
	}
	return d
}

// Difference is a value in which two documents differ.
type Difference struct {
	Field              string // such as "PCR4" or "Disk.SHA256"
	Attested, Measured string // "" where the document has none
}

// Compare lists the values of an attested document that another one, measured
// here, does not confirm: PCRs, disk, architecture and Secure Boot. Values that
// only the measured document has are no difference.
func Compare(attested, measured *Document) []Difference {
	var differences []Difference
	check := func(field, a, m string) {
		if a != m {
			differences = append(differences, Difference{field, a, m})
		}
	}
	check("HashAlgorithm", string(attested.Measurements.HashAlgorithm), string(measured.Measurements.HashAlgorithm))
	for _, n := range slices.Sorted(maps.Keys(attested.Measurements.PCRs)) {
		check("PCR"+strconv.Itoa(n), attested.PCR(n), measured.PCR(n))
	}
	if attested.Disk != nil {
		m := measured.Disk
		if m == nil {
			m = &DiskInfo{}
		}
		check("Disk.SHA256", attested.Disk.SHA256, m.SHA256)
		check("Disk.Size", strconv.FormatInt(attested.Disk.Size, 10), strconv.FormatInt(m.Size, 10))
	}
	if attested.Architecture != "" {
		check("Architecture", attested.Architecture, measured.Architecture)
	}
	check("SecureBoot.Enabled", strconv.FormatBool(attested.SecureBoot.Enabled), strconv.FormatBool(measured.SecureBoot.Enabled))
	return differences
}
