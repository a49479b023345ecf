package cli

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
)

// TestPushAndPull takes a disk to each kind of place and back.
func TestPushAndPull(t *testing.T) {
	disk := testenv.GoldenDisk(t, "stub257")
	dir := t.TempDir()
	status, measurements, stderr := execute(t, "measure", "--format=json", disk)
	if status != 0 {
		t.Fatal(stderr)
	}
	file := filepath.Join(dir, "measurements.json")
	if err := os.WriteFile(file, []byte(measurements), 0o600); err != nil {
		t.Fatal(err)
	}
	places := map[string]string{"layout": "oci:" + filepath.Join(dir, "layout")}
	for _, kind := range testenv.RegistryKinds {
		places["registry "+kind.Name] = kind.Start(t).Host + "/octo-org/image"
	}
	for name, place := range places {
		t.Run(name, func(t *testing.T) {
			// On a runner, as action.yml calls it: empty values are not given.
			output := filepath.Join(t.TempDir(), "output")
			t.Setenv("GITHUB_ACTIONS", "true")
			t.Setenv("GITHUB_OUTPUT", output)
			t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
			status, stdout, stderr := executeHere(t, "push", "--measurements="+file, "--name=", "--version=1.2.3",
				"--source=https://github.com/octo-org/octo-repo", "--revision=abc", "--tag=v1,latest\nv1", disk, place)
			reference, ok := strings.CutSuffix(stdout, "\n")
			if status != 0 || !ok || !strings.HasPrefix(reference, place+"@sha256:") {
				t.Fatalf("status %d, stdout %q, stderr %s", status, stdout, stderr)
			}
			if want := "tagged " + place + ":v1\ntagged " + place + ":latest\n"; !strings.Contains(stderr, want) {
				t.Errorf("stderr %q; want %q", stderr, want)
			}
			outputs, err := os.ReadFile(output)
			if err != nil {
				t.Fatal(err)
			}
			digest := reference[strings.IndexByte(reference, '@')+1:]
			for _, want := range []string{"artifact<<", "\n" + reference + "\n", "digest<<", "\n" + digest + "\n"} {
				if !strings.Contains(string(outputs), want) {
					t.Errorf("outputs %q; want %q", outputs, want)
				}
			}

			// Measured on the way, it is the same artifact.
			status, again, stderr := executeHere(t, "push", "--version=1.2.3",
				"--source=https://github.com/octo-org/octo-repo", "--revision=abc", disk, place+":v1")
			if status != 0 || again != stdout {
				t.Errorf("measured on the way: status %d, %q instead of %q: %s", status, again, stdout, stderr)
			}

			for _, wanted := range []string{reference, place + ":v1"} {
				out := filepath.Join(t.TempDir(), "new", "dir")
				status, stdout, stderr := execute(t, "pull", "--output", out, wanted)
				pulled := filepath.Join(out, "stub257.raw")
				if want := pulled + "\n" + filepath.Join(out, "measurements.json") + "\n"; status != 0 || stdout != want {
					t.Fatalf("pull: status %d, stdout %q, stderr %s; want %q", status, stdout, stderr, want)
				}
				sameFile(t, pulled, disk)
				sameFile(t, filepath.Join(out, "measurements.json"), file)
			}
			out := t.TempDir()
			if status, stdout, stderr := execute(t, "pull", "--no-disk", "--output="+out, reference); status != 0 || stdout != filepath.Join(out, "measurements.json")+"\n" {
				t.Errorf("pull --no-disk: status %d, stdout %q, stderr %s", status, stdout, stderr)
			}
		})
	}
}

func sameFile(t *testing.T, got, want string) {
	t.Helper()
	a, err := os.ReadFile(got)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(want)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Errorf("%s is not the same as %s", got, want)
	}
}

func TestPushRefuses(t *testing.T) {
	dir := t.TempDir()
	disk := filepath.Join(dir, "image.raw")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	const zeros = "30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58" // SHA-256 of 1 MiB of them
	document := func(name string, change func(*measure.Document)) string {
		t.Helper()
		doc := &measure.Document{
			Measurements: measure.Measurements{HashAlgorithm: measure.SHA384, PCRs: map[int]string{}},
			Disk:         &measure.DiskInfo{SHA256: zeros, Size: 1 << 20},
		}
		for _, n := range []int{4, 7, 12} {
			doc.Measurements.PCRs[n] = fmt.Sprintf("%096d", n)
		}
		change(doc)
		raw, err := doc.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	right := document("right.json", func(*measure.Document) {})
	layout := "oci:" + filepath.Join(dir, "layout")
	if status, _, stderr := execute(t, "push", "--measurements="+right, disk, layout+":right"); status != 0 {
		t.Fatal(stderr)
	}
	for _, tc := range []struct {
		name   string
		args   []string
		status int
		stderr string
	}{
		{"nothing", []string{"push"}, 2, "give the raw disk and the reference"},
		{"no reference", []string{"push", disk}, 2, "give the raw disk and the reference"},
		{"no registry", []string{"push", disk, "image"}, 2, "it names no registry"},
		{"capital letters", []string{"push", disk, "ghcr.io/Octo-Org/image"}, 2, "write ghcr.io/octo-org/image"},
		{"a digest", []string{"push", disk, layout + "@sha256:" + zeros}, 2, "is not known before: leave out @sha256:"},
		{"no tag", []string{"push", "--tag=a/b", disk, layout}, 2, `--tag: "a/b" is no tag`},
		{"no name", []string{"push", "--name=a/b", disk, layout}, 2, `"a/b" is no name for an image`},
		{"no such disk", []string{"push", filepath.Join(dir, "none"), layout}, 1, "no such file"},
		{"no image", []string{"push", disk, layout + ":wrong"}, 1, "GPT"},
		{"no such measurements", []string{"push", "--measurements=" + dir + "/none", disk, layout}, 1, "read measurements: open"},
		{"measurements that are none", []string{"push", "--measurements=" + disk, disk, layout}, 1, "read measurements"},
		{"measurements of no disk", []string{"push", "--measurements=" + document("none.json", func(d *measure.Document) { d.Disk = nil }), disk, layout + ":wrong"}, 1,
			"does not say which disk it measures"},
		{"measurements of a longer disk", []string{"push", "--measurements=" + document("longer.json", func(d *measure.Document) { d.Disk.Size++ }), disk, layout + ":wrong"}, 1,
			"measures another disk, of 1048577 bytes instead of 1048576"},
		{"measurements of another disk", []string{"push", "--measurements=" + document("other.json", func(d *measure.Document) { d.Disk.SHA256 = strings.Repeat("0", 64) }), disk, layout + ":wrong"}, 1,
			"the measurements are of another disk, with SHA-256 " + strings.Repeat("0", 64) + " instead of " + zeros},
		{"measurements without PCR 7", []string{"push", "--measurements=" + document("pcr.json", func(d *measure.Document) { delete(d.Measurements.PCRs, 7) }), disk, layout + ":wrong"}, 1,
			"the measurements have no PCR 7, and an artifact needs PCR 4, 7 and 12: measure with --pcr including 2,4,7,12,13"},
		{"no such variable store", []string{"push", "--measurements=" + right, "--uefi-data=" + dir + "/none", disk, layout + ":wrong"}, 1, "read UEFI variable store"},
		{"nothing to pull", []string{"pull"}, 2, "give the reference of one artifact"},
		{"pull from no registry", []string{"pull", "image"}, 2, "it names no registry"},
		{"pull from no layout", []string{"pull", "oci:" + dir}, 1, "there is none"},
		{"pull what was refused", []string{"pull", layout + ":wrong"}, 1, "the layout has no tag wrong"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, stdout, stderr := execute(t, tc.args...)
			if status != tc.status || !strings.Contains(stderr, tc.stderr) {
				t.Errorf("status %d, stderr %q; want status %d and %q", status, stderr, tc.status, tc.stderr)
			}
			if stdout != "" {
				t.Errorf("stdout %q", stdout)
			}
		})
	}
}
