package vm

import (
	"bytes"
	"slices"

	"github.com/org/attestable-image-action/internal/measure"
)

// Comparison is one PCR of a boot beside its prediction.
type Comparison struct {
	PCR                 int
	Predicted, Recorded []byte // at the hand-over to the operating system
	Events              []EventPair
}

// Equal reports whether value and every event agree.
func (c Comparison) Equal() bool {
	return bytes.Equal(c.Predicted, c.Recorded) && c.FirstDifference() < 0
}

// FirstDifference is the index of the first event that differs, -1 when none
// does.
func (c Comparison) FirstDifference() int {
	return slices.IndexFunc(c.Events, func(p EventPair) bool { return !p.Equal() })
}

// EventPair is a predicted event beside the recorded one at the same place; one
// of them is nil where the other sequence is longer.
type EventPair struct {
	Predicted *measure.Event
	Recorded  *RecordedEvent
}

// Equal reports whether both events are there and extend the same digest.
func (p EventPair) Equal() bool {
	return p.Predicted != nil && p.Recorded != nil && bytes.Equal(p.Predicted.Digest, p.Recorded.Digest) &&
		(!p.Recorded.Logged || p.Recorded.Type == p.Predicted.Type)
}

// RecordedEvent is an extension that the TPM saw. What the event log says of it
// is known only when Logged.
type RecordedEvent struct {
	Digest []byte
	Logged bool
	Type   measure.EventType
	Data   []byte
}

// Compare sets a boot beside its prediction, PCR by PCR and event by event.
func (r *Result) Compare(p *measure.Prediction) []Comparison {
	var logged []Event // without those that were not extended: the i-th explains the i-th extension
	for _, e := range r.Events {
		if e.Type != evNoAction {
			logged = append(logged, e)
		}
	}
	comparisons := make([]Comparison, 0, len(p.PCRs))
	for _, n := range p.PCRs {
		c := Comparison{PCR: n, Predicted: p.Value(n)}
		if r.AtHandOver != nil {
			c.Recorded = r.AtHandOver[p.Bank][n]
		}
		for _, e := range p.Events {
			if e.PCR == n {
				c.Events = append(c.Events, EventPair{Predicted: &e})
			}
		}
		at := 0
		for i, extend := range r.Extends[:r.HandOver] {
			if extend.PCR != n {
				continue
			}
			recorded := &RecordedEvent{Digest: extend.Digests[p.Bank]}
			if i < r.Explained && i < len(logged) {
				recorded.Logged, recorded.Type, recorded.Data = true, measure.EventType(logged[i].Type), logged[i].Data
			}
			if at == len(c.Events) {
				c.Events = append(c.Events, EventPair{})
			}
			c.Events[at].Recorded = recorded
			at++
		}
		comparisons = append(comparisons, c)
	}
	return comparisons
}
