package ami

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"
)

// block is a block of the disk on its way. Its data belongs to one stage of the
// upload at a time.
type block struct {
	index  int32
	data   []byte // BlockSize bytes; zeroBlock, or one of the buffers
	length int    // bytes of disk in it; the rest is padding
	zero   bool
	digest [sha256.Size]byte
}

// sums are what an upload put, for CompleteSnapshot.
type sums struct {
	blocks   int32  // that were put
	omitted  int32  // that were left out
	checksum string // base64 of the SHA-256 of the blocks' digests, in the order of their indices
}

// zeroDigest is the digest of a block of zeros.
var zeroDigest = sha256.Sum256(zeroBlock[:])

// stream reads the disk to its end, once and in order, and hands each block that
// must be written to put, which is called from many goroutines. What it returns
// counts only without an error: then the disk had the attested size and digest.
//
// The stages are a goroutine each, with a fixed number of buffers between them:
// reading (and with it decompressing and checking the layer), the digest of the
// disk, the digests of the blocks, and as many that put as the pacer admits.
func (i *Image) stream(ctx context.Context, disk io.Reader, policy zeroPolicy, put func(context.Context, *block) error, progress func(int64)) (*sums, error) {
	const queue = 8
	group, ctx := errgroup.WithContext(ctx)
	free := make(chan []byte, maxInFlight+2*queue)
	for range cap(free) {
		free <- nil // made when it is needed
	}
	read, hashed, ready := make(chan *block, queue), make(chan *block, queue), make(chan *block)
	// send hands a block on, unless the upload has failed.
	send := func(to chan<- *block, b *block) bool {
		select {
		case to <- b:
			return true
		case <-ctx.Done():
			return false
		}
	}
	size := i.document.Disk.Size

	whole := false // set before read is closed, unless reading failed
	group.Go(func() error {
		defer close(read)
		for offset := int64(0); ; offset += BlockSize {
			var buffer []byte
			select {
			case buffer = <-free:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if buffer == nil {
				buffer = make([]byte, BlockSize)
			}
			n, err := io.ReadFull(disk, buffer)
			if offset+int64(n) > size {
				return fmt.Errorf("the disk is longer than the %d bytes that are attested", size)
			}
			// Only ReadFull's own: what the disk's reader wraps is a layer that is
			// cut off.
			ended := err == io.EOF || err == io.ErrUnexpectedEOF //nolint:errorlint // see above
			switch {
			case err != nil && !ended:
				return err
			case ended && offset+int64(n) < size:
				return fmt.Errorf("the disk has %d bytes, and %d are attested", offset+int64(n), size)
			}
			if n > 0 {
				clear(buffer[n:])
				if !send(read, &block{index: int32(offset / BlockSize), data: buffer, length: n}) {
					return context.Cause(ctx)
				}
			}
			if ended {
				whole = true
				return nil
			}
		}
	})

	group.Go(func() error {
		defer close(hashed)
		hash := sha256.New()
		for b := range read {
			hash.Write(b.data[:b.length])
			if isZero(b.data) {
				b.zero = true
				free <- b.data // has room for all there are
				b.data = zeroBlock[:]
			}
			if !send(hashed, b) {
				return context.Cause(ctx)
			}
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if !whole {
			return nil // why is the reader's to say, whose return cancels ctx after read is closed
		}
		if got := hex.EncodeToString(hash.Sum(nil)); got != i.document.Disk.SHA256 {
			return fmt.Errorf("the disk is not the one that is attested: its SHA-256 is %s, and %s is attested", got, i.document.Disk.SHA256)
		}
		return nil
	})

	var mu sync.Mutex // of progress
	done := func(n int) {
		if progress != nil {
			mu.Lock()
			defer mu.Unlock()
			progress(int64(n))
		}
	}
	result := new(sums)
	group.Go(func() error {
		defer close(ready)
		aggregate := sha256.New()
		for b := range hashed {
			start := int64(b.index) * BlockSize
			switch {
			case b.zero && policy.omits(start, start+int64(b.length)):
				result.omitted++
				done(b.length)
				continue
			case b.zero:
				b.digest = zeroDigest
			default:
				b.digest = sha256.Sum256(b.data)
			}
			aggregate.Write(b.digest[:])
			result.blocks++
			if !send(ready, b) {
				return context.Cause(ctx)
			}
		}
		result.checksum = base64.StdEncoding.EncodeToString(aggregate.Sum(nil))
		return nil
	})

	for range maxInFlight {
		group.Go(func() error {
			for b := range ready {
				if err := put(ctx, b); err != nil {
					return err
				}
				if !b.zero {
					free <- b.data
				}
				done(b.length)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return result, nil
}
