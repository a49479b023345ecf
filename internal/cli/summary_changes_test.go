package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
)

// changed is a copy of a document with something else in it.
func changed(t *testing.T, document string, change func(d *measure.Document)) *measure.Document {
	t.Helper()
	d, err := measure.ParseDocument([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	change(d)
	return d
}

func TestChangesInSummary(t *testing.T) {
	status, document, stderr := execute(t, "measure", "--format", "json", testenv.GoldenDisk(t, "stub257"))
	if status != 0 {
		t.Fatal(stderr)
	}
	info := measure.BuilderInfo{
		Image: "builder", Digest: "sha256:" + strings.Repeat("1", 64), KIWI: "10.2", PackagesSHA256: strings.Repeat("2", 64),
		Inputs: measure.BuildInputs{DescriptionSHA256: strings.Repeat("3", 64), PackagesSHA256: strings.Repeat("4", 64), Files: []measure.SourceFile{
			{Path: "config.sh", Kind: "file", Mode: "755", SHA256: strings.Repeat("5", 64)}, {Path: "gone", Kind: "directory", Mode: "755"}, {Path: "same", Kind: "directory", Mode: "755"},
		}},
	}
	before := changed(t, document, func(d *measure.Document) { d.Builder = &info })
	for _, tc := range []struct {
		name   string
		change func(d *measure.Document)
		want   []string
		not    []string
	}{
		{"nothing", func(*measure.Document) {}, []string{"**The disk is the same, byte for byte.**"}, []string{"→", "as before"}},
		{
			"a kernel option",
			func(d *measure.Document) {
				for i, e := range d.Events {
					if strings.HasPrefix(e.Description, ".cmdline (") {
						d.Events[i].Digest, d.Events[i].Description = strings.Repeat("f", 96), ".cmdline (7 bytes)"
					}
					if strings.HasSuffix(e.Description, "BOOTX64.EFI") {
						d.Events[i].Digest = strings.Repeat("e", 96)
					}
				}
				d.CommandLine = before.CommandLine + " debug"
				d.Measurements.PCRs[4], d.Measurements.PCRs[11] = strings.Repeat("a", 96), strings.Repeat("b", 96)
				d.Disk.SHA256 = strings.Repeat("c", 64)
			},
			[]string{"- **PCR 4** is another: <code>EFI/<wbr>BOOT/<wbr>BOOTX64&#46;<wbr>EFI</code>: sections &#46;cmdline\n", "- **PCR 11** is another: <code>&#46;<wbr>cmdline</code>: debug\n", "- PCR 2, 7, 12, 13: as before\n", "- Disk: <code>f5196a6326cfbb5b…</code> → <code>cccccccccccccccc…</code>\n", "- Kernel command line: <code>none</code> → <code>debug</code>\n"},
			[]string{"same, byte for byte", "- KIWI NG", ".initrd", "&#46;<wbr>initrd"},
		},
		{
			"Secure Boot, the builder and packages",
			func(d *measure.Document) {
				other := info
				other.KIWI, other.Digest = "10.3", "sha256:"+strings.Repeat("9", 64)
				other.Inputs.DescriptionSHA256 = strings.Repeat("6", 64)
				other.Inputs.PackagesSHA256, other.Inputs.PackagesLocked = strings.Repeat("8", 64), true
				other.Inputs.Files = []measure.SourceFile{{Path: "config.sh", Kind: "file", Mode: "644", SHA256: strings.Repeat("5", 64)}, {Path: "new", Kind: "directory", Mode: "755"}, {Path: "same", Kind: "directory", Mode: "755"}}
				d.Builder, d.SecureBoot.Enabled, d.Measurements.PCRs[7] = &other, true, strings.Repeat("d", 96)
				d.Disk.SHA256 = strings.Repeat("c", 64)
			},
			[]string{
				"- **PCR 7** is another: the order of its events\n", "- Secure Boot, enforced: <code>no</code> → <code>yes</code>\n", "- Builder, KIWI: <code>10&#46;<wbr>2</code> → <code>10&#46;<wbr>3</code>\n",
				"- Builder, digest of the image: <code>sha256&#58;<wbr>1111", "- Built from, packages of the image: <code>4444444444444444…</code> → ", "- Built from, bound to a lock: <code>no</code> → <code>yes</code>\n",
				"- Files of the description: <code>config&#46;<wbr>sh</code>, <code>gone</code>, <code>new</code>\n",
			},
			[]string{"- Packages of the builder", "list of its packages", "- Also"},
		},
		{
			"a builder that is from no registry",
			func(d *measure.Document) {
				other := info
				other.Digest, other.PackagesSHA256 = "", strings.Repeat("7", 64)
				d.Builder = &other
			},
			[]string{"- Builder, digest of the image: <code>sha256&#58;<wbr>1111", "→ <code>none</code>\n", "- Builder, list of its packages: <code>2222222222222222…</code> → <code>7777777777777777…</code>\n"},
			nil,
		},
		{"a PCR more", func(d *measure.Document) { d.Measurements.PCRs[9] = strings.Repeat("0", 96) }, []string{"- Not compared: PCR 9 (A)"}, []string{"**PCR 9**"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			content, err := before.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			now := changed(t, string(content), tc.change)
			got := (&previous{Reference: "ghcr.io/octo-org/image@sha256:1", Measurements: content}).markdown(now)
			for _, want := range tc.want {
				if !strings.Contains(got, want) {
					t.Errorf("it lacks %q:\n%s", want, got)
				}
			}
			for _, not := range tc.not {
				if strings.Contains(got, not) {
					t.Errorf("it has %q:\n%s", not, got)
				}
			}
			safeMarkdown(t, got, "octo-org/image")
		})
	}
	for _, p := range []previous{{Reference: "x", Problem: "nobody <b>answers</b>"}, {Reference: "x", Measurements: json.RawMessage(`{}`)}} {
		got := p.markdown(before)
		if !strings.Contains(got, "nothing can be told") {
			t.Error(got)
		}
		safeMarkdown(t, got, "octo-org/image")
	}
}

// TestPreviousMeasurements fetches what to compare with from a layout and a registry.
func TestPreviousMeasurements(t *testing.T) {
	disk := testenv.GoldenDisk(t, "stub257")
	dir := t.TempDir()
	repository := testenv.StartRegistry(t).Host + "/octo-org/image"
	for _, to := range []string{repository, "oci:" + filepath.Join(dir, "layout")} {
		if status, _, stderr := execute(t, "push", "--quiet", "--tag=v1", disk, to); status != 0 {
			t.Fatal(stderr)
		}
	}
	for _, tc := range []struct {
		name, reference, tags string
		found                 bool
		problem               string // "" for none; without one that is found nothing is left
	}{
		{"named", repository + ":v1", "", true, ""},
		{"in a layout", "oci:" + filepath.Join(dir, "layout"), "", true, ""},
		{"by its tag", repository, "v2, v1", true, ""},
		{"the first time", repository, "v2", false, ""},
		{"named, and not there", repository + ":v3", "", false, "v3"},
		{"no reference", "http://x y", "", false, "http://x y"},
		{"no tag", repository, "a b/c", false, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			output := filepath.Join(t.TempDir(), "previous.json")
			if status, _, stderr := execute(t, "previous-measurements", "--output", output, "--tags", tc.tags, "--", tc.reference); status != 0 {
				t.Fatalf("status %d: %s", status, stderr)
			}
			if _, err := os.Stat(output); !tc.found && tc.problem == "" {
				if err == nil {
					t.Error("something was left")
				}
				return
			}
			p, err := readPrevious(output)
			if err != nil || p == nil {
				t.Fatalf("%v, %v", p, err)
			}
			if tc.found != (p.Measurements != nil) || !strings.Contains(p.Problem, tc.problem) || tc.found && p.Problem != "" {
				t.Errorf("problem %q, %d bytes of measurements", p.Problem, len(p.Measurements))
			}
			if tc.found && !strings.HasPrefix(p.Reference[strings.LastIndex(p.Reference, "@")+1:], "sha256:") {
				t.Errorf("the reference is %s", p.Reference)
			}
		})
	}
}
