package kiwi

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// empty removes what an earlier build left in the output directory. It refuses a
// directory with anything else in it, and then removes nothing.
func (d *outputDir) empty() error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return fmt.Errorf("read the output directory: %w", err)
	}
	if len(entries) == 0 {
		return nil
	}
	content, err := readBounded(os.DirFS(d.path), manifestName, maxManifestBytes)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the output directory: %w", err)
	}
	ours := strings.Fields(string(content))
	ours = append(ours, manifestName)
	for _, entry := range entries {
		if !slices.Contains(ours, entry.Name()) {
			return fmt.Errorf("the output directory %s has files that no build made (%s): give an empty or a new one", d.path, entry.Name())
		}
	}
	for _, entry := range entries {
		if entry.Name() == manifestName {
			continue // last, so that an interruption leaves the list
		}
		if err := os.RemoveAll(filepath.Join(d.path, entry.Name())); err != nil {
			return fmt.Errorf("remove an earlier build from the output directory: %w", err)
		}
	}
	if err := os.Remove(filepath.Join(d.path, manifestName)); err != nil {
		return fmt.Errorf("remove an earlier build from the output directory: %w", err)
	}
	return nil
}

// writeManifest lists what the build made so far.
func (d *outputDir) writeManifest() error {
	content := strings.Join(d.made, "\n") + "\n"
	if err := os.WriteFile(filepath.Join(d.path, manifestName), []byte(content), 0o644); err != nil { //nolint:gosec // nothing secret
		return fmt.Errorf("write into the output directory: %w", err)
	}
	return nil
}
