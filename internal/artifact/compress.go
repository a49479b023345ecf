package artifact

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"
)

// A disk is compressed as a sequence of independent zstd frames (RFC 8878,
// section 3) of frameSize bytes of disk each, the last one shorter. Where the
// frames begin depends on the disk alone, so that the result does too: not on
// the number of cores, nor on how the disk is read. No frame needs a window
// above frameSize, which every decoder allows.
const frameSize = 4 << 20

// maxCompressors bounds memory, which each adds some 20 MiB to.
const maxCompressors = 4

// compressor reads a disk once and yields it compressed, hashing both. It must
// be closed.
type compressor struct {
	disk     io.Closer
	progress func(n int64)

	ordered chan *frame // in the disk's order, perhaps still being compressed
	current []byte      // what is left of the frame being read
	last    *frame      // the frame that current belongs to
	free    chan *frame
	stop    chan struct{}
	stopped sync.Once
	running sync.WaitGroup

	raw        hash.Hash // written by the reading goroutine until ordered is closed
	rawSize    int64
	readErr    error
	compressed hash.Hash
	size       int64       // bytes, compressed
	ended      atomic.Bool // Read has returned io.EOF
}

// errStopped ends a compressor that was closed before the disk's end.
var errStopped = errors.New("compressing was stopped")

// frame is a piece of the disk on its way.
type frame struct {
	raw  []byte
	out  []byte // storage that is reused
	zstd []byte // the frame: out, or one that is shared
	done chan struct{}
}

// newEncoder makes an encoder for frames. Its EncodeAll may be called n times
// at once.
func newEncoder(n int) (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithWindowSize(frameSize),
		zstd.WithEncoderConcurrency(n), zstd.WithLowerEncoderMem(true))
}

// zeroRun is a frame of nothing but zeros, as it is and compressed: holes are
// most of a disk, and need no work but hashing.
var zeroRun = sync.OnceValues(func() (struct{ raw, zstd []byte }, error) {
	var run struct{ raw, zstd []byte }
	encoder, err := newEncoder(1)
	if err != nil {
		return run, err
	}
	run.raw = make([]byte, frameSize)
	run.zstd = encoder.EncodeAll(run.raw, nil)
	return run, encoder.Close()
})

// newCompressor starts to compress disk, which it closes in the end. progress,
// unless nil, is told of each stretch of disk that was read, in bytes.
func newCompressor(disk io.ReadCloser, progress func(n int64)) (*compressor, error) {
	return startCompressor(disk, progress, min(runtime.GOMAXPROCS(0), maxCompressors))
}

func startCompressor(disk io.ReadCloser, progress func(n int64), workers int) (*compressor, error) {
	encoder, err := newEncoder(workers)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up zstd: %w", err), disk.Close())
	}
	zeros, err := zeroRun()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up zstd: %w", err), disk.Close())
	}
	frames := workers + 2 // one being read, one being sent
	c := &compressor{
		disk: disk, progress: progress,
		ordered: make(chan *frame, frames), free: make(chan *frame, frames), stop: make(chan struct{}),
		raw: sha256.New(), compressed: sha256.New(),
	}
	for range frames {
		c.free <- new(frame)
	}
	work := make(chan *frame, frames)
	for range workers {
		c.running.Go(func() {
			for f := range work {
				f.out = encoder.EncodeAll(f.raw, f.out[:0])
				f.zstd = f.out
				close(f.done)
			}
		})
	}
	c.running.Go(func() {
		defer close(c.ordered)
		defer close(work)
		c.readErr = c.read(disk, work, zeros.raw, zeros.zstd)
	})
	return c, nil
}

// read cuts the disk into frames until its end.
func (c *compressor) read(disk io.Reader, work chan<- *frame, zeros, zeroFrame []byte) error {
	for {
		var f *frame
		select {
		case f = <-c.free:
		case <-c.stop:
			return errStopped
		}
		if f.raw == nil {
			f.raw = make([]byte, frameSize)
		}
		n, err := io.ReadFull(disk, f.raw[:frameSize])
		f.raw = f.raw[:n]
		if n > 0 {
			c.raw.Write(f.raw)
			c.rawSize += int64(n)
			f.done = make(chan struct{})
			// Both channels have room for every frame there is.
			if bytes.Equal(f.raw, zeros) {
				f.zstd = zeroFrame
				close(f.done)
			} else {
				work <- f
			}
			c.ordered <- f
			if c.progress != nil {
				c.progress(int64(n))
			}
		}
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return fmt.Errorf("read the disk: %w", err)
		}
	}
}

// Read yields compressed bytes.
func (c *compressor) Read(p []byte) (int, error) {
	for len(c.current) == 0 {
		if c.last != nil {
			c.last.zstd = nil
			c.free <- c.last
			c.last = nil
		}
		f, ok := <-c.ordered
		if !ok {
			if c.readErr != nil {
				return 0, c.readErr
			}
			c.ended.Store(true)
			return 0, io.EOF
		}
		<-f.done
		c.current, c.last = f.zstd, f
	}
	n := copy(p, c.current)
	c.current = c.current[n:]
	c.compressed.Write(p[:n])
	c.size += int64(n)
	return n, nil
}

// Close stops compressing. It waits until nothing reads the disk any more.
func (c *compressor) Close() error {
	c.stopped.Do(func() { close(c.stop) })
	c.running.Wait()
	return c.disk.Close()
}

// layer describes what was yielded. It is right after Read returned io.EOF.
func (c *compressor) layer() v1.Descriptor {
	return v1.Descriptor{MediaType: MediaTypeDisk, Size: c.size, Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(c.compressed.Sum(nil))}}
}

// disk sums: the SHA-256 in lower-case hex, and the size in bytes, of the disk
// as it was read. They are right after Read returned io.EOF.
func (c *compressor) diskSums() (string, int64) {
	return hex.EncodeToString(c.raw.Sum(nil)), c.rawSize
}
