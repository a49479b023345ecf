package measure

import (
	"fmt"
	"io"
)

// laterEvents are events that depend on digests that are still being taken.
type laterEvents struct {
	at     int // how many events of the result precede them
	settle func() ([]Event, error)
}

// addLater adds events that settle will give when their digests are there.
func (p *prediction) addLater(settle func() ([]Event, error)) {
	p.later = append(p.later, laterEvents{len(p.result.Events), settle})
}

// addHashed adds an event whose digest, in the bank of the prediction, is that of
// all that r has, which must be size bytes. doing says for an error what was
// being done.
func (p *prediction) addHashed(e Event, r io.Reader, size int64, doing string) {
	pending := p.hashing.start(p.Bank.Hash(), r, size)
	p.addLater(func() (events []Event, err error) {
		if e.Digest, err = pending.wait(); err != nil {
			return nil, fmt.Errorf("%s: %w", doing, err)
		}
		return []Event{e}, nil
	})
}

// settle waits for what addLater was given, in its order, and puts the events in
// their places. The first error is that of the first in the order of the boot.
func (p *prediction) settle() error {
	var events []Event
	from := 0
	for _, l := range p.later {
		events = append(events, p.result.Events[from:l.at]...)
		from = l.at
		settled, err := l.settle()
		if err != nil {
			return err
		}
		events = append(events, settled...)
	}
	p.result.Events = append(events, p.result.Events[from:]...)
	p.later = nil
	return nil
}
