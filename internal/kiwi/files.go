package kiwi

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxListedFiles bounds the list of files in builder.json. An overlay may hold a whole
// application, and the list is signed and stored with every attestation.
const maxListedFiles = 2000

// File is an entry of a description as KIWI reads it, with everything that was put
// into it.
type File struct {
	Path   string // relative to the description, with slashes; the overlay is in root/
	Kind   string // file, directory or link
	Mode   string `json:",omitempty"` // permissions in octal; a link has none
	SHA256 string `json:",omitempty"` // of a file, in hex
	Target string `json:",omitempty"` // of a link
}

// DigestFiles is the digest of the description that is made of these files in this
// order: the SHA-256, in hex, of a line for each.
func DigestFiles(files []File) string {
	hash := sha256.New()
	for _, f := range files {
		switch f.Kind {
		case "file":
			fmt.Fprintf(hash, "%q file %s %s\n", f.Path, f.Mode, f.SHA256)
		case "link":
			fmt.Fprintf(hash, "%q link %q\n", f.Path, f.Target)
		default:
			fmt.Fprintf(hash, "%q %s %s\n", f.Path, f.Kind, f.Mode)
		}
	}
	return hex.EncodeToString(hash.Sum(nil))
}

// listed are the files as far as builder.json lists them: all, or none where they are
// too many or JSON cannot say what they are called.
func listed(files []File) []File {
	unspeakable := func(f File) bool { return !utf8.ValidString(f.Path) || !utf8.ValidString(f.Target) }
	if len(files) > maxListedFiles || slices.ContainsFunc(files, unspeakable) {
		return nil
	}
	return files
}

// Describe returns what the description of a build would be made of, without building
// anything.
func Describe(o Options) ([]File, error) {
	dir, err := os.MkdirTemp("", "attestable-image-")
	if err != nil {
		return nil, fmt.Errorf("make room for a copy of the KIWI description: %w", err)
	}
	defer os.RemoveAll(dir)
	return o.stage(filepath.Join(dir, "description"))
}

// CompareFiles tells what is different in a description, a part of a sentence for each
// file, in the order of their paths.
func CompareFiles(expected, found []File) []string {
	known := make(map[string]File, len(expected))
	for _, f := range expected {
		known[f.Path] = f
	}
	type change struct{ path, text string }
	var changes []change
	for _, f := range found {
		e, ok := known[f.Path]
		delete(known, f.Path)
		switch {
		case !ok:
			changes = append(changes, change{f.Path, f.Path + " was not there"})
		case e.Kind != f.Kind:
			changes = append(changes, change{f.Path, fmt.Sprintf("%s is a %s and was a %s", f.Path, f.Kind, e.Kind)})
		case e.SHA256 != f.SHA256:
			changes = append(changes, change{f.Path, fmt.Sprintf("%s has other content: SHA-256 %s and not %s", f.Path, f.SHA256, e.SHA256)})
		case e.Target != f.Target:
			changes = append(changes, change{f.Path, fmt.Sprintf("%s leads to %q and not to %q", f.Path, f.Target, e.Target)})
		case e.Mode != f.Mode:
			changes = append(changes, change{f.Path, fmt.Sprintf("%s has the permissions %s and not %s", f.Path, f.Mode, e.Mode)})
		}
	}
	for path := range known {
		changes = append(changes, change{path, path + " is missing"})
	}
	slices.SortFunc(changes, func(a, b change) int { return cmp.Or(strings.Compare(a.path, b.path), strings.Compare(a.text, b.text)) })
	texts := make([]string, len(changes))
	for i, c := range changes {
		texts[i] = c.text
	}
	return texts
}
