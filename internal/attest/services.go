package attest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"github.com/go-openapi/runtime"
	openapi "github.com/go-openapi/runtime/client"
	"github.com/go-openapi/strfmt"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	rekor2 "github.com/sigstore/rekor-tiles/v2/pkg/generated/protobuf"
	rekor1 "github.com/sigstore/rekor/pkg/generated/client"
	"github.com/sigstore/rekor/pkg/generated/client/entries"
	"github.com/sigstore/rekor/pkg/generated/models"
	"github.com/sigstore/rekor/pkg/util"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/org/attestable-image-action/internal/retry"
	"github.com/org/attestable-image-action/internal/strictjson"
)

// maxAnswer bounds an answer of a Sigstore service, in bytes.
const maxAnswer = 10 << 20

// fulcio is sigstore-go's client with our own way to try again.
type fulcio struct {
	url       string
	transport retry.Transport
}

func (f fulcio) GetCertificate(ctx context.Context, keypair sign.Keypair, options *sign.CertificateProviderOptions) ([]byte, error) {
	client := sign.NewFulcio(&sign.FulcioOptions{BaseURL: strings.TrimSuffix(f.url, "/"), Timeout: -1, Transport: within(ctx, f.transport)})
	certificate, err := client.GetCertificate(ctx, keypair, options)
	if err != nil {
		return nil, fmt.Errorf("get a certificate from %s: %w", f.url, err)
	}
	return certificate, nil
}

// errConflict says that a log has the same entry already.
var errConflict = errors.New("the log has this entry already")

// transparencyLog is sigstore-go's Rekor with its name in errors.
type transparencyLog struct {
	url   string
	rekor *sign.Rekor
	err   error
}

func newLog(ctx context.Context, log Log, transport retry.Transport) sign.Transparency {
	client := &http.Client{Transport: within(ctx, transport)}
	// The library's own client for either version would bring its own retries.
	options := &sign.RekorOptions{BaseURL: log.URL, Version: log.Version, Timeout: -1}
	base, err := url.Parse(strings.TrimSuffix(log.URL, "/"))
	switch {
	case err != nil:
	case log.Version == 2:
		options.ClientV2 = logV2{base: base, client: client}
	default:
		path := base.Path
		if path == "" {
			path = rekor1.DefaultBasePath
		}
		client.Transport = refusals{client.Transport}
		rt := openapi.NewWithClient(base.Host, path, []string{base.Scheme}, client)
		rt.Consumers["application/json"] = runtime.JSONConsumer()
		rt.Producers["application/json"] = runtime.JSONProducer()
		registry := strfmt.NewFormats()
		registry.Add("signedCheckpoint", &util.SignedNote{}, util.SignedCheckpointValidator)
		options.Client = logV1{rekor1.New(rt, registry).Entries}
	}
	return transparencyLog{log.URL, sign.NewRekor(options), err}
}

func (l transparencyLog) GetTransparencyLogEntry(ctx context.Context, certificate []byte, bundle *protobundle.Bundle) error {
	err := l.err
	if err == nil {
		err = l.rekor.GetTransparencyLogEntry(ctx, certificate, bundle)
	}
	if err != nil {
		return fmt.Errorf("add an entry to the log %s: %w", l.url, err)
	}
	return nil
}

// refusals turns an answer that no client needs to see into an error with its
// words: the generated one stumbles over what is not JSON.
type refusals struct{ base http.RoundTripper }

func (t refusals) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := t.base.RoundTrip(request)
	if err != nil || response.StatusCode == http.StatusConflict {
		return response, err
	}
	if response.StatusCode < 300 {
		contentType := response.Header.Get("Content-Type")
		if media, _, err := mime.ParseMediaType(contentType); err == nil && media == "application/json" {
			return response, nil
		}
		_ = response.Body.Close()
		return nil, fmt.Errorf("it answered %s with %q, and not with JSON: a proxy may stand before it", response.Status, contentType)
	}
	defer response.Body.Close()
	return nil, retry.NewStatusError(response)
}

// logV1 is a Rekor v1 whose answers are looked at before sigstore-go follows
// pointers in them.
type logV1 struct{ entries entries.ClientService }

func (l logV1) CreateLogEntry(params *entries.CreateLogEntryParams, options ...entries.ClientOption) (*entries.CreateLogEntryCreated, error) {
	created, err := l.entries.CreateLogEntry(params, options...)
	if err != nil {
		return nil, err
	}
	entry, ok := created.Payload[created.ETag]
	if !ok {
		return nil, errors.New("its answer lacks the entry that its header ETag names")
	}
	return created, checkEntry(entry)
}

func (l logV1) GetLogEntryByUUID(params *entries.GetLogEntryByUUIDParams, options ...entries.ClientOption) (*entries.GetLogEntryByUUIDOK, error) {
	found, err := l.entries.GetLogEntryByUUID(params, options...)
	if err != nil {
		return nil, err
	}
	if len(found.Payload) != 1 {
		return nil, fmt.Errorf("its answer holds %d entries instead of one", len(found.Payload))
	}
	for _, entry := range found.Payload {
		err = checkEntry(entry)
	}
	return found, err
}

func checkEntry(entry models.LogEntryAnon) error {
	if err := entry.Validate(strfmt.Default); err != nil {
		return fmt.Errorf("its entry is not whole: %w", err)
	}
	if entry.Verification == nil || entry.Verification.InclusionProof == nil {
		return errors.New("its entry lacks the proof of inclusion")
	}
	return nil
}

// logV2 writes to a Rekor v2, which answers when the next checkpoint covers the
// entry; rekor-tiles' own client takes no transport.
type logV2 struct {
	base   *url.URL
	client *http.Client
}

func (l logV2) Add(ctx context.Context, entry any) (*protorekor.TransparencyLogEntry, error) {
	record, ok := entry.(*rekor2.HashedRekordRequestV002)
	if !ok {
		return nil, fmt.Errorf("no entry of type %T is known", entry)
	}
	payload, err := protojson.Marshal(&rekor2.CreateEntryRequest{
		Spec: &rekor2.CreateEntryRequest_HashedRekordRequestV002{HashedRekordRequestV002: record},
	})
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, l.base.JoinPath("/api/v2/log/entries").String(), bytes.NewReader(payload))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := l.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusCreated:
	case http.StatusConflict:
		return nil, errConflict
	default:
		return nil, retry.NewStatusError(response)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	added := new(protorekor.TransparencyLogEntry)
	err = protojson.Unmarshal(body, added)
	if err == nil {
		err = strictjson.CheckMessage(body, added)
	}
	if err != nil {
		// The decoder quotes what it stumbled over, which may be all of it.
		return nil, fmt.Errorf("read the log's answer: %.300s", err.Error())
	}
	return added, nil
}
