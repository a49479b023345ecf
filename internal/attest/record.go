package attest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/org/attestable-image-action/internal/retry"
	"github.com/org/attestable-image-action/internal/strictjson"
)

// StorageRecord says where an organization keeps an artifact, for the page of its
// linked artifacts ("REST API endpoints for artifact metadata").
type StorageRecord struct {
	Name     string // REGISTRY/REPOSITORY
	Digest   string // sha256:HEX
	Version  string // may be empty
	Registry string // URL: https://ghcr.io
}

// Record makes a storage record for an artifact of a repository (OWNER/REPO)
// unless there is the same one already, and returns the numbers of the records.
// Without an error they are none where the owner is no organization: others have
// no such page.
func (g GitHub) Record(ctx context.Context, repository string, r StorageRecord) ([]string, error) {
	fail := func(err error) ([]string, error) {
		return nil, fmt.Errorf("make a storage record with GitHub for %s: %w", repository, redact(err, g.Token))
	}
	address, err := g.endpoint("repos", repository)
	if err != nil {
		return fail(err)
	}
	var about struct {
		Owner struct {
			Type string `json:"type"`
		} `json:"owner"`
	}
	if err := g.get(ctx, address, &about); err != nil {
		return fail(fmt.Errorf("ask whether the owner is an organization: %w", err))
	}
	if about.Owner.Type != "Organization" {
		return nil, nil
	}
	owner, _, _ := strings.Cut(repository, "/")
	if known, err := g.records(ctx, owner, r); err == nil && len(known) > 0 {
		return known, nil
	}
	body, err := json.Marshal(struct {
		Name     string `json:"name"`
		Digest   string `json:"digest"`
		Version  string `json:"version,omitempty"`
		Registry string `json:"registry_url"`
	}{r.Name, r.Digest, r.Version, r.Registry})
	if err != nil {
		return fail(err)
	}
	if address, err = g.endpoint("orgs", owner, "artifacts", "metadata", "storage-record"); err != nil {
		return fail(err)
	}
	transport := g.transport
	transport.MaxBody = maxObject
	if transport.Attempts == 0 {
		transport.Attempts = storeAttempts
	}
	response, err := g.do(ctx, &transport, http.MethodPost, address, body)
	if err != nil {
		return fail(explainStatus(err))
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK && response.StatusCode != http.StatusCreated {
		refused := retry.NewStatusError(response)
		if refused.Code == http.StatusForbidden || refused.Code == http.StatusNotFound {
			return fail(fmt.Errorf("%w: give the job 'permissions: artifact-metadata: write', or leave the record out with --storage-record=false (in a workflow: 'create-storage-record: false')", refused))
		}
		return fail(refused)
	}
	var made recordList
	if err := strictjson.Decode(response.Body, maxObject, &made); err != nil {
		return fail(fmt.Errorf("read the answer: %w", err))
	}
	if len(made.ids(nil)) == 0 {
		return fail(errors.New("the answer names no record"))
	}
	return made.ids(nil), nil
}

// records lists the records that say the same.
func (g GitHub) records(ctx context.Context, owner string, r StorageRecord) ([]string, error) {
	address, err := g.endpoint("orgs", owner, "artifacts", r.Digest, "metadata", "storage-records")
	if err != nil {
		return nil, err
	}
	var list recordList
	if err := g.get(ctx, address, &list); err != nil {
		return nil, err
	}
	return list.ids(&r), nil
}

// recordList is GitHub's answer.
type recordList struct {
	Records []struct {
		ID       json.Number `json:"id"`
		Name     string      `json:"name"`
		Registry string      `json:"registry_url"`
	} `json:"storage_records"`
}

// ids are the numbers of the records, of those that say the same as r unless r is
// nil.
func (l recordList) ids(r *StorageRecord) []string {
	var ids []string
	for _, record := range l.Records {
		same := r == nil || record.Name == r.Name && strings.TrimSuffix(record.Registry, "/") == strings.TrimSuffix(r.Registry, "/")
		if same && record.ID != "" {
			ids = append(ids, record.ID.String())
		}
	}
	return ids
}
