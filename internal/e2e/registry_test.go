package e2e

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cuelabs.dev/go/oci/ociregistry/ocimem"
	"cuelabs.dev/go/oci/ociregistry/ociserver"

	"github.com/org/attestable-image-action/internal/testenv"
)

// registry is a registry on loopback that can be made to lie: what it serves
// passes through tamper.
type registry struct {
	host string // 127.0.0.1:PORT

	mu     sync.Mutex
	tamper func(path string, body []byte) []byte
}

// registries are the two kinds there are, by name: one whose referrers API is
// right, and one without any, where the fallback tag must do.
func registries(t *testing.T) map[string]*registry {
	t.Helper()
	return map[string]*registry{
		"with referrers API":    startRegistry(t, ociserver.New(ocimem.New(), nil)),
		"without referrers API": startRegistry(t, distribution(t)),
	}
}

func startRegistry(t *testing.T, backend http.Handler) *registry {
	t.Helper()
	r := new(registry)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		r.mu.Lock()
		tamper := r.tamper
		r.mu.Unlock()
		if tamper == nil || request.Method != http.MethodGet {
			backend.ServeHTTP(w, request)
			return
		}
		// Whole answers only: a range would hide what tamper looks for.
		request.Header.Del("Range")
		recorded := httptest.NewRecorder()
		backend.ServeHTTP(recorded, request)
		body := tamper(request.URL.Path, recorded.Body.Bytes())
		maps.Copy(w.Header(), recorded.Header())
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.WriteHeader(recorded.Code)
		_, _ = w.Write(body) // the client went away
	}))
	t.Cleanup(front.Close)
	r.host = strings.TrimPrefix(front.URL, "http://")
	return r
}

// lie lets tamper change what the registry serves until the test ends.
func (r *registry) lie(t *testing.T, tamper func(path string, body []byte) []byte) {
	t.Helper()
	set := func(f func(string, []byte) []byte) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.tamper = f
	}
	set(tamper)
	t.Cleanup(func() { set(nil) })
}

// distribution starts the reference registry and returns a handler that
// reaches it.
func distribution(t *testing.T) http.Handler {
	t.Helper()
	dir := t.TempDir()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	configuration := fmt.Sprintf("version: 0.1\nlog: {level: warn}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: %q, relativeurls: true}\n",
		filepath.Join(dir, "storage"), address)
	file := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(file, []byte(configuration), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(testenv.Tool(t, "registry"), "serve", file)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for range 500 {
		response, err := http.Get("http://" + address + "/v2/")
		if err == nil {
			response.Body.Close()
			return httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: address})
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("the registry did not start:\n%s", log.Bytes())
	return nil
}
