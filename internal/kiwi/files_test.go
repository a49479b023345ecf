package kiwi

import (
	"slices"
	"strings"
	"testing"
)

// TestDescriptionDigestForm holds the form of a description's digest: identifiers of
// images are derived from it.
func TestDescriptionDigestForm(t *testing.T) {
	files, err := Describe(Options{Source: "test", Description: testDescription(), Epoch: 1764000000, Name: "b"})
	if err != nil {
		t.Fatal(err)
	}
	const want = "bd25ac9d47735ac74feb2716f7a09086a224829899d83ddffa9da4be0aac47a9"
	if got := DigestFiles(files); got != want {
		t.Errorf("the digest is %s, want %s, for\n%+v", got, want, files)
	}
}

func TestCompareFiles(t *testing.T) {
	file := func(path, sum string) File { return File{Path: path, Kind: "file", Mode: "644", SHA256: sum} }
	was := []File{file("b", sumA), file("c", sumA), {Path: "d", Kind: "directory", Mode: "755"}, {Path: "l", Kind: "link", Target: "b"}, file("m", sumA), file("same", sumA)}
	is := []File{file("a", sumA), file("b", sumB), {Path: "d", Kind: "directory", Mode: "700"}, {Path: "l", Kind: "link", Target: "c"}, {Path: "m", Kind: "link", Target: "b"}, file("same", sumA)}
	want := []string{
		"a was not there", "b has other content: SHA-256 " + sumB + " and not " + sumA, "c is missing", "d has the permissions 700 and not 755",
		`l leads to "c" and not to "b"`, "m is a link and was a file",
	}
	if got := CompareFiles(was, is); !slices.Equal(got, want) {
		t.Errorf("differences are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := CompareFiles(is, is); len(got) != 0 {
		t.Errorf("nothing differs, and it tells %q", got)
	}
}

func TestListed(t *testing.T) {
	if got := listed(make([]File, maxListedFiles)); len(got) != maxListedFiles {
		t.Errorf("%d are listed", len(got))
	}
	for name, files := range map[string][]File{
		"too many": make([]File, maxListedFiles+1), "a name": {{Path: "a\xff"}}, "a target": {{Path: "a", Target: "\xff"}},
	} {
		if got := listed(files); got != nil {
			t.Errorf("%s: %d are listed", name, len(got))
		}
	}
}
