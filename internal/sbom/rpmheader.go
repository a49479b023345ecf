package sbom

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

// rpmHeader is the header of an rpm as the database keeps it: without the magic
// that a package file has before it. All numbers are big-endian: the number of
// entries, the bytes of data; then entries of 16 bytes (tag, type, offset into the
// data, count); then the data (rpm's Package Format V4, "Header").
type rpmHeader struct {
	entries map[uint32]rpmEntry
	data    []byte
}

type rpmEntry struct{ kind, offset, count uint32 }

// Types of data.
const (
	rpmInt16       = 3
	rpmInt32       = 4
	rpmInt64       = 5
	rpmString      = 6
	rpmStringArray = 8
	rpmI18NString  = 9
)

const (
	maxRPMEntries = 0xffff
	maxRPMData    = 256 << 20 // rpm's own limit
	maxRPMText    = 64 << 10  // bytes of a text that is taken from a header
)

func parseRPMHeader(blob []byte) (rpmHeader, error) {
	if len(blob) < 8 {
		return rpmHeader{}, fmt.Errorf("it has %d bytes, and a header begins with 8", len(blob))
	}
	count, size := int64(binary.BigEndian.Uint32(blob)), int64(binary.BigEndian.Uint32(blob[4:]))
	if count == 0 || count > maxRPMEntries || size > maxRPMData {
		return rpmHeader{}, fmt.Errorf("it speaks of %d entries and %d bytes of data, which no header has", count, size)
	}
	if want := 8 + 16*count + size; int64(len(blob)) != want {
		return rpmHeader{}, fmt.Errorf("it has %d bytes where its %d entries and %d bytes of data make %d", len(blob), count, size, want)
	}
	h := rpmHeader{entries: map[uint32]rpmEntry{}, data: blob[8+16*count:]}
	for i := range count {
		e := blob[8+16*i:]
		tag := binary.BigEndian.Uint32(e)
		if tag < tagName {
			continue // regions, signatures and the table of languages
		}
		entry := rpmEntry{binary.BigEndian.Uint32(e[4:]), binary.BigEndian.Uint32(e[8:]), binary.BigEndian.Uint32(e[12:])}
		if _, twice := h.entries[tag]; twice {
			return rpmHeader{}, fmt.Errorf("it has the tag %d twice", tag)
		}
		h.entries[tag] = entry
	}
	return h, nil
}

// text is a string, or the first of several: of those in several languages, that in
// none. It is "" when there is no such tag.
func (h rpmHeader) text(tag uint32) (string, error) {
	e, ok := h.entries[tag]
	if !ok {
		return "", nil
	}
	if e.kind != rpmString && e.kind != rpmStringArray && e.kind != rpmI18NString || e.count == 0 {
		return "", fmt.Errorf("its tag %d is of type %d with %d values, where a text is expected", tag, e.kind, e.count)
	}
	if int64(e.offset) >= int64(len(h.data)) {
		return "", fmt.Errorf("its tag %d lies behind the end of the data", tag)
	}
	text := h.data[e.offset:]
	end := bytes.IndexByte(text[:min(len(text), maxRPMText+1)], 0)
	if end < 0 {
		return "", fmt.Errorf("its tag %d is a text without an end, or longer than %d bytes", tag, maxRPMText)
	}
	if !utf8.Valid(text[:end]) {
		// Old packages have Latin-1 in their summaries.
		return string(bytes.ToValidUTF8(text[:end], []byte("\uFFFD"))), nil
	}
	return string(text[:end]), nil
}

// number is an integer; ok is false when there is no such tag.
func (h rpmHeader) number(tag uint32) (value uint64, ok bool, err error) {
	e, ok := h.entries[tag]
	if !ok {
		return 0, false, nil
	}
	size, known := map[uint32]int64{rpmInt16: 2, rpmInt32: 4, rpmInt64: 8}[e.kind]
	if !known || e.count == 0 {
		return 0, false, fmt.Errorf("its tag %d is of type %d with %d values, where a number is expected", tag, e.kind, e.count)
	}
	if int64(e.offset)+size > int64(len(h.data)) {
		return 0, false, errors.New("a number lies behind the end of the data")
	}
	b := make([]byte, 8)
	copy(b[8-size:], h.data[e.offset:])
	clear(b[:8-size])
	return binary.BigEndian.Uint64(b), true, nil
}
