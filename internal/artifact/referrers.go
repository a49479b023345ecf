package artifact

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// ReferrerList is what refers to an artifact, at most 1,000 manifests, and a
// connection to read them over.
type ReferrerList struct {
	Descriptors []v1.Descriptor // with annotations

	store   store
	subject Reference
}

// ListReferrers lists the manifests that refer to an artifact. artifactType
// filters them unless it is "".
func ListReferrers(ctx context.Context, subject Reference, artifactType string, list ...Option) (*ReferrerList, error) {
	if !subject.HasDigest() {
		return nil, fmt.Errorf("list referrers of %s: the reference has no digest: write %s@sha256:HEX", subject, subject.Place())
	}
	s, err := openStore(ctx, subject, toRead, newOptions(list))
	if err != nil {
		return nil, err
	}
	found, err := s.referrers(ctx, subject.Digest, artifactType)
	if err != nil {
		return nil, err
	}
	return &ReferrerList{found, s, subject}, nil
}

// Get reads the only layer of a referrer of the list, at most 32 MiB, and checks
// the digests of the manifest and of the layer, that the manifest's subject is
// the artifact, and that it is of the type that was listed.
func (l *ReferrerList) Get(ctx context.Context, referrer v1.Descriptor) ([]byte, error) {
	return getReferrer(ctx, l.store, l.subject, referrer)
}

// Referrers lists the manifests that refer to an artifact, with their
// annotations, at most 1,000. artifactType filters them unless it is "".
func Referrers(ctx context.Context, subject Reference, artifactType string, list ...Option) ([]v1.Descriptor, error) {
	found, err := ListReferrers(ctx, subject, artifactType, list...)
	if err != nil {
		return nil, err
	}
	return found.Descriptors, nil
}

// GetReferrer is ReferrerList.Get for a single one.
func GetReferrer(ctx context.Context, subject Reference, referrer v1.Descriptor, list ...Option) ([]byte, error) {
	s, err := openStore(ctx, subject, toRead, newOptions(list))
	if err != nil {
		return nil, err
	}
	return getReferrer(ctx, s, subject, referrer)
}

func getReferrer(ctx context.Context, s store, subject Reference, referrer v1.Descriptor) ([]byte, error) {
	ref := subject.WithDigest(referrer.Digest)
	raw, err := s.manifest(ctx, ref, maxManifest)
	if err != nil {
		return nil, err
	}
	m, err := parseImageManifest(raw)
	if err != nil {
		return nil, fmt.Errorf("read referrer %s: %w", ref, err)
	}
	is := referrerDescriptor(m, raw).ArtifactType
	switch {
	case m.Subject == nil || m.Subject.Digest != subject.Digest:
		return nil, fmt.Errorf("read referrer %s: its subject is not %s", ref, subject.Digest)
	case referrer.ArtifactType != "" && is != referrer.ArtifactType:
		return nil, fmt.Errorf("read referrer %s: it is of type %s, and was listed as %s", ref, quote(is), quote(referrer.ArtifactType))
	case len(m.Layers) != 1:
		return nil, fmt.Errorf("read referrer %s: it has %d layers instead of one", ref, len(m.Layers))
	}
	data, err := readBlob(ctx, s, m.Layers[0], maxReferrer)
	if err != nil {
		return nil, fmt.Errorf("read referrer %s: %w", ref, err)
	}
	return data, nil
}

// Referrer is a blob to attach to an artifact, and what the list of referrers
// says of it.
type Referrer struct {
	Blob        []byte
	Annotations map[string]string
}

// PutReferrer stores a blob as a referrer of an artifact: a manifest with the
// artifact as its subject, whose type and whose only layer's type are
// artifactType. It returns the manifest's digest.
func PutReferrer(ctx context.Context, subject Reference, artifactType string, blob []byte, annotations map[string]string, list ...Option) (v1.Hash, error) {
	digests, err := PutReferrers(ctx, subject, artifactType, []Referrer{{blob, annotations}}, list...)
	if err != nil {
		return v1.Hash{}, err
	}
	return digests[0], nil
}

// PutReferrers is PutReferrer for several blobs. They are listed when all of them
// are stored, and together.
func PutReferrers(ctx context.Context, subject Reference, artifactType string, referrers []Referrer, list ...Option) ([]v1.Hash, error) {
	if !subject.HasDigest() {
		return nil, fmt.Errorf("attach to %s: the reference has no digest: write %s@sha256:HEX", subject, subject.Place())
	}
	for _, r := range referrers {
		if len(r.Blob) > maxReferrer {
			return nil, fmt.Errorf("attach to %s: %d bytes are more than the %d that are allowed", subject, len(r.Blob), maxReferrer)
		}
	}
	s, err := openStore(ctx, subject, toWrite, newOptions(list))
	if err != nil {
		return nil, err
	}
	subjectRaw, err := s.manifest(ctx, subject, maxManifest)
	if err != nil {
		return nil, err
	}
	subjectManifest, err := parseImageManifest(subjectRaw)
	if err != nil {
		return nil, fmt.Errorf("attach to %s: %w", subject, err)
	}
	subjectDescriptor := describe(subjectRaw, subjectManifest.MediaType)
	config := emptyConfig()
	if err := s.putBlob(ctx, config, emptyJSON); err != nil {
		return nil, err
	}
	manifests := make([]encodedManifest, len(referrers))
	digests := make([]v1.Hash, len(referrers))
	for i, r := range referrers {
		layer := describe(r.Blob, types.MediaType(artifactType))
		m := &v1.Manifest{
			SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: artifactType,
			Config: config, Layers: []v1.Descriptor{layer}, Subject: &subjectDescriptor, Annotations: r.Annotations,
		}
		raw, err := marshalManifest(m)
		if err != nil {
			return nil, err
		}
		if err := s.putBlob(ctx, layer, r.Blob); err != nil {
			return nil, err
		}
		manifests[i] = encodedManifest{referrerDescriptor(m, raw), raw}
		digests[i] = manifests[i].descriptor.Digest
	}
	return digests, s.putReferrers(ctx, subject.Digest, manifests)
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

func (r *registry) putReferrers(ctx context.Context, subject v1.Hash, manifests []encodedManifest) error {
	ref := r.ref.WithDigest(subject)
	listed := true // by the registry itself
	for _, m := range manifests {
		header, err := r.sendManifest(ctx, m.descriptor.Digest.String(), m.descriptor.MediaType, m.raw, nil)
		if err != nil {
			return explain("attach to", ref, toWrite, err)
		}
		listed = listed && header.Get("OCI-Subject") != ""
	}
	if listed {
		done, err := r.listsThem(ctx, subject, manifests)
		if done || err != nil {
			return explain("attach to", ref, toWrite, err)
		}
	}
	return explain("attach to", ref, toWrite, r.addToFallback(ctx, subject, manifests))
}

// listsThem reports whether the registry's own list has the manifests: some say
// that they list referrers, and do not. One that lists some and not others is
// an error, since nobody would look at the fallback tag.
func (r *registry) listsThem(ctx context.Context, subject v1.Hash, manifests []encodedManifest) (bool, error) {
	for attempt := 1; ; attempt++ {
		found, err := r.listReferrers(ctx, subject, "")
		if err != nil {
			return false, nil //nolint:nilerr // the fallback tag must do
		}
		missing := missingIn(found, manifests)
		switch {
		case len(missing) == 0:
			return true, nil
		case attempt >= r.repeat.attempts && len(found) == 0:
			return false, nil
		case attempt >= r.repeat.attempts:
			return false, fmt.Errorf("the registry stored %s and does not list it as a referrer of %s: run this again, and look at the registry if it stays so", missing[0].Digest, subject)
		}
		// A list may lag behind.
		if err := sleep(ctx, r.repeat.settle); err != nil {
			return false, err
		}
	}
}

// missingIn returns those of the manifests that a list lacks.
func missingIn(list []v1.Descriptor, manifests []encodedManifest) []v1.Descriptor {
	var missing []v1.Descriptor
	for _, m := range manifests {
		if !slices.ContainsFunc(list, func(d v1.Descriptor) bool { return d.Digest == m.descriptor.Digest }) {
			missing = append(missing, m.descriptor)
		}
	}
	return missing
}

// fallbackWrites is how often the index under the fallback tag is written while
// others write it, too.
const fallbackWrites = 12

// addToFallback lists referrers in the index under the fallback tag, which the
// distribution-spec has every client change by reading and writing it. If-Match
// would keep two clients from overwriting each other; few registries heed it,
// and none says so. So the index is read again, at once and after a while that
// is longer than the time from another client's reading to its writing, and
// written again until what was listed stays.
func (r *registry) addToFallback(ctx context.Context, subject v1.Hash, manifests []encodedManifest) error {
	var written, settled, waited bool
	failures := 0
	pause := r.repeat.settle
	for writes := 0; ; {
		start := time.Now()
		index, etag, err := r.fallbackIndex(ctx, subject)
		if err != nil {
			return err
		}
		if index == nil {
			index = &v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
		}
		missing := missingIn(index.Manifests, manifests)
		if len(missing) == 0 {
			if !written || settled {
				return nil
			}
			settled = true
			if err := sleep(ctx, pause+rand.N(pause)); err != nil { //nolint:gosec // spreads clients, hides nothing
				return err
			}
			continue
		}
		if writes == fallbackWrites {
			return fmt.Errorf("others change the index under %s again and again: run this again", fallbackTag(subject))
		}
		// Before another try the clients spread, and read anew: what is written has to be
		// what was read just now, or it drops what others wrote meanwhile and looked at.
		if writes > 0 && !waited {
			waited = true
			if err := sleep(ctx, rand.N(pause)+1); err != nil { //nolint:gosec // as above
				return err
			}
			continue
		}
		writes++
		settled, waited = false, false
		written = true // maybe also when there is no answer
		if err := r.putFallback(once(ctx), subject, index, missing, etag); err != nil {
			if refused, ok := errors.AsType[*statusError](err); ok && refused.status == http.StatusPreconditionFailed {
				continue
			}
			failures++
			wait, again := r.repeat.again(err, failures)
			if !again {
				return err
			}
			waited = true
			if err := sleep(ctx, wait); err != nil {
				return err
			}
			continue
		}
		// Another client is probably as slow as this one.
		pause = min(max(pause, 3*time.Since(start)), 10*r.repeat.settle)
	}
}

func (r *registry) putFallback(ctx context.Context, subject v1.Hash, index *v1.IndexManifest, more []v1.Descriptor, etag string) error {
	index.MediaType = types.OCIImageIndex
	index.Manifests = append(index.Manifests, more...)
	raw, err := json.Marshal(index)
	if err != nil {
		return fmt.Errorf("encode the index under %s: %w", fallbackTag(subject), err)
	}
	if len(raw) > maxIndex || len(index.Manifests) > maxReferrers {
		return fmt.Errorf("the index under %s is full with %d referrers: delete some", fallbackTag(subject), len(index.Manifests)-len(more))
	}
	condition := http.Header{}
	if etag != "" {
		condition.Set("If-Match", etag)
	}
	_, err = r.sendManifest(ctx, fallbackTag(subject), types.OCIImageIndex, raw, condition)
	return err
}
