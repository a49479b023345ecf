// Command sigstore keeps a Sigstore deployment and a registry up on loopback for
// a benchmark: the servers of the tests, with the stand-ins for GitHub. It writes
// how to reach them to FILE, as shell assignments, and ends with its standard
// input.
//
//	sigstore FILE
package main

import (
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"slices"
	"strings"

	"cuelabs.dev/go/oci/ociregistry/ocimem"
	"cuelabs.dev/go/oci/ociregistry/ociserver"

	"github.com/org/attestable-image-action/internal/testenv"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("sigstore: ")
	if len(os.Args) != 2 {
		log.Fatal("give the file to write")
	}
	if err := serve(os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

// host is what the servers live in.
type host struct {
	dir      string
	cleanups []func()
}

func (h *host) TempDir() string {
	dir, err := os.MkdirTemp(h.dir, "")
	if err != nil {
		log.Fatal(err)
	}
	return dir
}

func (h *host) Cleanup(f func())                { h.cleanups = append(h.cleanups, f) }
func (h *host) Logf(format string, args ...any) { log.Printf(format, args...) }

func serve(file string) error {
	dir, err := os.MkdirTemp("", "bench-sigstore")
	if err != nil {
		return err
	}
	h := &host{dir: dir}
	defer func() {
		for _, f := range slices.Backward(h.cleanups) {
			f()
		}
		_ = os.RemoveAll(dir)
	}()
	stack, err := testenv.NewSigstore(h, testenv.Options{})
	if err != nil {
		return err
	}
	registry := httptest.NewServer(ociserver.New(ocimem.New(), nil))
	h.Cleanup(registry.Close)

	run := testenv.DefaultRun
	var text strings.Builder
	export := func(name, value string) { fmt.Fprintf(&text, "export %s='%s'\n", name, value) }
	for _, variable := range stack.Env(run) {
		name, value, _ := strings.Cut(variable, "=")
		export(name, value)
	}
	for name, value := range map[string]string{
		"REGISTRY": strings.TrimPrefix(registry.URL, "http://"), "ISSUER": stack.Issuer.URL, "IDENTITY": run.Identity(), "REPOSITORY": run.Repository,
		"TRUSTED_ROOT": stack.TrustedRoot, "TRUSTED_ROOT_LINES": stack.TrustedRootLines, "SIGNING_CONFIG": stack.SigningConfig,
	} {
		export(name, value)
	}
	part := file + ".part"
	if err := os.WriteFile(part, []byte(text.String()), 0o600); err != nil { //nolint:gosec // whoever starts it says where
		return err
	}
	if err := os.Rename(part, file); err != nil { //nolint:gosec // likewise
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
