package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/audit"
	"github.com/org/attestable-image-action/internal/imagediff"
)

func TestDiffCommandLine(t *testing.T) {
	file := func(name, content string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	a, same, other := file("a.raw", strings.Repeat("x", 4096)), file("b.raw", strings.Repeat("x", 4096)), file("c.raw", strings.Repeat("y", 4096))
	for _, test := range []struct {
		name   string
		args   []string
		status int
		want   string
	}{
		{"one disk", []string{a}, exitUsage, "give the two images"},
		{"three disks", []string{a, same, other}, exitUsage, "give the two images"},
		{"a format", []string{"--format", "sarif", a, same}, exitUsage, "give table, json or markdown"},
		{"the same", []string{"--exit-code", a, same}, exitOK, "The images are the same, byte for byte (4.0 KiB)."},
		{"the same, for programs", []string{"--format", "json", a, same}, exitOK, `"identical": true`},
		{"no disk", []string{a, filepath.Join(t.TempDir(), "none")}, exitFailed, "none"},
		{"no partition table", []string{a, other}, exitFailed, "compare " + a + " with " + other},
	} {
		t.Run(test.name, func(t *testing.T) {
			status, stdout, stderr := execute(t, append([]string{"diff"}, test.args...)...)
			if status != test.status || !strings.Contains(stdout+stderr, test.want) {
				t.Errorf("status %d, want %d with %q: %s%s", status, test.status, test.want, stdout, stderr)
			}
		})
	}
}

// diffReport has one of everything, with words of an image that would like to be
// more.
func diffReport() *imagediff.Report {
	long := strings.Repeat("0123456789abcdef", 6)
	return &imagediff.Report{
		A: imagediff.Image{Name: "old.raw", Size: 1 << 20, OS: "Test 1"}, B: imagediff.Image{Name: "new.raw", Size: 1 << 20, OS: "Test 2"},
		Packages:    []imagediff.Package{{Name: "web", Arch: "amd64", A: "1", B: "2"}, {Name: "new", Arch: "all", B: "3"}, {Name: "old", A: "4"}},
		CommandLine: []imagediff.Change{{A: "quiet", B: ""}, {A: "a=1", B: "a=2"}},
		Files: []imagediff.File{
			{Path: "etc/x\n::error::y", How: imagediff.Added},
			{Path: "srv/`code`|[link](http://example.com)", How: imagediff.Changed, Changes: []imagediff.Change{{Name: "mode", A: "0644", B: "4755"}}},
			{Path: "srv/two", How: imagediff.Changed, Changes: []imagediff.Change{{Name: "attribute user.[x](http://y)", B: `"z"`}, {Name: "size", A: "1", B: "2"}}},
		},
		FilesHidden: 2,
		Boot: []imagediff.BootFile{{Path: "EFI/BOOT/BOOTX64.EFI", How: imagediff.Changed, SizeA: 100, SizeB: 100, Sections: []imagediff.Section{
			{Name: ".cmdline", How: imagediff.Changed, SizeA: 10, SizeB: 12, Lines: []imagediff.Change{{A: "quiet"}, {A: "a=1", B: "a=2"}}},
			{Name: ".osrel", How: imagediff.Added, SizeB: 12},
		}}},
		PCRs: []imagediff.PCR{{PCR: 4, A: long, B: strings.ToLower(long[1:]) + "0", Events: []imagediff.Event{
			{How: imagediff.Changed, What: "EFI/BOOT/BOOTX64.EFI", Because: "sections .cmdline, .osrel"},
		}}},
		Appeared:    []audit.Finding{{ID: "setuid-file", Severity: audit.Medium, Partition: 2, Path: "srv/x", Detail: "it is"}},
		NotCompared: []string{"packages: why not"},
	}
}

const diffTableWanted = `A  old.raw
B  new.raw
3 packages, 2 kernel options, 3 files, 1 boot file, 1 PCR, 1 new finding

Packages
  ~ operating system  Test 1 -> Test 2
  ~ web:amd64  1 -> 2
  + new  3
  - old  4

Kernel command line
  - quiet
  ~ a=1 -> a=2

Files
  + /etc/x : :error::y
  ~ /srv/` + "`code`" + `|[link](http://example.com), mode  0644 -> 4755
  ~ /srv/two
    ~ attribute user.[x](http://y)  (none) -> "z"
    ~ size  1 -> 2
  2 files of packages that changed (--all names them)

Boot chain
  ~ EFI/BOOT/BOOTX64.EFI
    ~ .cmdline  10 B -> 12 B
      ~ the words above
    + .osrel  12 B

PCRs
  ~ PCR 4  0123456789abcdef… -> 123456789abcdef0…
    ~ EFI/BOOT/BOOTX64.EFI: sections .cmdline, .osrel

Findings
  + setuid-file, medium
    partition 2, srv/x: it is

Not compared
  packages: why not
`

func TestDiffTable(t *testing.T) {
	got := renderDiff(diffReport(), new(diffTable), false)
	if want := strings.ReplaceAll(diffTableWanted, "  ", " "); strings.ReplaceAll(got, "  ", " ") != want {
		t.Errorf("got\n%s\nwant\n%s", got, diffTableWanted)
	}
	for line := range strings.Lines(got) {
		if len([]rune(line)) > diffWidth+1 {
			t.Errorf("a line is longer than %d characters: %s", diffWidth, line)
		}
	}
}

func TestDiffMarkdown(t *testing.T) {
	got := renderDiff(diffReport(), new(diffMarkdown), false)
	for _, want := range []string{
		"From `old.raw` to `new.raw`: 3 packages,", "- `web:amd64` `1` → `2`\n", "- added `new` `3`\n", "- removed `old` `4`\n",
		"- added `/etc/x : :error::y`\n", "- `/srv/'code'¦[link](http://example.com)` mode `0644` → `4755`\n",
		"  - `attribute user.[x](http://y)` none → `\"z\"`\n", "- PCR 4 `0123456789abcdef0123", "- 2 files of packages that changed (--all names them)\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing from\n%s", want, got)
		}
	}
}

// TestDiffLong cuts long lists for people, unless they ask for all.
func TestDiffLong(t *testing.T) {
	r := &imagediff.Report{}
	for range 100 {
		r.Files = append(r.Files, imagediff.File{Path: "x", How: imagediff.Added})
	}
	if got := renderDiff(r, new(diffTable), false); !strings.Contains(got, "and 60 more (--all shows them)") || strings.Count(got, "/x") != 40 {
		t.Errorf("got\n%s", got)
	}
	if got := renderDiff(r, new(diffTable), true); strings.Count(got, "/x") != 100 {
		t.Errorf("got\n%s", got)
	}
}
