package vm

import (
	"bytes"
	"io"
	"sync"
	"time"

	"github.com/org/attestable-image-action/internal/lazyregexp"
)

// Bounds of what a guest can write to its serial line.
const (
	maxSerialLine = 64 << 10
	maxSerialLog  = 64 << 20
)

// Words on the serial line after which waiting is of no use.
var (
	// The firmware found nothing that it could or would start.
	noBoot = lazyregexp.New(`BdsDxe: No bootable option|BdsDxe: starting Boot\S+ "EFI Internal Shell"`)
	// Why it would not start one boot option: Access Denied is Secure Boot.
	bootRefused = lazyregexp.New(`BdsDxe: failed to (?:load|start) Boot\S+ .*: (.+)`)
	kernelPanic = lazyregexp.New(`Kernel panic - not syncing: .*`)
	// Terminal control sequences (ECMA-48), which firmware likes to write.
	escapes = lazyregexp.New("\x1b(?:\\[[0-9;?=]*[ -/]*[@-~]|[@-Z\\\\-_])")
)

// serial takes the guest's serial line: it keeps a log, passes everything on,
// and watches the lines.
type serial struct {
	log     io.Writer
	console io.Writer
	until   func(line string) bool

	line   []byte
	logged int
	write  error // the first error of the log

	mu      sync.Mutex
	refused string    // the firmware's reason not to start a boot option
	last    time.Time // when something was written

	found  chan string // receives the first line that until accepts
	noBoot chan struct{}
	panics chan string
}

func newSerial(log, console io.Writer, until func(string) bool) *serial {
	if console == nil {
		console = io.Discard
	}
	return &serial{
		log: log, console: console, until: until,
		found: make(chan string, 1), noBoot: make(chan struct{}, 1), panics: make(chan string, 1),
	}
}

// Write implements io.Writer. It never fails: QEMU would stop reading out the
// serial line, and the guest would wait for ever.
func (s *serial) Write(b []byte) (int, error) {
	if keep := min(len(b), maxSerialLog-s.logged); keep > 0 {
		n, err := s.log.Write(b[:keep])
		s.logged += n
		if s.write == nil {
			s.write = err
		}
	}
	s.mu.Lock()
	s.last = time.Now()
	s.mu.Unlock()
	_, _ = s.console.Write(b) // a closed terminal is no reason to end the boot
	for rest := b; len(rest) > 0; {
		end := bytes.IndexByte(rest, '\n')
		part := rest
		if end >= 0 {
			part = rest[:end]
		}
		s.line = append(s.line, part[:min(len(part), maxSerialLine-len(s.line))]...)
		if end < 0 {
			break
		}
		s.watch()
		s.line = s.line[:0]
		rest = rest[end+1:]
	}
	s.watch() // a prompt has no end of line
	return len(b), nil
}

// watch looks at the line so far.
func (s *serial) watch() {
	if len(s.line) == 0 {
		return
	}
	line := string(bytes.TrimRight(escapes().ReplaceAll(s.line, nil), "\r"))
	if s.until != nil && s.until(line) {
		offer(s.found, line)
	}
	if reason := bootRefused().FindStringSubmatch(line); reason != nil {
		s.mu.Lock()
		s.refused = reason[1]
		s.mu.Unlock()
	}
	if noBoot().MatchString(line) {
		offer(s.noBoot, struct{}{})
	}
	if text := kernelPanic().FindString(line); text != "" {
		offer(s.panics, text)
	}
}

// refusal is the firmware's reason not to start a boot option, or "".
func (s *serial) refusal() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused
}

// silence is how long nothing was written.
func (s *serial) silence() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.last)
}

// offer puts a value into a channel of one place, unless one is there already.
func offer[T any](c chan T, value T) {
	select {
	case c <- value:
	default:
	}
}
