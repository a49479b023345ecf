package artifact

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Content is what becomes an artifact.
type Content struct {
	Name     string // of the image; the disk layer's title is this and ".raw.zst"
	DiskSize int64  // bytes
	// OpenDisk opens the raw disk. It is called again when a fault of the
	// registry that does not last makes the upload start anew.
	OpenDisk func() (io.ReadCloser, error)
	// Measurements is called once the disk was read, with its SHA-256 in
	// lower-case hex and its size in bytes, and returns the measurements
	// document. An error keeps the artifact from being made.
	Measurements func(diskSHA256 string, size int64) ([]byte, error)
	// Created is the time of the image; zero is the time of the push. SOURCE_DATE_EPOCH
	// in the environment goes before it.
	Created     time.Time
	UEFIData    []byte            // the AWS variable store of a signed image, or nil
	PCRs        map[string]string // annotations: "pcr4" to lower-case hex, and so on
	Annotations map[string]string // further ones of the manifest; those that are "" are left out
}

// Result is an artifact that was pushed.
type Result struct {
	Reference      Reference // with the manifest's digest
	Tags           []string
	Manifest       v1.Descriptor
	DiskSHA256     string // lower-case hex, of the raw disk
	DiskSize       int64  // bytes
	CompressedSize int64  // bytes
}

// Push stores an artifact. The disk is read once, on its way; it never lies in
// memory or in a temporary file. The manifest is stored when everything it
// names is, and tags point at it when it is.
func Push(ctx context.Context, ref Reference, content Content, list ...Option) (*Result, error) {
	o := newOptions(list)
	tags, err := pushTags(ref, o.tags)
	if err != nil {
		return nil, err
	}
	if err := CheckName(content.Name); err != nil {
		return nil, fmt.Errorf("push to %s: %w", ref, err)
	}
	if content.DiskSize <= 0 {
		return nil, fmt.Errorf("push to %s: the disk is empty", ref)
	}
	annotations, err := content.annotations()
	if err != nil {
		return nil, fmt.Errorf("push to %s: %w", ref, err)
	}
	if len(content.UEFIData) > maxUEFIData {
		return nil, fmt.Errorf("push to %s: the UEFI variable store of %d bytes is longer than the %d that are allowed", ref, len(content.UEFIData), maxUEFIData)
	}
	s, err := openStore(ctx, ref, toWrite, o)
	if err != nil {
		return nil, err
	}
	disk, err := s.putDisk(ctx, content.opener(o.progress))
	if err != nil {
		return nil, err
	}
	sha256, size := disk.diskSums()
	if size != content.DiskSize {
		return nil, fmt.Errorf("push to %s: the disk had %d bytes at first and %d when it was read: let nobody write to it", ref, content.DiskSize, size)
	}
	measurements, err := content.Measurements(sha256, size)
	if err != nil {
		return nil, err
	}
	if len(measurements) > maxMeasurements {
		return nil, fmt.Errorf("push to %s: the measurements of %d bytes are longer than the %d that are allowed", ref, len(measurements), maxMeasurements)
	}
	blobs := []struct {
		layer v1.Descriptor
		data  []byte
	}{
		{titled(describe(measurements, MediaTypeMeasurements), titleMeasurements), measurements},
		{titled(describe(content.UEFIData, MediaTypeUEFIData), titleUEFIData), content.UEFIData},
		{emptyConfig(), emptyJSON},
	}
	m := &v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: Type, Config: emptyConfig(),
		Layers: []v1.Descriptor{titled(disk.layer(), content.Name+diskSuffix)}, Annotations: annotations,
	}
	for _, blob := range blobs {
		if len(blob.data) == 0 {
			continue
		}
		if err := s.putBlob(ctx, blob.layer, blob.data); err != nil {
			return nil, err
		}
		if blob.layer.MediaType != mediaTypeEmpty {
			m.Layers = append(m.Layers, blob.layer)
		}
	}
	raw, err := marshalManifest(m)
	if err != nil {
		return nil, fmt.Errorf("push to %s: %w", ref, err)
	}
	manifest := describe(raw, m.MediaType)
	manifest.ArtifactType = Type
	if err := s.putManifest(ctx, manifest, raw); err != nil {
		return nil, err
	}
	for _, tag := range tags {
		if err := s.putTag(ctx, tag, manifest, raw); err != nil {
			return nil, err
		}
	}
	return &Result{
		Reference: ref.WithDigest(manifest.Digest), Tags: tags, Manifest: manifest,
		DiskSHA256: sha256, DiskSize: size, CompressedSize: disk.layer().Size,
	}, nil
}

// pushTags lists all tags once.
func pushTags(ref Reference, more []string) ([]string, error) {
	if ref.HasDigest() {
		return nil, fmt.Errorf("push to %s: the digest of what is pushed is not known before: leave out @%s", ref, ref.Digest)
	}
	var tags []string
	for _, tag := range append([]string{ref.Tag}, more...) {
		if tag == "" || slices.Contains(tags, tag) {
			continue
		}
		if !tagPattern().MatchString(tag) {
			return nil, fmt.Errorf("push to %s: %q is no tag: %s", ref, tag, tagRule)
		}
		tags = append(tags, tag)
	}
	return tags, nil
}

// opener opens the disk from its beginning and takes back what progress was
// told of the time before.
func (c *Content) opener(progress func(n int64)) func() (*compressor, error) {
	var told int64
	return func() (*compressor, error) {
		disk, err := c.OpenDisk()
		if err != nil {
			return nil, err
		}
		report := func(n int64) {
			told += n
			if progress != nil {
				progress(n)
			}
		}
		if told > 0 {
			report(-told)
		}
		return newCompressor(disk, report)
	}
}

// annotations are those of the manifest.
func (c *Content) annotations() (map[string]string, error) {
	created, err := c.creationTime()
	if err != nil {
		return nil, err
	}
	annotations := map[string]string{AnnotationCreated: created.UTC().Format(time.RFC3339)}
	maps.Copy(annotations, c.Annotations)
	maps.Copy(annotations, c.PCRs)
	maps.DeleteFunc(annotations, func(_, value string) bool { return value == "" })
	return annotations, nil
}

// creationTime is what SOURCE_DATE_EPOCH says, the time of the image, or now.
func (c *Content) creationTime() (time.Time, error) {
	t, set, err := SourceDateEpoch()
	switch {
	case err != nil || set:
		return t, err
	case !c.Created.IsZero():
		return c.Created, nil
	}
	return time.Now(), nil
}

// SourceDateEpoch is the time that the environment variable SOURCE_DATE_EPOCH says, in
// seconds since 1970; set is false when it says none.
func SourceDateEpoch() (t time.Time, set bool, err error) {
	epoch := os.Getenv("SOURCE_DATE_EPOCH")
	if epoch == "" {
		return time.Time{}, false, nil
	}
	const year9999 = 253402300799 // the last second that RFC 3339 can say
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err == nil && (seconds < 0 || seconds > year9999) {
		err = errors.New("out of range")
	}
	if err != nil {
		return time.Time{}, false, fmt.Errorf("read the environment variable SOURCE_DATE_EPOCH: %q is no number of seconds since 1970", epoch)
	}
	return time.Unix(seconds, 0), true, nil
}
