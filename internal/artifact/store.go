package artifact

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// store is where artifacts are kept: a repository of a registry, or an OCI
// layout. Its errors are whole sentences.
type store interface {
	// manifest reads a manifest by tag or digest, at most limit bytes. What it
	// returns has the digest that was asked for.
	manifest(ctx context.Context, ref Reference, limit int64) ([]byte, error)
	// blob opens a blob from a byte offset on. What it yields is not checked.
	blob(ctx context.Context, layer v1.Descriptor, offset int64) (io.ReadCloser, error)
	// putBlob stores a blob unless it is there.
	putBlob(ctx context.Context, layer v1.Descriptor, data []byte) error
	// putDisk stores the disk that open begins to compress, and may open it
	// again after a fault that does not last. It returns the compressor that got
	// to the end.
	putDisk(ctx context.Context, open func() (*compressor, error)) (*compressor, error)
	// putManifest stores a manifest under its digest.
	putManifest(ctx context.Context, manifest v1.Descriptor, raw []byte) error
	// putTag points a tag at a manifest that is stored.
	putTag(ctx context.Context, tag string, manifest v1.Descriptor, raw []byte) error
	// referrers lists manifests whose subject has the digest; artifactType
	// filters them unless it is "".
	referrers(ctx context.Context, subject v1.Hash, artifactType string) ([]v1.Descriptor, error)
	// putReferrers stores manifests with a subject so that referrers finds them.
	putReferrers(ctx context.Context, subject v1.Hash, manifests []encodedManifest) error
}

// encodedManifest is a manifest with what describes it.
type encodedManifest struct {
	descriptor v1.Descriptor
	raw        []byte
}

// Option changes how a store is reached.
type Option func(*options)

type options struct {
	progress func(n int64)
	tags     []string
	patience patience
}

// WithProgress has progress told of every stretch of the disk, in bytes, that
// was pushed or restored, one call at a time. A push that starts again after a
// fault takes back, with a negative number, what it had told.
func WithProgress(progress func(n int64)) Option {
	return func(o *options) { o.progress = progress }
}

// WithTags gives the artifact tags beside the one of the reference.
func WithTags(tags ...string) Option {
	return func(o *options) { o.tags = append(o.tags, tags...) }
}

// withPatience is for tests, which have none.
func withPatience(p patience) Option {
	return func(o *options) { o.patience = p }
}

func newOptions(list []Option) options {
	o := options{patience: defaultPatience}
	for _, option := range list {
		option(&o)
	}
	return o
}

// openStore connects to the place of a reference.
func openStore(ctx context.Context, ref Reference, want intent, o options) (store, error) {
	if ref.IsLayout() {
		return openLayout(ref, want)
	}
	if ref.Host() == "" {
		return nil, fmt.Errorf("open artifact: the reference is empty")
	}
	return openRegistry(ctx, ref, want, o)
}

// readBlob reads a whole blob of at most limit bytes and checks its digest.
func readBlob(ctx context.Context, s store, layer v1.Descriptor, limit int64) ([]byte, error) {
	if layer.Size > limit {
		return nil, fmt.Errorf("blob %s has %d bytes, more than the %d that are allowed", layer.Digest, layer.Size, limit)
	}
	r, err := s.blob(ctx, layer, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(newVerifier(r, layer))
}

// verifier yields a blob and ends it with an error instead of io.EOF unless it
// has the size and digest of its descriptor. It reads one byte more than that
// at most.
type verifier struct {
	r     io.Reader
	layer v1.Descriptor
	hash  hash.Hash
	size  int64
}

func newVerifier(r io.Reader, layer v1.Descriptor) *verifier {
	return &verifier{r: io.LimitReader(r, layer.Size+1), layer: layer, hash: sha256.New()}
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.hash.Write(p[:n])
	v.size += int64(n)
	if v.size > v.layer.Size {
		return 0, fmt.Errorf("blob %s does not match its digest: it is longer than %d bytes", v.layer.Digest, v.layer.Size)
	}
	if err == io.EOF { //nolint:errorlint // io.Reader returns io.EOF itself
		if v.size != v.layer.Size {
			return n, fmt.Errorf("blob %s does not match its digest: it has %d bytes instead of %d", v.layer.Digest, v.size, v.layer.Size)
		}
		if got := hex.EncodeToString(v.hash.Sum(nil)); got != v.layer.Digest.Hex {
			return n, fmt.Errorf("blob %s does not match its digest: its bytes have the digest sha256:%s", v.layer.Digest, got)
		}
	}
	return n, err
}
