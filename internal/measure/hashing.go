package measure

import (
	"context"
	"crypto"
	"hash"
	"io"
	"runtime"
	"sync"
)

// hashing takes digests of long stretches of a disk at the same time, on all
// processors. A prediction says early what it will need and goes on; it waits at
// its end.
//
// The work is done in pieces, and each piece is of the stretch that has most
// left: so all processors have work until nearly the end, although one stretch,
// the unified kernel image itself, is about as long as the others together.
// Memory is one buffer a processor.
type hashing struct {
	ctx    context.Context
	cancel context.CancelFunc
	group  sync.WaitGroup // of workers

	mu      sync.Mutex
	waiting []*pendingDigest // not in a worker's hands
	workers int
}

// hashingPiece is how much a worker reads and hashes at once, in bytes: it fits
// into a processor's own cache, so that hashing finds there what was read.
const hashingPiece = 256 << 10

// pendingDigest is one that is being taken.
type pendingDigest struct {
	r    io.Reader
	left int64 // bytes
	h    hash.Hash

	done chan struct{} // closed when one of these is there
	sum  []byte
	err  error
}

func newHashing(ctx context.Context) *hashing {
	h := &hashing{}
	h.ctx, h.cancel = context.WithCancel(ctx)
	return h
}

// close ends what is still being done, and waits for it.
func (h *hashing) close() {
	h.cancel()
	h.group.Wait()
}

// start begins to take the digest of all that r has, which must be size bytes: a
// file that is cut off meanwhile is an error. No one else may read from r.
func (h *hashing) start(algorithm crypto.Hash, r io.Reader, size int64) *pendingDigest {
	d := &pendingDigest{r: r, left: size, h: algorithm.New(), done: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waiting = append(h.waiting, d)
	if h.workers < runtime.GOMAXPROCS(0) {
		h.workers++
		h.group.Go(h.work)
	}
	return d
}

// wait returns the digest, or why there is none: what reading gave, or the end
// of the context.
func (d *pendingDigest) wait() ([]byte, error) {
	<-d.done
	return d.sum, d.err
}

// work takes digests until none is waiting.
func (h *hashing) work() {
	buf := make([]byte, hashingPiece)
	for d := h.next(nil); d != nil; {
		if d.piece(h.ctx, buf) {
			close(d.done)
			d = h.next(nil)
			continue
		}
		d = h.next(d)
	}
}

// next gives one back, unless it is nil, and returns the one that has most left.
// At nil the worker must end.
func (h *hashing) next(back *pendingDigest) *pendingDigest {
	h.mu.Lock()
	defer h.mu.Unlock()
	if back != nil {
		h.waiting = append(h.waiting, back)
	}
	if len(h.waiting) == 0 {
		h.workers--
		return nil
	}
	most := 0
	for i, d := range h.waiting {
		if d.left > h.waiting[most].left {
			most = i
		}
	}
	d := h.waiting[most]
	last := len(h.waiting) - 1
	h.waiting[most] = h.waiting[last]
	h.waiting = h.waiting[:last]
	return d
}

// piece takes the next piece, and reports whether it was the last one.
func (d *pendingDigest) piece(ctx context.Context, buf []byte) (done bool) {
	if d.err = ctx.Err(); d.err != nil {
		return true
	}
	// Not io.ReadFull, which makes io.ErrUnexpectedEOF of an end that is none.
	n, err := 0, error(nil)
	for n < len(buf) && err == nil {
		var m int
		m, err = d.r.Read(buf[n:])
		n += m
	}
	d.h.Write(buf[:n])
	d.left -= int64(n)
	if err == nil {
		return false
	}
	switch {
	case err != io.EOF: //nolint:errorlint // at the end it comes bare; wrapped it is a failure
		d.err = err
	case d.left != 0:
		d.err = io.ErrUnexpectedEOF
	default:
		d.sum = d.h.Sum(nil)
	}
	return true
}
