package attest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/go-openapi/runtime"
	"github.com/sigstore/rekor/pkg/generated/models"
	"github.com/sigstore/rekor/pkg/types"
	"github.com/sigstore/rekor/pkg/util"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore/pkg/signature"
)

// testLog is a Rekor v1 that forgets: each entry is the only one of its tree.
// The real one needs a database. Entries, signatures and proofs are made by
// Rekor's own packages.
type testLog struct {
	url string
	id  string // hex

	key    *ecdsa.PrivateKey
	change func(uuid string, entry *models.LogEntryAnon) (etag string) // spoils the answer
	status int                                                         // instead of an answer, when not 0
}

func newTestLog(t *testing.T) *testLog {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	id := sha256.Sum256(der)
	l := &testLog{id: hex.EncodeToString(id[:]), key: key}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { l.answer(t, w, r) }))
	t.Cleanup(server.Close)
	l.url = server.URL
	return l
}

// trusted is the log as a trust root names it.
func (l *testLog) trusted() map[string]*root.TransparencyLog {
	id, err := hex.DecodeString(l.id)
	if err != nil {
		panic(err)
	}
	return map[string]*root.TransparencyLog{l.id: {
		BaseURL: l.url, ID: id, ValidityPeriodStart: time.Now().Add(-time.Hour),
		HashFunc: crypto.SHA256, PublicKey: l.key.Public(), SignatureHashFunc: crypto.SHA256,
	}}
}

func (l *testLog) answer(t *testing.T, w http.ResponseWriter, r *http.Request) {
	if l.status == http.StatusOK {
		_, _ = w.Write([]byte("<html>Welcome</html>"))
		return
	}
	if l.status != 0 {
		http.Error(w, `{"code":1,"message":"the log is full"}`, l.status)
		return
	}
	if r.Method != http.MethodPost || r.URL.Path != "/api/v1/log/entries" {
		t.Errorf("%s %s", r.Method, r.URL)
	}
	entry, uuid, err := l.add(r)
	if err != nil {
		t.Errorf("add an entry: %v", err)
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	etag := uuid
	if l.change != nil {
		etag = l.change(uuid, entry)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("ETag", etag)
	w.WriteHeader(http.StatusCreated)
	if err := json.NewEncoder(w).Encode(map[string]*models.LogEntryAnon{uuid: entry}); err != nil {
		t.Error(err)
	}
}

func (l *testLog) add(r *http.Request) (*models.LogEntryAnon, string, error) {
	proposed, err := models.UnmarshalProposedEntry(r.Body, runtime.JSONConsumer())
	if err != nil {
		return nil, "", err
	}
	entry, err := types.CreateVersionedEntry(proposed)
	if err != nil {
		return nil, "", err
	}
	body, err := types.CanonicalizeEntry(context.Background(), entry)
	if err != nil {
		return nil, "", err
	}
	encoded, index, size, integrated := base64.StdEncoding.EncodeToString(body), int64(0), int64(1), time.Now().Unix()
	// The members in the order of RFC 8785.
	promise, err := json.Marshal(struct {
		Body           string `json:"body"`
		IntegratedTime int64  `json:"integratedTime"`
		LogID          string `json:"logID"`
		LogIndex       int64  `json:"logIndex"`
	}{encoded, integrated, l.id, index})
	if err != nil {
		return nil, "", err
	}
	digest := sha256.Sum256(promise)
	timestamp, err := ecdsa.SignASN1(rand.Reader, l.key, digest[:])
	if err != nil {
		return nil, "", err
	}
	leaf := sha256.Sum256(append([]byte{0}, body...)) // RFC 6962, section 2.1
	rootHash := hex.EncodeToString(leaf[:])
	signer, err := signature.LoadECDSASigner(l.key, crypto.SHA256)
	if err != nil {
		return nil, "", err
	}
	note, err := util.CreateAndSignCheckpoint(context.Background(), "127.0.0.1", 1, 1, leaf[:], signer)
	if err != nil {
		return nil, "", err
	}
	checkpoint := string(note)
	return &models.LogEntryAnon{
		Body: encoded, IntegratedTime: &integrated, LogID: &l.id, LogIndex: &index,
		Verification: &models.LogEntryAnonVerification{
			SignedEntryTimestamp: timestamp,
			InclusionProof:       &models.InclusionProof{Checkpoint: &checkpoint, Hashes: []string{}, LogIndex: &index, RootHash: &rootHash, TreeSize: &size},
		},
	}, rootHash, nil
}
