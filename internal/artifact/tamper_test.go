package artifact

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cuelabs.dev/go/oci/ociregistry/ocimem"
	"cuelabs.dev/go/oci/ociregistry/ociserver"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/org/attestable-image-action/internal/testenv"
)

// flipMiddle changes one byte.
func flipMiddle(body []byte) []byte {
	body = bytes.Clone(body)
	body[len(body)/2] ^= 1
	return body
}

// TestTampered reads from a registry that changes what it was given.
func TestTampered(t *testing.T) {
	path := sparseDisk(t)
	sum, size := sums(t, path)
	r := testenv.StartRegistry(t)
	result, err := Push(t.Context(), parse(t, r.Host+"/octo-org/image:v1"), contentOf(t, path))
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
	byTag := parse(t, r.Host+"/octo-org/image:v1")
	change := func(part string, f func([]byte) []byte) func(string, []byte) []byte {
		return func(path string, body []byte) []byte {
			if strings.Contains(path, part) {
				return f(body)
			}
			return body
		}
	}
	disk, measurements := original.DiskLayer.Digest.String(), original.measurements.Digest.String()
	for name, c := range map[string]struct {
		ref    Reference
		tamper func(path string, body []byte) []byte
		want   string
	}{
		"manifest by digest":     {result.Reference, change("/manifests/", flipMiddle), "does not match the digest"},
		"manifest by tag":        {byTag, change("/manifests/", flipMiddle), "does not match the digest"},
		"manifest without end":   {result.Reference, change("/manifests/", func(b []byte) []byte { return append(b, make([]byte, maxManifest)...) }), "longer than the 4194304 bytes"},
		"disk":                   {result.Reference, change(disk, flipMiddle), "does not match its digest"},
		"disk cut off":           {result.Reference, change(disk, func(b []byte) []byte { return b[:len(b)/2] }), "does not match its digest"},
		"disk cut off by a byte": {result.Reference, change(disk, func(b []byte) []byte { return b[:len(b)-1] }), "does not match its digest"},
		"disk and more":          {result.Reference, change(disk, func(b []byte) []byte { return append(bytes.Clone(b), b...) }), "does not match its digest"},
		"measurements":           {result.Reference, change(measurements, flipMiddle), "does not match its digest"},
		"measurements and more":  {result.Reference, change(measurements, func(b []byte) []byte { return append(b, ' ') }), "does not match its digest"},
		"referrer":               {result.Reference, change(digestOf([]byte("bundle")).String(), flipMiddle), "does not match its digest"},
	} {
		t.Run(name, func(t *testing.T) {
			r.Lie(t, c.tamper)
			dir := t.TempDir()
			err := func() error {
				found, err := Open(t.Context(), c.ref, withPatience(hasty))
				if err != nil {
					return err
				}
				if _, err := found.Measurements(t.Context()); err != nil {
					return err
				}
				if err := found.RestoreDisk(t.Context(), filepath.Join(dir, "disk.raw"), sum, size); err != nil {
					return err
				}
				referrers, err := Referrers(t.Context(), result.Reference, "")
				if err != nil {
					return err
				}
				_, err = GetReferrer(t.Context(), result.Reference, referrers[0])
				return err
			}()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\nwant: %s", err, c.want)
			}
			if left, err := os.ReadDir(dir); name != "referrer" && (err != nil || len(left) > 0) {
				t.Errorf("it left %v (%v)", left, err)
			}
		})
	}
}

// TestRestoreRefuses restores disks that are not what the measurements say.
func TestRestoreRefuses(t *testing.T) {
	path := sparseDisk(t)
	sum, size := sums(t, path)
	ref := parse(t, "oci:"+t.TempDir())
	if _, err := Push(t.Context(), ref, contentOf(t, path)); err != nil {
		t.Fatal(err)
	}
	found, err := Open(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		sum  string
		size int64
		want string
	}{
		"another digest": {strings.Repeat("0", 64), size, "its SHA-256 is " + sum},
		"longer":         {sum, size - 1, "the disk is longer than the"},
		"much longer":    {sum, 1, "the disk is longer than the 1 bytes"},
		"shorter":        {sum, size + 1, fmt.Sprintf("the disk has %d bytes, and its measurements say %d", size, size+1)},
		"no size":        {sum, 0, "a size of 0 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			err := found.RestoreDisk(t.Context(), filepath.Join(dir, "disk.raw"), c.sum, c.size)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\nwant: %s", err, c.want)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("it left %v (%v)", left, err)
			}
		})
	}
}

// TestForeignDisk reads disks that others compressed, and refuses those that
// would take memory.
func TestForeignDisk(t *testing.T) {
	disk := append(text(1<<20), make([]byte, 22<<20)...)
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	compress := func(t *testing.T, flags ...string) []byte {
		t.Helper()
		out, err := exec.Command(testenv.Tool(t, "zstd"), append(flags, "-q", "-c", path)...).Output()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for name, c := range map[string]struct {
		flags []string
		raw   []byte
		want  string // "" when the disk is read
	}{
		"zstd -3":          {flags: []string{"-3"}},
		"zstd -19":         {flags: []string{"-19", "--no-check"}},
		"zstd --long=27":   {flags: []string{"-3", "--long=27"}, want: "a window of more than 8 MiB"},
		"not zstd":         {raw: []byte("this is no zstd frame"), want: "invalid"},
		"nothing":          {raw: []byte{}},
		"a dictionary":     {raw: []byte{0x28, 0xb5, 0x2f, 0xfd, 0x23, 1, 2, 3, 4, 0, 1, 0, 0}, want: "dictionary"},
		"an endless frame": {raw: []byte{0x28, 0xb5, 0x2f, 0xfd, 0xc0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, want: "read disk of"},
	} {
		t.Run(name, func(t *testing.T) {
			data := c.raw
			if data == nil {
				data = compress(t, c.flags...)
			}
			found := &Artifact{DiskLayer: describe(data, MediaTypeDisk), Reference: parse(t, "oci:"+t.TempDir())}
			store, err := openLayout(found.Reference, toWrite)
			if err != nil {
				t.Fatal(err)
			}
			found.store = store
			if err := store.putBlob(t.Context(), found.DiskLayer, data); err != nil {
				t.Fatal(err)
			}
			r, err := found.Disk(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			got, err := io.ReadAll(io.LimitReader(r, int64(len(disk))+1))
			switch {
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%v\nwant: %s", err, c.want)
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want == "" && len(data) > 0 && !bytes.Equal(got, disk):
				t.Errorf("read %d bytes that are not the disk's %d", len(got), len(disk))
			}
		})
	}
}

// TestPullResumes breaks the connection in the middle of the disk.
func TestPullResumes(t *testing.T) {
	path := sparseDisk(t)
	sum, size := sums(t, path)
	for _, kind := range testenv.RegistryKinds {
		t.Run(kind.Name, func(t *testing.T) {
			r := kind.Start(t)
			result, err := Push(t.Context(), parse(t, r.Host+"/octo-org/image:v1"), contentOf(t, path))
			if err != nil {
				t.Fatal(err)
			}
			found, err := Open(t.Context(), result.Reference, withPatience(hasty))
			if err != nil {
				t.Fatal(err)
			}
			raw, err := readBlob(t.Context(), found.store, found.DiskLayer, 64<<20)
			if err != nil {
				t.Fatal(err)
			}
			var broken, ranges atomic.Int64
			r.Intercept(t, func(w http.ResponseWriter, request *http.Request) bool {
				if !strings.HasSuffix(request.URL.Path, "/blobs/"+found.DiskLayer.Digest.String()) {
					return false
				}
				if request.Header.Get("Range") != "" {
					ranges.Add(1)
				}
				if broken.Add(1) > 1 {
					return false
				}
				w.Header().Set("Content-Length", fmt.Sprint(len(raw)))
				_, _ = w.Write(raw[:len(raw)/3])
				panic(http.ErrAbortHandler)
			})
			restored := filepath.Join(t.TempDir(), "disk.raw")
			if err := found.RestoreDisk(t.Context(), restored, sum, size); err != nil {
				t.Fatal(err)
			}
			if got, _ := sums(t, restored); got != sum {
				t.Errorf("restored %s; want %s", got, sum)
			}
			if ranges.Load() != 1 {
				t.Errorf("%d requests asked for the rest; want 1", ranges.Load())
			}
		})
	}
}

// TestReferrersAPIs meets registries that say one thing and do another.
func TestReferrersAPIs(t *testing.T) {
	path := sparseDisk(t)
	empty := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`
	for name, c := range map[string]struct {
		api    http.HandlerFunc
		silent bool   // it leaves out the header OCI-Subject
		want   string // of listing; "" when the referrer is found
	}{
		"no API":              {api: answer(404, "{}")},
		"a web page":          {api: answer(200, "<html>")},
		"not allowed":         {api: answer(405, "{}")},
		"denied":              {api: answer(403, "{}")},
		"failing":             {api: answer(500, "{}")},
		"a list of nothing":   {api: answerIndex(empty), silent: true},
		"an empty promise":    {api: answerIndex(empty)},
		"a broken list":       {api: answerIndex(`{"schemaVersion":2,"manifests":[{"digest":"x"}]}`), want: "it is no image index"},
		"a manifest":          {api: answerIndex(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}`), want: "its media type is"},
		"a list without end":  {api: answerIndex(strings.Repeat(" ", maxIndex+1)), want: "longer than the 4194304 bytes"},
		"pages without end":   {api: endlessPages(empty), want: "the list has more than 50 pages"},
		"more than there are": {api: answerIndex(manyReferrers(t, maxReferrers+1)), want: "more than the 1000 that are allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			backend := ociserver.New(ocimem.New(), nil)
			r := testenv.FrontRegistry(t, http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
				if c.silent {
					w = silentWriter{w}
				}
				backend.ServeHTTP(w, request)
			}))
			ref := parse(t, r.Host+"/octo-org/image:v1")
			result, err := Push(t.Context(), ref, contentOf(t, path))
			if err != nil {
				t.Fatal(err)
			}
			breakRegistry(t, r, on(http.MethodGet, "/referrers/"), 0, c.api)
			var digest v1.Hash
			for _, blob := range []string{"one", "two"} {
				if digest, err = PutReferrer(t.Context(), result.Reference, "application/x", []byte(blob), nil, withPatience(hasty)); err != nil {
					t.Fatal(err)
				}
			}
			found, err := Referrers(t.Context(), result.Reference, "application/x", withPatience(hasty))
			switch {
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%v, %v\nwant: %s", found, err, c.want)
			case c.want == "" && (err != nil || len(found) != 2 || found[1].Digest != digest):
				t.Errorf("%v, %v; want two, the last %s", found, err, digest)
			}
		})
	}
}

// silentWriter does not say that the registry knows of subjects.
type silentWriter struct{ http.ResponseWriter }

func (w silentWriter) WriteHeader(status int) {
	w.Header().Del("OCI-Subject")
	w.ResponseWriter.WriteHeader(status)
}

func answerIndex(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", string(types.OCIImageIndex))
		_, _ = io.WriteString(w, body)
	}
}

func endlessPages(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", fmt.Sprintf("<%s?last=x>; rel=\"next\"", r.URL.Path))
		answerIndex(body)(w, r)
	}
}

func manyReferrers(t *testing.T, n int) string {
	t.Helper()
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	for i := range n {
		d := describe(fmt.Append(nil, i), types.OCIManifestSchema1)
		d.ArtifactType = "application/x"
		index.Manifests = append(index.Manifests, d)
	}
	raw, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// TestReferrerOfAnother refuses a manifest whose subject is another artifact.
func TestReferrerOfAnother(t *testing.T) {
	path := sparseDisk(t)
	ref := parse(t, "oci:"+t.TempDir())
	result, err := Push(t.Context(), ref, contentOf(t, path))
	if err != nil {
		t.Fatal(err)
	}
	digest, err := PutReferrer(t.Context(), result.Reference, "application/x", []byte("bundle"), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = GetReferrer(t.Context(), ref.WithDigest(digestOf([]byte("another"))), v1.Descriptor{Digest: digest})
	if err == nil || !strings.Contains(err.Error(), "its subject is not") {
		t.Error(err)
	}
	_, err = GetReferrer(t.Context(), result.Reference, v1.Descriptor{Digest: digest, ArtifactType: "application/y"})
	if err == nil || !strings.Contains(err.Error(), `it is of type "application/x", and was listed as "application/y"`) {
		t.Error(err)
	}
	_, err = GetReferrer(t.Context(), result.Reference, v1.Descriptor{Digest: result.Reference.Digest})
	if err == nil || !strings.Contains(err.Error(), "its subject is not") {
		t.Error(err)
	}
}

// TestReferrersTogether attaches to one artifact from several sides at once, where
// nothing but the fallback tag lists referrers and the registry heeds no If-Match:
// nothing is lost, and what was attached before is kept.
func TestReferrersTogether(t *testing.T) {
	t.Parallel()
	path := sparseDisk(t)
	patient := hasty
	patient.settle = 16 * hasty.settle // longer than a busy machine keeps a writer from writing what it read
	backend := ociserver.New(ocimem.New(), nil)
	r := testenv.FrontRegistry(t, http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		request.Header.Del("If-Match")
		if request.Method == http.MethodPut && strings.Contains(request.URL.Path, "/manifests/sha256-") {
			time.Sleep(rand.N(20 * time.Millisecond)) // so that they overtake each other
		}
		backend.ServeHTTP(silentWriter{w}, request)
	}))
	breakRegistry(t, r, on(http.MethodGet, "/referrers/"), 0, answer(404, "{}"))
	result, err := Push(t.Context(), parse(t, r.Host+"/octo-org/image:v1"), contentOf(t, path))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := PutReferrer(t.Context(), result.Reference, "application/x", []byte("before"), nil, withPatience(patient)); err != nil {
		t.Fatal(err)
	}
	const writers = 6
	errs := make(chan error, writers)
	for i := range writers {
		go func() {
			_, err := PutReferrers(t.Context(), result.Reference, "application/x",
				[]Referrer{{Blob: fmt.Appendf(nil, "%d a", i)}, {Blob: fmt.Appendf(nil, "%d b", i)}}, withPatience(patient))
			errs <- err
		}()
	}
	for range writers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	found, err := Referrers(t.Context(), result.Reference, "application/x", withPatience(patient))
	if err != nil || len(found) != 2*writers+1 {
		t.Errorf("%d referrers, %v; want %d", len(found), err, 2*writers+1)
	}
}

// TestReferrersReadBeforeRepeating has the registry refuse the list for a moment in
// which somebody else extends it: what is written then has theirs, too.
func TestReferrersReadBeforeRepeating(t *testing.T) {
	t.Parallel()
	r := testenv.FrontRegistry(t, http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		http.NotFound(w, request)
	}))
	backend := ociserver.New(ocimem.New(), nil)
	var subject Reference
	var writes atomic.Int32
	r.Intercept(t, func(w http.ResponseWriter, request *http.Request) bool {
		if request.Method == http.MethodGet && strings.Contains(request.URL.Path, "/referrers/") {
			return false
		}
		if request.Method == http.MethodPut && strings.Contains(request.URL.Path, "/manifests/sha256-") && writes.Add(1) == 1 {
			if _, err := PutReferrer(context.WithoutCancel(request.Context()), subject, "application/x", []byte("theirs"), nil, withPatience(hasty)); err != nil {
				t.Error(err)
			}
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		request.Header.Del("If-Match")
		backend.ServeHTTP(silentWriter{w}, request)
		return true
	})
	result, err := Push(t.Context(), parse(t, r.Host+"/octo-org/image:v1"), contentOf(t, sparseDisk(t)))
	if err != nil {
		t.Fatal(err)
	}
	subject = result.Reference
	if _, err := PutReferrer(t.Context(), subject, "application/x", []byte("ours"), nil, withPatience(hasty)); err != nil {
		t.Fatal(err)
	}
	found, err := Referrers(t.Context(), subject, "application/x", withPatience(hasty))
	if err != nil || len(found) != 2 || writes.Load() != 3 {
		t.Errorf("%d referrers after %d writes, %v; want both after 3", len(found), writes.Load(), err)
	}
}

// TestReferrersHalfListed meets a registry that lists what others attached, and
// not what it was just given.
func TestReferrersHalfListed(t *testing.T) {
	path := sparseDisk(t)
	r := testenv.StartRegistry(t)
	result, err := Push(t.Context(), parse(t, r.Host+"/octo-org/image:v1"), contentOf(t, path))
	if err != nil {
		t.Fatal(err)
	}
	breakRegistry(t, r, on(http.MethodGet, "/referrers/"), 0, answerIndex(manyReferrers(t, 3)))
	_, err = PutReferrer(t.Context(), result.Reference, "application/x", []byte("one"), nil, withPatience(hasty))
	if err == nil || !strings.Contains(err.Error(), "does not list it as a referrer of "+result.Reference.Digest.String()) {
		t.Error(err)
	}
}

// TestReferrersRecover attaches to an artifact and reads back, in a registry that
// fails for a moment at one place; and that fails for ever.
func TestReferrersRecover(t *testing.T) {
	t.Parallel()
	content := contentOf(t, sparseDisk(t))
	content.DiskSize = 4096
	content.OpenDisk = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(noise(4096))), nil }
	places := map[string]func(*http.Request) bool{
		"log-in":    func(r *http.Request) bool { return r.URL.Path == "/v2/" },
		"subject":   on(http.MethodGet, "/manifests/sha256:"),
		"blob":      on(http.MethodHead, "/blobs/"),
		"upload":    on(http.MethodPost, "/blobs/uploads/"),
		"commit":    on(http.MethodPut, "/blobs/uploads/"),
		"manifest":  on(http.MethodPut, "/manifests/sha256:"),
		"referrers": on(http.MethodGet, "/referrers/"),
		"layer":     on(http.MethodGet, "/blobs/"),
	}
	for fault, c := range map[string]struct {
		n int // of answers that are spoilt; 0 stands for all
		f http.HandlerFunc
	}{
		"hangs once":           {1, hang},
		"resets once":          {1, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
		"503, 503, well":       {2, answer(503, "{}")},
		"429 with Retry-After": {1, answer(429, "{}", "Retry-After", "1")},
		"503 for ever":         {0, answer(503, "{}")},
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			var group sync.WaitGroup // waiting takes no processor
			for place, match := range places {
				r := testenv.StartRegistry(t)
				result, err := Push(t.Context(), parse(t, r.Host+"/octo-org/image:v1"), content)
				if err != nil {
					t.Fatal(err)
				}
				matched := breakRegistry(t, r, match, c.n, c.f)
				group.Go(func() {
					start := time.Now()
					_, err := PutReferrer(t.Context(), result.Reference, "application/x", []byte("bundle"), nil, withPatience(hasty))
					var found []v1.Descriptor
					if err == nil {
						found, err = Referrers(t.Context(), result.Reference, "application/x", withPatience(hasty))
					}
					if err == nil && len(found) == 1 {
						_, err = GetReferrer(t.Context(), result.Reference, found[0], withPatience(hasty))
					}
					switch {
					case c.n == 0 && place == "referrers":
						if err != nil || len(found) != 1 { // the fallback tag does
							t.Errorf("at %s: %d referrers, error %v", place, len(found), err)
						}
					case c.n == 0:
						if err == nil || !strings.Contains(err.Error(), "(503 Service Unavailable)") {
							t.Errorf("at %s: error %v", place, err)
						}
					case err != nil || len(found) != 1:
						t.Errorf("at %s: %d referrers, error %v", place, len(found), err)
					case matched() < 2:
						t.Errorf("at %s: the request that failed came %d times", place, matched())
					case strings.Contains(fault, "Retry-After") && time.Since(start) < time.Second:
						t.Errorf("at %s: it came back after %s", place, time.Since(start))
					}
				})
			}
			group.Wait()
		})
	}
}
