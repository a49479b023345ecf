package imagediff

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/org/attestable-image-action/internal/audit"
)

// ReportVersion is the version of the report's form.
const ReportVersion = 1

// Bounds of a report; what lies beyond is counted.
const (
	maxFileChanges = 20_000 // files of a file system or of an initrd
	maxTimes       = 16     // pairs of times of a file system or initrd
	maxText        = 300    // characters of a value from an image
	maxEvents      = 64     // events of a PCR
	maxNotes       = 100
)

// What was compared.
const (
	comparedDisks     = "disks"
	comparedDocuments = "measurements"
	comparedBoth      = "measurements and disks"
)

// Report is what changed from one image, A, to another, B. Values that one of them
// does not have are empty.
type Report struct {
	SchemaVersion int   `json:"schemaVersion"`
	A             Image `json:"a"`
	B             Image `json:"b"`
	// Compared is what was: "disks", "measurements" or "measurements and disks". Without
	// the disks the lists that come from them are empty: of files, partitions, file
	// systems and findings.
	Compared  string    `json:"compared"`
	Identical bool      `json:"identical"` // nothing differs in what was compared, not even a byte
	Packages  []Package `json:"packages"`
	// CommandLine are the words that the kernel gets, without a root hash that
	// Verity has.
	CommandLine []Change        `json:"commandLine"`
	Boot        []BootFile      `json:"boot"` // files of the EFI system partition
	Files       []File          `json:"files"`
	FilesHidden int             `json:"filesHidden"` // that belong to packages that changed
	FilesMore   int             `json:"filesMore"`   // that were too many for the report
	Times       []Time          `json:"times"`       // of files where nothing else changed
	TimesMore   int             `json:"timesMore"`   // files with other pairs of times
	Verity      []Change        `json:"verity"`
	Partitions  []Partition     `json:"partitions"`
	Filesystems []Partition     `json:"filesystems"` // what they say of themselves
	PCRs        []PCR           `json:"pcrs"`
	Appeared    []audit.Finding `json:"findingsAppeared"`
	Gone        []audit.Finding `json:"findingsGone"`
	// What follows comes from measurements documents. SecureBoot has the state, and
	// entries of variables as "db, certificate CN=…"; Inputs are what the disks were
	// built from, Source the files of their descriptions.
	SecureBoot      []Change  `json:"secureBoot"`
	Builder         []Change  `json:"builder"`
	BuilderPackages []Package `json:"builderPackages"`
	Inputs          []Change  `json:"inputs"`
	Source          []File    `json:"source"`
	Other           []Change  `json:"other"` // bytes that mean nothing by themselves
	// NotCompared says what could not be compared, and why.
	NotCompared []string `json:"notCompared"`
}

// Image is one of the two.
type Image struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`             // of the disk, in bytes
	SHA256 string `json:"sha256,omitempty"` // of the disk, when its measurements say it
	OS     string `json:"os,omitempty"`
}

// Change is a value that changed. Name may be empty where the values speak for
// themselves.
type Change struct {
	Name string `json:"name,omitempty"`
	A    string `json:"a,omitempty"`
	B    string `json:"b,omitempty"`
}

// Package is a package that came, went, or has another version.
type Package struct {
	Kind string `json:"kind,omitempty"` // "deb" or "rpm"
	Name string `json:"name"`
	Arch string `json:"arch,omitempty"`
	A    string `json:"a,omitempty"` // version
	B    string `json:"b,omitempty"`
}

// File is a file that came, went or changed.
type File struct {
	Partition int    `json:"partition,omitempty"` // its number in B, or in A when B lacks it
	Path      string `json:"path"`
	How       How    `json:"how"`
	// Changes are what differs, by name: type, mode, owner, size, content (SHA-256,
	// when the sizes are the same), target, device, and attributes.
	Changes []Change `json:"changes,omitempty"`
	Package string   `json:"package,omitempty"` // that changed and has the file
}

// How says what became of something.
type How string

// What may become of something.
const (
	Added   How = "added"
	Removed How = "removed"
	Changed How = "changed"
)

// Time is a time of modification that changed.
type Time struct {
	Where string    `json:"where"` // "partition 2", or a section of a file
	A     time.Time `json:"a"`
	B     time.Time `json:"b"`
	Files int       `json:"files"` // that have this pair
}

// BootFile is a file of the EFI system partition.
type BootFile struct {
	Path     string    `json:"path"`
	How      How       `json:"how"`
	SizeA    int64     `json:"sizeA"` // bytes
	SizeB    int64     `json:"sizeB"`
	Sections []Section `json:"sections,omitempty"` // of a PE image
	// Signatures says that the signatures in it differ, Headers that no section
	// does and something outside of them and of the signatures.
	Signatures bool `json:"signatures,omitempty"`
	Headers    bool `json:"headers,omitempty"`
	// Changes are what measurements say: its Authenticode digest, the version of
	// systemd-stub.
	Changes []Change `json:"changes,omitempty"`
}

// Section is a section of a PE image.
type Section struct {
	Name  string `json:"name"`
	How   How    `json:"how"`
	SizeA int64  `json:"sizeA"` // bytes
	SizeB int64  `json:"sizeB"`
	// Lines are the lines or words of a section that is text, Files those of an
	// initrd.
	Lines     []Change `json:"lines,omitempty"`
	Files     []File   `json:"files,omitempty"`
	FilesMore int      `json:"filesMore,omitempty"`
	// FilesHidden belong to packages that changed.
	FilesHidden int `json:"filesHidden,omitempty"`
}

// Partition is a field of the partition table, or of a file system.
type Partition struct {
	Number int    `json:"number"` // in B, or in A when B lacks it; 0 for the table itself
	How    How    `json:"how"`
	Field  string `json:"field,omitempty"`
	A      string `json:"a,omitempty"`
	B      string `json:"b,omitempty"`
}

// PCR is a PCR with another value.
type PCR struct {
	PCR        int     `json:"pcr"`
	A          string  `json:"a"` // lower-case hex
	B          string  `json:"b"`
	Events     []Event `json:"events"` // that differ, in their order
	EventsMore int     `json:"eventsMore,omitempty"`
}

// Event is an event of a PCR that differs.
type Event struct {
	How     How    `json:"how"`
	Type    string `json:"type"` // TCG name
	What    string `json:"what"` // what was measured
	DigestA string `json:"digestA,omitempty"`
	DigestB string `json:"digestB,omitempty"`
	Because string `json:"because,omitempty"` // what changed in it, as far as it is known
}

// newReport makes one whose lists are not null in JSON.
func newReport(a, b string) *Report {
	return &Report{
		SchemaVersion: ReportVersion, A: Image{Name: a}, B: Image{Name: b}, Compared: comparedDisks,
		SecureBoot: []Change{}, Builder: []Change{}, BuilderPackages: []Package{}, Inputs: []Change{}, Source: []File{},
		Packages: []Package{}, CommandLine: []Change{}, Boot: []BootFile{}, Files: []File{}, Times: []Time{}, Verity: []Change{},
		Partitions: []Partition{}, Filesystems: []Partition{}, PCRs: []PCR{}, Appeared: []audit.Finding{}, Gone: []audit.Finding{}, Other: []Change{}, NotCompared: []string{},
	}
}

// Marshal is the report as indented JSON and a newline.
func (r *Report) Marshal() ([]byte, error) {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write the differences: %w", err)
	}
	return append(b, '\n'), nil
}

// empty reports whether nothing that differs was found.
func (r *Report) empty() bool {
	return len(r.Packages)+len(r.CommandLine)+len(r.Boot)+len(r.Files)+r.FilesHidden+len(r.Times)+len(r.Verity)+
		len(r.Partitions)+len(r.Filesystems)+len(r.PCRs)+len(r.Appeared)+len(r.Gone)+len(r.Other)+
		len(r.SecureBoot)+len(r.Builder)+len(r.BuilderPackages)+len(r.Inputs)+len(r.Source) == 0
}

// notCompared notes what could not be compared.
func (r *Report) notCompared(what string, err error) {
	switch n := len(r.NotCompared); {
	case n < maxNotes:
		r.NotCompared = append(r.NotCompared, bounded(what+": "+err.Error()))
	case n == maxNotes:
		r.NotCompared = append(r.NotCompared, "and more")
	}
}

// bounded cuts text from an image.
func bounded(text string) string {
	if len(text) <= maxText {
		return text
	}
	if runes := []rune(text); len(runes) > maxText {
		return string(runes[:maxText]) + "…"
	}
	return text
}
