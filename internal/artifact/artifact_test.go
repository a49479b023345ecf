package artifact

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/testenv"
)

// hasty is a patience for tests.
var hasty = patience{
	answer: time.Second, commit: time.Second, stall: time.Second,
	attempts: 3, backoff: time.Millisecond, maxWait: 2 * time.Second,
	total: 20 * time.Second, settle: 40 * time.Millisecond,
}

// sparseDisk makes a disk of 41 MiB and some bytes: data, holes, zeros that are
// stored, and a hole at the end.
func sparseDisk(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for offset, data := range map[int64][]byte{
		0:            []byte("the beginning"),
		5 << 20:      text(3 << 20),
		17<<20 + 777: noise(2<<20 + 5),
		25 << 20:     make([]byte, 1<<20),
		33 << 20:     text(100),
	} {
		if _, err := f.WriteAt(data, offset); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(41<<20 + 123); err != nil {
		t.Fatal(err)
	}
	return path
}

// noise is incompressible, and the same each time.
func noise(n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	return data
}

// text is compressible.
func text(n int) []byte {
	var b bytes.Buffer
	r := rand.New(rand.NewPCG(1, 2))
	for b.Len() < n {
		fmt.Fprintf(&b, "line %d says %x\n", b.Len(), r.Uint32N(1000))
	}
	return b.Bytes()[:n]
}

// contentOf is the content that push makes of a disk.
func contentOf(t testing.TB, path string) Content {
	t.Helper()
	d, err := disk.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return Content{
		Name: "image", DiskSize: d.Size(),
		OpenDisk: func() (io.ReadCloser, error) { return io.NopCloser(d.Stream()), nil },
		Measurements: func(sha256 string, size int64) ([]byte, error) {
			return fmt.Appendf(nil, `{"Disk":{"SHA256":%q,"Size":%d}}`, sha256, size), nil
		},
		PCRs:        map[string]string{"pcr4": "04", "pcr7": "07", "pcr12": "12"},
		Annotations: map[string]string{AnnotationVersion: "1.2.3", AnnotationSource: ""},
	}
}

// sums are the SHA-256 and the size of a file.
func sums(t testing.TB, path string) (string, int64) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]), int64(len(data))
}

// allocated is what a file takes on the file system, in bytes.
func allocated(t testing.TB, path string) int64 {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		t.Fatal(err)
	}
	return stat.Blocks * 512
}

func parse(t testing.TB, s string) Reference {
	t.Helper()
	ref, err := ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// places runs a test in both kinds of registry and in a layout. flags are what
// oras needs to reach the place.
func places(t *testing.T, test func(t *testing.T, place string, orasFlags ...string)) {
	for _, kind := range testenv.RegistryKinds {
		t.Run("registry "+kind.Name, func(t *testing.T) {
			t.Parallel()
			test(t, kind.Start(t).Host+"/octo-org/image", "--plain-http")
		})
	}
	t.Run("layout", func(t *testing.T) {
		t.Parallel()
		test(t, "oci:"+filepath.Join(t.TempDir(), "layout"), "--oci-layout")
	})
}

// oras runs oras and returns its output. A place in a layout is written without
// oci: there.
func oras(t *testing.T, args ...string) string {
	t.Helper()
	for i, arg := range args {
		args[i] = strings.TrimPrefix(arg, "oci:")
	}
	cmd := exec.Command(testenv.Tool(t, "oras"), args...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("oras %q: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestPushPull(t *testing.T) {
	t.Parallel()
	path := sparseDisk(t)
	want, size := sums(t, path)
	places(t, func(t *testing.T, place string, orasFlags ...string) {
		ctx := t.Context()
		var told int64
		content := contentOf(t, path)
		content.UEFIData = []byte("AMZNUEFI")
		result, err := Push(ctx, parse(t, place+":v1"), content, WithTags("latest", "v1"), WithProgress(func(n int64) { told += n }))
		if err != nil {
			t.Fatal(err)
		}
		if told != size || result.DiskSize != size || result.DiskSHA256 != want {
			t.Errorf("pushed %d bytes %s and told %d; want %d bytes %s", result.DiskSize, result.DiskSHA256, told, size, want)
		}
		if !slices.Equal(result.Tags, []string{"v1", "latest"}) {
			t.Errorf("tags %q", result.Tags)
		}
		for _, reference := range []string{result.Reference.String(), place + ":v1", place + ":latest", place} {
			found, err := Open(ctx, parse(t, reference))
			if err != nil {
				t.Fatal(err)
			}
			if found.Reference != result.Reference || found.Name != "image" {
				t.Errorf("%s is %s, named %q; want %s", reference, found.Reference, found.Name, result.Reference)
			}
		}
		found, err := Open(ctx, result.Reference)
		if err != nil {
			t.Fatal(err)
		}
		checkManifest(t, found)
		if data, err := found.Measurements(ctx); err != nil || !strings.Contains(string(data), want) {
			t.Errorf("measurements %s: %v", data, err)
		}
		if data, err := found.UEFIData(ctx); err != nil || string(data) != "AMZNUEFI" {
			t.Errorf("UEFI variable store %q: %v", data, err)
		}

		restored := filepath.Join(t.TempDir(), "restored.raw")
		if err := found.RestoreDisk(ctx, restored, want, size); err != nil {
			t.Fatal(err)
		}
		if got, gotSize := sums(t, restored); got != want || gotSize != size {
			t.Errorf("restored %d bytes %s; want %d bytes %s", gotSize, got, size, want)
		}
		if got, limit := allocated(t, restored), int64(6<<20); got > limit {
			t.Errorf("the restored disk takes %d bytes on the file system; want at most %d", got, limit)
		}
		if left, err := os.ReadDir(filepath.Dir(restored)); err != nil || len(left) != 1 {
			t.Errorf("beside the restored disk lies %v (%v)", left, err)
		}

		// What everybody's tools make of it.
		dir := t.TempDir()
		oras(t, append([]string{"pull", "--no-tty", "--output", dir, place + ":v1"}, orasFlags...)...)
		compressed := filepath.Join(dir, "image.raw.zst")
		if out, err := exec.Command(testenv.Tool(t, "zstd"), "-q", "-d", compressed).CombinedOutput(); err != nil {
			t.Fatalf("zstd: %v\n%s", err, out)
		}
		if got, _ := sums(t, strings.TrimSuffix(compressed, ".zst")); got != want {
			t.Errorf("zstd restored %s; want %s", got, want)
		}
		if _, err := os.Stat(filepath.Join(dir, "measurements.json")); err != nil {
			t.Error(err)
		}

		// The same again is the same again, and moves no tag elsewhere.
		t.Run("again", func(t *testing.T) {
			again, err := Push(ctx, parse(t, place+":v1"), contentOf(t, path))
			if err != nil {
				t.Fatal(err)
			}
			opened, err := Open(ctx, parse(t, place+":v1"))
			if err != nil {
				t.Fatal(err)
			}
			if opened.Reference != again.Reference || opened.Reference == result.Reference {
				t.Errorf("v1 is %s; want %s", opened.Reference, again.Reference)
			}
			if opened.DiskLayer.Digest != found.DiskLayer.Digest {
				t.Errorf("the same disk gave layers %s and %s", found.DiskLayer.Digest, opened.DiskLayer.Digest)
			}
			if latest, err := Open(ctx, parse(t, place+":latest")); err != nil || latest.Reference != result.Reference {
				t.Errorf("latest is %v (%v); want %s", latest, err, result.Reference)
			}
		})
	})
}

// checkManifest compares a manifest with the form that was promised.
func checkManifest(t *testing.T, a *Artifact) {
	t.Helper()
	var m struct {
		SchemaVersion           int
		MediaType, ArtifactType string
		Config                  struct{ MediaType, Digest string }
		Layers                  []struct {
			MediaType   string
			Annotations map[string]string
		}
		Annotations map[string]string
	}
	if err := json.Unmarshal(a.RawManifest, &m); err != nil {
		t.Fatal(err)
	}
	got := []string{m.MediaType, m.ArtifactType, m.Config.MediaType, m.Config.Digest}
	for _, layer := range m.Layers {
		got = append(got, layer.MediaType, layer.Annotations["org.opencontainers.image.title"])
	}
	want := []string{
		"application/vnd.oci.image.manifest.v1+json", "application/vnd.attestable-image.v1",
		"application/vnd.oci.empty.v1+json", "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
		"application/vnd.attestable-image.disk.raw.v1+zstd", "image.raw.zst",
		"application/vnd.attestable-image.measurements.v1+json", "measurements.json",
		"application/vnd.attestable-image.uefi-data.v1", "uefi-data.aws",
	}
	if !slices.Equal(got, want) {
		t.Errorf("manifest %q\nwant %q", got, want)
	}
	created, err := time.Parse(time.RFC3339, m.Annotations[AnnotationCreated])
	if err != nil || time.Since(created) > time.Hour {
		t.Errorf("created %q: %v", m.Annotations[AnnotationCreated], err)
	}
	delete(m.Annotations, AnnotationCreated)
	if want := map[string]string{"pcr4": "04", "pcr7": "07", "pcr12": "12", AnnotationVersion: "1.2.3"}; !maps.Equal(m.Annotations, want) {
		t.Errorf("annotations %q; want %q", m.Annotations, want)
	}
}

func TestSourceDateEpoch(t *testing.T) {
	path := sparseDisk(t)
	push := func() (*Result, error) {
		return Push(t.Context(), parse(t, "oci:"+t.TempDir()), contentOf(t, path))
	}
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	first, err := push()
	if err != nil {
		t.Fatal(err)
	}
	second, err := push()
	if err != nil {
		t.Fatal(err)
	}
	if first.Reference.Digest != second.Reference.Digest {
		t.Errorf("the same disk at the same time gave %s and %s", first.Reference.Digest, second.Reference.Digest)
	}
	t.Setenv("SOURCE_DATE_EPOCH", "")
	content := contentOf(t, path)
	content.Created = time.Unix(1_700_000_000, 0)
	if third, err := Push(t.Context(), parse(t, "oci:"+t.TempDir()), content); err != nil || third.Reference.Digest != first.Reference.Digest {
		t.Errorf("the same disk that was made at that time: %+v, %v", third, err)
	}
	for _, wrong := range []string{"yesterday", "-1", "999999999999"} {
		t.Setenv("SOURCE_DATE_EPOCH", wrong)
		if _, err := push(); err == nil || !strings.Contains(err.Error(), "SOURCE_DATE_EPOCH") {
			t.Errorf("with %s: %v", wrong, err)
		}
	}
}

// TestReferrers attaches with our own program and lists with it and with oras.
func TestReferrers(t *testing.T) {
	t.Parallel()
	const bundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"
	path := sparseDisk(t)
	places(t, func(t *testing.T, place string, orasFlags ...string) {
		ctx := t.Context()
		result, err := Push(ctx, parse(t, place+":v1"), contentOf(t, path))
		if err != nil {
			t.Fatal(err)
		}
		subject := result.Reference
		if found, err := Referrers(ctx, subject, bundleType); err != nil || len(found) != 0 {
			t.Fatalf("before: %v, %v", found, err)
		}
		want := map[v1.Hash]string{}
		for _, bundle := range []string{"one", "two", "two"} {
			digest, err := PutReferrer(ctx, subject, bundleType, []byte(bundle), map[string]string{"predicate": bundle})
			if err != nil {
				t.Fatal(err)
			}
			want[digest] = bundle
		}
		if _, err := PutReferrer(ctx, subject, "application/vnd.other", []byte("other"), nil); err != nil {
			t.Fatal(err)
		}
		for artifactType, n := range map[string]int{bundleType: 2, "": 3, "application/vnd.none": 0} {
			if found, err := Referrers(ctx, subject, artifactType); err != nil || len(found) != n {
				t.Errorf("referrers of type %q: %v, %v; want %d", artifactType, found, err, n)
			}
		}
		found, err := Referrers(ctx, subject, bundleType)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range found {
			blob, err := GetReferrer(ctx, subject, d)
			if err != nil {
				t.Fatal(err)
			}
			if string(blob) != want[d.Digest] || d.Annotations["predicate"] != want[d.Digest] || d.ArtifactType != bundleType {
				t.Errorf("referrer %+v holds %q; want %q", d, blob, want[d.Digest])
			}
		}
		discovered := oras(t, append([]string{"discover", "--format", "json", place + ":v1"}, orasFlags...)...)
		for digest := range want {
			if !strings.Contains(discovered, digest.String()) {
				t.Errorf("oras does not find %s:\n%s", digest, discovered)
			}
		}

		// A referrer that somebody else attached.
		attached := filepath.Join(t.TempDir(), "sbom.json")
		if err := os.WriteFile(attached, []byte("sbom"), 0o600); err != nil {
			t.Fatal(err)
		}
		oras(t, append([]string{"attach", "--no-tty", "--disable-path-validation", "--artifact-type", "application/vnd.sbom", place + ":v1", attached}, orasFlags...)...)
		theirs, err := Referrers(ctx, subject, "application/vnd.sbom")
		if err != nil || len(theirs) != 1 {
			t.Fatalf("oras attached: %v, %v", theirs, err)
		}
		if blob, err := GetReferrer(ctx, subject, theirs[0]); err != nil || string(blob) != "sbom" {
			t.Errorf("oras attached %q: %v", blob, err)
		}
		if found, err := Referrers(ctx, subject, bundleType); err != nil || len(found) != 2 {
			t.Errorf("after oras: %v, %v", found, err)
		}
	})
}

// TestMeasurementsRefused checks that measurements of another disk leave
// nothing under a tag.
func TestMeasurementsRefused(t *testing.T) {
	t.Parallel()
	path := sparseDisk(t)
	places(t, func(t *testing.T, place string, _ ...string) {
		content := contentOf(t, path)
		content.Measurements = func(string, int64) ([]byte, error) { return nil, context.DeadlineExceeded }
		if _, err := Push(t.Context(), parse(t, place+":v1"), content); err != context.DeadlineExceeded { //nolint:errorlint // exactly this
			t.Errorf("push: %v", err)
		}
		if found, err := Open(t.Context(), parse(t, place+":v1")); err == nil {
			t.Errorf("v1 is %s", found.Reference)
		}
	})
}

// TestLayoutShared pushes to one layout from several sides at once, as parallel
// steps do: nothing is lost.
func TestLayoutShared(t *testing.T) {
	path := sparseDisk(t)
	place := "oci:" + filepath.Join(t.TempDir(), "layout")
	const writers = 6
	errs := make(chan error, writers)
	for i := range writers {
		content := contentOf(t, path)
		content.Annotations = map[string]string{AnnotationVersion: fmt.Sprint(i)}
		go func() {
			result, err := Push(t.Context(), parse(t, fmt.Sprintf("%s:v%d", place, i)), content)
			if err == nil {
				_, err = PutReferrer(t.Context(), result.Reference, "application/x", fmt.Append(nil, i), nil)
			}
			errs <- err
		}()
	}
	for range writers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for i := range writers {
		found, err := Open(t.Context(), parse(t, fmt.Sprintf("%s:v%d", place, i)))
		if err != nil {
			t.Fatal(err)
		}
		if version := found.Manifest.Annotations[AnnotationVersion]; version != fmt.Sprint(i) {
			t.Errorf("v%d is of version %s", i, version)
		}
		if referrers, err := Referrers(t.Context(), found.Reference, ""); err != nil || len(referrers) != 1 {
			t.Errorf("referrers of v%d: %v, %v", i, referrers, err)
		}
	}
	if _, err := Open(t.Context(), parse(t, place)); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("holds %d attestable images: give a tag or a digest", writers)) {
		t.Errorf("open without a tag: %v", err)
	}
	entries, err := filepath.Glob(filepath.Join(strings.TrimPrefix(place, "oci:"), "blobs/sha256/.*"))
	if err != nil || len(entries) > 0 {
		t.Errorf("left %q (%v)", entries, err)
	}
}

// TestLayoutBroken opens layouts that are none.
func TestLayoutBroken(t *testing.T) {
	path := sparseDisk(t)
	for name, c := range map[string]struct{ file, content, want string }{
		"another version":     {"oci-layout", `{"imageLayoutVersion":"2.0.0"}`, "does not say version 1.0.0"},
		"no JSON":             {"oci-layout", "\x1b[2J", "does not say version 1.0.0"},
		"a huge version":      {"oci-layout", strings.Repeat(" ", 2000), "longer than the 1024 bytes"},
		"no index":            {"index.json", "", "it is no image index"},
		"a huge index":        {"index.json", strings.Repeat(" ", maxIndex+1), "longer than the 4194304 bytes"},
		"a manifest as index": {"index.json", `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}`, "its media type is"},
		"two with one tag": {"index.json", fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"digest":"sha256:%064d","size":1,"annotations":{%q:"v1"}},{"digest":"sha256:%064d","size":1,"annotations":{%q:"v1"}}]}`,
			1, annotationRefName, 2, annotationRefName), "gives the tag v1 to 2 manifests"},
		"a missing manifest": {"index.json", fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"digest":"sha256:%064d","size":1,"annotations":{%q:"v1"}}]}`, 1, annotationRefName), "the layout has no manifest sha256:0"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			ref := parse(t, "oci:"+dir+":v1")
			if _, err := Push(t.Context(), ref, contentOf(t, path)); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, c.file), []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(t.Context(), ref); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\nwant: %s", err, c.want)
			}
		})
	}
	t.Run("a pipe", func(t *testing.T) {
		dir := t.TempDir()
		ref := parse(t, "oci:"+dir+":v1")
		result, err := Push(t.Context(), ref, contentOf(t, path))
		if err != nil {
			t.Fatal(err)
		}
		blob := filepath.Join(dir, "blobs", "sha256", result.Manifest.Digest.Hex)
		if err := os.Remove(blob); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mkfifo(blob, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), ref); err == nil || !strings.Contains(err.Error(), "is no regular file") {
			t.Error(err)
		}
	})
}
