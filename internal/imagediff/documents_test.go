package imagediff

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/efi"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/sbom"
	"github.com/org/attestable-image-action/internal/testenv"
)

// document reads the measurements of one of the golden disks, and adds a builder.
func document(t testing.TB, name string) *measure.Document {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(testenv.Root(t), "internal/measure/testdata", name+".json"))
	must(t, err)
	d, err := measure.ParseDocument(content)
	must(t, err)
	sum := strings.Repeat("a", 64)
	d.Builder = &measure.BuilderInfo{
		Image: "builder:1", Digest: "sha256:" + sum, KIWI: "10.3.9", PackagesSHA256: sum,
		Packages: []measure.BuilderPackage{{Name: "apt", Version: "3.0.3", Architecture: "amd64"}, {Name: "xz-utils", Version: "5.8", Architecture: "amd64"}},
		Inputs: measure.BuildInputs{
			SourceDateEpoch: 1_764_000_000, DescriptionSHA256: sum, PackagesSHA256: sum,
			Recipe: &measure.BuildRecipe{Description: "image"},
			Files: []measure.SourceFile{
				{Path: "config.xml", Kind: "file", Mode: "644", SHA256: sum}, {Path: "root", Kind: "directory", Mode: "755"}, {Path: "root/motd", Kind: "link", Target: "x"},
			},
		},
	}
	return d
}

// TestDocuments changes one thing in a document, and wants it named with what follows.
func TestDocuments(t *testing.T) {
	other := strings.Repeat("b", 64)
	long := strings.Repeat("b", 96)
	event := func(d *measure.Document, pcr int, prefix string) *measure.EventInfo {
		for i := range d.Events {
			if e := &d.Events[i]; e.PCR == pcr && strings.HasPrefix(e.Description, prefix) {
				return e
			}
		}
		t.Fatalf("there is no event %s in PCR %d", prefix, pcr)
		return nil
	}
	for _, test := range []struct {
		name   string
		golden string
		change func(d *measure.Document)
		want   []string
	}{
		{"a kernel option", "stub257", func(d *measure.Document) {
			d.CommandLine = "console=ttyS0 debug"
			d.Disk.SHA256 = other
			d.BootChain[0].Authenticode[measure.SHA384] = long
			event(d, 4, "EFI/BOOT/BOOTX64.EFI").Digest = long
			event(d, 11, ".cmdline").Digest = long
			d.Measurements.PCRs[4], d.Measurements.PCRs[11] = long, long
		}, []string{
			`option "quiet" -> ""`, `option "" -> "debug"`,
			"boot changed EFI/BOOT/BOOTX64.EFI", "section changed .cmdline", "line of .cmdline: quiet ->", "line of .cmdline:  -> debug",
			"boot EFI/BOOT/BOOTX64.EFI Authenticode digest: DIGEST -> DIGEST",
			"PCR 4 changed EFI/BOOT/BOOTX64.EFI: sections .cmdline", "PCR 11 changed .cmdline (N bytes): 2 changes",
		}},
		{"the root hash", "stub257", func(d *measure.Document) {
			d.CommandLine = "roothash=" + other + " console=ttyS0 quiet"
			event(d, 11, ".cmdline").Digest = long
			d.Measurements.PCRs[11] = long
		}, []string{"boot changed EFI/BOOT/BOOTX64.EFI", "section changed .cmdline", "line of .cmdline: the root hash and identifiers ->", "verity   -> roothash=DIGEST", "PCR 11 changed .cmdline (N bytes): the root hash and identifiers"}},
		{"a stub", "stub257", func(d *measure.Document) {
			d.BootChain[0].StubVersion = 258
			d.BootChain[0].Authenticode[measure.SHA384] = long
			event(d, 4, "EFI/BOOT/BOOTX64.EFI").Digest = long
			d.Measurements.PCRs[4] = long
		}, []string{
			"boot changed EFI/BOOT/BOOTX64.EFI", "boot EFI/BOOT/BOOTX64.EFI Authenticode digest: DIGEST -> DIGEST", "boot EFI/BOOT/BOOTX64.EFI version of systemd-stub: 257 -> 258",
			"PCR 4 changed EFI/BOOT/BOOTX64.EFI: systemd-stub",
		}},
		{"a signature", "sbA252", func(d *measure.Document) { d.BootChain[0].Size += 512 }, []string{"boot changed EFI/BOOT/BOOTX64.EFI", "signatures"}},
		{"an image gone", "stub257", func(d *measure.Document) { d.BootChain = d.BootChain[:1] }, []string{"boot removed EFI/BOOT/BOOTX64.EFI#.linux"}},
		{"an entry of db", "sbA252", func(d *measure.Document) {
			e := event(d, 7, "db")
			raw, err := hex.DecodeString(e.Data)
			must(t, err)
			vendor, name, lists, err := efi.ParseVariableData(raw)
			must(t, err)
			// A list of one SHA-256.
			more := append(slices.Clone(efi.CertSHA256[:]), 76, 0, 0, 0, 0, 0, 0, 0, 48, 0, 0, 0)
			more = append(more, make([]byte, 48)...)
			e.Data, e.Digest = hex.EncodeToString(efi.VariableData(vendor, name, append(slices.Clone(lists), more...))), long
			for i := range d.SecureBoot.Variables {
				if v := &d.SecureBoot.Variables[i]; v.Name == "db" {
					v.SHA256 = other
				}
			}
			d.Measurements.PCRs[7] = long
		}, []string{"PCR 7 changed db: added digest", "Secure Boot db, digest:  -> DIGEST"}},
		{"a variable that cannot be read", "sbA252", func(d *measure.Document) {
			e := event(d, 7, "db")
			e.Data, e.Digest = "zz", long
			for i := range d.SecureBoot.Variables {
				if v := &d.SecureBoot.Variables[i]; v.Name == "db" {
					v.SHA256 = other
				}
			}
			d.Measurements.PCRs[7] = long
		}, []string{"PCR 7 changed db:", "Secure Boot db: DIGEST -> DIGEST"}},
		{"an authority", "sbA252", func(d *measure.Document) { d.SecureBoot.Authorities = nil }, []string{"Secure Boot authority, certificate CN=gold dbA: DIGEST ->"}},
		{"the builder", "stub257", func(d *measure.Document) {
			d.Builder.Digest, d.Builder.KIWI, d.Builder.PackagesSHA256 = "sha256:"+other, "10.4.0", other
			d.Builder.Packages[0].Version = "3.0.4"
			d.Builder.Packages = append(d.Builder.Packages[:1], measure.BuilderPackage{Name: "zstd", Version: "1.5", Architecture: "amd64"})
		}, []string{
			"builder digest of the image: sha256:DIGEST -> sha256:DIGEST", "builder KIWI: 10.3.9 -> 10.4.0",
			`builder has apt "3.0.3" -> "3.0.4"`, `builder has xz-utils "5.8" -> ""`, `builder has zstd "" -> "1.5"`,
		}},
		{"the source", "stub257", func(d *measure.Document) {
			i := &d.Builder.Inputs
			i.SourceDateEpoch, i.DescriptionSHA256, i.PackagesSHA256 = 1_764_000_001, other, other
			i.PackagesLocked = true
			i.Recipe.Version = "2"
			i.Files = []measure.SourceFile{{Path: "config.xml", Kind: "file", Mode: "755", SHA256: other}, {Path: "root", Kind: "directory", Mode: "755"}, {Path: "root/x", Kind: "directory", Mode: "755"}}
		}, []string{
			"input time: 2025-11-24T16:00:00Z -> 2025-11-24T16:00:01Z", "input description: DIGEST -> DIGEST", "input bound to a lock: no -> yes",
			"input packages of the image: DIGEST -> DIGEST", "input version:  -> 2",
			"source changed config.xml", "source config.xml: mode 644 -> 755", "source config.xml: content DIGEST -> DIGEST",
			"source removed root/motd", "source added root/x",
		}},
		{"no builder", "stub257", func(d *measure.Document) { d.Builder = nil }, []string{"not compared: builder (B): the measurements do not say what it was built with"}},
		{"no files", "stub257", func(d *measure.Document) { d.Builder.Inputs.Files, d.Builder.Inputs.DescriptionSHA256 = nil, other }, []string{
			"input description: DIGEST -> DIGEST", "not compared: files of the description: not both measurements list them",
		}},
		{"another bank", "stub257", func(d *measure.Document) { d.Measurements.HashAlgorithm = measure.SHA256 }, []string{"not compared: PCRs: they are of the banks SHA384 (A) and SHA256 (B)"}},
		{"fewer PCRs", "stub257", func(d *measure.Document) { delete(d.Measurements.PCRs, 5) }, []string{"not compared: PCR 5 (B): the measurements do not have it"}},
		{"a long boot chain", "stub257", func(d *measure.Document) {
			for range 1001 {
				d.BootChain = append(d.BootChain, d.BootChain[0])
			}
		}, []string{"not compared: boot chain: a list has more than 1000 entries"}},
		{"many variables", "stub257", func(d *measure.Document) { d.SecureBoot.Variables = make([]measure.VariableInfo, 1001) }, []string{
			"not compared: Secure Boot: a list has more than 1000 entries",
		}},
		{"the architecture", "stub257", func(d *measure.Document) { d.Architecture = "aarch64" }, []string{"other architecture x86_64 aarch64"}},
		{"a value that is not known", "stub257", func(d *measure.Document) { d.BootChain[0].Authenticode[measure.SHA256] = other }, []string{
			"other values of the documents differ that mean nothing by themselves",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, b := document(t, test.golden), document(t, test.golden)
			test.change(b)
			r := Documents(a, b)
			if got := facts(r); !slices.Equal(got, test.want) || r.Identical {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
			if r := Documents(b, a); r.Identical || len(facts(r)) == 0 {
				t.Error("the other way round nothing differs")
			}
		})
	}
	if r := Documents(document(t, "sbA252"), document(t, "sbA252")); !r.Identical || len(facts(r)) > 0 || r.Compared != "measurements" {
		t.Errorf("the same document: %+v", r)
	}
	a, b := document(t, "stub257"), document(t, "stub257")
	b.Disk.SHA256 = other
	if r := Documents(a, b); r.Identical || r.A.SHA256 == r.B.SHA256 {
		t.Errorf("another disk: %+v", r)
	}
}

// TestDisksWithDocuments compares the PCRs that documents have, and what they say of the
// builds.
func TestDisksWithDocuments(t *testing.T) {
	before, after := newImage(), newImage()
	after.cmdline += " debug"
	a, b := document(t, "stub257"), document(t, "stub257")
	b.Measurements.PCRs[4] = strings.Repeat("b", 96)
	b.Builder.KIWI = "10.4.0"
	diskA, diskB := before.disk(t), after.disk(t)
	got := facts(compare(t, diskA, diskB, Options{A: a, B: b}))
	for _, want := range []string{`option "" -> "debug"`, "section changed .cmdline", "PCR 4 for no reason", "builder KIWI: 10.3.9 -> 10.4.0"} {
		if !slices.Contains(got, want) {
			t.Errorf("%q is missing from\n%s", want, strings.Join(got, "\n"))
		}
	}
	if r := compare(t, diskA, diskA, Options{A: a, B: b}); r.Identical || r.Compared != "measurements and disks" || !slices.Contains(facts(r), "builder KIWI: 10.3.9 -> 10.4.0") {
		t.Errorf("the same disk of another builder: %+v", r)
	}
	if r := compare(t, diskA, diskA, Options{A: a, B: a}); !r.Identical {
		t.Errorf("the same disk of the same builder: %+v", r)
	}
}

// TestAddPackages compares lists of packages.
func TestAddPackages(t *testing.T) {
	r := newReport("", "")
	r.AddPackages([]sbom.Package{{Kind: sbom.Deb, Name: "web", Version: "1"}, {Kind: sbom.Deb, Name: "old", Version: "1"}}, []sbom.Package{{Kind: sbom.Deb, Name: "web", Version: "2"}})
	if got, want := facts(r), []string{`package old "1" -> ""`, `package web "1" -> "2"`}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// FuzzDocuments compares whatever can be read with itself, and with a document of ours.
func FuzzDocuments(f *testing.F) {
	for _, name := range []string{"stub257", "sbA252", "uki"} {
		content, err := os.ReadFile(filepath.Join(testenv.Root(f), "internal/measure/testdata", name+".json"))
		must(f, err)
		f.Add(content)
	}
	other := document(f, "sbA252")
	f.Fuzz(func(t *testing.T, content []byte) {
		d, err := measure.ParseDocument(content)
		if err != nil {
			return
		}
		if r := Documents(d, d); !r.Identical {
			t.Errorf("it differs from itself: %q", facts(r))
		}
		for _, r := range []*Report{Documents(d, other), Documents(other, d)} {
			if _, err := r.Marshal(); err != nil || r.Identical {
				t.Errorf("identical %t: %v", r.Identical, err)
			}
		}
	})
}
