package server

import (
	"net"
	"sync"
	"time"
)

// bucket is a token bucket: rate tokens a second, and at most size at once.
type bucket struct {
	mu     sync.Mutex
	rate   float64
	size   float64
	tokens float64
	last   time.Time
}

func newBucket(rate float64, size int) *bucket {
	return &bucket{rate: rate, size: float64(size), tokens: float64(size)}
}

// take takes a token, when there is one at this time.
func (b *bucket) take(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last.IsZero() {
		b.last = now
	}
	if passed := now.Sub(b.last).Seconds(); passed > 0 {
		b.tokens = min(b.size, b.tokens+passed*b.rate)
		b.last = now
	}
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// limitListener accepts no more connections at once than there is room for: others
// wait in the kernel's queue, which is bounded, too.
type limitListener struct {
	net.Listener
	room   chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newLimitListener(l net.Listener, connections int) net.Listener {
	return &limitListener{Listener: l, room: make(chan struct{}, connections), closed: make(chan struct{})}
}

// Accept implements net.Listener.
func (l *limitListener) Accept() (net.Conn, error) {
	select {
	case l.room <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.room
		return nil, err
	}
	return &limitedConn{Conn: conn, release: sync.OnceFunc(func() { <-l.room })}, nil
}

// Close implements net.Listener.
func (l *limitListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	release func()
}

// Close implements net.Conn.
func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
