package nsm_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/org/attestable-image-action/internal/nsm"
)

// TestOpen opens a device that every machine has in the place of a TPM: what is
// tested is who may have it.
func TestOpen(t *testing.T) {
	const device = "/dev/full"
	first, err := nsm.Open(t.Context(), device)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := nsm.Open(ctx, device); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), device+" is in use") {
		t.Errorf("error %v", err)
	}
	second := make(chan error, 1)
	go func() {
		tpm, err := nsm.Open(t.Context(), device)
		if err == nil {
			err = tpm.Close()
		}
		second <- err
	}()
	select {
	case err := <-second:
		t.Errorf("opened twice: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-second; err != nil {
		t.Error(err)
	}

	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, reason := range map[string]string{file: "is not a device", file + "x": "this machine has none"} {
		if _, err := nsm.Open(t.Context(), path); err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("%s: error %v", path, err)
		}
	}
}
