package hostile

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/audit"
)

// fakeBooter stands in for a machine: what each input does is written down, so that
// the grouping is tried without any boot.
type fakeBooter struct {
	signs    map[string]string // of an input, by ID
	measured map[string]int    // the PCR that an input changes
	stops    map[string]bool
	missing  map[string]bool // cannot be tried
	hides    map[string]bool // nothing else is seen where this one is
	together [2]string       // stop the boot when both are there
	crash    int             // the boot that ends by chance, from 1
	boots    [][]string
}

func (f *fakeBooter) boot(_ context.Context, inputs []Input, _ bool) (*Outcome, error) {
	o := &Outcome{Signs: map[int]string{}, NotTried: map[int]string{}, Bound: map[int]string{4: "four", 12: "twelve"}}
	var ids []string
	hidden := slices.ContainsFunc(inputs, func(i Input) bool { return f.hides[i.ID] })
	for i, input := range inputs {
		ids = append(ids, input.ID)
		if f.missing[input.ID] {
			o.NotTried[i] = "there is none"
			continue
		}
		if sign, ok := f.signs[input.ID]; ok && (!hidden || f.hides[input.ID]) {
			o.Signs[i] = sign
		}
		if pcr, ok := f.measured[input.ID]; ok {
			o.Bound[pcr] = input.ID
		}
		if f.stops[input.ID] {
			o.Ended = "the kernel panicked"
		}
	}
	if slices.Contains(ids, f.together[0]) && slices.Contains(ids, f.together[1]) {
		o.Ended = "both were there"
	}
	f.boots = append(f.boots, ids)
	if len(f.boots) == f.crash {
		o.Ended = "chance"
	}
	return o, nil
}

func inputsOf(ids ...string) []Input {
	var inputs []Input
	for _, id := range ids {
		id, flags, _ := strings.Cut(id, ":")
		inputs = append(inputs, Input{ID: id, Name: id, Early: strings.Contains(flags, "early"), Alone: strings.Contains(flags, "alone"), Excludes: strings.TrimPrefix(flags, "x")})
		if !strings.HasPrefix(flags, "x") {
			inputs[len(inputs)-1].Excludes = ""
		}
	}
	return inputs
}

func TestBattery(t *testing.T) {
	many := make([]string, 40)
	for i := range many {
		many[i] = fmt.Sprintf("harmless%d", i)
	}
	for _, c := range []struct {
		name   string
		booter fakeBooter
		inputs []string
		want   map[string]audit.HostileResult // the others have no effect
		boots  int                            // at most
	}{
		{"forty without effect share a boot", fakeBooter{}, many, nil, 2},
		{"one of forty is open, and the rest is tried again", fakeBooter{signs: map[string]string{"harmless7": "seen"}}, many,
			map[string]audit.HostileResult{"harmless7": audit.Open}, 3},
		{"one hides the others", fakeBooter{signs: map[string]string{"harmless7": "seen", "harmless9": "seen"}, hides: map[string]bool{"harmless7": true}}, many,
			map[string]audit.HostileResult{"harmless7": audit.Open, "harmless9": audit.Open}, 4},
		{"one of forty is measured", fakeBooter{measured: map[string]int{"harmless30": 4}}, many,
			map[string]audit.HostileResult{"harmless30": audit.Measured}, 14},
		{"seen and measured is measured", fakeBooter{measured: map[string]int{"b": 12}, signs: map[string]string{"b": "ran"}}, []string{"a", "b"},
			map[string]audit.HostileResult{"b": audit.Measured}, 4},
		{"what is measured does not cover another", fakeBooter{measured: map[string]int{"b": 12}, signs: map[string]string{"a": "ran"}}, []string{"a", "b"},
			map[string]audit.HostileResult{"a": audit.Open, "b": audit.Measured}, 4},
		{"one stops the boot", fakeBooter{stops: map[string]bool{"b": true}}, []string{"a", "b", "c"},
			map[string]audit.HostileResult{"b": audit.Stopped}, 6},
		{"stopped and seen is open", fakeBooter{stops: map[string]bool{"b": true}, signs: map[string]string{"b": "ran"}}, []string{"a", "b", "c"},
			map[string]audit.HostileResult{"b": audit.Open}, 3},
		{"not tried is no result", fakeBooter{missing: map[string]bool{"b": true}}, []string{"a", "b"},
			map[string]audit.HostileResult{"b": audit.NotTried}, 2},
		{"only together", fakeBooter{together: [2]string{"a", "b"}}, []string{"a", "b"},
			map[string]audit.HostileResult{"a": audit.NotTried, "b": audit.NotTried}, 5},
		{"a crash by chance", fakeBooter{crash: 2}, []string{"a", "b"}, nil, 5},
		{"early and measured", fakeBooter{measured: map[string]int{"a": 4}}, []string{"a:early", "b"},
			map[string]audit.HostileResult{"a": audit.Measured}, 4},
		{"early and not measured boots to the end", fakeBooter{signs: map[string]string{"a": "ran"}}, []string{"a:early", "b"},
			map[string]audit.HostileResult{"a": audit.Open}, 5},
		{"alone", fakeBooter{}, []string{"a:alone", "b", "c"}, nil, 3},
		{"excluding", fakeBooter{}, []string{"a:xdisk", "b:xdisk", "c"}, nil, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			inputs := inputsOf(c.inputs...)
			b := &battery{booter: &c.booter, progress: func(string) {}}
			if err := b.run(t.Context(), inputs, map[int]string{4: "four", 12: "twelve"}); err != nil {
				t.Fatal(err)
			}
			report, err := b.report(inputs)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range report {
				want := c.want[r.ID]
				if want == "" {
					want = audit.NoEffect
				}
				if r.Result != want {
					t.Errorf("%s: %s, want %s", r.ID, r.Result, want)
				}
			}
			if b.boots > c.boots {
				t.Errorf("%d boots, want at most %d: %q", b.boots, c.boots, c.booter.boots)
			}
		})
	}
}

// TestBaselineIsThePrediction refuses to compare with a boot that is none of the
// image's.
func TestBaselineIsThePrediction(t *testing.T) {
	b := &battery{booter: &fakeBooter{}, progress: func(string) {}}
	err := b.run(t.Context(), inputsOf("a"), map[int]string{4: "another"})
	if err == nil || !strings.Contains(err.Error(), "PCR 4") {
		t.Errorf("error is %v", err)
	}
}

// TestInputs holds the table: identifiers are unique, and each input says all that a
// report says of it.
func TestInputs(t *testing.T) {
	seen := map[string]bool{}
	for _, input := range All() {
		if input.ID == "" || input.Name == "" || input.From == "" || input.put == nil || seen[input.ID] {
			t.Errorf("%+v is incomplete, or its ID is there twice", input)
		}
		if input.ID != strings.ToLower(input.ID) || strings.ContainsAny(input.ID, " _/") {
			t.Errorf("%q is no identifier of lower case and hyphens", input.ID)
		}
		seen[input.ID] = true
	}
}
