package sbom

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/CycloneDX/cyclonedx-go"
	"github.com/package-url/packageurl-go"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/testenv"
)

// template opens the disk of the template debian and lists what is on it.
func template(t testing.TB) (path string, d *disk.Disk, i *Inventory) {
	t.Helper()
	path = testenv.DebianDisk(t)
	d, err := disk.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if i, err = Read(context.Background(), d, func(int64) {}); err != nil {
		t.Fatal(err)
	}
	return path, d, i
}

// rootOf opens the root file system by its partition's number.
func rootOf(t testing.TB, d *disk.Disk, number int) *disk.Filesystem {
	t.Helper()
	gpt, err := d.GPT()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range gpt.Partitions {
		if p.Number == number {
			f, err := disk.OpenFilesystem(io.NewSectionReader(d, p.Offset, p.Size), p.Size)
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
	}
	t.Fatalf("there is no partition %d", number)
	return nil
}

// TestTemplate lists the packages of the template's disk, and compares with what
// dpkg itself says of the image's database, and with what KIWI said.
func TestTemplate(t *testing.T) {
	path, d, i := template(t)

	t.Run("dpkg-query", func(t *testing.T) {
		status, err := fs.ReadFile(rootOf(t, d, 2), dpkgStatus)
		if err != nil {
			t.Fatal(err)
		}
		admin := t.TempDir()
		if err := os.WriteFile(filepath.Join(admin, "status"), status, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(testenv.Tool(t, "dpkg-query"), "--admindir", admin, "--show", "--showformat",
			`${Package} ${Version} ${Architecture} ${source:Package} ${source:Version}\n`)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range i.Packages {
			got = append(got, fmt.Sprintf("%s %s %s %s %s", p.Name, p.Version, p.Arch, p.Source, p.SourceVersion))
		}
		want := strings.Split(strings.TrimSpace(string(out)), "\n")
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%d packages, dpkg-query lists %d:\n%q\n%q", len(got), len(want), got, want)
		}
		if len(got) < 80 {
			t.Errorf("the template has only %d packages", len(got))
		}
	})

	t.Run("KIWI", func(t *testing.T) {
		list, err := os.ReadFile(strings.TrimSuffix(path, ".raw") + ".packages")
		if err != nil {
			t.Fatal(err)
		}
		if err := i.CheckKiwiList(list); err != nil {
			t.Error(err)
		}
		less := bytes.Replace(list, []byte("bash|"), []byte("bush|"), 1)
		if err := i.CheckKiwiList(less); err == nil || !strings.Contains(err.Error(), "only in the image: bash ") || !strings.Contains(err.Error(), "only in KIWI's list: bush ") {
			t.Errorf("with another package: %v", err)
		}
	})

	t.Run("licences", func(t *testing.T) {
		said := 0
		for _, p := range i.Packages {
			if p.License.Expression != "" {
				said++
			}
			if p.License.Comment == "" {
				t.Errorf("%s does not say where its licence comes from", p.Name)
			}
		}
		if said*100 < len(i.Packages)*70 {
			t.Errorf("only %d of %d packages have a licence", said, len(i.Packages))
		}
		t.Logf("%d of %d packages say their licence", said, len(i.Packages))
		for name, want := range map[string]string{
			"zlib1g": "Zlib", "hostname": "GPL-2.0-only", "libacl1": "GPL-2.0-or-later AND LGPL-2.0-or-later",
			"zstd": "(BSD-3-Clause OR GPL-2.0-only) AND Zlib AND MIT",
		} {
			n := slices.IndexFunc(i.Packages, func(p Package) bool { return p.Name == name })
			if n < 0 || i.Packages[n].License.Expression != want {
				t.Errorf("the licence of %s is not %q: %+v", name, want, i.Packages[max(n, 0)].License.Expression)
			}
		}
	})

	t.Run("boot files", func(t *testing.T) {
		if len(i.BootFiles) != 1 || !i.BootFiles[0].UKI || !strings.HasPrefix(i.BootFiles[0].Kernel, "6.") {
			t.Fatalf("%+v", i.BootFiles)
		}
		// The kernel inside is that of the package.
		if !slices.ContainsFunc(i.Packages, func(p Package) bool { return p.Name == "linux-image-"+i.BootFiles[0].Kernel }) {
			t.Errorf("no package has the kernel %s", i.BootFiles[0].Kernel)
		}
	})

	if i.OS.ID != "debian" || i.OS.Version != "13" {
		t.Errorf("the system is %+v", i.OS)
	}
}

// TestDocuments writes both documents of the template's disk and lets the formats' own
// tools validate them.
func TestDocuments(t *testing.T) {
	path, _, i := template(t)
	h := Heading{Name: "attestable-debian", Version: "1.0.0", Tool: "v1"}
	for format, check := range map[Format]func(t *testing.T, file string, content []byte) (purls []string){SPDX: checkSPDX, CycloneDX: checkCycloneDX} {
		t.Run(string(format), func(t *testing.T) {
			content, err := i.Document(format, h)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "image."+map[Format]string{SPDX: "spdx", CycloneDX: "cdx"}[format]+".json")
			if err := os.WriteFile(file, content, 0o600); err != nil {
				t.Fatal(err)
			}
			purls := check(t, file, content)
			if len(purls) != len(i.Packages) {
				t.Errorf("%d package URLs of %d packages", len(purls), len(i.Packages))
			}
			for _, text := range purls {
				if u, err := packageurl.FromString(text); err != nil || u.ToString() != text || u.Namespace != "debian" || u.Qualifiers.Map()["distro"] != "debian-13" {
					t.Errorf("%q: %+v, %v", text, u, err)
				}
			}
			if got, err := DiskDigest(content); err != nil || got != i.Disk.SHA256 {
				t.Errorf("it is about the disk %q: %v", got, err)
			}
			listed, err := Packages(content)
			if err != nil || len(listed) != len(i.Packages) {
				t.Fatalf("%d packages are read of %d: %v", len(listed), len(i.Packages), err)
			}
			for n, p := range listed {
				if q := i.Packages[n]; p.Kind != q.Kind || p.Name != q.Name || p.FullVersion() != q.FullVersion() || p.Arch != q.Arch {
					t.Errorf("%+v is read of %+v", p, q)
				}
			}
			_, _, again := template(t)
			second, err := again.Document(format, h)
			if err != nil || !bytes.Equal(second, content) {
				t.Errorf("another reading of %s gives another document: %v", path, err)
			}
			later := h
			later.Created = time.Unix(1, 0)
			if other, err := i.Document(format, later); err != nil || bytes.Equal(number(t, other), number(t, content)) || !bytes.Contains(other, []byte(`"1970-01-01T00:00:01Z"`)) {
				t.Errorf("a document of another time has the same number: %v", err)
			}
		})
	}
}

// number is what tells documents apart.
func number(t *testing.T, document []byte) []byte {
	t.Helper()
	var d struct{ DocumentNamespace, SerialNumber string }
	if err := json.Unmarshal(document, &d); err != nil || d.DocumentNamespace+d.SerialNumber == "" {
		t.Fatalf("it has no number: %v", err)
	}
	return []byte(d.DocumentNamespace + d.SerialNumber)
}

func checkSPDX(t *testing.T, file string, content []byte) (purls []string) {
	testenv.ValidateSPDX(t, file)
	var doc struct {
		Packages []struct {
			Name                  string
			PrimaryPackagePurpose string
			ExternalRefs          []struct{ ReferenceLocator string }
		}
	}
	if err := json.Unmarshal(content, &doc); err != nil {
		t.Fatal(err)
	}
	for _, p := range doc.Packages {
		// Where SPDX's tools also take a hyphen, the schema of its JSON does not.
		if !slices.Contains([]string{"OTHER", "OPERATING_SYSTEM", "INSTALL"}, p.PrimaryPackagePurpose) {
			t.Errorf("the purpose of %s is %q", p.Name, p.PrimaryPackagePurpose)
		}
		for _, r := range p.ExternalRefs {
			purls = append(purls, r.ReferenceLocator)
		}
	}
	return purls
}

func checkCycloneDX(t *testing.T, file string, content []byte) (purls []string) {
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	if err := cycloneDXSchema(t).Validate(document); err != nil {
		t.Error(err)
	}
	testenv.ValidateCycloneDX(t, file)
	bom := new(cyclonedx.BOM)
	if err := cyclonedx.NewBOMDecoder(bytes.NewReader(content), cyclonedx.BOMFileFormatJSON).Decode(bom); err != nil {
		t.Fatal(err)
	}
	for _, c := range *bom.Components {
		if c.PackageURL != "" {
			purls = append(purls, c.PackageURL)
		}
	}
	return purls
}

// cycloneDXSchema is the schema of CycloneDX 1.6, which cyclonedx-go has in its module.
func cycloneDXSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", "github.com/CycloneDX/cyclonedx-go").Output()
	if err != nil {
		t.Fatalf("find cyclonedx-go: %v", err)
	}
	compiler := jsonschema.NewCompiler()
	const base = "http://cyclonedx.org/schema/"
	for name, file := range map[string]string{
		"bom-1.6.schema.json": "bom-1.6.schema.json", "spdx.schema.json": "spdx.schema.json", "jsf-0.82.schema.json": "jsf-0.82.schemax.json",
	} {
		content, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "schema", file))
		if err != nil {
			t.Fatal(err)
		}
		document, err := jsonschema.UnmarshalJSON(bytes.NewReader(content))
		if err == nil {
			err = compiler.AddResource(base+name, document)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	schema, err := compiler.Compile(base + "bom-1.6.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// BenchmarkSBOM lists the template's disk and writes a document, without the disk's
// digest and with it.
func BenchmarkSBOM(b *testing.B) {
	path := testenv.DebianDisk(b)
	for name, list := range map[string]func(*disk.Disk) (*Inventory, error){
		"packages": func(d *disk.Disk) (*Inventory, error) { return read(context.Background(), d) },
		"packages and digest": func(d *disk.Disk) (*Inventory, error) {
			return Read(context.Background(), d, func(int64) {})
		},
	} {
		for _, format := range []Format{SPDX, CycloneDX} {
			b.Run(name+"/"+string(format), func(b *testing.B) {
				for b.Loop() {
					d, err := disk.Open(path)
					if err != nil {
						b.Fatal(err)
					}
					i, err := list(d)
					if err == nil {
						_, err = i.Document(format, Heading{Name: "image"})
					}
					d.Close()
					if err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
