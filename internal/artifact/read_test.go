package artifact

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/org/attestable-image-action/internal/testenv"
)

// TestPullFaults reads from a registry that fails at one place in one way.
func TestPullFaults(t *testing.T) {
	t.Parallel()
	path := sparseDisk(t)
	sum, size := sums(t, path)
	manifests := on(http.MethodGet, "/manifests/")
	blobs := on(http.MethodGet, "/blobs/")
	for name, c := range map[string]struct {
		match func(*http.Request) bool
		f     http.HandlerFunc
		want  string
	}{
		"401":                   {manifests, answer(401, "{}"), "wants other credentials (401 Unauthorized): run `docker login "},
		"403":                   {manifests, answer(403, "{}"), "does not let these credentials read (403 Forbidden): give the account the right to pull from "},
		"404":                   {manifests, answer(404, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`), "there is no such artifact (404 Not Found, \"MANIFEST_UNKNOWN\"): check repository, tag and digest"},
		"404 for the blob":      {blobs, answer(404, "{}"), "there is no such artifact (404 Not Found)"},
		"429":                   {manifests, answer(429, "{}"), "wants fewer requests (429 Too Many Requests)"},
		"500":                   {blobs, answer(500, "{}"), "failed again and again (500 Internal Server Error)"},
		"hangs at the manifest": {manifests, hang, "the registry hangs (it has not answered for 1s)"},
		"hangs in the manifest": {manifests, hangAfter("{"), "it has sent no data for 1s"},
		"hangs in the blob":     {blobs, hangAfter("{"), "it has sent no data for 1s"},
		"redirects into the local network": {blobs, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://169.254.169.254/latest/meta-data/", http.StatusTemporaryRedirect)
		}, "redirects to 169.254.169.254, an address of a local network"},
		"redirects in a circle": {blobs, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}, "the registry redirects in a circle"},
		"redirects to plain HTTP": {blobs, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://storage.example/blob", http.StatusTemporaryRedirect)
		}, "it speaks plain HTTP"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := testenv.StartRegistry(t)
			result, err := Push(t.Context(), parse(t, r.Host+"/octo-org/image:v1"), contentOf(t, path))
			if err != nil {
				t.Fatal(err)
			}
			breakRegistry(t, r, c.match, 0, c.f)
			start := time.Now()
			err = func() error {
				found, err := Open(t.Context(), result.Reference, withPatience(hasty))
				if err != nil {
					return err
				}
				return found.RestoreDisk(t.Context(), filepath.Join(t.TempDir(), "disk.raw"), sum, size)
			}()
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v\nwant one line with: %s", err, c.want)
			}
			if took := time.Since(start); took > 30*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

// hangAfter sends a little and then nothing.
func hangAfter(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, body)
		w.(http.Flusher).Flush()
		hang(w, r)
	}
}

// TestCredentials logs in with the docker configuration, to a registry that
// checks a password and to one that gives tokens.
func TestCredentials(t *testing.T) {
	path := sparseDisk(t)
	password := "Basic " + base64.StdEncoding.EncodeToString([]byte("octocat:hunter2"))
	for name, c := range map[string]struct {
		challenge, token string
	}{
		"password": {`Basic realm="registry"`, password},
		"token":    {`Bearer realm="http://REGISTRY/token",service="registry"`, "Bearer good"},
	} {
		t.Run(name, func(t *testing.T) {
			r := testenv.StartRegistry(t)
			r.Intercept(t, func(w http.ResponseWriter, request *http.Request) bool {
				switch given := request.Header.Get("Authorization"); {
				case request.URL.Path == "/token" && given == password && strings.Contains(request.URL.Query().Get("scope"), "push"):
					_, _ = io.WriteString(w, `{"token":"good"}`)
				case request.URL.Path != "/token" && given == c.token:
					return false
				default:
					w.Header().Set("WWW-Authenticate", strings.ReplaceAll(c.challenge, "REGISTRY", r.Host))
					w.WriteHeader(http.StatusUnauthorized)
				}
				return true
			})
			ref := parse(t, r.Host+"/octo-org/image:v1")
			dir := t.TempDir()
			t.Setenv("DOCKER_CONFIG", dir)
			if _, err := Push(t.Context(), ref, contentOf(t, path)); err == nil || !strings.Contains(err.Error(), "run `docker login "+r.Host+"` before") {
				t.Errorf("without credentials: %v", err)
			}
			config := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, r.Host, strings.TrimPrefix(password, "Basic "))
			if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Push(t.Context(), ref, contentOf(t, path)); err != nil {
				t.Errorf("with credentials: %v", err)
			}
		})
	}
}

// TestActionsCredentials gives the job's token to GitHub's registry only.
func TestActionsCredentials(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	t.Setenv("GITHUB_ACTIONS", "true")
	t.Setenv("GITHUB_ACTOR", "octocat")
	t.Setenv("GITHUB_TOKEN", "ghs_secret")
	t.Setenv("GITHUB_SERVER_URL", "https://octo.ghe.com")
	for host, want := range map[string]authn.AuthConfig{
		"ghcr.io":                    {}, // of github.com, whose token this is not
		"containers.octo.ghe.com":    {Username: "octocat", Password: "ghs_secret"},
		"containers.evil.ghe.com":    {},
		"ghcr.io.evil.example":       {},
		"registry.example":           {},
		"containers.github.com:5000": {},
	} {
		credentials, err := authn.Resolve(t.Context(), keychain, parse(t, host+"/octo-org/image").repository)
		if err != nil {
			t.Fatal(err)
		}
		got, err := credentials.Authorization()
		if err != nil || *got != want {
			t.Errorf("%s gets %+v (%v); want %+v", host, got, err, want)
		}
	}
	t.Setenv("GITHUB_ACTIONS", "")
	if credentials, err := keychain.Resolve(parse(t, "ghcr.io/octo-org/image").repository); err != nil || credentials != authn.Anonymous {
		t.Errorf("outside of Actions: %v, %v", credentials, err)
	}
}
