package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/org/attestable-image-action/internal/strictjson"
)

// timesVariable is the variable of the environment that names the file in which each
// command of the action leaves how long it took, for the step summary at the end.
const timesVariable = "ATTESTABLE_IMAGE_TIMES"

// timeRecord is a line of that file, JSON.
type timeRecord struct {
	Step    string  `json:"step"` // the command, as "push"; "prepare" for what came before the first
	Seconds float64 `json:"seconds"`
	Stored  int64   `json:"stored,omitempty"` // bytes that the disk has in the artifact
}

// maxTimes bounds the file, in bytes.
const maxTimes = 64 << 10

// recordTime leaves how long a command took. That it cannot is no reason to fail.
func recordTime(step string, took time.Duration, stored int64) {
	path := os.Getenv(timesVariable)
	if path == "" {
		return
	}
	line, err := json.Marshal(timeRecord{step, took.Round(time.Millisecond).Seconds(), stored})
	if err != nil {
		return
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600) //nolint:gosec // the action's own
	if err != nil {
		return
	}
	_, _ = file.Write(append(line, '\n'))
	_ = file.Close()
}

// readTimes reads what the commands left, in their order; those of one command are
// added up. A line that is none is passed over.
func readTimes(path string) ([]timeRecord, error) {
	if path == "" {
		return nil, nil
	}
	content, err := readBounded(path, maxTimes)
	if err != nil {
		return nil, fmt.Errorf("read how long the steps took: %w", err)
	}
	var times []timeRecord
next:
	for line := range bytes.Lines(content) {
		var r timeRecord
		if strictjson.Unmarshal(line, &r) != nil || r.Step == "" || r.Seconds < 0 || r.Stored < 0 {
			continue
		}
		for i := range times {
			if times[i].Step == r.Step {
				times[i].Seconds += r.Seconds
				times[i].Stored = max(times[i].Stored, r.Stored)
				continue next
			}
		}
		times = append(times, r)
	}
	return times, nil
}

// formatSeconds is a time for people: 0.3 s, 12 s, 2 min 5 s, 1 h 20 min.
func formatSeconds(seconds float64) string {
	whole := int64(seconds + 0.5)
	switch {
	case seconds < 9.95:
		return fmt.Sprintf("%.1f s", seconds)
	case whole < 60:
		return fmt.Sprintf("%d s", whole)
	case whole < 3600:
		return fmt.Sprintf("%d min %d s", whole/60, whole%60)
	}
	return fmt.Sprintf("%d h %d min", whole/3600, whole%3600/60)
}
