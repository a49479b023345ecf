package artifact

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// patience is how long a registry may take, and how often it is asked.
type patience struct {
	answer   time.Duration // from the end of a request to its answer
	commit   time.Duration // the same after an upload, which some registries copy and hash first
	stall    time.Duration // without a byte of a body moving
	attempts int           // of a request that may be repeated
	backoff  time.Duration // before the second attempt, three times as much before the next
	maxWait  time.Duration // longest Retry-After that is honoured
	total    time.Duration // after which no further attempt is begun
	settle   time.Duration // in which other clients finish changing the list of referrers
}

var defaultPatience = patience{
	answer:   60 * time.Second,
	commit:   10 * time.Minute,
	stall:    2 * time.Minute,
	attempts: 4,
	backoff:  time.Second,
	maxWait:  90 * time.Second,
	total:    3 * time.Minute,
	settle:   400 * time.Millisecond,
}

// steady is a transport on which nothing hangs for ever, and which repeats
// what failed for a moment only: answers 408, 429 and 5xx, and connections that
// broke, hung, or were not made, as far as the request's body can be sent again.
type steady struct {
	base http.RoundTripper
	patience
}

// newTransport makes the transport below everything that is sent to a registry.
func newTransport(p patience) *steady {
	return &steady{patience: p, base: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: min(30*time.Second, p.answer), KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       90 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: time.Second,
		WriteBufferSize:       256 << 10,
		ReadBufferSize:        256 << 10,
	}}
}

// hangError says that a registry let the time pass.
type hangError struct {
	after time.Duration
	what  string
}

func (e *hangError) Error() string { return fmt.Sprintf("%s for %s", e.what, e.after) }

// errPlainHTTP refuses to send credentials or to believe answers in the clear.
var errPlainHTTP = errors.New("it speaks plain HTTP, which only a registry on this machine may")

// onceKey marks the context of requests that are sent once.
type onceKey struct{}

// once is a context whose requests are not repeated: what they write depends on what
// was read before, and has to be read again first.
func once(ctx context.Context) context.Context { return context.WithValue(ctx, onceKey{}, true) }

// again tells whether a request that failed may succeed the next time, and how long it
// should wait before the attempt of this number, counted from 1.
func (p patience) again(err error, attempt int) (wait time.Duration, ok bool) {
	if refused, answered := errors.AsType[*statusError](err); answered {
		wait, ok = refused.wait, transientStatus(refused.status) && refused.wait <= p.maxWait
	} else {
		ok = connectionBroke(err) || hangs(err)
	}
	return max(wait, p.pause(attempt)), ok && attempt < p.attempts
}

// RoundTrip sends a request, and sends it again while that may help.
func (s *steady) RoundTrip(request *http.Request) (*http.Response, error) {
	if request.URL.Scheme != "https" && !isLoopback(request.URL.Host) {
		return nil, errPlainHTTP
	}
	repeatable := (request.Body == nil || request.Body == http.NoBody || request.GetBody != nil) && request.Context().Value(onceKey{}) == nil
	end := time.Now().Add(s.total)
	for attempt := 1; ; attempt++ {
		if attempt > 1 && request.GetBody != nil {
			body, err := request.GetBody()
			if err != nil {
				return nil, err
			}
			request = request.Clone(request.Context())
			request.Body = body
		}
		response, err := s.once(request)
		if !repeatable || attempt >= s.attempts || request.Context().Err() != nil {
			return response, err
		}
		wait := s.pause(attempt)
		switch {
		case err != nil && !connectionBroke(err) && !hangs(err):
			return nil, err
		case err == nil && !transientStatus(response.StatusCode):
			return response, nil
		case err == nil:
			asked := retryAfter(response.Header)
			if asked > s.maxWait || time.Until(end) < asked {
				return response, nil
			}
			if asked > 0 {
				wait = asked
			}
			_, _ = io.CopyN(io.Discard, response.Body, 64<<10) // so that the connection can be used again
			_ = response.Body.Close()
		}
		if err != nil && time.Until(end) < wait {
			return nil, err
		}
		if err := sleep(request.Context(), wait); err != nil {
			return nil, err
		}
	}
}

// once sends a request and watches that it moves.
func (s *steady) once(request *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(request.Context())
	limit := s.answer
	if request.Method != http.MethodPost && strings.Contains(request.URL.Path, "/blobs/uploads/") {
		limit = s.commit
	}
	answer := newWatch(limit, "it has not answered", cancel)
	request = request.Clone(ctx)
	answered := answer.stop
	if request.Body != nil && request.Body != http.NoBody {
		upload := &watchedUpload{ReadCloser: request.Body, answer: answer, stall: newWatch(s.stall, "it has taken no data", cancel)}
		request.Body, answered = upload, upload.answered
	} else {
		answer.start()
	}
	response, err := s.base.RoundTrip(request)
	answered()
	if err != nil {
		if hang, ok := errors.AsType[*hangError](context.Cause(ctx)); ok {
			err = hang
		}
		cancel(nil)
		return nil, err
	}
	response.Body = &watchedDownload{ReadCloser: response.Body, ctx: ctx, cancel: cancel, stall: newWatch(s.stall, "it has sent no data", cancel)}
	return response, nil
}

// pause is the time before the next attempt, spread a little so that parallel
// jobs do not come back at once.
func (p patience) pause(attempt int) time.Duration {
	wait := p.backoff
	for range attempt - 1 {
		wait *= 3
	}
	return wait + time.Duration(rand.Int64N(int64(wait)/5+1)) //nolint:gosec // not a secret
}

// hangs tells whether the registry, or the way to it, let the time pass.
func hangs(err error) bool {
	_, ok := errors.AsType[*hangError](err)
	return ok
}

// connectionBroke tells whether an error may be gone at the next attempt.
func connectionBroke(err error) bool {
	for _, target := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNREFUSED, net.ErrClosed,
		syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ETIMEDOUT} {
		if errors.Is(err, target) {
			return true
		}
	}
	if unknown, ok := errors.AsType[*net.DNSError](err); ok {
		return !unknown.IsNotFound
	}
	// A connection that was not made in time.
	if dial, ok := errors.AsType[*net.OpError](err); ok && dial.Op == "dial" {
		return dial.Timeout()
	}
	return strings.Contains(err.Error(), "server closed idle connection") || strings.Contains(err.Error(), "http2: client connection lost")
}

func transientStatus(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// retryAfter reads the header Retry-After (RFC 9110, section 10.2.3); 0 when
// there is none.
func retryAfter(header http.Header) time.Duration {
	value := header.Get("Retry-After")
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// watch ends a request that does not move.
type watch struct {
	timer *time.Timer
	limit time.Duration
}

func newWatch(limit time.Duration, what string, cancel context.CancelCauseFunc) *watch {
	w := &watch{limit: limit, timer: time.AfterFunc(time.Hour, func() { cancel(&hangError{after: limit, what: what}) })}
	w.timer.Stop()
	return w
}

func (w *watch) start() { w.timer.Reset(w.limit) }
func (w *watch) stop()  { w.timer.Stop() }

// watchedUpload is a request's body. The time that the registry takes to accept
// data counts, the time that it takes to make the data does not. A transport
// may close a body while it reads it.
type watchedUpload struct {
	io.ReadCloser
	stall, answer *watch

	mu    sync.Mutex
	ended bool
}

func (b *watchedUpload) Read(p []byte) (int, error) {
	b.stall.stop()
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.end()
		return n, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.ended {
		b.stall.start()
	}
	return n, nil
}

func (b *watchedUpload) Close() error {
	b.end()
	return b.ReadCloser.Close()
}

// end hands over to the watch on the answer.
func (b *watchedUpload) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stall.stop()
	if !b.ended {
		b.ended = true
		b.answer.start()
	}
}

// answered ends both watches.
func (b *watchedUpload) answered() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	b.stall.stop()
	b.answer.stop()
}

// watchedDownload is a response's body.
type watchedDownload struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	stall  *watch
}

func (b *watchedDownload) Read(p []byte) (int, error) {
	b.stall.start()
	n, err := b.ReadCloser.Read(p)
	b.stall.stop()
	if hang, ok := errors.AsType[*hangError](context.Cause(b.ctx)); ok && err != nil {
		err = hang
	}
	return n, err
}

func (b *watchedDownload) Close() error {
	b.stall.stop()
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}
