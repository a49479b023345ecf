package vm

import (
	"testing"

	"github.com/org/attestable-image-action/internal/measure"
)

// TestCompare sets made-up recordings beside a prediction: each difference must
// be found, and where it begins.
func TestCompare(t *testing.T) {
	event := func(digest byte) Extend {
		return Extend{PCR: 4, Digests: map[measure.Bank][]byte{measure.SHA384: {digest}}}
	}
	prediction := &measure.Prediction{
		Bank: measure.SHA384, PCRs: []int{4},
		Events: []measure.Event{
			{PCR: 4, Type: measure.EVEFIAction, Digest: []byte{1}},
			{PCR: 7, Type: measure.EVSeparator, Digest: []byte{9}},
			{PCR: 4, Type: measure.EVSeparator, Digest: []byte{2}},
		},
	}
	other := Extend{PCR: 7, Digests: map[measure.Bank][]byte{measure.SHA384: {9}}}
	for _, tc := range []struct {
		name    string
		extends []Extend
		first   int // difference
		pairs   int
	}{
		{"equal", []Extend{event(1), other, event(2)}, -1, 2},
		{"another digest", []Extend{event(1), other, event(3)}, 1, 2},
		{"one missing", []Extend{event(1), other}, 1, 2},
		{"one more", []Extend{event(1), other, event(2), event(5)}, 2, 3},
		{"another order", []Extend{event(2), other, event(1)}, 0, 2},
		{"none", nil, 0, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			result := &Result{Extends: tc.extends, HandOver: len(tc.extends)}
			c := result.Compare(prediction)[0]
			if got := c.FirstDifference(); got != tc.first || len(c.Events) != tc.pairs {
				t.Errorf("first difference %d in %d pairs, want %d in %d", got, len(c.Events), tc.first, tc.pairs)
			}
		})
	}
	// A logged event of another type is a difference, even with the digest.
	result := &Result{
		Extends: []Extend{event(1), event(2)}, HandOver: 2, Explained: 2,
		Events: []Event{{PCR: 4, Type: evNoAction}, {PCR: 4, Type: uint32(measure.EVEFIAction)}, {PCR: 4, Type: uint32(measure.EVEFIAction)}},
	}
	if got := result.Compare(prediction)[0].FirstDifference(); got != 1 {
		t.Errorf("an event of another type: first difference %d, want 1", got)
	}
}
