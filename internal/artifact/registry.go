package artifact

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// registry is a repository of a registry. It follows OCI distribution-spec 1.1;
// credentials and tokens are go-containerregistry's work. Its package remote
// does not do, because its limits and repetitions are not ours to set, and
// because it does not lock the fallback tag of referrers.
type registry struct {
	ref    Reference
	http   *http.Client
	want   intent
	repeat patience
}

// openRegistry logs in.
func openRegistry(ctx context.Context, ref Reference, want intent, o options) (*registry, error) {
	scope := transport.PullScope
	if want == toWrite {
		scope = transport.PushScope
	}
	credentials, err := authn.Resolve(ctx, keychain, ref.repository)
	if err != nil {
		return nil, fmt.Errorf("find credentials for %s in the docker configuration: %w", ref.Host(), err)
	}
	authenticated, err := transport.NewWithContext(ctx, ref.repository.Registry, credentials, newTransport(o.patience), []string{ref.repository.Scope(scope)})
	var refused *transport.Error
	if errors.As(err, &refused) && refused.StatusCode == http.StatusNotFound {
		return nil, fmt.Errorf("log in to registry of %s: there is no registry at %s (%w): check the host in the reference", ref, ref.Host(), fromTransport(refused, 0))
	}
	if err != nil {
		return nil, explain("log in to registry of", ref, want, err)
	}
	return &registry{ref: ref, want: want, repeat: o.patience, http: &http.Client{Transport: authenticated, CheckRedirect: checkRedirect}}, nil
}

// checkRedirect lets no registry send us into the local network.
func checkRedirect(request *http.Request, via []*http.Request) error {
	if len(via) > 10 {
		return errors.New("the registry redirects in a circle")
	}
	return checkHost(via[0].URL, request.URL)
}

func checkHost(from, to *url.URL) error {
	if to.Hostname() == from.Hostname() {
		return nil
	}
	if ip := net.ParseIP(to.Hostname()); ip != nil && (ip.IsLoopback() || ip.IsPrivate() || ip.IsLinkLocalUnicast() || ip.IsUnspecified()) || to.Hostname() == "localhost" {
		return fmt.Errorf("the registry %s redirects to %s, an address of a local network", from.Host, to.Host)
	}
	return nil
}

// url is the address of something in the repository.
func (r *registry) url(elements ...string) *url.URL {
	// Log-in found out whether a registry on this machine speaks HTTP; its
	// transport changes the scheme then.
	return &url.URL{Scheme: "https", Host: r.ref.Host(), Path: "/v2/" + r.ref.repository.RepositoryStr() + "/" + strings.Join(elements, "/")}
}

// call is a request and the answers that it may have.
type call struct {
	method string
	url    *url.URL
	header http.Header
	body   io.Reader
	accept []int
}

// do sends a request; an answer with another status is an error.
func (r *registry) do(ctx context.Context, c call) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, c.method, c.url.String(), c.body)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	maps.Copy(request.Header, c.header)
	response, err := r.http.Do(request)
	if err != nil {
		return nil, err
	}
	if slices.Contains(c.accept, response.StatusCode) {
		return response, nil
	}
	defer response.Body.Close()
	return nil, newStatusError(response)
}

// answered is what counts of an answer whose body does not.
type answered struct {
	status int
	header http.Header
	from   *url.URL // the request's
}

// send is do for answers whose body does not matter.
func (r *registry) send(ctx context.Context, c call) (answered, error) {
	response, err := r.do(ctx, c)
	if err != nil {
		return answered{}, err
	}
	defer response.Body.Close()
	_, _ = io.CopyN(io.Discard, response.Body, 64<<10) // so that the connection can be used again
	return answered{response.StatusCode, response.Header, response.Request.URL}, nil
}

func (r *registry) manifest(ctx context.Context, ref Reference, limit int64) ([]byte, error) {
	raw, _, err := r.getManifest(ctx, ref, types.OCIManifestSchema1, limit)
	return raw, explain("fetch manifest of", ref, r.want, err)
}

// getManifest reads a manifest or index and the answer's header.
func (r *registry) getManifest(ctx context.Context, ref Reference, mediaType types.MediaType, limit int64) ([]byte, http.Header, error) {
	identifier := ref.Tag
	if ref.HasDigest() {
		identifier = ref.Digest.String()
	}
	response, err := r.do(ctx, call{method: http.MethodGet, url: r.url("manifests", identifier),
		header: http.Header{"Accept": {string(mediaType)}}, accept: []int{http.StatusOK}})
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	raw, err := readLimited(response.Body, limit)
	if err != nil {
		return nil, nil, err
	}
	digest := digestOf(raw)
	if ref.HasDigest() && digest != ref.Digest {
		return nil, nil, fmt.Errorf("the registry's answer does not match the digest: its bytes have the digest %s", digest)
	}
	if said := response.Header.Get("Docker-Content-Digest"); strings.HasPrefix(said, "sha256:") && said != digest.String() {
		return nil, nil, fmt.Errorf("the registry's answer does not match the digest %s that it gives with it: its bytes have the digest %s", quote(said), digest)
	}
	if err := checkNamedType(response.Header.Get("Content-Type"), raw, "the registry"); err != nil {
		return nil, nil, err
	}
	return raw, response.Header, nil
}

func readLimited(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("it is longer than the %d bytes that are allowed", limit)
	}
	return data, nil
}

func (r *registry) blob(ctx context.Context, layer v1.Descriptor, offset int64) (io.ReadCloser, error) {
	header := http.Header{}
	if offset > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	response, err := r.do(ctx, call{method: http.MethodGet, url: r.url("blobs", layer.Digest.String()), header: header,
		accept: []int{http.StatusOK, http.StatusPartialContent}})
	if err != nil {
		return nil, explain("fetch blob of", r.ref.WithDigest(layer.Digest), r.want, err)
	}
	if offset > 0 && response.StatusCode == http.StatusOK {
		if _, err := io.CopyN(io.Discard, response.Body, offset); err != nil {
			return nil, errors.Join(explain("fetch blob of", r.ref.WithDigest(layer.Digest), r.want, err), response.Body.Close())
		}
	}
	return response.Body, nil
}

func (r *registry) putBlob(ctx context.Context, layer v1.Descriptor, data []byte) error {
	return explain("push to", r.ref, toWrite, r.uploadBlob(ctx, layer, data))
}

func (r *registry) uploadBlob(ctx context.Context, layer v1.Descriptor, data []byte) error {
	if held, err := r.holds(ctx, layer.Digest); held || err != nil {
		return err
	}
	location, err := r.startUpload(ctx)
	if err != nil {
		return err
	}
	return r.commitUpload(ctx, location, layer.Digest, bytes.NewReader(data))
}

// holds asks whether the registry has a blob already.
func (r *registry) holds(ctx context.Context, digest v1.Hash) (bool, error) {
	found, err := r.send(ctx, call{method: http.MethodHead, url: r.url("blobs", digest.String()),
		accept: []int{http.StatusOK, http.StatusNotFound}})
	return err == nil && found.status == http.StatusOK, err
}

// startUpload begins an upload and returns where it goes.
func (r *registry) startUpload(ctx context.Context) (*url.URL, error) {
	response, err := r.send(ctx, call{method: http.MethodPost, url: r.url("blobs", "uploads", ""), accept: []int{http.StatusAccepted}})
	if err != nil {
		return nil, err
	}
	return nextLocation(response)
}

// commitUpload ends an upload with its last bytes.
func (r *registry) commitUpload(ctx context.Context, location *url.URL, digest v1.Hash, body io.Reader) error {
	target := *location
	query := target.Query()
	query.Set("digest", digest.String())
	target.RawQuery = query.Encode()
	_, err := r.send(ctx, call{method: http.MethodPut, url: &target, body: body,
		header: http.Header{"Content-Type": {"application/octet-stream"}}, accept: []int{http.StatusCreated}})
	if _, refused := errors.AsType[*statusError](err); refused {
		// An upload that is gone, or not where it should be, may be one that ended:
		// the answer was lost, and this is the one to the request sent again.
		if held, asked := r.holds(ctx, digest); held && asked == nil {
			return nil
		}
	}
	return err
}

func nextLocation(a answered) (*url.URL, error) {
	text := a.header.Get("Location")
	if text == "" {
		return nil, errors.New("the registry does not say where the upload goes: it is broken, or a proxy before it is")
	}
	location, err := a.from.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("the registry does not say where the upload goes: %w", err)
	}
	return location, checkHost(a.from, location)
}

// putDisk streams the disk in one request: PATCH without a length, then PUT
// with the digest, which is only known then. A fault that does not last starts
// the disk anew, because nothing but the disk itself is kept.
func (r *registry) putDisk(ctx context.Context, open func() (*compressor, error)) (*compressor, error) {
	for attempt := 1; ; attempt++ {
		source, err := open()
		if err != nil {
			return nil, err
		}
		err = r.streamDisk(ctx, source)
		_ = source.Close()
		if err == nil {
			return source, nil
		}
		if source.readErr != nil && !errors.Is(source.readErr, errStopped) {
			return nil, source.readErr // the disk's fault
		}
		wait, again := r.again(attempt, err)
		if !again || ctx.Err() != nil {
			return nil, explain("push disk to", r.ref, toWrite, err)
		}
		if err := sleep(ctx, wait); err != nil {
			return nil, explain("push disk to", r.ref, toWrite, err)
		}
	}
}

// again tells whether an upload that ended with err may start anew, and when.
func (r *registry) again(attempt int, err error) (time.Duration, bool) {
	var refused *statusError
	wait := r.repeat.backoff
	for range attempt - 1 {
		wait *= 3
	}
	switch {
	case attempt >= r.repeat.attempts:
		return 0, false
	case errors.As(err, &refused):
		return max(wait, refused.wait), transientStatus(refused.status) && refused.wait <= r.repeat.maxWait
	}
	return wait, connectionBroke(err)
}

func (r *registry) streamDisk(ctx context.Context, source *compressor) (err error) {
	location, err := r.startUpload(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			r.abandon(ctx, location)
		}
	}()
	// The transport closes the body when it is done, yet the sums are needed
	// after that.
	response, err := r.send(ctx, call{method: http.MethodPatch, url: location, body: io.NopCloser(source),
		header: http.Header{"Content-Type": {"application/octet-stream"}},
		accept: []int{http.StatusAccepted, http.StatusNoContent, http.StatusCreated}})
	if err != nil {
		return err
	}
	if !source.ended.Load() {
		return errors.New("the registry answered before it had taken the whole disk")
	}
	if location, err = nextLocation(response); err != nil {
		return err
	}
	return r.commitUpload(ctx, location, source.layer().Digest, http.NoBody)
}

// abandon lets the registry forget an upload, if it can be asked.
func (r *registry) abandon(ctx context.Context, location *url.URL) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(5*time.Second, r.repeat.answer))
	defer cancel()
	if request, err := http.NewRequestWithContext(ctx, http.MethodDelete, location.String(), nil); err == nil {
		if response, err := r.http.Do(request); err == nil {
			_ = response.Body.Close()
		}
	}
}

func (r *registry) putManifest(ctx context.Context, manifest v1.Descriptor, raw []byte) error {
	_, err := r.sendManifest(ctx, manifest.Digest.String(), manifest.MediaType, raw, nil)
	return explain("push manifest", r.ref.WithDigest(manifest.Digest), toWrite, err)
}

func (r *registry) putTag(ctx context.Context, tag string, manifest v1.Descriptor, raw []byte) error {
	_, err := r.sendManifest(ctx, tag, manifest.MediaType, raw, nil)
	return explain("tag", r.ref.withTag(tag), toWrite, err)
}

func (r *registry) sendManifest(ctx context.Context, identifier string, mediaType types.MediaType, raw []byte, header http.Header) (http.Header, error) {
	header = header.Clone()
	if header == nil {
		header = http.Header{}
	}
	header.Set("Content-Type", string(mediaType))
	response, err := r.send(ctx, call{method: http.MethodPut, url: r.url("manifests", identifier), header: header, body: bytes.NewReader(raw),
		accept: []int{http.StatusCreated, http.StatusOK, http.StatusAccepted}})
	if err != nil {
		return nil, err
	}
	return response.header, nil
}
