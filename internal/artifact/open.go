package artifact

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"
)

// Artifact is an artifact whose manifest was read and checked.
type Artifact struct {
	Reference   Reference     // with the digest that was computed from RawManifest
	Descriptor  v1.Descriptor // of the manifest
	Manifest    *v1.Manifest
	RawManifest []byte
	Name        string        // of the image
	DiskLayer   v1.Descriptor // compressed

	store        store
	options      options
	measurements v1.Descriptor
	uefiData     *v1.Descriptor
}

// Open reads the manifest of an artifact. Without tag or digest it takes the
// tag latest from a registry, and the only artifact from a layout.
func Open(ctx context.Context, ref Reference, list ...Option) (*Artifact, error) {
	o := newOptions(list)
	if !ref.IsLayout() && !ref.HasDigest() && ref.Tag == "" {
		ref.Tag = "latest"
	}
	s, err := openStore(ctx, ref, toRead, o)
	if err != nil {
		return nil, err
	}
	raw, err := s.manifest(ctx, ref, maxManifest)
	if err != nil {
		return nil, err
	}
	m, found, err := parseManifest(raw)
	if err != nil {
		return nil, fmt.Errorf("read manifest of %s: %w", ref, err)
	}
	descriptor := describe(raw, m.MediaType)
	descriptor.ArtifactType = m.ArtifactType
	return &Artifact{
		Reference: ref.WithDigest(descriptor.Digest), Descriptor: descriptor, Manifest: m, RawManifest: raw,
		Name: found.name, DiskLayer: found.disk, store: s, options: o, measurements: found.measurements, uefiData: found.uefiData,
	}, nil
}

// Measurements reads the measurements document, at most 16 MiB, and checks its
// digest.
func (a *Artifact) Measurements(ctx context.Context) ([]byte, error) {
	data, err := readBlob(ctx, a.store, a.measurements, maxMeasurements)
	if err != nil {
		return nil, fmt.Errorf("read measurements of %s: %w", a.Reference, err)
	}
	return data, nil
}

// UEFIData reads the AWS variable store of a signed image, at most 1 MiB, and
// checks its digest; nil when the artifact has none.
func (a *Artifact) UEFIData(ctx context.Context) ([]byte, error) {
	if a.uefiData == nil {
		return nil, nil
	}
	data, err := readBlob(ctx, a.store, *a.uefiData, maxUEFIData)
	if err != nil {
		return nil, fmt.Errorf("read UEFI variable store of %s: %w", a.Reference, err)
	}
	return data, nil
}

// Disk opens the disk, which is decompressed as it is read and may be of any
// size: who reads it sets the bound. io.EOF comes only after the digest of the
// layer was found right; what was read before that is not to be trusted.
func (a *Artifact) Disk(ctx context.Context) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	source := &resumingBlob{ctx: ctx, store: a.store, layer: a.DiskLayer, repeat: a.options.patience}
	if err := source.open(); err != nil {
		cancel()
		return nil, fmt.Errorf("read disk of %s: %w", a.Reference, err)
	}
	d := &diskReader{artifact: a, cancel: cancel, source: source, verified: newVerifier(source, a.DiskLayer)}
	// The checksums of the frames say no more than the digest of the layer, and
	// cost a tenth of the time.
	decoder, err := zstd.NewReader(d.verified, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow),
		zstd.WithDecoderLowmem(true), zstd.WithDecodeBuffersBelow(0), zstd.IgnoreChecksum(true))
	if err != nil {
		cancel()
		return nil, errors.Join(fmt.Errorf("read disk of %s: %w", a.Reference, err), source.Close())
	}
	d.decoder = decoder
	return d, nil
}

// maxWindow is the most memory, in bytes, that a frame may make a decoder hold:
// RFC 8878, section 3.1.1.1.2, wants decoders to support this much.
const maxWindow = 8 << 20

// diskReader yields the disk and puts the digest before everything else that
// can be wrong with it.
type diskReader struct {
	artifact *Artifact
	cancel   context.CancelFunc
	source   *resumingBlob
	verified *verifier
	decoder  *zstd.Decoder
	err      error // that ended it
}

func (d *diskReader) Read(p []byte) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	n, err := d.decoder.Read(p)
	if err == nil {
		return n, nil
	}
	// The decoder stops at the first wrong byte, and reads ahead until it is
	// closed. Whether the registry changed that byte, or it was pushed like
	// that, the rest of the layer tells.
	d.decoder.Close()
	if _, digestErr := io.Copy(io.Discard, d.verified); digestErr != nil {
		err = digestErr
	}
	if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		err = fmt.Errorf("it was compressed with a window of more than %d MiB, which would take too much memory: push the disk again", maxWindow>>20)
	}
	d.err = err
	if err != io.EOF { //nolint:errorlint // io.Reader returns io.EOF itself
		d.err = fmt.Errorf("read disk of %s: %w", d.artifact.Reference, err)
	}
	return n, d.err
}

func (d *diskReader) Close() error {
	d.cancel()
	d.decoder.Close()
	return d.source.Close()
}

// resumingBlob yields a blob and goes on where it was when a connection breaks.
type resumingBlob struct {
	ctx    context.Context
	store  store
	layer  v1.Descriptor
	repeat patience

	r        io.ReadCloser
	offset   int64
	failures int   // since it last came on
	resumed  int64 // offset at which it last failed
}

// progressBetweenFailures is how many bytes must come between two breaks for the
// second one to count as a first: whoever reads slowly meets several in one
// large layer, and a registry that sends a byte at a time must not go on for
// ever.
const progressBetweenFailures = 4 << 20

func (b *resumingBlob) open() error {
	r, err := b.store.blob(b.ctx, b.layer, b.offset)
	if err != nil {
		return err
	}
	b.r = r
	return nil
}

func (b *resumingBlob) Read(p []byte) (int, error) {
	for {
		if err := context.Cause(b.ctx); err != nil {
			return 0, err
		}
		n, err := b.r.Read(p)
		b.offset += int64(n)
		short := errors.Is(err, io.EOF) && b.offset < b.layer.Size
		if n > 0 || err == nil || errors.Is(err, io.EOF) && !short {
			if n > 0 {
				return n, nil
			}
			return n, err
		}
		if b.offset-b.resumed >= progressBetweenFailures {
			b.failures = 0
		}
		b.failures, b.resumed = b.failures+1, b.offset
		_, hangs := errors.AsType[*hangError](err)
		if short || b.failures >= b.repeat.attempts || !hangs && !connectionBroke(err) {
			return 0, err
		}
		_ = b.r.Close() // it is broken already
		if err := sleep(b.ctx, b.repeat.backoff*time.Duration(b.failures)); err != nil {
			return 0, err
		}
		if err := b.open(); err != nil {
			return 0, err
		}
	}
}

func (b *resumingBlob) Close() error {
	if b.r == nil {
		return nil
	}
	return b.r.Close()
}
