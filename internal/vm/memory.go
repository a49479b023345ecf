package vm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// logSignature stands in the data of the first event of a crypto-agile event
// log (TCG PC Client Platform Firmware Profile, section 10.4.5.1), and
// signatureOffset is its place behind the log's first byte: that event has the
// old form, whose header is PCR index, type, SHA-1 digest and data size.
var logSignature = []byte("Spec ID Event03\x00")

const signatureOffset = 4 + 4 + 20 + 4

// Bounds of the search through the guest's memory, in bytes.
const (
	searchWindow = 1 << 20
	maxLog       = 1 << 20
	// A guest may fill its memory with headers; no firmware keeps more copies.
	maxCandidates = 256
)

// newMemory makes a file without a name, of size bytes.
func newMemory(name string, size int64) (*os.File, error) {
	file, err := memoryFile(name)
	if err != nil {
		return nil, fmt.Errorf("make a memory file for %s: %w", name, err)
	}
	if err := file.Truncate(size); err != nil {
		file.Close()
		return nil, fmt.Errorf("make a memory file of %d bytes for %s: %w", size, name, err)
	}
	return file, nil
}

// foundLog is an event log in the guest's memory.
type foundLog struct {
	offset int64
	bytes  []byte
	events []Event
	// matched is how many extensions the log explains.
	matched int
}

// findLog searches the guest's memory for the event log that explains most of
// extends: one whose events are, in order and in every bank, the first of them.
// It reads only what the guest has used.
func findLog(memory *os.File, extends []Extend) (*foundLog, error) {
	var best *foundLog
	candidates := 0
	err := searchMemory(memory, func(at int64) bool {
		candidates++
		if log := readLog(memory, at, extends); log != nil && (best == nil || log.matched > best.matched) {
			best = log
		}
		return candidates < maxCandidates && (best == nil || best.matched < len(extends))
	})
	if err != nil {
		return nil, fmt.Errorf("search the guest's memory for the event log: %w", err)
	}
	return best, nil
}

// searchMemory calls candidate with each place where an event log may begin,
// until it returns false.
func searchMemory(memory *os.File, candidate func(at int64) bool) error {
	return walkMemory(memory, len(logSignature)-1, func(window []byte, at int64) bool {
		for from := 0; ; {
			i := bytes.Index(window[from:], logSignature)
			if i < 0 {
				return true
			}
			if start := at + int64(from+i) - signatureOffset; start >= 0 && !candidate(start) {
				return false
			}
			from += i + 1
		}
	})
}

// walkMemory calls visit with one part after the other of what the guest has
// used, and the part's place, until it returns false. A part begins with the
// overlap bytes that the one before ended with.
func walkMemory(memory *os.File, overlap int, visit func(window []byte, at int64) bool) error {
	window := make([]byte, searchWindow)
	fd := int(memory.Fd())
	for offset := int64(0); ; {
		begin, err := unix.Seek(fd, offset, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // no more data
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(fd, begin, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for at := begin; at < end; {
			n, err := memory.ReadAt(window[:min(searchWindow, end-at)], at)
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			if !visit(window[:n], at) {
				return nil
			}
			if n <= overlap || at+int64(n) >= end {
				break
			}
			at += int64(n - overlap)
		}
		offset = end
	}
}

// readLog reads the event log at a place in memory as far as its events are the
// first of extends. It returns nil when not one is.
func readLog(memory *os.File, at int64, extends []Extend) *foundLog {
	buffer := make([]byte, maxLog)
	n, err := memory.ReadAt(buffer, at)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	reader, err := newLogReader(buffer[:n])
	if err != nil {
		return nil
	}
	log := &foundLog{offset: at}
	for log.matched < len(extends) {
		event, err := reader.next()
		if err != nil {
			break
		}
		if event.Type != evNoAction {
			if !sameExtend(event, extends[log.matched]) {
				break
			}
			log.matched++
		}
		log.events = append(log.events, event)
		log.bytes = bytes.Clone(buffer[:reader.offset])
	}
	if log.matched == 0 {
		return nil
	}
	return log
}

// sameExtend says whether an event of the log is the extension that the TPM
// saw: same PCR, same digest in every bank.
func sameExtend(event Event, extend Extend) bool {
	if event.PCR != extend.PCR {
		return false
	}
	for _, bank := range banks {
		if !bytes.Equal(event.Digests[bank], extend.Digests[bank]) {
			return false
		}
	}
	return true
}
