package testenv

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// GitHub is a stand-in for the part of GitHub's REST API that keeps
// attestations: nobody can run the real one. It checks the token and keeps
// everything in memory.
type GitHub struct {
	URL   string // GITHUB_API_URL
	Token string // GITHUB_TOKEN, with every permission

	handler      http.Handler
	mu           sync.Mutex
	attestations []storedAttestation
	records      []StorageRecord
}

type storedAttestation struct {
	id            int
	repository    string // owner/name, lower case
	digests       []string
	predicateType string
	bundle        json.RawMessage
}

// maxAttestationRequest bounds the body of a request, in bytes: a predicate of
// 16 MiB in base64 twice, and its envelope.
const maxAttestationRequest = 32 << 20

func startGitHub(h Host) *GitHub {
	g := &GitHub{Token: "ghs_" + rand.Text()}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /repos/{owner}/{repo}/attestations", g.create)
	mux.HandleFunc("GET /repos/{owner}/{repo}/attestations/{digest}", g.list)
	mux.HandleFunc("GET /orgs/{owner}/attestations/{digest}", g.list)
	mux.HandleFunc("GET /users/{owner}/attestations/{digest}", g.list)
	g.serveMetadata(mux)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { refuse(w, http.StatusNotFound, "Not Found") })
	g.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if token != g.Token || (!strings.EqualFold(scheme, "bearer") && !strings.EqualFold(scheme, "token")) {
			refuse(w, http.StatusUnauthorized, "Bad credentials")
			return
		}
		mux.ServeHTTP(w, r)
	})
	g.URL = serve(h, g.handler)
	return g
}

// refuse answers an error in GitHub's form.
func refuse(w http.ResponseWriter, status int, message string) {
	writeJSON(w, status, map[string]string{
		"message": message, "documentation_url": "https://docs.github.com/rest", "status": fmt.Sprint(status),
	})
}

// storedStatement is what GitHub reads of a bundle's statement.
type storedStatement struct {
	PredicateType string `json:"predicateType"`
	Subject       []struct {
		Digest map[string]string `json:"digest"`
	} `json:"subject"`
}

func readStatement(bundle []byte) (*storedStatement, error) {
	var b struct {
		DSSEEnvelope struct {
			Payload []byte `json:"payload"`
		} `json:"dsseEnvelope"`
	}
	if err := json.Unmarshal(bundle, &b); err != nil {
		return nil, err
	}
	s := new(storedStatement)
	return s, json.Unmarshal(b.DSSEEnvelope.Payload, s)
}

func (g *GitHub) create(w http.ResponseWriter, r *http.Request) {
	var request struct {
		Bundle json.RawMessage `json:"bundle"`
	}
	if err := json.NewDecoder(io.LimitReader(r.Body, maxAttestationRequest)).Decode(&request); err != nil {
		refuse(w, http.StatusBadRequest, "Problems parsing JSON")
		return
	}
	statement, err := readStatement(request.Bundle)
	if err != nil || len(statement.Subject) == 0 {
		refuse(w, http.StatusUnprocessableEntity, "Invalid request: the bundle holds no in-toto statement")
		return
	}
	stored := storedAttestation{
		repository:    strings.ToLower(r.PathValue("owner") + "/" + r.PathValue("repo")),
		predicateType: statement.PredicateType,
		bundle:        request.Bundle,
	}
	for _, subject := range statement.Subject {
		stored.digests = append(stored.digests, "sha256:"+subject.Digest["sha256"])
	}
	g.mu.Lock()
	stored.id = 1000001 + len(g.attestations)
	g.attestations = append(g.attestations, stored)
	g.mu.Unlock()
	writeJSON(w, http.StatusCreated, map[string]int{"id": stored.id})
}

func (g *GitHub) list(w http.ResponseWriter, r *http.Request) {
	type item struct {
		Bundle       json.RawMessage `json:"bundle"`
		RepositoryID int             `json:"repository_id"`
		BundleURL    string          `json:"bundle_url"`
		Initiator    string          `json:"initiator"`
	}
	scope := strings.ToLower(r.PathValue("owner") + "/" + r.PathValue("repo"))
	predicateType := r.URL.Query().Get("predicate_type")
	items := []item{}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, a := range g.attestations {
		for _, digest := range a.digests {
			// Without a repository the scope is "owner/", which every one of
			// the owner's repositories starts with.
			if digest == r.PathValue("digest") && (a.repository == scope || strings.HasSuffix(scope, "/") && strings.HasPrefix(a.repository, scope)) &&
				(predicateType == "" || predicateType == a.predicateType) {
				items = append(items, item{Bundle: a.bundle, RepositoryID: 812345678, Initiator: "user"})
				break
			}
		}
	}
	if len(items) == 0 {
		refuse(w, http.StatusNotFound, "Not Found")
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"attestations": items})
}

// Bundles returns every bundle stored for a repository (owner/name), oldest first.
func (g *GitHub) Bundles(repository string) []json.RawMessage {
	g.mu.Lock()
	defer g.mu.Unlock()
	var bundles []json.RawMessage
	for _, a := range g.attestations {
		if a.repository == strings.ToLower(repository) {
			bundles = append(bundles, a.bundle)
		}
	}
	return bundles
}

// Tamper replaces every stored bundle by what change makes of a copy of it,
// until restore is called. It stays under the digests that it was stored with.
func (g *GitHub) Tamper(change func(bundle []byte) []byte) (restore func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	before := slices.Clone(g.attestations)
	for i, a := range g.attestations {
		g.attestations[i].bundle = change(bytes.Clone(a.bundle))
		// gh leaves it to GitHub to pick by type.
		if statement, err := readStatement(g.attestations[i].bundle); err == nil {
			g.attestations[i].predicateType = statement.PredicateType
		}
	}
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.attestations = before
	}
}
