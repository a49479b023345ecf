package ami

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
)

// foreign writes an artifact into a layout by hand, with a disk layer of any
// bytes, as somebody else's program may have made it.
func foreign(t *testing.T, layer []byte, doc *measure.Document) pushed {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	put := func(mediaType, title string, data []byte) map[string]any {
		sum := sha256.Sum256(data)
		name := hex.EncodeToString(sum[:])
		if err := os.WriteFile(filepath.Join(dir, "blobs/sha256", name), data, 0o600); err != nil {
			t.Fatal(err)
		}
		d := map[string]any{"mediaType": mediaType, "digest": "sha256:" + name, "size": len(data)}
		if title != "" {
			d["annotations"] = map[string]string{"org.opencontainers.image.title": title}
		}
		return d
	}
	asJSON := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	raw, err := doc.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	manifest := asJSON(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": artifact.Type,
		"config": put("application/vnd.oci.empty.v1+json", "", []byte("{}")),
		"layers": []any{put(string(artifact.MediaTypeDisk), "test-1.0.raw.zst", layer), put(string(artifact.MediaTypeMeasurements), "measurements.json", raw)},
	})
	descriptor := put("application/vnd.oci.image.manifest.v1+json", "", manifest)
	for name, data := range map[string][]byte{
		"index.json": asJSON(map[string]any{"schemaVersion": 2, "manifests": []any{descriptor}}),
		"oci-layout": []byte(`{"imageLayoutVersion": "1.0.0"}`),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ref, err := artifact.ParseReference(fmt.Sprintf("oci:%s@%s", dir, descriptor["digest"]))
	if err != nil {
		t.Fatal(err)
	}
	return pushed{reference: ref, document: doc}
}

// compress is zstd's own program.
func compress(t *testing.T, disk []byte, flags ...string) []byte {
	t.Helper()
	cmd := exec.Command(testenv.Tool(t, "zstd"), append(flags, "-q", "-c")...)
	cmd.Stdin = bytes.NewReader(disk)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestForeignLayer takes disks that others compressed.
func TestForeignLayer(t *testing.T) {
	disk := testDisk(t)
	for name, flags := range map[string][]string{"one frame": {"-3"}, "one frame of other settings": {"-19", "--no-check"}} {
		t.Run(name, func(t *testing.T) {
			e := testenv.SharedEC2(t)
			c, _ := cloud(t)
			if _, err := register(t.Context(), c, foreign(t, compress(t, disk, flags...), document(disk)).image(t), Spec{}); err != nil {
				t.Fatal(err)
			}
			lookAt(t, e, home).one(t, disk)
		})
	}
}

// TestOtherDisk uploads layers that are not the attested disk, however their
// digest is the manifest's: none is ever completed, and nothing is left.
func TestOtherDisk(t *testing.T) {
	disk := testDisk(t)
	doc := document(disk)
	changed := bytes.Clone(disk)
	changed[5<<20] = 1
	for name, tc := range map[string]struct {
		layer func(t *testing.T) []byte
		want  string
	}{
		"another":            {func(t *testing.T) []byte { return compress(t, changed) }, "the disk is not the one that is attested: its SHA-256 is"},
		"longer":             {func(t *testing.T) []byte { return compress(t, append(bytes.Clone(disk), 0)) }, "the disk is longer than the 12591104 bytes that are attested"},
		"a bomb":             {func(t *testing.T) []byte { return compress(t, append(bytes.Clone(disk), make([]byte, 1<<30)...)) }, "the disk is longer than"},
		"shorter":            {func(t *testing.T) []byte { return compress(t, disk[:len(disk)-1]) }, "the disk has 12591103 bytes, and 12591104 are attested"},
		"shorter by blocks":  {func(t *testing.T) []byte { return compress(t, disk[:BlockSize]) }, "the disk has 524288 bytes"},
		"nothing":            {func(t *testing.T) []byte { return nil }, "the disk has 0 bytes"},
		"cut off":            {func(t *testing.T) []byte { l := compress(t, disk); return l[:len(l)/2] }, "read disk of"},
		"cut off at the end": {func(t *testing.T) []byte { l := compress(t, disk, "--check"); return l[:len(l)-2] }, "read disk of"},
		"no zstd":            {func(*testing.T) []byte { return []byte("this is no zstd frame") }, "read disk of"},
		"garbage behind it":  {func(t *testing.T) []byte { return append(compress(t, disk), "garbage"...) }, "read disk of"},
	} {
		t.Run(name, func(t *testing.T) {
			e := testenv.SharedEC2(t)
			c, _ := cloud(t)
			_, err := register(t.Context(), c, foreign(t, tc.layer(t), doc).image(t), Spec{})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v\nwant: %s", err, tc.want)
			}
			if calls := e.Requests("CompleteSnapshot", "RegisterImage"); len(calls) > 0 {
				t.Errorf("%s was asked for", calls[0].Operation)
			}
			if name == "a bomb" {
				if puts := len(e.Requests("PutSnapshotBlock")); puts > diskSize/BlockSize+1 {
					t.Errorf("%d blocks were put", puts)
				}
			}
			lookAt(t, e, home).nothing(t)
		})
	}
}

// TestLyingRegistry changes the layer on its way, and breaks connections.
func TestLyingRegistry(t *testing.T) {
	disk := testDisk(t)
	for _, kind := range testenv.RegistryKinds {
		t.Run(kind.Name, func(t *testing.T) {
			r := kind.Start(t)
			p := push(t, r.Host+"/octo-org/image:v1", disk, nil)
			i := p.image(t)
			layer := "/blobs/" + i.artifact.DiskLayer.Digest.String()
			for name, change := range map[string]func([]byte) []byte{
				"a byte":        func(b []byte) []byte { b = bytes.Clone(b); b[len(b)/2] ^= 1; return b },
				"the last byte": func(b []byte) []byte { b = bytes.Clone(b); b[len(b)-1] ^= 1; return b },
				"less":          func(b []byte) []byte { return b[:len(b)-1] },
				"more":          func(b []byte) []byte { return append(bytes.Clone(b), b...) },
			} {
				t.Run(name, func(t *testing.T) {
					e := testenv.SharedEC2(t)
					r.Lie(t, func(path string, body []byte) []byte {
						if strings.HasSuffix(path, layer) {
							return change(body)
						}
						return body
					})
					c, _ := cloud(t)
					_, err := register(t.Context(), c, i, Spec{})
					if err == nil || !strings.Contains(err.Error(), "does not match its digest") {
						t.Errorf("%v", err)
					}
					if calls := e.Requests("CompleteSnapshot", "RegisterImage"); len(calls) > 0 {
						t.Errorf("%s was asked for", calls[0].Operation)
					}
					lookAt(t, e, home).nothing(t)
				})
			}
			t.Run("connection breaks", func(t *testing.T) {
				e := testenv.SharedEC2(t)
				var asked atomic.Int64
				r.Intercept(t, func(w http.ResponseWriter, request *http.Request) bool {
					if !strings.HasSuffix(request.URL.Path, layer) || asked.Add(1) > 1 {
						return false
					}
					w.Header().Set("Content-Length", fmt.Sprint(i.artifact.DiskLayer.Size))
					_, _ = w.Write(make([]byte, 0))
					panic(http.ErrAbortHandler)
				})
				c, _ := cloud(t)
				if _, err := register(t.Context(), c, i, Spec{}); err != nil {
					t.Fatal(err)
				}
				lookAt(t, e, home).one(t, disk)
			})
		})
	}
}

// TestNewImageRefuses gives documents that no AMI can be made of.
func TestNewImageRefuses(t *testing.T) {
	p := layout(t, make([]byte, 4096))
	for name, tc := range map[string]struct {
		change func(d *measure.Document)
		want   string
	}{
		"no architecture":     {func(d *measure.Document) { d.Architecture = "" }, `the attested architecture is "", and EC2 boots x86_64 and aarch64`},
		"riscv64":             {func(d *measure.Document) { d.Architecture = "riscv64" }, `the attested architecture is "riscv64"`},
		"no disk":             {func(d *measure.Document) { d.Disk = nil }, "do not say which disk they are of"},
		"empty disk":          {func(d *measure.Document) { d.Disk.Size = 0 }, "the attested disk has 0 bytes"},
		"too large":           {func(d *measure.Document) { d.Disk.Size = math.MaxInt64 }, "and an EBS volume has 1 to 70368744177664"},
		"SHA-256 bank":        {func(d *measure.Document) { d.Measurements.HashAlgorithm = measure.SHA256 }, "measure with --bank sha384"},
		"no PCR 12":           {func(d *measure.Document) { delete(d.Measurements.PCRs, 12) }, "lack PCR 12"},
		"Secure Boot, no key": {func(d *measure.Document) { d.SecureBoot.Enabled = true }, "it carries no UEFI variable store (uefi-data.aws)"},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := artifact.Open(t.Context(), p.reference)
			if err != nil {
				t.Fatal(err)
			}
			doc := document(p.disk)
			tc.change(doc)
			if _, err := NewImage(t.Context(), a, doc, testOrigin); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v\nwant: %s", err, tc.want)
			}
		})
	}
}
