package artifact

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const someDigest = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"

func TestParseReference(t *testing.T) {
	for _, c := range []struct {
		in, want, place, tag string
		digest, layout       bool
	}{
		{in: "ghcr.io/owner/image", place: "ghcr.io/owner/image"},
		{in: "ghcr.io/owner/image:v1", place: "ghcr.io/owner/image", tag: "v1"},
		{in: "127.0.0.1:5000/image:v1", place: "127.0.0.1:5000/image", tag: "v1"},
		{in: "localhost/image", place: "localhost/image"},
		{in: "[::1]:5000/a/b", place: "[::1]:5000/a/b"},
		{in: "ghcr.io/owner/image@" + someDigest, place: "ghcr.io/owner/image", digest: true},
		{in: "ghcr.io/owner/image:v1@" + someDigest, want: "ghcr.io/owner/image@" + someDigest, place: "ghcr.io/owner/image", digest: true},
		{in: "oci:layout", place: "oci:layout", layout: true},
		{in: "oci:./layout/", want: "oci:layout", place: "oci:layout", layout: true},
		{in: "oci:/a/b:v1", place: "oci:/a/b", tag: "v1", layout: true},
		{in: "oci:/a:b/c", place: "oci:/a:b/c", layout: true},
		{in: "oci:/a:b/", place: "oci:/a:b/", layout: true},
		{in: "oci:/a:b/:v1", place: "oci:/a:b/", tag: "v1", layout: true},
		{in: "oci:/a@b", place: "oci:/a@b", layout: true},
		{in: "oci:/a/b@" + someDigest, place: "oci:/a/b", digest: true, layout: true},
	} {
		ref, err := ParseReference(c.in)
		if err != nil {
			t.Error(err)
			continue
		}
		if c.want == "" {
			c.want = c.in
		}
		if ref.String() != c.want || ref.Place() != c.place || ref.Tag != c.tag || ref.HasDigest() != c.digest || ref.IsLayout() != c.layout {
			t.Errorf("%s is %+v: %s", c.in, ref, ref)
		}
	}
	for in, want := range map[string]string{
		"":                              "it names no registry",
		"image":                         "it names no registry",
		"owner/image":                   "it names no registry",
		"image.raw":                     "it names no registry",
		"ghcr.io/":                      "it names no registry",
		"ghcr.io/Owner/image":           "write ghcr.io/owner/image",
		"ghcr.io/owner/image:":          `"" is no tag`,
		"ghcr.io/owner/image:-x":        `"-x" is no tag`,
		"ghcr.io/owner/../image":        "is no name of a repository",
		"ghcr.io/owner//image":          "is no name of a repository",
		"gh\"cr.io/owner/image":         "is no host of a registry",
		"ghcr.io/owner/im age":          "is no name of a repository",
		"ghcr.io/owner/image@sha256:12": `"sha256:12" is no digest`,
		"ghcr.io/owner/image@" + strings.ToUpper(someDigest): "is no digest",
		"oci:":                        "it names no directory",
		"oci::v1":                     "it names no directory",
		"oci:@" + someDigest:          "it names no directory",
		"oci:a:b c":                   `"b c" is no tag`,
		"oci:a@sha256:zz":             "is no digest",
		"oci://ghcr.io/owner/image":   "a reference has no scheme",
		"https://ghcr.io/owner/image": "a reference has no scheme",
		"ghcr.io/owner/image\n:v1":    "control character",
	} {
		if ref, err := ParseReference(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v\nwant: %s", in, ref, err, want)
		}
	}
}

func TestParseTags(t *testing.T) {
	got, err := ParseTags("v1, v1.2\n\nlatest,v1\r\n")
	if want := []string{"v1", "v1.2", "latest"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	for _, wrong := range []string{"a/b", ".x", "x@y", strings.Repeat("x", 129)} {
		if got, err := ParseTags("ok," + wrong); err == nil || !strings.Contains(err.Error(), "is no tag") {
			t.Errorf("%s: %q, %v", wrong, got, err)
		}
	}
}

func TestPushWrongly(t *testing.T) {
	path := sparseDisk(t)
	for name, c := range map[string]struct {
		change func(*Content)
		ref    string
		want   string
	}{
		"to a digest":           {func(*Content) {}, "ghcr.io/owner/image@" + someDigest, "is not known before: leave out @sha256:"},
		"without a name":        {func(c *Content) { c.Name = "" }, "oci:x", "is no name for an image"},
		"a path for name":       {func(c *Content) { c.Name = "../x" }, "oci:x", "is no name for an image"},
		"an empty disk":         {func(c *Content) { c.DiskSize = 0 }, "oci:x", "the disk is empty"},
		"a huge UEFI data":      {func(c *Content) { c.UEFIData = make([]byte, maxUEFIData+1) }, "oci:x", "is longer than the 1048576"},
		"into a full directory": {func(*Content) {}, "oci:/usr", "it holds other files"},
		"huge annotations":      {func(c *Content) { c.Annotations = map[string]string{"x": strings.Repeat("x", maxManifest)} }, "oci:" + t.TempDir(), "shorten the annotations"},
		"huge measurements": {func(c *Content) {
			c.Measurements = func(string, int64) ([]byte, error) { return make([]byte, maxMeasurements+1), nil }
		}, "oci:" + t.TempDir(), "the measurements of 16777217 bytes are longer"},
	} {
		t.Run(name, func(t *testing.T) {
			content := contentOf(t, path)
			c.change(&content)
			if result, err := Push(t.Context(), parse(t, c.ref), content); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, %v\nwant: %s", result, err, c.want)
			}
		})
	}
}

// validManifest is one that parseManifest takes.
func validManifest() *v1.Manifest {
	return &v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: Type, Config: emptyConfig(),
		Layers: []v1.Descriptor{
			titled(describe([]byte("disk"), MediaTypeDisk), "image.raw.zst"),
			titled(describe([]byte("{}"), MediaTypeMeasurements), titleMeasurements),
		},
	}
}

func TestParseManifest(t *testing.T) {
	raw, err := marshalManifest(validManifest())
	if err != nil {
		t.Fatal(err)
	}
	if _, found, err := parseManifest(raw); err != nil || found.name != "image" || found.uefiData != nil {
		t.Fatalf("%+v, %v", found, err)
	}
	uefi := titled(describe([]byte("x"), MediaTypeUEFIData), titleUEFIData)
	for name, c := range map[string]struct {
		change func(*v1.Manifest)
		want   string
	}{
		"another schema":        {func(m *v1.Manifest) { m.SchemaVersion = 1 }, "its schema version is 1"},
		"Docker's manifest":     {func(m *v1.Manifest) { m.MediaType = types.DockerManifestSchema2 }, "its media type is"},
		"an index":              {func(m *v1.Manifest) { m.MediaType = types.OCIImageIndex }, "its media type is"},
		"another artifact":      {func(m *v1.Manifest) { m.ArtifactType = "application/x\x1b[2J" }, `its artifact type is "application/x\x1b[2J" and not`},
		"no disk":               {func(m *v1.Manifest) { m.Layers = m.Layers[1:] }, "0 disk layers instead of one"},
		"two disks":             {func(m *v1.Manifest) { m.Layers = append(m.Layers, m.Layers[0]) }, "2 disk layers instead of one"},
		"no measurements":       {func(m *v1.Manifest) { m.Layers = m.Layers[:1] }, "0 measurements layers instead of one"},
		"two measurements":      {func(m *v1.Manifest) { m.Layers = append(m.Layers, m.Layers[1]) }, "2 measurements layers instead of one"},
		"two variable stores":   {func(m *v1.Manifest) { m.Layers = append(m.Layers, uefi, uefi) }, "more than one UEFI variable store"},
		"huge measurements":     {func(m *v1.Manifest) { m.Layers[1].Size = maxMeasurements + 1 }, "its measurements of 16777217 bytes"},
		"huge variable store":   {func(m *v1.Manifest) { m.Layers = append(m.Layers, uefi); m.Layers[2].Size = 1 << 40 }, "its UEFI variable store of"},
		"negative size":         {func(m *v1.Manifest) { m.Layers[0].Size = -1 }, "its layer 1: its size is -1"},
		"sha512":                {func(m *v1.Manifest) { m.Layers[0].Digest = v1.Hash{Algorithm: "sha512", Hex: strings.Repeat("0", 128)} }, "its layer 1: "},
		"many layers":           {func(m *v1.Manifest) { m.Layers = slices.Repeat(m.Layers, 40) }, "it has 80 layers"},
		"a path as title":       {func(m *v1.Manifest) { m.Layers[0] = titled(m.Layers[0], "../../etc/x.raw.zst") }, "is no file name that ends in .raw.zst"},
		"a hidden title":        {func(m *v1.Manifest) { m.Layers[0] = titled(m.Layers[0], ".raw.zst") }, "is no file name that ends in .raw.zst"},
		"no title":              {func(m *v1.Manifest) { m.Layers[0].Annotations = nil }, "is no file name that ends in .raw.zst"},
		"a subject of nothing":  {func(m *v1.Manifest) { m.Subject = &v1.Descriptor{Digest: v1.Hash{Algorithm: "sha256", Hex: "0"}} }, "it is no manifest"},
		"a config of nothing":   {func(m *v1.Manifest) { m.Config.Digest = v1.Hash{} }, "it is no manifest"},
		"a layer without bytes": {func(m *v1.Manifest) { m.Layers[1].Digest = v1.Hash{Algorithm: "sha256"} }, "it is no manifest"},
	} {
		t.Run(name, func(t *testing.T) {
			m := validManifest()
			c.change(m)
			raw, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := parseManifest(raw); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\nwant: %s", err, c.want)
			}
		})
	}
	for text, want := range map[string]string{
		"":                       "it is no manifest",
		"null":                   "its schema version is 0",
		"[]":                     "it is no manifest",
		string(raw) + "{}":       "after top-level value",
		string(raw[:len(raw)/2]): "it is no manifest",
		strings.Repeat("[", 1e5): "it is no manifest",
		strings.Repeat(" ", 5e6): "longer than the 4194304 bytes",
	} {
		if _, _, err := parseManifest([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v\nwant: %s", text, err, want)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	raw, err := marshalManifest(validManifest())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`))
	f.Add(bytes.Replace(raw, []byte(`"layers"`), []byte(`"layers":[],"Layers"`), 1))
	f.Add(bytes.Replace(raw, []byte(`"layers"`), []byte(`"layers":[],"lay\u0065rs"`), 1))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if index, err := parseIndex(raw); err == nil {
			for _, d := range index.Manifests {
				if len(d.Digest.Hex) != 64 || d.Size < 0 {
					t.Errorf("accepted %+v", d)
				}
			}
		}
		m, found, err := parseManifest(raw)
		if err != nil {
			if m != nil {
				t.Error("a manifest beside an error")
			}
			return
		}
		if CheckName(found.name) != nil || strings.ContainsAny(found.name, "/\x00") {
			t.Errorf("accepted the name %q", found.name)
		}
		for _, d := range append(m.Layers, m.Config) {
			if len(d.Digest.Hex) != 64 || d.Size < 0 {
				t.Errorf("accepted %+v", d)
			}
		}
		if found.measurements.Size > maxMeasurements {
			t.Errorf("accepted measurements of %d bytes", found.measurements.Size)
		}
	})
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"ghcr.io/owner/image:v1", "oci:dir:v1", "oci:/a@" + someDigest, "[::1]:5000/a@" + someDigest, "oci:a:b/c:d@e"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseReference(s)
		if err != nil {
			return
		}
		if strings.ContainsAny(ref.String(), "\n\r\x00\x1b") {
			t.Errorf("%q has control characters", ref)
		}
		again, err := ParseReference(ref.String())
		if err != nil || again != ref {
			t.Errorf("%q is %+v, printed %q, and that is %+v (%v)", s, ref, ref, again, err)
		}
		digest := digestOf([]byte(s))
		if with := ref.WithDigest(digest); with.Place() != ref.Place() || !strings.HasSuffix(with.String(), "@"+digest.String()) {
			t.Errorf("%q with a digest is %s", s, with)
		}
		if fmt.Sprint(ref.IsLayout()) == fmt.Sprint(ref.Host() != "") {
			t.Errorf("%q is both layout and registry, or neither", s)
		}
	})
}
