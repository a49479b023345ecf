package artifact

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Referrers lists the manifests that refer to an artifact, with their
// annotations, at most 1,000. artifactType filters them unless it is "".
func Referrers(ctx context.Context, subject Reference, artifactType string, list ...Option) ([]v1.Descriptor, error) {
	if !subject.HasDigest() {
		return nil, fmt.Errorf("list referrers of %s: the reference has no digest: write %s@sha256:HEX", subject, subject.Place())
	}
	s, err := openStore(ctx, subject, toRead, newOptions(list))
	if err != nil {
		return nil, err
	}
	return s.referrers(ctx, subject.Digest, artifactType)
}

// GetReferrer reads the only layer of a referrer that Referrers listed, at most
// 32 MiB, and checks the digests of the manifest and of the layer, and that
// the manifest's subject is the artifact.
func GetReferrer(ctx context.Context, subject Reference, referrer v1.Descriptor, list ...Option) ([]byte, error) {
	s, err := openStore(ctx, subject, toRead, newOptions(list))
	if err != nil {
		return nil, err
	}
	ref := subject.WithDigest(referrer.Digest)
	raw, err := s.manifest(ctx, ref, maxManifest)
	if err != nil {
		return nil, err
	}
	m, err := parseImageManifest(raw)
	switch {
	case err != nil:
		return nil, fmt.Errorf("read referrer %s: %w", ref, err)
	case m.Subject == nil || m.Subject.Digest != subject.Digest:
		return nil, fmt.Errorf("read referrer %s: its subject is not %s", ref, subject.Digest)
	case len(m.Layers) != 1:
		return nil, fmt.Errorf("read referrer %s: it has %d layers instead of one", ref, len(m.Layers))
	}
	data, err := readBlob(ctx, s, m.Layers[0], maxReferrer)
	if err != nil {
		return nil, fmt.Errorf("read referrer %s: %w", ref, err)
	}
	return data, nil
}

// PutReferrer stores a blob as a referrer of an artifact: a manifest with the
// artifact as its subject, whose type and whose only layer's type are
// artifactType. It returns the manifest's digest.
func PutReferrer(ctx context.Context, subject Reference, artifactType string, blob []byte, annotations map[string]string, list ...Option) (v1.Hash, error) {
	if !subject.HasDigest() {
		return v1.Hash{}, fmt.Errorf("attach to %s: the reference has no digest: write %s@sha256:HEX", subject, subject.Place())
	}
	if len(blob) > maxReferrer {
		return v1.Hash{}, fmt.Errorf("attach to %s: %d bytes are more than the %d that are allowed", subject, len(blob), maxReferrer)
	}
	s, err := openStore(ctx, subject, toWrite, newOptions(list))
	if err != nil {
		return v1.Hash{}, err
	}
	subjectRaw, err := s.manifest(ctx, subject, maxManifest)
	if err != nil {
		return v1.Hash{}, err
	}
	subjectManifest, err := parseImageManifest(subjectRaw)
	if err != nil {
		return v1.Hash{}, fmt.Errorf("attach to %s: %w", subject, err)
	}
	subjectDescriptor := describe(subjectRaw, subjectManifest.MediaType)
	layer := describe(blob, types.MediaType(artifactType))
	config := emptyConfig()
	m := &v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: artifactType,
		Config: config, Layers: []v1.Descriptor{layer}, Subject: &subjectDescriptor, Annotations: annotations,
	}
	raw, err := marshalManifest(m)
	if err != nil {
		return v1.Hash{}, err
	}
	if err := s.putBlob(ctx, layer, blob); err != nil {
		return v1.Hash{}, err
	}
	if err := s.putBlob(ctx, config, emptyJSON); err != nil {
		return v1.Hash{}, err
	}
	manifest := referrerDescriptor(m, raw)
	return manifest.Digest, s.putReferrer(ctx, subject.Digest, manifest, raw)
}

// referrerDescriptor describes a manifest as a list of referrers does:
// distribution-spec 1.1, "Listing Referrers".
func referrerDescriptor(m *v1.Manifest, raw []byte) v1.Descriptor {
	d := describe(raw, m.MediaType)
	d.Annotations = m.Annotations
	if d.ArtifactType = m.ArtifactType; d.ArtifactType == "" {
		d.ArtifactType = string(m.Config.MediaType)
	}
	return d
}

// fallbackTag is where referrers are listed in a registry that does not list
// them itself: distribution-spec 1.1, "Referrers Tag Schema".
func fallbackTag(subject v1.Hash) string { return subject.Algorithm + "-" + subject.Hex }

// referrers asks the referrers API, and looks at the fallback tag where there
// is none or it knows of nothing: some registries answer without listing what
// was pushed.
func (r *registry) referrers(ctx context.Context, subject v1.Hash, artifactType string) ([]v1.Descriptor, error) {
	ref := r.ref.WithDigest(subject)
	found, apiErr := r.listReferrers(ctx, subject, artifactType)
	if apiErr == nil && len(found) > 0 {
		return found, nil
	}
	var refused *statusError
	if apiErr != nil && !errors.As(apiErr, &refused) && !errors.Is(apiErr, errNoReferrersAPI) {
		return nil, explain("list referrers of", ref, r.want, apiErr)
	}
	index, _, err := r.fallbackIndex(ctx, subject)
	if err != nil {
		return nil, explain("list referrers of", ref, r.want, err)
	}
	if index == nil {
		// No API is the same as no referrers; an API that failed is not.
		if refused != nil && (refused.status >= 500 && refused.status != http.StatusNotImplemented ||
			refused.status == http.StatusUnauthorized || refused.status == http.StatusForbidden || refused.status == http.StatusTooManyRequests) {
			return nil, explain("list referrers of", ref, r.want, apiErr)
		}
		return nil, nil
	}
	return filterReferrers(nil, index.Manifests, artifactType)
}

// errNoReferrersAPI says that what answered is no referrers API.
var errNoReferrersAPI = errors.New("the registry has no referrers API")

func (r *registry) listReferrers(ctx context.Context, subject v1.Hash, artifactType string) ([]v1.Descriptor, error) {
	next := r.url("referrers", subject.String())
	if artifactType != "" {
		next.RawQuery = url.Values{"artifactType": {artifactType}}.Encode()
	}
	var found []v1.Descriptor
	const maxPages = 50
	for range maxPages {
		page, following, err := r.referrersPage(ctx, next)
		if err != nil {
			return nil, err
		}
		if found, err = filterReferrers(found, page.Manifests, artifactType); err != nil {
			return nil, err
		}
		if following == nil {
			return found, nil
		}
		next = following
	}
	return nil, fmt.Errorf("the list has more than %d pages", maxPages)
}

func (r *registry) referrersPage(ctx context.Context, at *url.URL) (*v1.IndexManifest, *url.URL, error) {
	response, err := r.do(ctx, call{method: http.MethodGet, url: at,
		header: http.Header{"Accept": {string(types.OCIImageIndex)}}, accept: []int{http.StatusOK}})
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	if contentType, _, _ := strings.Cut(response.Header.Get("Content-Type"), ";"); contentType != string(types.OCIImageIndex) {
		return nil, nil, errNoReferrersAPI
	}
	raw, err := readLimited(response.Body, maxIndex)
	if err != nil {
		return nil, nil, err
	}
	index, err := parseIndex(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("the registry's list of referrers: %w", err)
	}
	return index, nextPage(response), nil
}

// nextPage reads the header Link with rel="next" (RFC 8288); nil when there is
// none on the same host.
func nextPage(response *http.Response) *url.URL {
	for _, link := range response.Header.Values("Link") {
		target, parameters, ok := strings.Cut(link, ">")
		target, found := strings.CutPrefix(strings.TrimSpace(target), "<")
		if !ok || !found || !strings.Contains(strings.ReplaceAll(parameters, `"`, ""), "rel=next") {
			continue
		}
		next, err := response.Request.URL.Parse(target)
		if err == nil && next.Host == response.Request.URL.Host {
			return next
		}
	}
	return nil
}

func filterReferrers(found, more []v1.Descriptor, artifactType string) ([]v1.Descriptor, error) {
	for _, d := range more {
		if artifactType != "" && d.ArtifactType != artifactType {
			continue
		}
		if slices.ContainsFunc(found, func(f v1.Descriptor) bool { return f.Digest == d.Digest }) {
			continue
		}
		if len(found) == maxReferrers {
			return nil, fmt.Errorf("there are more than the %d that are allowed", maxReferrers)
		}
		found = append(found, d)
	}
	return found, nil
}

// fallbackIndex reads the index under the fallback tag, and its ETag; nil when
// there is none.
func (r *registry) fallbackIndex(ctx context.Context, subject v1.Hash) (*v1.IndexManifest, string, error) {
	raw, header, err := r.getManifest(ctx, r.ref.withTag(fallbackTag(subject)), types.OCIImageIndex, maxIndex)
	var refused *statusError
	if errors.As(err, &refused) && refused.status == http.StatusNotFound {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	index, err := parseIndex(raw)
	if err != nil {
		return nil, "", fmt.Errorf("what the tag %s points at: %w", fallbackTag(subject), err)
	}
	return index, header.Get("ETag"), nil
}

func (r *registry) putReferrer(ctx context.Context, subject v1.Hash, manifest v1.Descriptor, raw []byte) error {
	ref := r.ref.WithDigest(subject)
	header, err := r.sendManifest(ctx, manifest.Digest.String(), manifest.MediaType, raw, nil)
	if err != nil {
		return explain("attach to", ref, toWrite, err)
	}
	if header.Get("OCI-Subject") != "" {
		// Some registries say that they list referrers, and do not.
		if _, err := r.listReferrers(ctx, subject, manifest.ArtifactType); err == nil {
			return nil
		}
	}
	return explain("attach to", ref, toWrite, r.addToFallback(ctx, subject, manifest))
}

// addToFallback lists a referrer in the index under the fallback tag. Where the
// registry tells versions apart, a change by somebody else in between is seen.
func (r *registry) addToFallback(ctx context.Context, subject v1.Hash, manifest v1.Descriptor) error {
	for attempt := 1; ; attempt++ {
		index, etag, err := r.fallbackIndex(ctx, subject)
		if err != nil {
			return err
		}
		if index == nil {
			index = &v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
		}
		if slices.ContainsFunc(index.Manifests, func(d v1.Descriptor) bool { return d.Digest == manifest.Digest }) {
			return nil
		}
		index.MediaType = types.OCIImageIndex
		index.Manifests = append(index.Manifests, manifest)
		raw, err := json.Marshal(index)
		if err != nil {
			return fmt.Errorf("encode the index under %s: %w", fallbackTag(subject), err)
		}
		if len(raw) > maxIndex || len(index.Manifests) > maxReferrers {
			return fmt.Errorf("the index under %s is full with %d referrers: delete some", fallbackTag(subject), len(index.Manifests)-1)
		}
		condition := http.Header{}
		if etag != "" {
			condition.Set("If-Match", etag)
		}
		_, err = r.sendManifest(ctx, fallbackTag(subject), types.OCIImageIndex, raw, condition)
		var refused *statusError
		if attempt < r.repeat.attempts && errors.As(err, &refused) && refused.status == http.StatusPreconditionFailed {
			continue
		}
		return err
	}
}
