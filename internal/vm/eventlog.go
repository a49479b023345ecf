package vm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/org/attestable-image-action/internal/measure"
)

// evNoAction marks an event that was not extended.
const evNoAction = 3

// Event is one entry of the event log.
type Event struct {
	PCR     int
	Type    uint32
	Digests map[measure.Bank][]byte
	Data    []byte
}

// logReader reads a crypto-agile event log record by record.
type logReader struct {
	b      []byte
	offset int
}

// newLogReader skips the header record.
func newLogReader(b []byte) (*logReader, error) {
	if len(b) < signatureOffset {
		return nil, io.ErrUnexpectedEOF
	}
	size := binary.LittleEndian.Uint32(b[signatureOffset-4:])
	if binary.LittleEndian.Uint32(b) != 0 || binary.LittleEndian.Uint32(b[4:]) != evNoAction || uint64(size) > uint64(len(b)-signatureOffset) {
		return nil, errors.New("not the header of an event log")
	}
	return &logReader{b: b, offset: signatureOffset + int(size)}, nil
}

func (r *logReader) next() (Event, error) {
	b := r.b[r.offset:]
	if len(b) < 12 {
		return Event{}, io.EOF
	}
	event := Event{PCR: int(binary.LittleEndian.Uint32(b)), Type: binary.LittleEndian.Uint32(b[4:]), Digests: map[measure.Bank][]byte{}}
	count := binary.LittleEndian.Uint32(b[8:])
	if event.PCR >= pcrCount || count > uint32(len(digestSizes)) {
		return Event{}, fmt.Errorf("no event at byte %d of the event log", r.offset)
	}
	at := 12
	for range count {
		if len(b) < at+2 {
			return Event{}, io.ErrUnexpectedEOF
		}
		alg := tpm2.TPMAlgID(binary.LittleEndian.Uint16(b[at:]))
		size, known := digestSizes[alg]
		if !known || len(b) < at+2+size {
			return Event{}, fmt.Errorf("no event at byte %d of the event log", r.offset)
		}
		for _, bank := range banks {
			if algorithm(bank) == alg {
				event.Digests[bank] = slices.Clone(b[at+2 : at+2+size])
			}
		}
		at += 2 + size
	}
	if len(b) < at+4 {
		return Event{}, io.ErrUnexpectedEOF
	}
	size := binary.LittleEndian.Uint32(b[at:])
	at += 4
	if uint64(size) > uint64(len(b)-at) {
		return Event{}, io.ErrUnexpectedEOF
	}
	event.Data = slices.Clone(b[at : at+int(size)])
	r.offset += at + int(size)
	return event, nil
}
