package server

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestAwait asks a service that is busy at first, one that stays so, and one whose
// answer will not change.
func TestAwait(t *testing.T) {
	nonce := []byte(strings.Repeat("n", minNonce))
	var asked atomic.Int32
	var answers []int // statuses, the last one for good
	service := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(answers[min(int(asked.Add(1)), len(answers))-1])
	}))
	defer service.Close()
	for _, c := range []struct {
		name     string
		answers  []int
		patience time.Duration
		asked    int32
		refused  string // part of the error
	}{
		{"busy at first", []int{503, 429, 200}, time.Minute, 3, ""},
		{"busy to the end", []int{503}, 1500 * time.Millisecond, 2, "503"},
		{"without patience", []int{503}, 0, 1, "503"},
		{"refused", []int{400}, time.Minute, 1, "400"},
		{"elsewhere", []int{307}, time.Minute, 1, "307"},
	} {
		t.Run(c.name, func(t *testing.T) {
			answers = c.answers
			asked.Store(0)
			_, _, err := Await(t.Context(), service.URL, nonce, c.patience)
			if c.refused == "" && err != nil || c.refused != "" && (err == nil || !strings.Contains(err.Error(), c.refused)) {
				t.Errorf("ended with %v, want %q", err, c.refused)
			}
			if n := asked.Load(); n != c.asked {
				t.Errorf("asked %d times, want %d", n, c.asked)
			}
		})
	}
	service.Close()
	if _, _, err := Await(t.Context(), service.URL, nonce, 0); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("of an instance that is away: %v", err)
	}
}
