package attest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/org/attestable-image-action/internal/retry"
	"github.com/org/attestable-image-action/internal/strictjson"
)

// ReleaseFile is a file of bundles among the assets of a release ("REST API
// endpoints for release assets").
type ReleaseFile struct {
	Name string
	Data []byte // what it holds; nil when there is none yet

	api        GitHub
	repository string
	upload     *url.URL          // where assets go
	assets     map[string]string // number by name
}

// maxReleaseFile bounds such a file, in bytes.
const maxReleaseFile = 2 * MaxBundle

// newSuffix ends the name of a file that is about to replace another.
const newSuffix = ".new"

// ReleaseFile reads the file called name of the release with a tag, of a
// repository (OWNER/REPO).
func (g GitHub) ReleaseFile(ctx context.Context, repository, tag, name string) (*ReleaseFile, error) {
	f := &ReleaseFile{Name: name, api: g, repository: repository, assets: make(map[string]string)}
	if err := f.read(ctx, tag); err != nil {
		return nil, fmt.Errorf("read %s of the release %s of %s: %w", name, tag, repository, redact(err, g.Token))
	}
	return f, nil
}

func (f *ReleaseFile) read(ctx context.Context, tag string) error {
	address, err := f.api.endpoint("repos", f.repository, "releases", "tags", url.PathEscape(tag))
	if err != nil {
		return err
	}
	var release struct {
		UploadURL string `json:"upload_url"` // an RFC 6570 template
		Assets    []struct {
			ID   json.Number `json:"id"`
			Name string      `json:"name"`
		} `json:"assets"`
	}
	err = f.api.get(ctx, address, &release)
	if refused, ok := errors.AsType[*retry.StatusError](err); ok && refused.Code == http.StatusNotFound {
		return fmt.Errorf("%w: there is no published release with this tag that the token may see: publish it before, and give the job 'permissions: contents: write'", err)
	}
	if err != nil {
		return err
	}
	for _, asset := range release.Assets {
		f.assets[asset.Name] = asset.ID.String()
	}
	if f.upload, err = f.uploadURL(release.UploadURL); err != nil {
		return err
	}
	id := f.assets[f.Name]
	if id == "" {
		return nil
	}
	response, err := f.call(ctx, http.MethodGet, f.asset(id), "application/octet-stream", nil, http.StatusOK)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	f.Data, err = io.ReadAll(response.Body)
	return err
}

// uploadURL reads the address for uploads, which is of another host than the API's
// on github.com. The token goes there, so it must be GitHub's.
func (f *ReleaseFile) uploadURL(template string) (*url.URL, error) {
	address, _, _ := strings.Cut(template, "{")
	upload, err := url.Parse(address)
	base, baseErr := url.Parse(f.api.API)
	if err != nil || baseErr != nil {
		return nil, errors.New("GitHub names a place for uploads that is no URL")
	}
	_, domain, _ := strings.Cut(base.Host, ".") // api.github.com, api.octo.ghe.com
	if upload.Scheme != base.Scheme || upload.Host != base.Host && upload.Host != "uploads."+domain {
		return nil, fmt.Errorf("GitHub names a place for uploads, %s, that is not GitHub's", upload.Host)
	}
	return upload, nil
}

// asset is the address of an asset, by its number.
func (f *ReleaseFile) asset(id string) string {
	address, err := f.api.endpoint("repos", f.repository, "releases", "assets", id)
	if err != nil {
		panic(err) // read has made one already
	}
	return address
}

// Candidates are the bundles in the file.
func (f *ReleaseFile) Candidates() ([]Candidate, error) {
	if len(f.Data) == 0 {
		return nil, nil
	}
	candidates, err := parseBundles(f.Name, f.Data)
	if err != nil {
		return nil, fmt.Errorf("read %s of the release: %w: delete it", f.Name, err)
	}
	return candidates, nil
}

// Add adds bundles to the file. A release has it whole at any time, or under
// another name, or, for the time of two requests, not at all.
func (f *ReleaseFile) Add(ctx context.Context, bundles ...[]byte) error {
	data := append([]byte(nil), f.Data...)
	if len(data) > 0 && data[len(data)-1] != '\n' {
		data = append(data, '\n')
	}
	for _, b := range bundles {
		data = append(append(data, b...), '\n')
	}
	if err := f.replace(ctx, data); err != nil {
		return fmt.Errorf("upload %s to the release: %w", f.Name, redact(explainRelease(err), f.api.Token))
	}
	f.Data = data
	return nil
}

func (f *ReleaseFile) replace(ctx context.Context, data []byte) error {
	old := f.assets[f.Name]
	name := f.Name
	if old != "" {
		name += newSuffix
	}
	if left := f.assets[name]; left != "" { // by a run that was stopped
		if err := f.delete(ctx, left); err != nil {
			return err
		}
	}
	target := *f.upload
	target.RawQuery = url.Values{"name": {name}}.Encode()
	response, err := f.call(ctx, http.MethodPost, target.String(), "", data, http.StatusCreated)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var made struct {
		ID json.Number `json:"id"`
	}
	if err := strictjson.Decode(response.Body, maxObject, &made); err != nil || made.ID == "" {
		return errors.New("the answer gives no number")
	}
	if old != "" {
		if err := f.delete(ctx, old); err != nil {
			return err
		}
		renamed, err := f.call(ctx, http.MethodPatch, f.asset(made.ID.String()), "", []byte(`{"name":`+quoted(f.Name)+`}`), http.StatusOK)
		if err != nil {
			return err
		}
		_ = renamed.Body.Close()
	}
	f.assets[f.Name] = made.ID.String()
	return nil
}

func (f *ReleaseFile) delete(ctx context.Context, id string) error {
	response, err := f.call(ctx, http.MethodDelete, f.asset(id), "", nil, http.StatusNoContent, http.StatusNotFound)
	if err != nil {
		return err
	}
	return response.Body.Close()
}

// call sends a request that must have one of the answers.
func (f *ReleaseFile) call(ctx context.Context, method, address, accept string, body []byte, answers ...int) (*http.Response, error) {
	transport := f.api.transport
	transport.MaxBody = maxReleaseFile
	response, err := f.api.doAccepting(ctx, &transport, method, address, accept, body)
	if err != nil {
		return nil, err
	}
	if slices.Contains(answers, response.StatusCode) {
		return response, nil
	}
	defer response.Body.Close()
	return nil, retry.NewStatusError(response)
}

func explainRelease(err error) error {
	refused, ok := errors.AsType[*retry.StatusError](err)
	switch {
	case ok && (refused.Code == http.StatusForbidden || refused.Code == http.StatusNotFound):
		return fmt.Errorf("%w: the token may not: give the job 'permissions: contents: write'", err)
	case ok && refused.Code == http.StatusUnprocessableEntity:
		return fmt.Errorf("%w: another run uploads it, too, or the release is immutable: run this again in the first case", err)
	}
	return explainStatus(err)
}

// quoted is text as JSON.
func quoted(text string) string {
	data, err := json.Marshal(text)
	if err != nil {
		panic(err) // a string always can
	}
	return string(data)
}
