package nsm

import (
	"bytes"
	"testing"
)

// TestNewAuth draws as often as a zero would be there in almost every draw.
func TestNewAuth(t *testing.T) {
	seen := map[string]bool{}
	for range 200 {
		auth, err := newAuth()
		if err != nil {
			t.Fatal(err)
		}
		if len(auth) != authSize || bytes.IndexByte(auth, 0) >= 0 || seen[string(auth)] {
			t.Fatalf("authorization value %x", auth)
		}
		seen[string(auth)] = true
	}
}
