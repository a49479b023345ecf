package ami

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Bounds of the pace at which blocks are put.
const (
	maxInFlight   = 64
	firstInFlight = 8
	// firstRate is the quota of PutSnapshotBlock, a second, of a snapshot and of
	// an account, unless AWS raised the account's: who is at it for a second
	// without a refusal tries a quarter more, and falls back to it for calm at
	// the next refusal.
	firstRate = 1000
	calm      = 30 * time.Second
)

// pacer decides how many blocks are on their way at once: more by one for each
// round that went well (doubling until the first refusal), half of them when
// AWS wants fewer requests. This is TCP's additive increase, multiplicative
// decrease (RFC 5681, section 3.1): jobs that share an account's quota end up
// with shares alike. It also watches how long a block takes, from which follows
// when one hangs.
type pacer struct {
	limiter *rate.Limiter

	mu       sync.Mutex
	window   float64 // blocks that may be on their way
	slow     bool    // there was a refusal: no more doubling
	inFlight int
	waiting  []chan struct{}
	cut      time.Time     // of the window, last
	typical  time.Duration // that a block takes; 0 before the first
	since    time.Time     // when this second of putting began
	puts     int           // that went well in it
}

func newPacer() *pacer {
	return &pacer{limiter: rate.NewLimiter(firstRate, maxInFlight), window: firstInFlight}
}

// enter waits until a block may go on its way. leave must follow.
func (p *pacer) enter(ctx context.Context) error {
	p.mu.Lock()
	if p.inFlight < int(p.window) && len(p.waiting) == 0 {
		p.inFlight++
		p.mu.Unlock()
		return p.limit(ctx)
	}
	turn := make(chan struct{})
	p.waiting = append(p.waiting, turn)
	p.mu.Unlock()
	select {
	case <-turn:
		return p.limit(ctx)
	case <-ctx.Done():
		// Whoever gave the turn meanwhile counted it: nobody needs it any more.
		return context.Cause(ctx)
	}
}

func (p *pacer) limit(ctx context.Context) error {
	if err := p.limiter.Wait(ctx); err != nil {
		p.leave()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	return nil
}

func (p *pacer) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inFlight--
	p.wake()
}

func (p *pacer) wake() {
	for len(p.waiting) > 0 && p.inFlight < int(p.window) {
		p.inFlight++
		close(p.waiting[0])
		p.waiting = p.waiting[1:]
	}
}

// observe learns from an attempt.
func (p *pacer) observe(what kind, err error, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err == nil:
		if p.typical == 0 {
			p.typical = took
		}
		p.typical += (took - p.typical) / 16
		if p.slow {
			p.window += 1 / p.window
		} else {
			p.window++
		}
		p.window = min(p.window, maxInFlight)
		p.wake()
		p.tryMore(time.Now())
	case what == throttled:
		// One refusal cuts; those of the same round say nothing new.
		if now := time.Now(); now.Sub(p.cut) > max(2*p.typical, 50*time.Millisecond) {
			p.window, p.cut = max(p.window/2, 1), now
		}
		p.slow = true
		p.limiter.SetLimit(firstRate)
	}
}

// tryMore raises the rate when the last second was at it, and AWS refused nothing
// for a while.
func (p *pacer) tryMore(now time.Time) {
	p.puts++
	if now.Sub(p.since) < time.Second {
		return
	}
	if limit := p.limiter.Limit(); float64(p.puts) >= 0.9*float64(limit) && now.Sub(p.cut) > calm {
		p.limiter.SetLimit(limit * 5 / 4)
	}
	p.since, p.puts = now, 0
}

// patienceFor is how long a block may take before it counts as stuck: ten times
// as long as usual, but never below floor nor above ceiling.
func (p *pacer) patienceFor(floor, ceiling time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.typical == 0 {
		return ceiling
	}
	return min(max(10*p.typical, floor), ceiling)
}
