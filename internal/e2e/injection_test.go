package e2e

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// hostile are values that would do something if a shell, the runner or a workflow
// took them for more than a value: each that runs makes a file with "pwned" in its
// name, or sets an output of that name.
var hostile = map[string]string{
	"command substitution":  "$(touch pwned)",
	"in backquotes":         "`touch pwned`",
	"nested substitution":   "a$(echo $(touch pwned))b",
	"process substitution":  "<(touch pwned)",
	"next command":          "x; touch pwned",
	"in the background":     "x & touch pwned",
	"only then":             "x && touch pwned || touch pwned2",
	"pipe":                  "x | tee pwned",
	"redirection":           "x > pwned",
	"double quote":          `"; touch pwned; "`,
	"single quote":          "'; touch pwned; '",
	"closes a substitution": ") ; touch pwned ; (",
	"here document":         "<<END\n$(touch pwned)\nEND",
	"index of an array":     "a[$(touch pwned)]",
	"next line":             "x\ntouch pwned\n",
	"carriage return":       "x\rtouch pwned",
	"parameter":             "${PATH:=$(touch pwned)}",
	"brace, tilde and glob": "~/{a,b}/* ?",
	"backslashes":           `\$(touch pwned)\`,
	"option":                "--help",
	"two words":             "--output=pwned --force",
	"end of options":        "-- -x",
	"expression":            "${{ github.token }}",
	"expression of code":    "${{ format('{0}', 'touch pwned') }}",
	"command of the runner": "x\n::set-output name=pwned::1\n::add-mask::a\n::stop-commands::b",
	"escaped command":       "x%0A::set-output name=pwned::1%0D%0A::error::pwned",
	"old command":           "##[set-output name=pwned;]1",
	"another output":        "x\npwned=1",
	"output of lines":       "x\npwned<<END-OF-PATHS\n1\nEND-OF-PATHS\npwned=1",
	"environment":           "x\nBASH_ENV=pwned\nPATH=.",
	"bytes":                 "\x01\x1b]0;pwned\x07\xff\xfe",
	"format":                "%s%n%x",
	"parent directory":      "../../../../pwned",
}

// standInProgram is the program in a test of the scripts around it: it writes down
// its arguments, each ended by a zero byte, and the token that it was given.
const standInProgram = `#!/bin/bash
set -eu
printf '%s\0' "$@" >> "$RECORD"
printf 'token:%s\0' "${GITHUB_TOKEN-}" >> "$RECORD"
case $1 in
  build) echo "image-path=$RUNNER_TEMP/image.raw" >> "$GITHUB_OUTPUT" ;;
  measure) echo '{}' ;;
  push) echo "artifact=registry/image@sha256:0" >> "$GITHUB_OUTPUT" ;;
esac
`

// actionRun runs steps of an action's file as the runner does, with a stand-in for
// the program.
type actionRun struct {
	action  actionFile
	path    string // of the action
	dir     string // working directory of the steps
	temp    string
	bin     string // first in PATH
	inputs  map[string]string
	outputs map[string]map[string]string // by step
	log     string
	args    []string // of the program
}

// newActionRun prepares a run of the action in a directory of this repository.
func newActionRun(t *testing.T, action actionFile, directory string, inputs map[string]string) *actionRun {
	t.Helper()
	top := t.TempDir()
	r := &actionRun{
		action: action, path: filepath.Join(top, "action", directory), dir: filepath.Join(top, "workspace"), temp: filepath.Join(top, "temp"),
		inputs: map[string]string{}, outputs: map[string]map[string]string{},
	}
	for name, input := range action.Inputs {
		r.inputs[name] = input.Default
	}
	maps.Copy(r.inputs, inputs)
	for _, dir := range []string{r.path, r.dir, r.temp} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			t.Fatal(err)
		}
	}
	for _, script := range trackedFiles(t, "scripts/action-*") {
		copyFile(t, script, filepath.Join(top, "action/scripts", filepath.Base(script)))
	}
	program := filepath.Join(top, "program")
	// The engine only has to be there.
	r.bin = filepath.Join(top, "bin")
	if err := os.Mkdir(r.bin, 0o750); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		program: standInProgram, filepath.Join(r.bin, "docker"): "#!/bin/sh\n",
		filepath.Join(top, "action/scripts/action-binary"): "#!/bin/bash\ncp " + program + ` "$1"` + "\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o700); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
	}
	return r
}

var (
	expressionUse = regexp.MustCompile(`^\$\{\{ (.*) \}\}$`)
	oneInput      = regexp.MustCompile(`^inputs\.([\w-]+)$`)
	givenInput    = regexp.MustCompile(`^inputs\.([\w-]+) != ''$`)
	oneOutcome    = regexp.MustCompile(`^steps\.[\w-]+\.outcome$`)
	oneOutput     = regexp.MustCompile(`^steps\.([\w-]+)\.outputs\.([\w-]+)$`)
)

// evaluate is what the runner makes of a value in a step's env.
func (r *actionRun) evaluate(t *testing.T, text string) string {
	t.Helper()
	m := expressionUse.FindStringSubmatch(text)
	if m == nil {
		return text
	}
	switch {
	case m[1] == "github.action_path":
		return r.path
	case strings.HasPrefix(m[1], "github.event_name == 'pull_request' && "):
		return "false"
	}
	if use := oneInput.FindStringSubmatch(m[1]); use != nil {
		return r.inputs[use[1]]
	}
	if use := givenInput.FindStringSubmatch(m[1]); use != nil {
		if r.inputs[use[1]] == "" {
			return "false"
		}
		return "true"
	}
	if use := oneOutput.FindStringSubmatch(m[1]); use != nil {
		return r.outputs[use[1]][use[2]]
	}
	if oneOutcome.MatchString(m[1]) {
		return "success"
	}
	t.Fatalf("this test does not know the expression %s", text)
	return ""
}

// step runs the step number i, with more in its environment. It returns whether the
// step succeeded.
func (r *actionRun) step(t *testing.T, i int, more ...string) bool {
	t.Helper()
	step := r.action.Runs.Steps[i]
	output, record := filepath.Join(r.temp, "output"), filepath.Join(r.temp, "record")
	for _, file := range []string{output, record} {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// As the runner calls `shell: bash`.
	cmd := exec.Command("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step.Run)
	cmd.Dir = r.dir
	cmd.Env = append([]string{
		"PATH=" + r.bin + string(filepath.ListSeparator) + os.Getenv("PATH"), "HOME=" + r.temp, "RUNNER_TEMP=" + r.temp, "GITHUB_OUTPUT=" + output, "RECORD=" + record,
		"GITHUB_REPOSITORY=octo-org/image", "GITHUB_SERVER_URL=https://github.com", "GITHUB_SHA=" + testenv.DefaultRun.SHA,
		"GITHUB_REF=refs/heads/main", "GITHUB_WORKFLOW_REF=octo-org/image/.github/workflows/image.yml@refs/heads/main",
		"ACTIONS_ID_TOKEN_REQUEST_URL=http://127.0.0.1:1",
	}, more...)
	for name, value := range step.Env {
		cmd.Env = append(cmd.Env, name+"="+r.evaluate(t, value))
	}
	log, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	r.log = string(log)
	written, outErr := os.ReadFile(output)
	recorded, recordErr := os.ReadFile(record)
	if err := errors.Join(outErr, recordErr); err != nil {
		t.Fatal(err)
	}
	r.args = strings.Split(strings.TrimSuffix(string(recorded), "\x00"), "\x00")
	r.outputs[step.ID] = readOutputs(t, string(written))
	return err == nil
}

// readOutputs reads what a step wrote to GITHUB_OUTPUT, as the runner does:
// NAME=VALUE, or NAME<<DELIMITER and lines until DELIMITER.
func readOutputs(t *testing.T, text string) map[string]string {
	t.Helper()
	outputs := map[string]string{}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		equals, heredoc := strings.Index(line, "="), strings.Index(line, "<<")
		switch {
		case line == "":
		case heredoc >= 0 && (equals < 0 || heredoc < equals):
			end := slices.Index(lines[i+1:], line[heredoc+2:])
			if end < 0 {
				t.Fatalf("the output %q has no end", line)
			}
			outputs[line[:heredoc]] = strings.Join(lines[i+1:i+1+end], "\n")
			i += end + 1
		case equals >= 0:
			outputs[line[:equals]] = line[equals+1:]
		default:
			t.Fatalf("%q is no output", line)
		}
	}
	return outputs
}

// commandUse is a line that the runner takes for a command.
var commandUse = regexp.MustCompile(`(?m)^\s*(::|##\[).*$`)

// ownCommand are those that the actions' scripts print.
var ownCommand = regexp.MustCompile(`^::(error|warning) title=attestable-image::[^%]*$|^::(group|endgroup)::`)

// arrived reports whether the program was given exactly value: as an argument, behind
// an option's "=", or word by word where an input is a list. Repositories are given in
// small letters.
func arrived(args []string, input, value string) bool {
	if input == "github-token" {
		return slices.Contains(args, "token:"+value)
	}
	var words []string
	for _, arg := range args {
		_, after, ok := strings.Cut(arg, "=")
		switch {
		case arg == value, ok && after == value, arg == strings.ToLower(value):
			return true
		case ok && (strings.HasPrefix(arg, "--copy-to=") || strings.HasPrefix(arg, "--share-with=")):
			words = append(words, after)
		}
	}
	return words != nil && slices.Equal(words, strings.FieldsFunc(value, func(r rune) bool { return strings.ContainsRune(", \n\r\t", r) }))
}

// TestHostileInputs gives each input of each action each hostile value: it arrives at
// the program byte by byte, or is refused with a sentence, and nothing is run.
func TestHostileInputs(t *testing.T) {
	t.Parallel()
	if len(hostile) < 20 {
		t.Fatalf("only %d values", len(hostile))
	}
	given := map[string]map[string]string{
		".":            {"template": "debian", "tags": "v1"},
		"verify":       {"artifact": "ghcr.io/octo-org/image@sha256:" + strings.Repeat("0", 64), "signer-workflow": "octo-org/image/.github/workflows/image.yml", "source-ref": "any"},
		"register-ami": {"artifact": "ghcr.io/octo-org/image@sha256:" + strings.Repeat("0", 64), "signer-workflow": "octo-org/image/.github/workflows/image.yml", "source-ref": "any"},
	}
	tried := 0
	for directory, action := range actions(t) {
		for input := range action.Inputs {
			tried++
			t.Run(directory+" "+input, func(t *testing.T) {
				t.Parallel()
				r := newActionRun(t, action, directory, given[directory])
				if directory == "." && input == "description" {
					r.inputs["template"] = ""
				}
				uses := regexp.MustCompile(`\binputs\.` + regexp.QuoteMeta(input) + `( |$)`)
				usual := maps.Clone(r.inputs)
				for name, value := range hostile {
					r.inputs[input] = value
					if input == "secure-boot-key" {
						r.inputs["secure-boot-cert"] = "image/cert.pem"
					}
					for i, step := range r.action.Runs.Steps {
						used := i == 0
						for _, text := range step.Env {
							used = used || uses.MatchString(text)
						}
						if !used {
							continue
						}
						ok := r.step(t, i)
						r.check(t, name)
						if !ok {
							if !strings.Contains(r.log, "::error title=attestable-image::") {
								t.Errorf("%s: step %q fails without a sentence\n%s", name, step.Name, r.log)
							}
							break
						}
						// The first step of several checks the inputs and hands on none.
						if checks := i == 0 && len(r.action.Runs.Steps) > 1; !checks && !arrived(r.args, input, value) {
							t.Errorf("%s: it did not arrive at step %q, whose program has the arguments %q\n%s", name, step.Name, r.args, r.log)
						}
					}
					maps.Copy(r.inputs, usual)
				}
			})
		}
	}
	if tried < 40 {
		t.Errorf("only %d inputs were found", tried)
	}
}

// check holds that the step before did nothing but what it says.
func (r *actionRun) check(t *testing.T, value string) {
	t.Helper()
	for _, dir := range []string{r.dir, r.temp, filepath.Dir(r.dir)} {
		if found, _ := filepath.Glob(filepath.Join(dir, "*pwned*")); found != nil {
			t.Errorf("%s: it was run, and made %q", value, found)
		}
	}
	if left, err := os.ReadDir(r.dir); err != nil || len(left) > 0 {
		t.Errorf("%s: there is %v in the workspace: %v", value, left, err)
	}
	for step, outputs := range r.outputs {
		for name, content := range outputs {
			if strings.Contains(name, "pwned") || strings.Contains(content, "pwned") {
				t.Errorf("%s: step %s set the output %s to %q", value, step, name, content)
			}
		}
	}
	for _, line := range commandUse.FindAllString(r.log, -1) {
		if !ownCommand.MatchString(strings.TrimSpace(line)) {
			t.Errorf("%s: the runner would take %q for a command", value, line)
		}
	}
}

// TestActionPrepare holds what the action says before it builds anything, and what it
// leaves out where a fork's pull request gives it less rights, and nowhere else.
func TestActionPrepare(t *testing.T) {
	uname := func(system string) string {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "uname"), []byte("#!/bin/sh\necho "+system+"\n"), 0o700); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
		return "PATH=" + dir + string(filepath.ListSeparator) + os.Getenv("PATH")
	}
	// All that the script needs, and neither docker nor podman.
	bare := t.TempDir()
	for _, name := range []string{"bash", "uname", "mktemp", "cp"} {
		path, err := exec.LookPath(name)
		if err == nil {
			err = os.Symlink(path, filepath.Join(bare, name))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	const fork, noToken = "FORK=true", "ACTIONS_ID_TOKEN_REQUEST_URL="
	for _, c := range []struct {
		name         string
		inputs       map[string]string
		env          []string
		want         string // in an annotation: of an error, unless there are outputs
		push, attest string
	}{
		{"all rights", nil, nil, "", "true", "true"},
		{"nothing to attest", map[string]string{"attest": "false"}, []string{noToken}, "", "true", "false"},
		{"nothing to push", map[string]string{"push": "false"}, []string{noToken}, "", "false", "false"},
		{"without the permission id-token", nil, []string{noToken}, "add 'permissions: id-token: write'", "", ""},
		{"of a fork", nil, []string{noToken, fork}, "built and measured, and neither pushed nor attested", "false", "false"},
		{"of a fork, only pushed", map[string]string{"attest": "false"}, []string{noToken, fork}, "neither pushed nor attested", "false", "false"},
		{"of a fork that is trusted", nil, []string{fork}, "", "true", "true"},
		{"of a fork, not pushed", map[string]string{"push": "false"}, []string{noToken, fork}, "", "false", "false"},
		{"of a fork, without the key", map[string]string{"secure-boot-cert": "cert.pem"}, []string{fork}, "not signed for Secure Boot", "true", "true"},
		{"without the key", map[string]string{"secure-boot-cert": "cert.pem"}, nil, "only one of the inputs", "", ""},
		{"of a fork, without the certificate", map[string]string{"secure-boot-key": "key.pem"}, []string{fork}, "only one of the inputs", "", ""},
		{"on macOS", nil, []string{uname("Darwin")}, "runs on Linux runners only", "", ""},
		{"on Windows", nil, []string{uname("MINGW64_NT-10.0-20348")}, "runs on Linux runners only", "", ""},
		{"without an engine", nil, []string{"PATH=" + bare}, "neither docker nor podman", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			inputs := map[string]string{"template": "debian"}
			maps.Copy(inputs, c.inputs)
			action := actions(t)["."]
			action.Runs.Steps = slices.Clone(action.Runs.Steps)
			env := maps.Clone(action.Runs.Steps[0].Env)
			delete(env, "FORK") // is one of c.env
			action.Runs.Steps[0].Env = env
			r := newActionRun(t, action, ".", inputs)
			bash := append([]string{"FORK=false"}, c.env...)
			ok, kind := r.step(t, 0, bash...), "error"
			if c.push != "" {
				kind = "warning"
			}
			if ok != (c.push != "") || r.outputs["prepare"]["push"] != c.push || r.outputs["prepare"]["attest"] != c.attest {
				t.Errorf("it succeeds: %t; outputs %v, want push %s and attest %s\n%s", ok, r.outputs["prepare"], c.push, c.attest, r.log)
			}
			lines := bytes.Count([]byte(r.log), []byte("::"+kind+" title=attestable-image::"))
			if c.want == "" && strings.Contains(r.log, "::") || c.want != "" && (lines != 1 || !strings.Contains(r.log, c.want)) {
				t.Errorf("it says %q, want one %s with %q", r.log, kind, c.want)
			}
		})
	}
}

// TestProgramPrintsNoCommands gives the program values that hold commands of the
// runner: what it says of them holds none, since steps print what it says.
func TestProgramPrintsNoCommands(t *testing.T) {
	t.Parallel()
	program := command(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "disk.raw"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	reference := "ghcr.io/octo-org/image@sha256:" + strings.Repeat("0", 64)
	for _, name := range []string{"command of the runner", "old command", "carriage return"} {
		value := hostile[name]
		for _, args := range [][]string{
			{"build", "--template=" + value, "--output=out"},
			{"build", "--template=debian", "--name=" + value, "--output=out"},
			{"build", "--template=debian", "--version=" + value, "--output=out"},
			{"build", "--template=debian", "--overlay=" + value, "--output=out"},
			{"build", "--template=debian", "--lock=" + value, "--output=out"},
			{"build", "--template=debian", "--package-source=" + value, "--output=out"},
			{"build", "--template=debian", "--serve=" + value, "--output=out"},
			{"build", "--description=" + value, "--output=out"},
			{"measure", "--PK=" + value, "disk.raw"},
			{"inspect", "--fail-on=" + value, "disk.raw"},
			{"sbom", "--format=spdx", "--name=" + value, "disk.raw"},
			{"push", "--measurements=" + value, "disk.raw", "ghcr.io/octo-org/image"},
			{"push", "--measurements=m", "--tag=" + value, "disk.raw", "ghcr.io/octo-org/image"},
			{"push", "--measurements=m", "disk.raw", value},
			{"attest", "--signing-config=" + value, reference},
			{"attest", "--release=" + value, value},
			{"verify", "artifact", "--repo=" + value, "--signer-workflow=" + value, value},
			{"verify", "artifact", "--repo=a/b", "--signer-workflow=" + value, reference},
			{"register-ami", "--repo=a/b", "--keep=" + value, reference},
			{"register-ami", "--repo=a/b", "--zero-blocks=" + value, "--copy-to=" + value, "--signer-workflow=" + value, value},
			{"step-summary", "--artifact=" + value, "measurements.json"},
			{value},
			{"--" + value},
		} {
			cmd := exec.Command(program, args...)
			cmd.Dir = dir
			cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "GITHUB_ACTIONS=true", "GITHUB_OUTPUT=" + filepath.Join(dir, "output")}
			log, err := cmd.CombinedOutput()
			if err == nil {
				t.Errorf("%s: %q succeeds", name, args)
			}
			// The runner takes a carriage return for the end of a line.
			text := strings.ReplaceAll(string(log), "\r", "\n")
			for _, line := range commandUse.FindAllString(text, -1) {
				if !strings.HasPrefix(line, "::error title=attestable-image") {
					t.Errorf("%s: %q prints %q", name, args, line)
				}
			}
		}
	}
}
