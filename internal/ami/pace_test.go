package ami

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestPacer holds how many may be on their way after answers of AWS.
func TestPacer(t *testing.T) {
	p := newPacer()
	window := func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return int(p.window)
	}
	if window() != firstInFlight {
		t.Errorf("at first %d", window())
	}
	good := func(n int) {
		for range n {
			p.observe(final, nil, time.Millisecond)
		}
	}
	good(firstInFlight)
	if window() != 2*firstInFlight {
		t.Errorf("after a round %d: it does not double", window())
	}
	good(1000)
	if window() != maxInFlight {
		t.Errorf("at most %d", window())
	}
	refused := errors.New("refused")
	p.observe(throttled, refused, time.Millisecond)
	p.observe(throttled, refused, time.Millisecond)
	if window() != maxInFlight/2 {
		t.Errorf("after one round of refusals %d", window())
	}
	good(maxInFlight / 2)
	if got := window(); got < maxInFlight/2 || got > maxInFlight/2+1 {
		t.Errorf("a round after a refusal %d", got)
	}
	p.observe(transient, refused, time.Second)
	if got := window(); got < maxInFlight/2 {
		t.Errorf("after a failure that is no refusal %d", got)
	}
	for range 20 {
		p.mu.Lock()
		p.cut = time.Time{}
		p.mu.Unlock()
		p.observe(throttled, refused, time.Millisecond)
	}
	if window() != 1 {
		t.Errorf("after many refusals %d", window())
	}
}

// TestPacerRate holds how many a second are admitted.
func TestPacerRate(t *testing.T) {
	p := newPacer()
	now := time.Now()
	second := func(puts int) float64 {
		p.since, p.puts = now, puts
		now = now.Add(time.Second)
		p.tryMore(now)
		return float64(p.limiter.Limit())
	}
	for n, step := range []struct {
		puts int
		want float64
	}{{100, 1000}, {999, 1250}, {999, 1250}, {1200, 1562.5}} {
		if got := second(step.puts); got != step.want {
			t.Errorf("second %d: %.1f, want %.1f", n, got, step.want)
		}
	}
	p.observe(throttled, errors.New("refused"), time.Millisecond)
	now = time.Now()
	if got := second(999); got != firstRate {
		t.Errorf("after a refusal %.1f", got)
	}
	now = now.Add(calm)
	if got := second(999); got != 1250 {
		t.Errorf("when it is calm again %.1f", got)
	}
}

// TestPacerAdmits counts who is on the way at once.
func TestPacerAdmits(t *testing.T) {
	p := newPacer()
	var inside, most atomic.Int64
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			if err := p.enter(t.Context()); err != nil {
				t.Error(err)
				return
			}
			now := inside.Add(1)
			for seen := most.Load(); now > seen && !most.CompareAndSwap(seen, now); seen = most.Load() {
			}
			time.Sleep(time.Millisecond)
			inside.Add(-1)
			p.leave()
		})
	}
	all.Wait()
	if most.Load() != firstInFlight {
		t.Errorf("%d were on their way at once", most.Load())
	}
	// Whoever waits goes away with its context.
	for range firstInFlight {
		if err := p.enter(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancelCause(t.Context())
	stopped := errors.New("stopped")
	time.AfterFunc(10*time.Millisecond, func() { stop(stopped) })
	if err := p.enter(ctx); !errors.Is(err, stopped) {
		t.Error(err)
	}
}

func TestPatienceForABlock(t *testing.T) {
	p := newPacer()
	const floor, ceiling = time.Second, 30 * time.Second
	if got := p.patienceFor(floor, ceiling); got != ceiling {
		t.Errorf("before the first block %s", got)
	}
	for took, want := range map[time.Duration]time.Duration{time.Millisecond: floor, 500 * time.Millisecond: 5 * time.Second, time.Minute: ceiling} {
		p := newPacer()
		p.observe(final, nil, took)
		if got := p.patienceFor(floor, ceiling); got != want {
			t.Errorf("after a block of %s: %s, want %s", took, got, want)
		}
	}
}

// FuzzOwner holds that nothing that a tag says makes a run of another machine
// count as dead.
func FuzzOwner(f *testing.F) {
	for _, seed := range []string{"", "a/1/1", thisProcess(), machineID() + "/1/1", machineID() + "/99999999999999999999/1", "//"} {
		f.Add(seed, aliveNow())
	}
	f.Add("x", aliveDone)
	f.Fuzz(func(t *testing.T, owner, alive string) {
		if isDead(owner) && (len(owner) < 16 || owner[:16] != machineID()) {
			t.Errorf("%q counts as dead", owner)
		}
		if isLongAgo(alive) && alive == aliveDone {
			t.Errorf("%q is long ago", alive)
		}
	})
}
