package artifact

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/org/attestable-image-action/internal/strictjson"
)

// layout is an OCI image layout: image-spec 1.1, "Image Layout". A file in it
// is written under a temporary name and renamed, so that a reader, and an
// interrupted writer's successor, sees whole files only.
//
// Every manifest is listed in index.json, referrers too: that is where programs
// look for what refers to a manifest. A tag is an entry with the annotation
// org.opencontainers.image.ref.name.
type layout struct {
	dir string
}

const (
	layoutFile    = "oci-layout"
	layoutVersion = `{"imageLayoutVersion":"1.0.0"}`
)

// openLayout opens the layout, or makes one in a directory that is empty or
// does not exist.
func openLayout(ref Reference, want intent) (*layout, error) {
	l := &layout{dir: ref.layout}
	raw, err := readFile(filepath.Join(l.dir, layoutFile), 1<<10)
	switch {
	case err == nil:
		var file struct {
			Version string `json:"imageLayoutVersion"`
		}
		if err := strictjson.Unmarshal(raw, &file); err != nil || file.Version != "1.0.0" {
			return nil, fmt.Errorf("open OCI layout %s: its file %s does not say version 1.0.0 but %s", l.dir, layoutFile, quote(string(raw)))
		}
		return l, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("open OCI layout %s: %w", l.dir, err)
	case want == toRead:
		return nil, fmt.Errorf("open OCI layout %s: there is none (no file %s): check the directory", l.dir, layoutFile)
	}
	if err := l.create(); err != nil {
		return nil, fmt.Errorf("make OCI layout %s: %w", l.dir, err)
	}
	return l, nil
}

func (l *layout) create() error {
	if err := os.MkdirAll(l.dir, 0o755); err != nil { //nolint:gosec // others may read a layout
		return err
	}
	unlock, err := l.lock()
	if err != nil {
		return err
	}
	defer unlock()
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		switch entry.Name() {
		case "blobs", "index.json", layoutFile: // of somebody who made it at the same time
		default:
			return fmt.Errorf("it holds other files, such as %s: give an empty directory, or one that does not exist", entry.Name())
		}
	}
	if err := os.MkdirAll(filepath.Join(l.dir, "blobs", "sha256"), 0o755); err != nil { //nolint:gosec // as above
		return err
	}
	if _, err := os.Stat(l.index()); errors.Is(err, fs.ErrNotExist) {
		if err := l.writeIndex(&v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{}}); err != nil {
			return err
		}
	}
	return WriteFile(filepath.Join(l.dir, layoutFile), []byte(layoutVersion))
}

func (l *layout) index() string { return filepath.Join(l.dir, "index.json") }

func (l *layout) path(digest v1.Hash) string {
	return filepath.Join(l.dir, "blobs", digest.Algorithm, digest.Hex)
}

// lock keeps other writers away from index.json until unlock is called.
func (l *layout) lock() (unlock func(), err error) {
	dir, err := os.Open(l.dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", l.dir, err), dir.Close())
	}
	return func() { _ = dir.Close() }, nil
}

func (l *layout) readIndex() (*v1.IndexManifest, error) {
	raw, err := readFile(l.index(), maxIndex)
	if err != nil {
		return nil, err
	}
	index, err := parseIndex(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.index(), err)
	}
	return index, nil
}

func (l *layout) writeIndex(index *v1.IndexManifest) error {
	raw, err := json.Marshal(index)
	if err != nil {
		return fmt.Errorf("encode index.json: %w", err)
	}
	if len(raw) > maxIndex {
		return fmt.Errorf("index.json would be %d bytes long, and %d are allowed: use a new layout", len(raw), maxIndex)
	}
	return WriteFile(l.index(), raw)
}

// update changes index.json.
func (l *layout) update(change func(*v1.IndexManifest)) error {
	unlock, err := l.lock()
	if err != nil {
		return err
	}
	defer unlock()
	index, err := l.readIndex()
	if err != nil {
		return err
	}
	change(index)
	return l.writeIndex(index)
}

func (l *layout) manifest(_ context.Context, ref Reference, limit int64) ([]byte, error) {
	raw, err := l.readManifest(ref, limit)
	if err != nil {
		return nil, fmt.Errorf("read manifest of %s: %w", ref, err)
	}
	return raw, nil
}

func (l *layout) readManifest(ref Reference, limit int64) ([]byte, error) {
	digest := ref.Digest
	var entry v1.Descriptor
	if !ref.HasDigest() {
		index, err := l.readIndex()
		if err != nil {
			return nil, err
		}
		if entry, err = resolve(index, ref.Tag); err != nil {
			return nil, err
		}
		digest = entry.Digest
	}
	raw, err := readFile(l.path(digest), limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the layout has no manifest %s: check the reference", digest)
	} else if err != nil {
		return nil, err
	}
	if got := digestOf(raw); got != digest {
		return nil, fmt.Errorf("the file %s does not match its digest: its bytes have the digest %s", l.path(digest), got)
	}
	if ref.HasDigest() {
		return raw, nil
	}
	if entry.Size != int64(len(raw)) {
		return nil, fmt.Errorf("index.json gives %s a size of %d bytes, and it has %d", digest, entry.Size, len(raw))
	}
	return raw, checkNamedType(string(entry.MediaType), raw, "index.json")
}

// resolve finds a tag in index.json; without one, the only artifact there is.
func resolve(index *v1.IndexManifest, tag string) (v1.Descriptor, error) {
	var found []v1.Descriptor
	for _, entry := range index.Manifests {
		if tag == "" && entry.ArtifactType == Type || tag != "" && entry.Annotations[annotationRefName] == tag {
			if !slices.ContainsFunc(found, func(d v1.Descriptor) bool { return d.Digest == entry.Digest }) {
				found = append(found, entry)
			}
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case tag != "" && len(found) > 1:
		return v1.Descriptor{}, fmt.Errorf("index.json gives the tag %s to %d manifests", tag, len(found))
	case tag != "":
		return v1.Descriptor{}, fmt.Errorf("the layout has no tag %s: check the reference", tag)
	case len(found) == 0:
		return v1.Descriptor{}, errors.New("the layout holds no attestable image")
	}
	return v1.Descriptor{}, fmt.Errorf("the layout holds %d attestable images: give a tag or a digest", len(found))
}

func (l *layout) blob(_ context.Context, layer v1.Descriptor, offset int64) (io.ReadCloser, error) {
	f, err := openRegular(l.path(layer.Digest))
	if err != nil {
		return nil, fmt.Errorf("read blob of OCI layout %s: %w", l.dir, err)
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(fmt.Errorf("read blob of OCI layout %s: %w", l.dir, err), f.Close())
	}
	return f, nil
}

func (l *layout) putBlob(_ context.Context, layer v1.Descriptor, data []byte) error {
	path := l.path(layer.Digest)
	if old, err := readFile(path, layer.Size); err == nil && bytes.Equal(old, data) {
		return nil
	}
	if err := WriteFile(path, data); err != nil {
		return fmt.Errorf("write to OCI layout %s: %w", l.dir, err)
	}
	return nil
}

func (l *layout) putDisk(ctx context.Context, open func() (*compressor, error)) (*compressor, error) {
	source, err := open()
	if err != nil {
		return nil, err
	}
	defer source.Close()
	if err := l.writeDisk(ctx, source); err != nil {
		return nil, fmt.Errorf("write disk to OCI layout %s: %w", l.dir, err)
	}
	return source, nil
}

func (l *layout) writeDisk(ctx context.Context, source *compressor) error {
	f, err := os.CreateTemp(filepath.Join(l.dir, "blobs", "sha256"), ".disk-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // which fails once it is renamed
	defer f.Close()
	if _, err := io.CopyBuffer(f, contextReader{ctx, source}, make([]byte, 1<<20)); err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), l.path(source.layer().Digest))
}

// contextReader stops reading when ctx ends.
type contextReader struct {
	ctx context.Context
	io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

func (l *layout) putManifest(ctx context.Context, manifest v1.Descriptor, raw []byte) error {
	if err := l.putBlob(ctx, manifest, raw); err != nil {
		return err
	}
	return l.list(manifest)
}

// list adds a manifest to index.json unless it is there.
func (l *layout) list(manifest v1.Descriptor) error {
	err := l.update(func(index *v1.IndexManifest) {
		if !slices.ContainsFunc(index.Manifests, func(d v1.Descriptor) bool { return d.Digest == manifest.Digest }) {
			index.Manifests = append(index.Manifests, manifest)
		}
	})
	if err != nil {
		return fmt.Errorf("list manifest in OCI layout %s: %w", l.dir, err)
	}
	return nil
}

func (l *layout) putTag(_ context.Context, tag string, manifest v1.Descriptor, _ []byte) error {
	err := l.update(func(index *v1.IndexManifest) { index.Manifests = retag(index.Manifests, tag, manifest) })
	if err != nil {
		return fmt.Errorf("tag manifest in OCI layout %s: %w", l.dir, err)
	}
	return nil
}

// retag moves a tag. What had it stays, without a tag if it had no other.
func retag(entries []v1.Descriptor, tag string, manifest v1.Descriptor) []v1.Descriptor {
	kept := make([]v1.Descriptor, 0, len(entries)+1)
	for _, entry := range entries {
		if entry.Annotations[annotationRefName] == tag {
			entry.Annotations = maps.Clone(entry.Annotations)
			delete(entry.Annotations, annotationRefName)
			if len(entry.Annotations) == 0 {
				entry.Annotations = nil
			}
		}
		kept = append(kept, entry)
	}
	tagged := manifest
	tagged.Annotations = maps.Clone(manifest.Annotations)
	if tagged.Annotations == nil {
		tagged.Annotations = map[string]string{}
	}
	tagged.Annotations[annotationRefName] = tag
	kept = append(kept, tagged)
	// An entry without a tag is needed only while no other lists its manifest.
	named := map[v1.Hash]bool{}
	for _, entry := range kept {
		if entry.Annotations[annotationRefName] != "" {
			named[entry.Digest] = true
		}
	}
	seen := map[v1.Hash]bool{}
	return slices.DeleteFunc(kept, func(entry v1.Descriptor) bool {
		if entry.Annotations[annotationRefName] != "" {
			return false
		}
		drop := named[entry.Digest] || seen[entry.Digest]
		seen[entry.Digest] = true
		return drop
	})
}

func (l *layout) referrers(_ context.Context, subject v1.Hash, artifactType string) ([]v1.Descriptor, error) {
	index, err := l.readIndex()
	if err != nil {
		return nil, fmt.Errorf("list referrers in OCI layout %s: %w", l.dir, err)
	}
	var found []v1.Descriptor
	seen := map[v1.Hash]bool{}
	for _, entry := range index.Manifests {
		if entry.MediaType != types.OCIManifestSchema1 || entry.Size > maxManifest || seen[entry.Digest] {
			continue
		}
		seen[entry.Digest] = true
		raw, err := readFile(l.path(entry.Digest), maxManifest)
		if err != nil || digestOf(raw) != entry.Digest {
			continue // somebody else's trouble: nothing can be learned from it
		}
		m, err := parseImageManifest(raw)
		if err != nil || m.Subject == nil || m.Subject.Digest != subject {
			continue
		}
		if d := referrerDescriptor(m, raw); artifactType == "" || d.ArtifactType == artifactType {
			if len(found) == maxReferrers {
				return nil, fmt.Errorf("list referrers in OCI layout %s: there are more than the %d that are allowed", l.dir, maxReferrers)
			}
			found = append(found, d)
		}
	}
	return found, nil
}

func (l *layout) putReferrers(ctx context.Context, _ v1.Hash, manifests []encodedManifest) error {
	for _, m := range manifests {
		if err := l.putManifest(ctx, m.descriptor, m.raw); err != nil {
			return err
		}
	}
	return nil
}

// openRegular opens a file that is no device and no pipe, which could keep a
// reader for ever.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func readFile(path string, limit int64) ([]byte, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := readLimited(f, limit)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return data, nil
}

// WriteFile writes a file under a temporary name and renames it, so that path is
// never half a file.
func WriteFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // which fails once it is renamed
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
