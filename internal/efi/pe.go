// Package efi reads the formats of UEFI that a measured boot depends on: PE32+
// images and their Authenticode digests, the sections of a unified kernel
// image, signature lists, and variables.
//
// It follows Microsoft's PE Format, Microsoft's "Windows Authenticode Portable
// Executable Signature Format" 1.0 as EDK II implements it, UEFI 2.10, the UAPI
// group's UKI specification, and the TCG PC Client Platform Firmware Profile
// 1.06. It does not load, run or trust anything.
package efi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
)

// Machine is the processor that a PE image is for, as in its file header.
type Machine uint16

// The machines that UEFI defines and that this package knows.
const (
	MachineX64     Machine = 0x8664
	MachineAArch64 Machine = 0xaa64
)

// String is the name that Linux and this software use: "x86_64" or "aarch64".
func (m Machine) String() string {
	switch m {
	case MachineX64:
		return "x86_64"
	case MachineAArch64:
		return "aarch64"
	}
	return fmt.Sprintf("machine %#04x", uint16(m))
}

// Section is a section of a PE image.
type Section struct {
	Name        string // up to 8 bytes, without its padding
	VirtualSize uint32 // bytes in memory
	RawOffset   uint32 // bytes from the start of the file
	RawSize     uint32 // bytes in the file
}

// Image is a PE32+ image whose headers were read and checked. The content stays
// in the file.
type Image struct {
	Machine   Machine
	Subsystem uint16
	Sections  []Section // in the order of the section table

	r           io.ReaderAt
	size        int64
	headersSize uint32 // SizeOfHeaders
	checksum    int64  // file offset of the CheckSum field
	certEntry   int64  // file offset of the certificate table's directory entry, 0 when there is none
	certOffset  uint32 // file offset of the certificate table
	certSize    uint32 // bytes
}

// Limits that real EFI images are far from; they keep a lying header from
// costing memory.
const (
	peMaxSections = 256
	peMaxHeaders  = 1 << 20
	peMaxCerts    = 1 << 20

	peMaxDirectories = 16 // in EDK II, too
)

const (
	dosHeaderSize     = 64
	fileHeaderSize    = 20
	sectionHeaderSize = 40
	magicPE32Plus     = 0x20b
	certDirectory     = 4 // index of the certificate table in the data directories
)

// ParseImage reads the headers of the PE32+ image in r, of size bytes, and
// checks everything that a digest or a section depends on.
func ParseImage(r io.ReaderAt, size int64) (*Image, error) {
	image, err := parseImage(r, size)
	if err != nil {
		return nil, fmt.Errorf("read PE image: %w", err)
	}
	return image, nil
}

func parseImage(r io.ReaderAt, size int64) (*Image, error) {
	le := binary.LittleEndian
	dos := make([]byte, dosHeaderSize)
	if err := readFull(r, dos, 0, size, "DOS header"); err != nil {
		return nil, err
	}
	if string(dos[:2]) != "MZ" {
		return nil, errors.New("it does not start with \"MZ\"")
	}
	peOffset := int64(le.Uint32(dos[60:]))
	head := make([]byte, 4+fileHeaderSize)
	if err := readFull(r, head, peOffset, size, "PE header"); err != nil {
		return nil, err
	}
	if string(head[:4]) != "PE\x00\x00" {
		return nil, fmt.Errorf("there is no \"PE\" signature at byte %d", peOffset)
	}
	file := head[4:]
	sections := int(le.Uint16(file[2:]))
	optionalSize := int64(le.Uint16(file[16:]))
	if sections == 0 || sections > peMaxSections {
		return nil, fmt.Errorf("%d sections, not between 1 and %d", sections, peMaxSections)
	}
	// 112 bytes of fixed fields stand before the data directories of PE32+.
	if optionalSize < 112 {
		return nil, fmt.Errorf("optional header of %d bytes is shorter than PE32+ has", optionalSize)
	}
	optionalOffset := peOffset + int64(len(head))
	optional := make([]byte, optionalSize)
	if err := readFull(r, optional, optionalOffset, size, "optional header"); err != nil {
		return nil, err
	}
	if magic := le.Uint16(optional); magic != magicPE32Plus {
		return nil, fmt.Errorf("optional header magic %#x is not PE32+ (%#x)", magic, magicPE32Plus)
	}
	image := &Image{
		Machine:     Machine(le.Uint16(file)),
		Subsystem:   le.Uint16(optional[68:]),
		r:           r,
		size:        size,
		headersSize: le.Uint32(optional[60:]),
		checksum:    optionalOffset + 64,
	}
	directories := int64(le.Uint32(optional[108:]))
	if directories > peMaxDirectories || optionalSize != 112+8*directories {
		return nil, fmt.Errorf("optional header of %d bytes with %d data directories: firmware would not load it", optionalSize, directories)
	}
	tableOffset := optionalOffset + optionalSize
	tableEnd := tableOffset + int64(sections)*sectionHeaderSize
	if int64(image.headersSize) < tableEnd || int64(image.headersSize) > min(size, peMaxHeaders) {
		return nil, fmt.Errorf("SizeOfHeaders %d does not lie between the end of the section table (%d) and the file's size (%d)", image.headersSize, tableEnd, size)
	}
	if directories > certDirectory {
		entry := optional[112+8*certDirectory:]
		image.certEntry = optionalOffset + 112 + 8*certDirectory
		image.certOffset, image.certSize = le.Uint32(entry), le.Uint32(entry[4:])
		if image.certSize > 0 && (int64(image.certOffset) < int64(image.headersSize) || int64(image.certOffset)+int64(image.certSize) > size) {
			return nil, fmt.Errorf("certificate table at byte %d of %d bytes lies outside the file of %d bytes", image.certOffset, image.certSize, size)
		}
	}
	table := make([]byte, sections*sectionHeaderSize)
	if err := readFull(r, table, tableOffset, size, "section table"); err != nil {
		return nil, err
	}
	for i := range sections {
		raw := table[i*sectionHeaderSize:]
		s := Section{
			Name:        sectionName(raw[:8]),
			VirtualSize: le.Uint32(raw[8:]),
			RawSize:     le.Uint32(raw[16:]),
			RawOffset:   le.Uint32(raw[20:]),
		}
		if s.RawSize > 0 && int64(s.RawOffset)+int64(s.RawSize) > size {
			return nil, fmt.Errorf("section %q at byte %d of %d bytes lies outside the file of %d bytes", s.Name, s.RawOffset, s.RawSize, size)
		}
		image.Sections = append(image.Sections, s)
	}
	return image, nil
}

func sectionName(b []byte) string {
	if i := slices.Index(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

func readFull(r io.ReaderAt, p []byte, off, size int64, what string) error {
	if off < 0 || off+int64(len(p)) > size {
		return fmt.Errorf("%s at byte %d lies outside the file of %d bytes: it is truncated", what, off, size)
	}
	if n, err := r.ReadAt(p, off); n < len(p) {
		return fmt.Errorf("read %s: %w", what, err)
	}
	return nil
}

// Authenticode writes what an Authenticode digest covers to every hash, in one
// pass over the file.
func (i *Image) Authenticode(hashes ...hash.Hash) error {
	w := make([]io.Writer, len(hashes))
	for n, h := range hashes {
		w[n] = h
	}
	r, _, err := i.AuthenticodeContent()
	if err == nil {
		_, err = io.CopyBuffer(io.MultiWriter(w...), r, make([]byte, 128<<10))
	}
	if err != nil {
		return fmt.Errorf("take Authenticode digest: %w", err)
	}
	return nil
}

// AuthenticodeContent returns a reader over what an Authenticode digest covers,
// and its length in bytes.
func (i *Image) AuthenticodeContent() (r io.Reader, length int64, err error) {
	spans, err := i.AuthenticodeSpans()
	if err != nil {
		return nil, 0, err
	}
	for _, s := range spans {
		length += s.Length
	}
	return &authenticodeContent{i.r, spans}, length, nil
}

// Span is a run of bytes of a file.
type Span struct{ Offset, Length int64 }

// AuthenticodeSpans are the bytes that an Authenticode digest covers, in its
// order: the headers without CheckSum and the certificate table's directory
// entry, then every section that has content in the order of the file, then what
// follows the last section up to the certificate table.
//
// It is EDK II's reading of the format: overlapping sections are hashed twice,
// and data after the last section counts by its amount, not its place.
func (i *Image) AuthenticodeSpans() ([]Span, error) {
	var spans []Span
	add := func(from, to int64) {
		if to > from {
			spans = append(spans, Span{from, to - from})
		}
	}
	headers := int64(i.headersSize)
	next := i.checksum + 4
	add(0, i.checksum)
	if i.certEntry != 0 {
		add(next, i.certEntry)
		next = i.certEntry + 8
	}
	add(next, headers)
	hashed := headers
	sections := slices.Clone(i.Sections)
	slices.SortStableFunc(sections, func(a, b Section) int {
		return int(int64(a.RawOffset) - int64(b.RawOffset))
	})
	for _, s := range sections {
		if s.RawSize == 0 {
			continue
		}
		add(int64(s.RawOffset), int64(s.RawOffset)+int64(s.RawSize))
		hashed += int64(s.RawSize)
	}
	if hashed < i.size {
		if hashed+int64(i.certSize) > i.size {
			return nil, fmt.Errorf("sections and certificate table are %d bytes longer than the file: firmware would not load it", hashed+int64(i.certSize)-i.size)
		}
		add(hashed, i.size-int64(i.certSize))
	}
	return spans, nil
}

type authenticodeContent struct {
	r     io.ReaderAt
	spans []Span // that are left to read
}

func (c *authenticodeContent) Read(p []byte) (int, error) {
	if len(c.spans) == 0 {
		return 0, io.EOF
	}
	s := &c.spans[0]
	p = p[:min(int64(len(p)), s.Length)]
	n, err := c.r.ReadAt(p, s.Offset)
	s.Offset += int64(n)
	s.Length -= int64(n)
	if s.Length == 0 {
		c.spans = c.spans[1:]
	}
	if n == len(p) {
		return n, nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// CertificateEntry is where the headers say where the signatures are: the offset
// in the file of 8 bytes that no digest covers, 0 when the headers have no room
// for them.
func (i *Image) CertificateEntry() int64 { return i.certEntry }

// Section returns the first section of a name.
func (i *Image) Section(name string) (Section, bool) {
	for _, s := range i.Sections {
		if s.Name == name {
			return s, true
		}
	}
	return Section{}, false
}

// Content returns a reader over what a section holds once it is loaded: its
// VirtualSize bytes, which is what systemd-stub measures. Bytes beyond those in
// the file read as zero.
func (i *Image) Content(s Section) *io.SectionReader {
	return io.NewSectionReader(sectionContent{i.r, s}, 0, int64(s.VirtualSize))
}

type sectionContent struct {
	r io.ReaderAt
	s Section
}

func (c sectionContent) ReadAt(p []byte, off int64) (int, error) {
	stored := int64(min(c.s.RawSize, c.s.VirtualSize))
	n := 0
	if off < stored {
		var err error
		n, err = c.r.ReadAt(p[:min(int64(len(p)), stored-off)], int64(c.s.RawOffset)+off)
		if n < len(p) && off+int64(n) < stored {
			return n, err
		}
	}
	zeros := p[n:min(int64(len(p)), max(int64(c.s.VirtualSize)-off, int64(n)))]
	clear(zeros)
	n += len(zeros)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// sectionBytes reads a section that is known to be small.
func (i *Image) sectionBytes(s Section, limit uint32) ([]byte, error) {
	if s.VirtualSize > limit {
		return nil, fmt.Errorf("section %s of %d bytes is longer than the %d bytes expected", s.Name, s.VirtualSize, limit)
	}
	content := make([]byte, s.VirtualSize)
	if _, err := i.Content(s).ReadAt(content, 0); err != nil && err != io.EOF {
		return nil, fmt.Errorf("read section %s: %w", s.Name, err)
	}
	return content, nil
}

// Signatures returns the WIN_CERTIFICATE entries of the certificate table, each
// PKCS#7 SignedData (type 0x0002) as DER, possibly padded. A table that holds
// anything else, or that its entries do not fill, is an error.
func (i *Image) Signatures() ([][]byte, error) {
	if i.certSize == 0 {
		return nil, nil
	}
	if i.certSize > peMaxCerts {
		return nil, fmt.Errorf("read certificate table: %d bytes are more than the %d expected", i.certSize, peMaxCerts)
	}
	table := make([]byte, i.certSize)
	if err := readFull(i.r, table, int64(i.certOffset), i.size, "certificate table"); err != nil {
		return nil, err
	}
	const (
		winCertHeader = 8 // dwLength, wRevision, wCertificateType
		winCertPKCS7  = 0x0002
	)
	var signatures [][]byte
	for len(table) > 0 {
		var length, padded int64
		if len(table) > winCertHeader {
			length = int64(binary.LittleEndian.Uint32(table))
			padded = (length + 7) &^ 7
		}
		if length <= winCertHeader || padded > int64(len(table)) {
			return nil, fmt.Errorf("read certificate table: entry of %d bytes in the %d that are left: firmware would not trust it", length, len(table))
		}
		if t := binary.LittleEndian.Uint16(table[6:]); t != winCertPKCS7 {
			return nil, fmt.Errorf("read certificate table: entry of type %#04x is no PKCS#7 signature (%#04x)", t, winCertPKCS7)
		}
		signatures = append(signatures, table[winCertHeader:length])
		table = table[padded:]
	}
	return signatures, nil
}

// Size is the length of the file in bytes.
func (i *Image) Size() int64 { return i.size }

// CertificateTable is where the signatures lie in the file: offset and length
// in bytes, both 0 when there are none.
func (i *Image) CertificateTable() (offset, length int64) {
	if i.certSize == 0 {
		return 0, 0
	}
	return int64(i.certOffset), int64(i.certSize)
}
