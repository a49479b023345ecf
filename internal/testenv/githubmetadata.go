package testenv

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
)

// StorageRecord says where an organization keeps an artifact.
type StorageRecord struct {
	ID       int    `json:"id"`
	Name     string `json:"name"`
	Digest   string `json:"digest"`
	Version  string `json:"version,omitempty"`
	Registry string `json:"registry_url"`
}

// serveMetadata answers what is asked about the repository, whose owner is an
// organization, and keeps storage records.
func (g *GitHub) serveMetadata(mux *http.ServeMux) {
	mux.HandleFunc("GET /repos/{owner}/{repo}", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusOK, map[string]any{
			"full_name": r.PathValue("owner") + "/" + r.PathValue("repo"),
			"owner":     map[string]string{"login": r.PathValue("owner"), "type": "Organization"},
		})
	})
	mux.HandleFunc("POST /orgs/{owner}/artifacts/metadata/storage-record", func(w http.ResponseWriter, r *http.Request) {
		var record StorageRecord
		if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&record); err != nil || record.Name == "" || record.Digest == "" || record.Registry == "" {
			refuse(w, http.StatusUnprocessableEntity, "Invalid request")
			return
		}
		g.mu.Lock()
		record.ID = 501 + len(g.records)
		g.records = append(g.records, record)
		g.mu.Unlock()
		writeJSON(w, http.StatusOK, map[string]any{"total_count": 1, "storage_records": []StorageRecord{record}})
	})
	mux.HandleFunc("GET /orgs/{owner}/artifacts/{digest}/metadata/storage-records", func(w http.ResponseWriter, r *http.Request) {
		found := slices.DeleteFunc(g.Records(), func(record StorageRecord) bool { return record.Digest != r.PathValue("digest") })
		writeJSON(w, http.StatusOK, map[string]any{"total_count": len(found), "storage_records": found})
	})
}

// Records returns every storage record, oldest first.
func (g *GitHub) Records() []StorageRecord {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.records)
}
