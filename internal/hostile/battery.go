package hostile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/org/attestable-image-action/internal/audit"
)

// Outcome is what one boot showed.
type Outcome struct {
	// Signs are what was seen of the inputs, by their place in the boot.
	Signs map[int]string
	// NotTried are the inputs that could not be put into the boot, and why.
	NotTried map[int]string
	// Bound are the PCRs that identify the image, in hex; nil when the firmware never
	// handed over.
	Bound map[int]string
	// Ended says how the boot ended when it did not become idle, and Failed that this
	// was no end that an image may want.
	Ended  string
	Failed bool
}

// booter boots the disk with these inputs, to the end or to the hand-over only. A
// test has one of its own.
type booter interface {
	boot(ctx context.Context, inputs []Input, toHandOver bool) (*Outcome, error)
}

// battery is one run over a disk.
type battery struct {
	booter   booter
	baseline *Outcome // to the end
	handOver *Outcome
	boots    int
	progress func(string)
	results  map[string]*audit.HostileInput // by ID
}

// run tries all inputs. The bound PCRs that every boot is compared with are
// predicted: a baseline that differs is an error.
func (b *battery) run(ctx context.Context, inputs []Input, predicted map[int]string) error {
	b.results = map[string]*audit.HostileInput{}
	var err error
	b.progress("booting without any input, to compare with")
	if b.baseline, err = b.boot(ctx, nil, false); err != nil {
		return err
	}
	if b.baseline.Failed {
		return fmt.Errorf("boot the disk as it is: it does not come up (%s), so there is nothing to compare with", b.baseline.Ended)
	}
	for _, pcr := range slices.Sorted(maps.Keys(predicted)) {
		if b.baseline.Bound[pcr] != predicted[pcr] {
			return fmt.Errorf("boot the disk as it is: PCR %d is %s and was predicted as %s: see what boot without --hostile says of it", pcr, b.baseline.Bound[pcr], predicted[pcr])
		}
	}
	early, groups := arrange(inputs)
	for _, input := range early {
		settled, err := b.early(ctx, input)
		if err != nil {
			return err
		}
		if !settled {
			groups = append(groups, []Input{input})
		}
	}
	for _, group := range groups {
		if _, err := b.try(ctx, group); err != nil {
			return err
		}
	}
	return nil
}

// arrange puts inputs that do not exclude each other together. Those that the
// firmware or the boot loader takes, and a PCR should show, are tried apart and
// first.
func arrange(inputs []Input) (early []Input, groups [][]Input) {
	for _, input := range inputs {
		if input.Early {
			early = append(early, input)
			continue
		}
		fits := func(group []Input) bool {
			return !slices.ContainsFunc(group, func(other Input) bool {
				return other.Alone || input.Alone || input.Excludes != "" && input.Excludes == other.Excludes
			})
		}
		if i := slices.IndexFunc(groups, fits); i >= 0 {
			groups[i] = append(groups[i], input)
		} else {
			groups = append(groups, []Input{input})
		}
	}
	return early, groups
}

func (b *battery) boot(ctx context.Context, inputs []Input, toHandOver bool) (*Outcome, error) {
	b.boots++
	return b.booter.boot(ctx, inputs, toHandOver)
}

// set records a result. One that was found before stays when it says more.
func (b *battery) set(input Input, result audit.HostileResult, pcrs []int, seen string) {
	if result == audit.Open && input.Inherent {
		result = audit.Inherent
	}
	if old := b.results[input.ID]; old != nil && (old.Result == audit.Open || result == audit.NoEffect) {
		return
	}
	b.results[input.ID] = &audit.HostileInput{ID: input.ID, Name: input.Name, ControlledBy: string(input.From), Result: result, PCRs: pcrs, Seen: seen}
}

// early boots one input as far as the hand-over, and says whether that settles it.
func (b *battery) early(ctx context.Context, input Input) (settled bool, err error) {
	if b.handOver == nil {
		if b.handOver, err = b.boot(ctx, nil, true); err != nil {
			return false, err
		}
	}
	b.progress("booting to the hand-over with " + input.Name)
	o, err := b.boot(ctx, []Input{input}, true)
	if err != nil {
		return false, err
	}
	if why, ok := o.NotTried[0]; ok {
		b.set(input, audit.NotTried, nil, why)
		return true, nil
	}
	changed := differing(b.handOver.Bound, o.Bound)
	switch {
	case len(changed) > 0:
		b.set(input, audit.Measured, changed, o.Signs[0])
	case o.Bound == nil:
		b.set(input, audit.Stopped, nil, ending(o))
	}
	return len(changed) > 0 || o.Bound == nil, nil
}

// try boots a group, and parts of it as long as it is not known which input did what.
// It says whether the boot differed from the one without inputs.
func (b *battery) try(ctx context.Context, group []Input) (differed bool, err error) {
	names := make([]string, len(group))
	for i, input := range group {
		names[i] = input.ID
	}
	b.progress(fmt.Sprintf("booting with %s: %s", counted(len(group)), strings.Join(names, ", ")))
	o, err := b.boot(ctx, group, false)
	if err != nil {
		return false, err
	}
	var tried []Input
	seen := map[string]string{} // by ID
	for i, input := range group {
		if why, ok := o.NotTried[i]; ok {
			b.set(input, audit.NotTried, nil, why)
			continue
		}
		tried = append(tried, input)
		if sign, ok := o.Signs[i]; ok {
			seen[input.ID] = sign
		}
	}
	changed := differing(b.baseline.Bound, o.Bound)
	stopped := o.Ended != b.baseline.Ended
	differed = len(changed) > 0 || stopped
	switch {
	case len(tried) == 0:
		return false, nil
	case len(changed) > 0 && len(tried) == 1:
		b.set(tried[0], audit.Measured, changed, seen[tried[0].ID])
		return true, nil
	case len(changed) > 0:
		return true, b.halve(ctx, tried, o, changed)
	}
	// No bound PCR shows what was seen.
	var rest []Input
	for _, input := range tried {
		if sign, ok := seen[input.ID]; ok {
			b.set(input, audit.Open, nil, sign)
		} else {
			rest = append(rest, input)
		}
	}
	switch {
	case len(rest) == 0:
		return differed, nil
	case len(seen) > 0:
		// What had an effect may have hidden that of the others.
		again, err := b.try(ctx, rest)
		return differed || again, err
	case !stopped:
		for _, input := range rest {
			b.set(input, audit.NoEffect, nil, "")
		}
		return false, nil
	case len(rest) == 1:
		b.set(rest[0], audit.Stopped, nil, ending(o))
		return true, nil
	}
	return true, b.halve(ctx, rest, o, nil)
}

// halve tries both halves of a group whose boot differed. When neither half differs by
// itself, it was what they do together, or chance: an emulated machine crashes now and
// then. So the group is booted once more.
func (b *battery) halve(ctx context.Context, group []Input, o *Outcome, changed []int) error {
	differed := false
	for _, half := range [][]Input{group[:len(group)/2], group[len(group)/2:]} {
		d, err := b.try(ctx, half)
		if err != nil {
			return err
		}
		differed = differed || d
	}
	if differed {
		return nil
	}
	b.progress(fmt.Sprintf("booting once more with %s, none of which did it alone", counted(len(group))))
	again, err := b.boot(ctx, group, false)
	if err != nil {
		return err
	}
	if again.Ended == b.baseline.Ended && len(differing(b.baseline.Bound, again.Bound)) == 0 {
		return nil
	}
	names := make([]string, len(group))
	for i, input := range group {
		names[i] = input.ID
	}
	for _, input := range group {
		if r := b.results[input.ID]; r == nil || r.Result == audit.NoEffect {
			delete(b.results, input.ID)
			what := ending(o)
			if len(changed) > 0 {
				what = "bound PCRs changed"
			}
			b.set(input, audit.NotTried, changed, fmt.Sprintf("%s, and only when these are there together: %s", what, strings.Join(names, ", ")))
		}
	}
	return nil
}

// differing are the PCRs that are not as in the boot without inputs. A boot that never
// handed over has none to compare: it ended.
func differing(baseline, bound map[int]string) []int {
	var changed []int
	for _, pcr := range slices.Sorted(maps.Keys(baseline)) {
		if bound != nil && bound[pcr] != baseline[pcr] {
			changed = append(changed, pcr)
		}
	}
	return changed
}

// ending says how a boot ended that ended otherwise.
func ending(o *Outcome) string {
	if o.Ended == "" {
		return "the boot comes to no end of its own"
	}
	return o.Ended
}

func counted(n int) string {
	if n == 1 {
		return "one input"
	}
	return fmt.Sprintf("%d inputs", n)
}

// report puts the results into the order of the inputs.
func (b *battery) report(inputs []Input) ([]audit.HostileInput, error) {
	var list []audit.HostileInput
	for _, input := range inputs {
		r := b.results[input.ID]
		if r == nil {
			return nil, errors.New("the battery lost the input " + input.ID)
		}
		list = append(list, *r)
	}
	return list, nil
}
