// Package retry is an http.RoundTripper that tries again what may work the
// next time: a connection that failed (but not a name that does not exist), and
// the answers 408, 429, 499 and 5xx, and 403 where it says when to come back. It is
// bounded in attempts and in time altogether, obeys Retry-After, ends with the
// context, and when it gives up its error says what the server really answered.
//
// A request that was repeated may have had its effect the first time: it is for
// requests where twice is as good as once, or where one can ask (Settled).
package retry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Defaults of a Transport's empty fields.
const (
	defaultAttempts = 4
	defaultTimeout  = 30 * time.Second
	defaultDelay    = 500 * time.Millisecond
	defaultTotal    = 3 * time.Minute
	defaultMaxBody  = 64 << 20
)

// maxBodyShown is how much of a refusal's body an error shows, in bytes.
const maxBodyShown = 300

// Transport tries requests again. The zero value works.
type Transport struct {
	// Base sends one request; nil stands for http.DefaultTransport.
	Base http.RoundTripper
	// Attempts is how often a request is sent at most; 0 stands for 4.
	Attempts int
	// Timeout bounds each attempt from sending to the end of the answer's
	// body; 0 stands for 30 s.
	Timeout time.Duration
	// Delay is the wait before the second attempt, which doubles with each
	// further one; 0 stands for 500 ms.
	Delay time.Duration
	// Total bounds all attempts and the waits between them, up to the header of
	// the answer; 0 stands for 3 min. A server that asks for a longer wait than
	// is left is not asked again.
	Total time.Duration
	// MaxBody bounds an answer's body, in bytes; reading further is an error.
	// 0 stands for 64 MiB.
	MaxBody int64
	// Settled, when it is not nil, is asked before a request is sent again
	// whether the one that failed had its effect all the same. What it returns
	// then stands for the answer; nil means that it had none, or that nobody knows.
	Settled func(ctx context.Context, failed error) *http.Response
	// Context, when it is not nil, ends requests in addition to their own
	// context: for clients that make requests without one.
	Context context.Context //nolint:containedctx // see above
}

// StatusError is the answer of a server that refused to the end.
type StatusError struct {
	Method   string
	URL      string // without query and user
	Code     int    // HTTP status
	Body     string // the beginning of it, on one line
	Attempts int
	Wait     time.Duration // that it asked for, where it was too long to be waited out
}

func (e *StatusError) Error() string {
	message := fmt.Sprintf("%s %s: %d %s", e.Method, e.URL, e.Code, http.StatusText(e.Code))
	if e.Body != "" {
		message += ": " + e.Body
	}
	if e.Attempts > 1 {
		message += fmt.Sprintf(" (after %d attempts)", e.Attempts)
	}
	if e.Wait > 0 {
		message += fmt.Sprintf(" (it asks to wait for %s)", e.Wait.Round(time.Second))
	}
	return message
}

// NewStatusError reads the beginning of a refusal's body. The caller closes it.
func NewStatusError(response *http.Response) *StatusError {
	e := &StatusError{Code: response.StatusCode, Attempts: 1}
	if request := response.Request; request != nil {
		e.Method, e.URL = request.Method, shown(request.URL)
	}
	body, _ := io.ReadAll(io.LimitReader(response.Body, 4*maxBodyShown)) // what is there
	e.Body = strings.Join(strings.Fields(strings.ToValidUTF8(string(body), "?")), " ")
	if len(e.Body) > maxBodyShown {
		e.Body = strings.ToValidUTF8(e.Body[:maxBodyShown], "") + "…"
	}
	return e
}

// shown is a URL as an error may show it: queries can carry secrets.
func shown(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// RoundTrip implements http.RoundTripper. An answer that it would try again
// for is never returned: after the last attempt it is a *StatusError.
func (t *Transport) RoundTrip(request *http.Request) (*http.Response, error) {
	base, attempts, delay, total := t.Base, t.Attempts, t.Delay, t.Total
	if base == nil {
		base = http.DefaultTransport
	}
	if attempts == 0 {
		attempts = defaultAttempts
	}
	if delay == 0 {
		delay = defaultDelay
	}
	if total == 0 {
		total = defaultTotal
	}
	end := time.Now().Add(total)
	if request.Body != nil && request.Body != http.NoBody && request.GetBody == nil {
		attempts = 1 // it cannot be sent again
	}
	for attempt := 1; ; attempt++ {
		response, err := t.once(base, request, attempt, time.Until(end))
		if err == nil && !again(response) {
			return response, nil
		}
		wait := delay<<(attempt-1) + rand.N(delay) //nolint:gosec // spreads clients, hides nothing
		var refusal *StatusError
		if err == nil {
			asked := retryAfter(response, time.Now())
			refusal = NewStatusError(response)
			refusal.Attempts = attempt
			_ = response.Body.Close()
			if asked > time.Until(end) {
				refusal.Wait = asked
			}
			wait = max(wait, asked)
			err = refusal
		}
		if ended := t.ended(request); ended != nil {
			return nil, ended
		}
		if attempt >= attempts || wait > time.Until(end) || permanent(err) {
			return nil, attempted(err, attempt)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-request.Context().Done():
		case <-done(t.Context):
		}
		timer.Stop()
		if ended := t.ended(request); ended != nil {
			return nil, fmt.Errorf("%w (the last attempt: %w)", ended, err)
		}
		if t.Settled != nil {
			if response := t.Settled(request.Context(), err); response != nil {
				return response, nil
			}
		}
	}
}

// permanent reports whether a connection's error will be the same the next
// time: a name that does not exist, or a server that is not who it should be.
func permanent(err error) bool {
	if unknown, ok := errors.AsType[*net.DNSError](err); ok {
		return unknown.IsNotFound
	}
	_, stranger := errors.AsType[*tls.CertificateVerificationError](err)
	return stranger
}

// once sends the request one time, and waits no longer than what is left.
func (t *Transport) once(base http.RoundTripper, request *http.Request, attempt int, left time.Duration) (*http.Response, error) {
	timeout := t.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	timeout = min(timeout, max(left, time.Millisecond)).Round(time.Millisecond)
	ctx, cancel := context.WithTimeoutCause(request.Context(), timeout, fmt.Errorf("no answer within %s", timeout))
	stop := func() bool { return true }
	if t.Context != nil {
		stop = context.AfterFunc(t.Context, cancel)
	}
	end := func() { stop(); cancel() }
	copied := request.Clone(ctx)
	if request.GetBody != nil && attempt > 1 {
		body, err := request.GetBody()
		if err != nil {
			end()
			return nil, fmt.Errorf("read the request's body again: %w", err)
		}
		copied.Body = body
	}
	response, err := base.RoundTrip(copied)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = context.Cause(ctx)
		}
		end()
		return nil, err
	}
	limit := t.MaxBody
	if limit == 0 {
		limit = defaultMaxBody
	}
	response.Body = &body{rc: response.Body, left: limit, end: end}
	return response, nil
}

// body is an answer's body that is bounded, and releases the attempt's context
// when it is closed.
type body struct {
	rc   io.ReadCloser
	left int64
	end  func()
}

var errTooLong = errors.New("the answer is longer than any that is expected here")

func (b *body) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errTooLong
	}
	// One byte more than is left tells a body that ends there from a longer one.
	n, err := b.rc.Read(p[:min(int64(len(p)), b.left+1)])
	b.left -= int64(n)
	if b.left < 0 {
		return n - 1, errTooLong
	}
	return n, err
}

func (b *body) Close() error {
	err := b.rc.Close()
	b.end()
	return err
}

// ended returns why the request must not go on, or nil.
func (t *Transport) ended(request *http.Request) error {
	if err := context.Cause(request.Context()); err != nil {
		return err
	}
	if t.Context != nil {
		return context.Cause(t.Context)
	}
	return nil
}

// done is ctx.Done, and for nil a channel that never ends.
func done(ctx context.Context) <-chan struct{} {
	if ctx == nil {
		return nil
	}
	return ctx.Done()
}

// attempted adds to a connection's error how often it was tried.
func attempted(err error, attempts int) error {
	var refusal *StatusError
	if errors.As(err, &refusal) || attempts == 1 {
		return err
	}
	return fmt.Errorf("%w (after %d attempts)", err, attempts)
}

// clientClosed is the status for a client that went away. A Rekor v2 gives it to
// all who wait for the next checkpoint when one of them does.
const clientClosed = 499

// again reports whether an answer may be another one the next time. GitHub
// answers 403 with Retry-After, or with the time at which its limit starts anew,
// where others answer 429 ("Rate limits for the REST API").
func again(response *http.Response) bool {
	switch response.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, clientClosed:
		return true
	case http.StatusForbidden:
		return response.Header.Get("Retry-After") != "" || limited(response)
	case http.StatusNotImplemented:
		return false
	}
	return response.StatusCode >= 500
}

// limited reports whether the answer says that GitHub's limit is used up, and
// when it starts anew.
func limited(response *http.Response) bool {
	return response.Header.Get("X-RateLimit-Remaining") == "0" && response.Header.Get("X-RateLimit-Reset") != ""
}

// retryAfter is how long the server asks to wait: the header of RFC 9110, section
// 10.2.3, in seconds or as a date; or the time, in seconds since 1970, at which
// GitHub's limit starts anew.
func retryAfter(response *http.Response, now time.Time) time.Duration {
	value := response.Header.Get("Retry-After")
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if date, err := http.ParseTime(value); err == nil {
		return max(date.Sub(now), 0)
	}
	if limited(response) {
		if reset, err := strconv.ParseUint(response.Header.Get("X-RateLimit-Reset"), 10, 33); err == nil {
			return max(time.Unix(int64(reset), 0).Sub(now), 0)
		}
	}
	return 0
}
