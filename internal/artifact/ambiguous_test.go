package artifact

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/org/attestable-image-action/internal/testenv"
)

// manifestText is a manifest that parseManifest takes, as text to be changed.
func manifestText(t testing.TB) string {
	t.Helper()
	raw, err := marshalManifest(validManifest())
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// evilLayers are the layers of another image.
func evilLayers(t testing.TB) string {
	t.Helper()
	layers, err := json.Marshal([]v1.Descriptor{
		titled(describe([]byte("evil"), MediaTypeDisk), "image.raw.zst"),
		titled(describe([]byte("{}"), MediaTypeMeasurements), titleMeasurements),
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(layers)
}

// ambiguous are manifests that say two things, and why each is refused.
func ambiguous(t testing.TB) map[string]struct{ raw, want string } {
	t.Helper()
	good, evil := manifestText(t), evilLayers(t)
	change := func(old, with string) string {
		if strings.Count(good, old) == 0 {
			t.Fatalf("there is no %s in %s", old, good)
		}
		return strings.Replace(good, old, with, 1)
	}
	disk := describe([]byte("disk"), MediaTypeDisk).Digest.String()
	other, err := json.Marshal(titled(describe([]byte("evil"), "application/x"), "IMAGE.raw.zst"))
	if err != nil {
		t.Fatal(err)
	}
	return map[string]struct{ raw, want string }{
		"layers, and Layers":             {change(`"layers":`, `"layers":`+evil+`,"Layers":`), `member "Layers" is not spelt "layers"`},
		"Layers, and layers":             {change(`"layers":`, `"LAYERS":`+evil+`,"layers":`), `member "LAYERS" is not spelt "layers"`},
		"layers in other letters":        {change(`"layers":`, `"layer\u017f":`+evil+`,"layers":`), `is not spelt "layers"`},
		"layers twice":                   {change(`"layers":`, `"layers":`+evil+`,"layers":`), `member "layers" stands twice`},
		"layers twice, by an escape":     {change(`"layers":`, `"lay\u0065rs":`+evil+`,"layers":`), `member "layers" stands twice`},
		"Layers alone":                   {change(`"layers":`, `"Layers":`), `member "Layers" is not spelt "layers"`},
		"a digest twice":                 {change(`"digest":"`+disk, `"digest":"sha256:`+strings.Repeat("0", 64)+`","digest":"`+disk), `member "digest" stands twice`},
		"a Digest beside it":             {change(`"digest":"`+disk, `"Digest":"sha256:`+strings.Repeat("0", 64)+`","digest":"`+disk), `member "Digest" is not spelt "digest"`},
		"a size twice":                   {change(`"size":4`, `"size":5,"size":4`), `member "size" stands twice`},
		"a title twice":                  {change(`"annotations":{`, `"annotations":{"org.opencontainers.image.title":"x.raw.zst",`), `member "org.opencontainers.image.title" stands twice`},
		"annotations twice":              {change(`"annotations":`, `"annotations":{},"annotations":`), `member "annotations" stands twice`},
		"a second subject":               {strings.Replace(good, `{`, `{"subject":null,"subject":null,`, 1), `member "subject" stands twice`},
		"a second artifact type":         {strings.Replace(good, `{`, `{"ArtifactType":"application/x",`, 1), `member "ArtifactType" is not spelt "artifactType"`},
		"manifests of an index":          {strings.Replace(good, `{`, `{"manifests":[],`, 1), "it has the member manifests of an image index"},
		"manifests that are null":        {strings.Replace(good, `{`, `{"manifests":null,`, 1), "it has the member manifests of an image index"},
		"Docker's layers":                {strings.Replace(good, `{`, `{"fsLayers":[],`, 1), "it has the member fsLayers of Docker's old manifests"},
		"a container image's config":     {change(string(mediaTypeEmpty), string(types.OCIConfigJSON)), "its config is a \"application/vnd.oci.image.config.v1+json\" and not the empty one"},
		"another config":                 {change(emptyConfig().Digest.String(), disk), "its config"},
		"other data in a descriptor":     {change(`"digest":"`+disk+`"`, `"digest":"`+disk+`","data":"ZXZpbA=="`), "the data inside its descriptor is not what its digest says"},
		"longer data in it":              {change(`"digest":"`+disk+`"`, `"digest":"`+disk+`","data":"ZGlzaw1="`), "the data inside its descriptor"},
		"a digest in capitals":           {change(disk, strings.ToUpper(disk)), "it is no manifest"},
		"hex in capitals":                {change(disk, "sha256:"+strings.ToUpper(strings.TrimPrefix(disk, "sha256:"))), "it is no manifest"},
		"a disk with a parameter":        {change(string(MediaTypeDisk), string(MediaTypeDisk)+";x=1"), "0 disk layers"},
		"a second disk with a parameter": {change(`"layers":[`, `"layers":[`+layerOf(t, string(MediaTypeDisk)+"; x=1", "other")+`,`), "its media type"},
		"a second disk in capitals":      {change(`"layers":[`, `"layers":[`+layerOf(t, strings.ToUpper(string(MediaTypeDisk)), "other")+`,`), "its media type"},
		"another layer into its file":    {change(`}],`, `},`+string(other)+`],`), `its title "IMAGE.raw.zst" is that of another layer, too`},
		"that by a way around":           {change(`}],`, `},`+layerOf(t, "application/x", "a/../measurements.json")+`],`), "is that of another layer, too"},
		"a size that is rounded":         {change(`"size":4`, `"size":9007199254740993`), "more than the 53 bits"},
		"a size that is a fraction":      {change(`"size":4`, `"size":4.0`), "it is no manifest"},
		"a byte order mark":              {"\ufeff" + good, "it is no manifest"},
		"something after it":             {good + `{"layers":` + evil + `}`, "it is no manifest"},
		"a NUL in a title":               {change(`image.raw.zst`, `image.raw.zst\u0000.txt`), "the character NUL"},
		"half a surrogate pair":          {strings.Replace(good, `{`, `{"annotations":{"a\ud800":""},`, 1), "surrogate pair"},
		"no UTF-8":                       {strings.Replace(good, `{`, "{\"annotations\":{\"a\xff\":\"\"},", 1), "not UTF-8"},
	}
}

func layerOf(t testing.TB, mediaType, title string) string {
	t.Helper()
	raw, err := json.Marshal(titled(describe([]byte("evil"), types.MediaType(mediaType)), title))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// TestAmbiguousManifests holds that a manifest is refused that other programs read
// differently, and that they read one that is taken as it was taken: jq and Python
// find the same layers in it.
func TestAmbiguousManifests(t *testing.T) {
	for name, tc := range ambiguous(t) {
		if _, _, err := parseManifest([]byte(tc.raw)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v\nwant: %s", name, err, tc.want)
		}
	}
	good := manifestText(t)
	for name, raw := range map[string]string{
		"as it is pushed":        good,
		"with spaces":            strings.NewReplacer(`{`, "{\n ", `:[`, ` : [ `).Replace(good),
		"with other members":     strings.Replace(good, `{`, `{"more":{"layers":[],"digest":"x"},`, 1),
		"keys of another case":   strings.Replace(good, `{`, `{"annotations":{"a.Name":"1","a.name":"2"},`, 1),
		"a layer of somebody":    strings.Replace(good, `}],`, `},`+layerOf(t, "application/x", "more.txt")+`],`, 1),
		"names with escapes":     strings.Replace(good, `"layers"`, `"lay\u0065rs"`, 1),
		"data in the descriptor": strings.Replace(good, `"size":4`, `"size":4,"data":"ZGlzaw=="`, 1),
	} {
		_, found, err := parseManifest([]byte(raw))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := found.disk.Digest.String() + " " + found.measurements.Digest.String()
		for reader, got := range otherReaders(t, raw) {
			if got != want {
				t.Errorf("%s: %s finds %s, and this program %s", name, reader, got, want)
			}
		}
	}
	// What brought this about: both of them see the other disk.
	evil := digestOf([]byte("evil")).String()
	for reader, got := range otherReaders(t, ambiguous(t)["layers, and Layers"].raw) {
		if !strings.HasPrefix(got, evil) {
			t.Errorf("%s finds %s, want %s", reader, got, evil)
		}
	}
}

// otherReaders are the digests of disk and measurements that jq and Python find.
func otherReaders(t *testing.T, raw string) map[string]string {
	t.Helper()
	disk, measurements := string(MediaTypeDisk), string(MediaTypeMeasurements)
	found := map[string]string{}
	for reader, args := range map[string][]string{
		"jq": {"-r", "--arg", "d", disk, "--arg", "m", measurements,
			`[(.layers[]|select(.mediaType==$d)|.digest),(.layers[]|select(.mediaType==$m)|.digest)]|join(" ")`},
		"python3": {"-c", `import json, sys
layers = json.loads(sys.stdin.buffer.read())["layers"]
print(*[l["digest"] for t in sys.argv[1:] for l in layers if l["mediaType"] == t])`, disk, measurements},
	} {
		cmd := exec.Command(testenv.Tool(t, reader), args...) //nolint:gosec // they are ours
		cmd.Stdin = strings.NewReader(raw)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", reader, err, out)
		}
		found[reader] = strings.TrimSpace(string(out))
	}
	return found
}

// TestAmbiguousArtifact opens what says two things: an artifact, an index, a list of
// referrers, the files of a layout.
func TestAmbiguousArtifact(t *testing.T) {
	path := sparseDisk(t)
	t.Run("layout", func(t *testing.T) {
		dir := t.TempDir()
		result, err := Push(t.Context(), parse(t, "oci:"+dir+":v1"), contentOf(t, path))
		if err != nil {
			t.Fatal(err)
		}
		for name, tc := range map[string]struct{ file, old, with, want string }{
			"version twice":          {layoutFile, `{`, `{"imageLayoutVersion":"2.0.0",`, "does not say version 1.0.0"},
			"version, other case":    {layoutFile, `{`, `{"ImageLayoutVersion":"1.0.0","x":`, "does not say version 1.0.0"},
			"manifests, Manifests":   {"index.json", `"manifests":`, `"manifests":[],"Manifests":`, `member "Manifests" is not spelt "manifests"`},
			"a digest twice":         {"index.json", `"digest":`, `"digest":"sha256:` + strings.Repeat("0", 64) + `","digest":`, `member "digest" stands twice`},
			"layers of a manifest":   {"index.json", `{`, `{"layers":[],`, "it has the member config or layers of an image manifest"},
			"another size":           {"index.json", `"size":`, `"size":1`, "gives " + result.Reference.Digest.String() + " a size of"},
			"another media type":     {"index.json", `"mediaType":"application/vnd.oci.image.manifest.v1+json"`, `"mediaType":"application/vnd.oci.image.index.v1+json"`, "index.json says that it is a"},
			"something follows them": {"index.json", "\x00", "", "after top-level value"},
		} {
			t.Run(name, func(t *testing.T) {
				file := filepath.Join(dir, tc.file)
				was, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				defer os.WriteFile(file, was, 0o644) //nolint:errcheck // the next one would see it
				changed := bytes.Replace(was, []byte(tc.old), []byte(tc.with), 1)
				if tc.old == "\x00" {
					changed = append(bytes.Clone(was), "{}"...)
				}
				if bytes.Equal(changed, was) {
					t.Fatalf("%s has no %s: %s", file, tc.old, was)
				}
				if err := os.WriteFile(file, changed, 0o644); err != nil {
					t.Fatal(err)
				}
				if _, err := Open(t.Context(), parse(t, "oci:"+dir+":v1")); err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("%v\nwant: %s", err, tc.want)
				}
			})
		}
	})
	t.Run("registry", func(t *testing.T) {
		r := testenv.StartRegistry(t)
		ref := parse(t, r.Host+"/octo-org/image:v1")
		result, err := Push(t.Context(), ref, contentOf(t, path))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := PutReferrer(t.Context(), result.Reference, "application/x", []byte("bundle"), nil); err != nil {
			t.Fatal(err)
		}
		original, err := Open(t.Context(), result.Reference)
		if err != nil {
			t.Fatal(err)
		}
		for name, tc := range map[string]struct {
			contentType string
			want        string // "" when it opens
		}{
			"index":                {string(types.OCIImageIndex), "the registry says that it is a \"application/vnd.oci.image.index.v1+json\", and it says of itself"},
			"index with parameter": {string(types.OCIImageIndex) + "; charset=utf-8", "the registry says that it is a"},
			"Docker's manifest":    {string(types.DockerManifestSchema2), "the registry says that it is a"},
			"itself in capitals":   {strings.ToUpper(string(types.OCIManifestSchema1)) + ";charset=utf-8", ""},
			"bytes":                {"application/octet-stream", ""},
		} {
			t.Run("content type of "+name, func(t *testing.T) {
				r.Intercept(t, func(w http.ResponseWriter, request *http.Request) bool {
					if request.Method == http.MethodGet && strings.Contains(request.URL.Path, "/manifests/") {
						w.Header().Set("Content-Type", tc.contentType)
						_, _ = w.Write(original.RawManifest)
						return true
					}
					return false
				})
				_, err := Open(t.Context(), ref)
				if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
					t.Errorf("%v\nwant: %s", err, tc.want)
				}
			})
		}
	})
}
