package cli

import (
	"testing"
	"time"
)

func TestProgressLine(t *testing.T) {
	for want, tc := range map[string]struct {
		progress
		after time.Duration
	}{
		"upload: 1.0 GiB of 8.0 GiB (12%), 102.4 MiB/s, 1m10s left": {progress{label: "upload", done: 1 << 30, total: 8 << 30}, 10 * time.Second},
		"upload: 8.0 GiB of 8.0 GiB (100%), 819.2 MiB/s":            {progress{label: "upload", done: 8 << 30, total: 8 << 30}, 10 * time.Second},
		"pull: 5.0 MiB, 512.0 KiB/s":                                {progress{label: "pull", done: 5 << 20, total: -1}, 10 * time.Second},
		"pull: 0 B of 1.0 GiB (0%), 0 B/s":                          {progress{label: "pull", total: 1 << 30}, 0},
	} {
		if got := tc.line(tc.after); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
