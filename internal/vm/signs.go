package vm

import (
	"bytes"
	"fmt"
	"os"
)

// Where a sign was found.
const (
	OnSerialLine = "serial line"
	InMemory     = "memory"
)

// findSigns looks for texts in the log of the serial line and in the guest's memory.
func findSigns(signs []string, serialLog string, memory *os.File) (map[string]string, error) {
	found := map[string]string{}
	log, err := os.ReadFile(serialLog) // no longer than maxSerialLog
	if err != nil {
		return nil, fmt.Errorf("look for signs on the serial line: %w", err)
	}
	var rest [][]byte
	longest := 1
	for _, sign := range signs {
		switch {
		case sign == "":
		case bytes.Contains(log, []byte(sign)):
			found[sign] = OnSerialLine
		default:
			rest = append(rest, []byte(sign))
			longest = max(longest, len(sign))
		}
	}
	if longest >= searchWindow {
		return nil, fmt.Errorf("look for signs in the guest's memory: one has %d bytes, at most %d can be found", longest, searchWindow-1)
	}
	if len(rest) == 0 {
		return found, nil
	}
	err = walkMemory(memory, longest-1, func(window []byte, _ int64) bool {
		for _, sign := range rest {
			if found[string(sign)] == "" && bytes.Contains(window, sign) {
				found[string(sign)] = InMemory
			}
		}
		return len(found) < len(signs)
	})
	if err != nil {
		return nil, fmt.Errorf("look for signs in the guest's memory: %w", err)
	}
	return found, nil
}
