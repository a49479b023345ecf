package kiwi

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/org/attestable-image-action/internal/untrusted"
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
	content, err := readManifest(d.path)
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
		if err := d.root.RemoveAll(entry.Name()); err != nil {
			return fmt.Errorf("remove an earlier build from the output directory: %w", err)
		}
	}
	if err := d.root.Remove(manifestName); err != nil {
		return fmt.Errorf("remove an earlier build from the output directory: %w", err)
	}
	return nil
}

func readManifest(dir string) ([]byte, error) {
	tree, err := untrusted.Dir(dir)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	return untrusted.ReadFile(tree, manifestName, maxManifestBytes)
}

// writeManifest lists what the build made so far.
func (d *outputDir) writeManifest() error {
	content := strings.Join(d.made, "\n") + "\n"
	if err := d.root.WriteFile(manifestName, []byte(content), 0o644); err != nil { // nothing secret
		return fmt.Errorf("write into the output directory: %w", err)
	}
	return nil
}
