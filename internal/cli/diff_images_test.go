package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
)

// TestDiffImages compares disks, measurements and artifacts with one another.
func TestDiffImages(t *testing.T) {
	noJob(t)
	dir := t.TempDir()
	must := func(args ...string) string {
		t.Helper()
		status, stdout, stderr := executeHere(t, append(args, "--quiet")...)
		if status != 0 {
			t.Fatalf("%q: status %d: %s", args, status, stderr)
		}
		return strings.TrimSpace(stdout)
	}
	type image struct{ disk, document, artifact string }
	publish := func(name, disk, packages string) image {
		t.Helper()
		i := image{disk: disk, document: filepath.Join(dir, name+".json")}
		content := must("measure", "--format", "json", disk)
		writeFile(t, i.document, content, 0o644)
		i.artifact = must("push", "--measurements", i.document, disk, "oci:"+filepath.Join(dir, name))
		if packages == "" {
			return i
		}
		doc, err := measure.ParseDocument([]byte(content))
		if err != nil {
			t.Fatal(err)
		}
		bill := filepath.Join(dir, name+".cdx.json")
		writeFile(t, bill, fmt.Sprintf(`{"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": "urn:uuid:3e671687-395b-41f5-a30f-a58921a69b79",
			"metadata": {"tools": {"components": [{"name": "attestable-image"}]}, "component": {"bom-ref": "image", "hashes": [{"alg": "SHA-256", "content": %q}]}},
			"components": [%s]}`, doc.Disk.SHA256, packages), 0o644)
		must("attest", "--local-trust", filepath.Join(dir, "trust"), "--sbom", bill, i.artifact)
		return i
	}
	golden := testenv.GoldenDisk(t, "stub257")
	a := publish("a", golden, `{"name": "web", "version": "1.0", "purl": "pkg:deb/debian/web@1.0?arch=amd64"}`)
	b := publish("b", otherDisk(t, golden), `{"name": "web", "version": "1.1", "purl": "pkg:deb/debian/web@1.1?arch=amd64"}, {"name": "x", "version": "1", "purl": "pkg:npm/x@1"}`)
	bare := publish("bare", b.disk, "")
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		args   []string
		status int
		want   []string
	}{
		{"documents", []string{a.document, b.document}, exitOK, []string{"Disk\n  ~ SHA-256", "1 boot file, 2 PCRs"}},
		{"the same document", []string{"--exit-code", a.document, a.document}, exitOK, []string{"The images are the same, byte for byte (96.0 MiB)."}},
		{"a document and its disk", []string{"--exit-code", a.document, a.disk}, exitOK, []string{"The images are the same"}},
		{"a disk and another document", []string{"--exit-code", a.disk, b.document}, exitFailed, []string{"~ SHA-256"}},
		{"artifacts", []string{a.artifact, b.artifact}, exitOK, []string{"A  " + a.artifact, "1 package", "~ web:amd64  1.0 -> 1.1", "Disk\n"}},
		{"artifacts, for programs", []string{"--format", "json", a.artifact, b.artifact}, exitOK, []string{`"compared": "measurements"`}},
		{"an artifact without a bill", []string{a.artifact, bare.artifact}, exitOK, []string{"packages (B): no bill of materials"}},
		{"an artifact and a document", []string{"--exit-code", a.artifact, a.document}, exitOK, []string{"The images are the same"}},
		{"artifacts with their disks", []string{"--disks", a.artifact, b.artifact}, exitOK, []string{"Disk\n", "~ .linux", "sections .linux"}},
		{"an artifact with its own disk", []string{"--disks", "--exit-code", b.artifact, bare.artifact}, exitOK, []string{"The images are the same"}},
		{"a disk and an artifact", []string{"--exit-code", a.disk, b.artifact}, exitFailed, []string{"~ .linux"}},
		{"the disk of an artifact", []string{"--exit-code", a.artifact, a.disk}, exitOK, []string{"The images are the same, byte for byte"}},
		{"disks of documents", []string{"--disks", a.document, b.artifact}, exitUsage, []string{"and not the disk: leave out --disks"}},
		{"a directory", []string{filepath.Join(dir, "empty"), a.artifact}, exitUsage, []string{"is a directory: if it is an OCI layout, write oci:" + filepath.Join(dir, "empty")}},
		{"a layout without artifacts", []string{a.artifact, "oci:" + filepath.Join(dir, "empty")}, exitFailed, []string{"empty"}},
		{"nothing", []string{a.artifact, "none.raw"}, exitFailed, []string{"none.raw is no file, and no reference of an artifact"}},
		{"no measurements", []string{a.document, filepath.Join(dir, "a.cdx.json")}, exitFailed, []string{"a.cdx.json: read measurements"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			status, stdout, stderr := executeHere(t, append([]string{"diff"}, test.args...)...)
			for _, want := range test.want {
				if status != test.status || !strings.Contains(strings.ReplaceAll(stdout+stderr, "  ", " "), strings.ReplaceAll(want, "  ", " ")) {
					t.Errorf("status %d, want %d with %q: %s%s", status, test.status, want, stdout, stderr)
				}
			}
		})
	}
	// The artifact says that its disk is larger than any room for it.
	content, err := os.ReadFile(a.document)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := measure.ParseDocument(content)
	if err != nil {
		t.Fatal(err)
	}
	doc.Disk.Size = 1 << 60
	i := &diffImage{name: "x", document: doc}
	if err := new(app).restore(t.Context(), i, filepath.Join(dir, "x.raw")); err == nil || !strings.Contains(err.Error(), "set TMPDIR to a directory with more") {
		t.Errorf("a disk of an exbibyte: %v", err)
	}
}
