package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/org/attestable-image-action/internal/testenv"
)

// releasedAction is the action at the commit of a release, as a runner unpacks it, and
// the release that GitHub has of it.
type releasedAction struct {
	stack  *testenv.Stack
	dir    string
	run    testenv.Run // of the release workflow
	bin    string      // programs before those of the PATH
	binary []byte

	mu     sync.Mutex
	assets map[string][]byte // by name
}

const releasedAs = "7.8.9"

func newReleasedAction(t *testing.T) *releasedAction {
	t.Helper()
	r := &releasedAction{
		stack: testenv.StartSigstore(t, testenv.Options{Organization: testenv.GitHubInc, NoRekor: true, GenuineIssuer: true}),
		dir:   filepath.Join(t.TempDir(), "action"), bin: t.TempDir(), binary: []byte("#!/bin/sh\necho released\n"),
	}
	if path := os.Getenv("ATTESTABLE_IMAGE_STARTUP_BINARY"); path != "" { // of bench/startup.sh
		var err error
		if r.binary, err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	tree := releaseTree(t)
	r.run = testenv.Run{
		Repository: "org/attestable-image-action", WorkflowPath: ".github/workflows/release.yml", Ref: "refs/tags/v" + releasedAs,
		SHA: commit(t, tree).SHA,
	}
	archive := filepath.Join(t.TempDir(), "action.tar")
	git(t, tree, "archive", "--output", archive, "HEAD")
	if err := os.Mkdir(r.dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "--extract", "--file", archive, "--directory", r.dir).CombinedOutput(); err != nil {
		t.Fatalf("unpack the action: %v\n%s", err, out)
	}
	// What the runner's own programs would do without a network, gh does with the trust
	// root of this test; and a compiler that only says that it was called.
	for name, script := range map[string]string{
		"gh": `exec '` + testenv.Tool(t, "gh") + `' "$@" $([ "$3" = --help ] || echo --custom-trusted-root '` + r.stack.TrustedRootLines + `')`,
		"go": `while [ "$1" != -o ]; do shift; done; echo 'made from source' > "$2"`,
	} {
		if err := os.WriteFile(filepath.Join(r.bin, name), []byte("#!/bin/bash\n"+script+"\n"), 0o700); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
	}
	r.stack.Proxy.Map("github.com", http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		r.mu.Lock()
		defer r.mu.Unlock()
		directory, name := path.Split(request.URL.Path)
		asset, ok := r.assets[name]
		if !ok || directory != "/org/attestable-image-action/releases/download/v"+releasedAs+"/" {
			http.NotFound(w, request)
			return
		}
		_, _ = w.Write(asset)
	}))
	return r
}

// releaseTree is a copy of this module whose changelog has a release.
func releaseTree(t *testing.T) string {
	t.Helper()
	tree := copyModule(t)
	changelog := "# Changelog\n\n## Unreleased\n\n## " + releasedAs + " - 2026-01-02\n\n### Added\n\n- A thing.\n\n## 7.8.8 - 2026-01-01\n\n- Before.\n"
	if err := os.WriteFile(filepath.Join(tree, "CHANGELOG.md"), []byte(changelog), 0o600); err != nil {
		t.Fatal(err)
	}
	return tree
}

// provenance is a bundle in which run attests content.
func (r *releasedAction) provenance(t *testing.T, run testenv.Run, content []byte) []byte {
	t.Helper()
	digest := sha256.Sum256(content)
	return append(signStatement(t, r.stack, run, v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(digest[:])}), '\n')
}

// binaryName is the asset of this machine.
func binaryName() string { return "attestable-image_" + runtime.GOOS + "_" + runtime.GOARCH }

// prepare runs scripts/action-binary in dir, and returns what it left.
func (r *releasedAction) prepare(t *testing.T, dir string, env ...string) (program string, o outcome) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "attestable-image")
	// A token of the job's that gh must not be given: it would be refused with it.
	env = append(append(r.stack.Proxy.Env(), "PATH="+r.bin+":"+os.Getenv("PATH"), "CURL_CA_BUNDLE="+r.stack.Proxy.CAFile, "GH_TOKEN=job", "GITHUB_TOKEN=job"), env...)
	began := time.Now()
	o = run(t, env, filepath.Join(dir, "scripts/action-binary"), file)
	t.Logf("action-binary took %.3f s", time.Since(began).Seconds()) // for bench/startup.sh
	content, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(file + ".*"); len(left) > 0 {
		t.Errorf("it left %v", left)
	}
	return string(content), o
}

// TestReleasedBinary holds what the action runs at the commit of a release: the release's
// binary when that commit's release workflow made it, nothing when it is another, and
// what it builds itself when there is none.
func TestReleasedBinary(t *testing.T) {
	testenv.Tool(t, "curl")
	r := newReleasedAction(t)
	other := func(change func(run *testenv.Run)) testenv.Run {
		run := r.run
		change(&run)
		return run
	}
	named := "provenance-" + r.run.SHA + ".jsonl"
	genuine := r.provenance(t, r.run, r.binary)
	const refused, built = "was refused and not run", "made from source\n"
	for _, c := range []struct {
		name       string
		provenance []byte // nil when the release has none
		binary     []byte // likewise
		env        []string
		want       string // the program, or empty
		says       string
	}{
		{name: "genuine", provenance: genuine, binary: r.binary, want: string(r.binary), says: "was built by org/attestable-image-action from commit " + r.run.SHA},
		{name: "genuine behind others", provenance: append(r.provenance(t, r.run, []byte("other")), genuine...), binary: r.binary, want: string(r.binary)},

		{name: "tampered", provenance: genuine, binary: append([]byte(nil), "#!/bin/sh\necho evil\n"...), says: refused},
		{name: "of another repository", provenance: r.provenance(t, other(func(run *testenv.Run) { run.Repository = "evil/attestable-image-action" }), r.binary), binary: r.binary, says: refused},
		{name: "of another workflow", provenance: r.provenance(t, other(func(run *testenv.Run) { run.WorkflowPath = ".github/workflows/release.yml.yml" }), r.binary), binary: r.binary, says: refused},
		{name: "called by another workflow", provenance: r.provenance(t, other(func(run *testenv.Run) {
			run.JobWorkflowRef = "evil/x/.github/workflows/release.yml@refs/tags/v" + releasedAs
		}), r.binary), binary: r.binary, says: refused},
		{name: "of another repository, by our workflow", provenance: r.provenance(t, other(func(run *testenv.Run) {
			run.JobWorkflowRef, run.Repository = r.run.WorkflowRef(), "evil/x"
		}), r.binary), binary: r.binary, says: refused},
		{name: "of another commit", provenance: r.provenance(t, other(func(run *testenv.Run) { run.SHA = strings.Repeat("a", 40) }), r.binary), binary: r.binary, says: refused},
		{name: "of another tag", provenance: r.provenance(t, other(func(run *testenv.Run) { run.Ref = "refs/tags/v7.8.8" }), r.binary), binary: r.binary, says: refused},
		{name: "of a branch of that name", provenance: r.provenance(t, other(func(run *testenv.Run) { run.Ref = "refs/heads/v" + releasedAs }), r.binary), binary: r.binary, says: refused},
		{name: "of a runner of somebody's own", provenance: r.provenance(t, other(func(run *testenv.Run) { run.RunnerEnvironment = "self-hosted" }), r.binary), binary: r.binary, says: refused},
		{name: "without an attestation", provenance: []byte("\n"), binary: r.binary, says: refused},
		{name: "with an attestation of another file", provenance: r.provenance(t, r.run, []byte("other")), binary: r.binary, says: refused},
		{name: "with no bundle at all", provenance: []byte("<html>%0A::error::hello</html>"), binary: r.binary, says: refused},

		{name: "no release", binary: r.binary, want: built, says: "::notice title=attestable-image::there is no release of commit " + r.run.SHA},
		{name: "no binary", provenance: genuine, want: built, says: "cannot be had"},
		{name: "on request", provenance: genuine, binary: r.binary, env: []string{"ATTESTABLE_IMAGE_FROM_SOURCE=true"}, want: built},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.mu.Lock()
			r.assets = map[string][]byte{}
			if c.provenance != nil {
				r.assets[named] = c.provenance
			}
			if c.binary != nil {
				r.assets[binaryName()] = c.binary
			}
			r.mu.Unlock()
			program, o := r.prepare(t, r.dir, c.env...)
			if program != c.want || (o.err == nil) != (c.want != "") || !strings.Contains(o.output, c.says) {
				t.Errorf("it left %.200q, want %.200q and %q: %v\n%s", program, c.want, c.says, o.err, o.output)
			}
			if c.want == "" && strings.Count(o.output, "::") != 2 {
				t.Errorf("want one annotation:\n%s", o.output)
			}
		})
	}
	t.Run("a checkout", func(t *testing.T) {
		program, o := r.prepare(t, testenv.Root(t))
		if program != built || o.err != nil || strings.Contains(o.output, "::notice") {
			t.Errorf("it left %q: %v\n%s", program, o.err, o.output)
		}
	})
	t.Run("an old gh", func(t *testing.T) {
		if err := os.WriteFile(filepath.Join(r.bin, "gh"), []byte("#!/bin/sh\nexit 1\n"), 0o700); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
		program, o := r.prepare(t, r.dir)
		if program != built || o.err != nil || !strings.Contains(o.output, "::notice title=attestable-image::gh is not installed on this runner or too old") {
			t.Errorf("it left %q: %v\n%s", program, o.err, o.output)
		}
	})
	if refused := r.stack.Proxy.Refused(); len(refused) > 0 {
		t.Errorf("somebody wanted to reach %q", refused)
	}
}
