package ami

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// maxDoubtful is how often what is as a rule final is tried at most.
const maxDoubtful = 3

// try calls AWS until it succeeds or there is no point in it. Each attempt has a
// time limit, since AWS, or what lies between, may hang. What failed for good is
// explained.
func try[T any](ctx context.Context, r *region, a action, call func(context.Context) (T, error)) (T, error) {
	return tryPaced(ctx, r, a, nil, call)
}

// tryPaced is try at the pace of p, unless that is nil: no attempt waits in
// between with a place among those on their way.
func tryPaced[T any](ctx context.Context, r *region, a action, p *pacer, call func(context.Context) (T, error)) (T, error) {
	var none T
	renewed := false
	for attempt := 1; ; attempt++ {
		limit := r.patience.call
		if p != nil {
			if err := p.enter(ctx); err != nil {
				return none, err
			}
			limit = p.patienceFor(r.patience.putFloor, limit)
		}
		start := time.Now()
		result, err := once(ctx, limit, call)
		what := final
		if err != nil {
			what = judge(err)
		}
		if p != nil {
			p.leave()
			p.observe(what, err, time.Since(start))
		}
		switch {
		case err == nil:
			return result, nil
		case ctx.Err() != nil:
			return none, context.Cause(ctx)
		case what == expired && !renewed && r.renew(ctx, start):
			renewed = true
			continue
		case what == final, what == expired,
			what == doubtful && attempt >= maxDoubtful,
			what != unseen && attempt >= r.patience.attempts:
			return none, r.explain(a, err)
		}
		if err := sleep(ctx, r.patience.pause(attempt)); err != nil {
			return none, err
		}
	}
}

// once makes one attempt.
func once[T any](ctx context.Context, limit time.Duration, call func(context.Context) (T, error)) (T, error) {
	slow := &slowError{after: limit.Round(time.Millisecond).String()}
	attempt, cancel := context.WithTimeoutCause(ctx, limit, slow)
	defer cancel()
	result, err := call(attempt)
	if err != nil && ctx.Err() == nil && errors.Is(context.Cause(attempt), slow) {
		err = slow
	}
	return result, err
}

// pause is the time before the next attempt: it doubles, and half of it is
// chance, so that what failed together does not come back together.
func (p *patience) pause(attempt int) time.Duration {
	wait := p.maxBackoff
	if shift := attempt - 1; shift < 16 {
		wait = min(wait, p.backoff<<shift)
	}
	return wait/2 + time.Duration(rand.Int64N(int64(wait)/2+1)) //nolint:gosec // not a secret
}

// renew asks for credentials anew, and tells whether there are others than those
// of a request that began at start: a session that was handed over in the
// environment cannot be renewed.
func (r *region) renew(ctx context.Context, start time.Time) bool {
	cache, ok := r.config.Credentials.(*aws.CredentialsCache)
	if !ok {
		return false
	}
	r.renewing.Lock()
	defer r.renewing.Unlock()
	if r.renewed.After(start) {
		return true // for another request
	}
	before, err := cache.Retrieve(ctx)
	if err != nil {
		return false
	}
	cache.Invalidate()
	now, err := cache.Retrieve(ctx)
	if err != nil || now.AccessKeyID == before.AccessKeyID && now.SessionToken == before.SessionToken {
		return false
	}
	r.renewed = time.Now()
	return true
}
