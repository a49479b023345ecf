package e2e

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// The columns of the table: a program, and where it has the bundles from.
const (
	oursFile     = "ours, file"
	oursRegistry = "ours, registry"
	oursAPI      = "ours, API"
	ghFile       = "gh, file"
	ghRegistry   = "gh, registry"
	ghFromAPI    = "gh, API"
	cosignColumn = "cosign"
)

var columns = []string{oursFile, oursRegistry, oursAPI, ghFile, ghRegistry, ghFromAPI, cosignColumn}

// byNature says of a column why it can never accept what a deployment makes.
func byNature(d *deployment, column string) string {
	switch {
	case d.local == "":
		return ""
	case strings.HasPrefix(column, "gh"):
		return "takes nothing but a repository's or an owner's attestations, and a local trust root signs for neither"
	case column == oursAPI:
		return "does not ask GitHub, which keeps nothing that a local trust root signed"
	}
	return ""
}

// ask lets the program of a column verify what was delivered. gh and cosign look
// at one predicate at a time; ours at all, and the outcome is that of the first.
func (v *delivery) ask(t *testing.T, column, predicateType string) outcome {
	t.Helper()
	trustedRoot, trustedRootLines := v.trustedRoot, v.trustedRootLines
	if v.trustedRootOverride != "" {
		trustedRoot, trustedRootLines = v.trustedRootOverride, v.trustedRootLinesOverride
	}
	var env []string
	program, source, _ := strings.Cut(column, ", ")
	switch program {
	case "ours":
		args := []string{"verify", "artifact", v.reference}
		switch {
		case v.local != "" && v.trustedRootOverride == "":
			args = append(args, "--local-trust", v.local)
		case v.local != "":
			args = append(args, "--trusted-root", trustedRoot, "--repo", testenv.DefaultRun.Repository)
		default:
			args = append(args, "--trusted-root", trustedRoot, "--repo", testenv.DefaultRun.Repository,
				"--signer-workflow", testenv.DefaultRun.Repository+"/"+testenv.DefaultRun.WorkflowPath)
		}
		switch source {
		case "file":
			args = append(args, "--bundle", v.bundlesFile)
		case "registry":
			args = append(args, "--bundle-from", "registry")
		case "API":
			args, env = append(args, "--bundle-from", "github"), ghAPI(v.stack)
		}
		if v.remeasure {
			args = append(args, "--remeasure")
		}
		return run(t, env, command(t), args...)
	case "gh":
		args := []string{
			"attestation", "verify", "oci://" + v.reference, "--custom-trusted-root", trustedRootLines, "--repo", testenv.DefaultRun.Repository,
			"--predicate-type", predicateType, "--cert-identity", v.identity, "--cert-oidc-issuer", v.issuer,
		}
		switch source {
		case "file":
			args = append(args, "--bundle", v.bundleFiles[predicateType])
		case "registry":
			args, env = append(args, "--bundle-from-oci"), []string{"GH_TOKEN=x"}
		case "API":
			env = ghAPI(v.stack)
		}
		// Without a terminal gh says nothing of its success.
		return run(t, append([]string{"GH_FORCE_TTY=120", "GH_NO_UPDATE_NOTIFIER=1"}, env...), testenv.Tool(t, "gh"), args...)
	}
	reference := v.reference
	if v.cosignReference != "" {
		reference = v.cosignReference
	}
	args := []string{
		"verify-attestation", reference, "--trusted-root", trustedRoot, "--type", predicateType,
		"--certificate-identity", v.identity, "--certificate-oidc-issuer", v.issuer,
	}
	if !publicly(v.deployment) {
		args = append(args, "--insecure-ignore-sct") // no certificate transparency log
	}
	if v.log == 0 {
		args = append(args, "--insecure-ignore-tlog", "--use-signed-timestamps")
	}
	return run(t, nil, testenv.Tool(t, "cosign"), args...)
}

// broken are words of a program that did not come to verify at all.
var broken = []string{"connection refused", "no such host", "i/o timeout", "deadline exceeded", "panic:", "unknown flag", "does not know", "Usage:"}

// verdictOf tells how a program ended: "" when it accepted.
func (o outcome) refusal(t *testing.T) string {
	t.Helper()
	if o.err == nil {
		return ""
	}
	if _, ok := errors.AsType[*exec.ExitError](o.err); !ok {
		t.Fatal(o.err)
	}
	for _, words := range broken {
		if strings.Contains(o.output, words) {
			t.Errorf("it did not verify, but failed: %s", o.output)
		}
	}
	return o.output + "\n"
}

// whole says that the public deployments take part, too, and that every program is
// asked about every predicate from every source.
var whole = os.Getenv("ATTESTABLE_IMAGE_SIGSTORE_MATRIX") == "1"

// TestSigstoreMatrix makes an artifact in each way that there is to attest, with
// real servers throughout, and many variants of it and of its attestations. All
// clients must accept the genuine, and refuse the rest. Without
// ATTESTABLE_IMAGE_SIGSTORE_MATRIX=1 the two public deployments are left out, for
// they need more programs: scripts/sigstore-matrix runs them. The table is
// logged, and written to the file that ATTESTABLE_IMAGE_TABLE names.
func TestSigstoreMatrix(t *testing.T) {
	disk := smallDisk(t)
	with, without := testenv.RegistryKinds[0], testenv.RegistryKinds[1]
	// Of which nobody has heard: where a variant has other people's things.
	stranger := deploy(t, &deployment{
		name: "stranger", stack: testenv.StartSigstore(t, testenv.Options{GenuineIssuer: true}), log: 2, stamped: true, run: testenv.DefaultRun,
	}, with.Start(t), disk)
	private := testenv.StartSigstore(t, testenv.Options{Organization: testenv.GitHubInc, NoRekor: true, GenuineIssuer: true})
	if err := private.Genuine(); err != nil {
		t.Fatal(err)
	}
	run := testenv.DefaultRun
	run.Visibility = "private"
	// Nothing but the trust root is configured where GitHub's own action would
	// use the same service under the same name.
	deployments := []*deployment{
		deploy(t, &deployment{name: "private", stack: private, stamped: true, run: run}, with.Start(t), disk, "--quiet"),
		deploy(t, &deployment{name: "local", local: filepath.Join(t.TempDir(), "trust"), stamped: true}, without.Start(t), disk),
	}
	if whole {
		public := testenv.StartSigstore(t, testenv.Options{Public: true, GenuineIssuer: true})
		if err := public.Genuine(); err != nil {
			t.Fatal(err)
		}
		for _, log := range []uint32{1, 2} {
			// So that the log is not empty, and a proof of inclusion holds something.
			d := &deployment{name: "the log", stack: public, log: log, run: testenv.DefaultRun}
			d.sign(t, []byte("{}"), signing{})
			d.sign(t, []byte("{}"), signing{})
		}
		deployments = append([]*deployment{
			deploy(t, &deployment{name: "public, Rekor v1", stack: public, log: 1, run: testenv.DefaultRun}, with.Start(t), disk, "--quiet"),
			deploy(t, &deployment{name: "public, Rekor v2", stack: public, log: 2, stamped: true, run: testenv.DefaultRun}, without.Start(t), disk),
		}, deployments...)
	}
	table := newTable(deployments)
	for _, d := range deployments {
		t.Run(d.name, func(t *testing.T) {
			for n, v := range variants() {
				if v.applies != nil && !v.applies(d) {
					continue
				}
				t.Run(v.name, func(t *testing.T) {
					table.try(t, d, stranger, v, fmt.Sprintf("variant-%d", n))
				})
			}
		})
	}
	text := table.String()
	t.Logf("\n%s", text)
	if path := os.Getenv("ATTESTABLE_IMAGE_TABLE"); path != "" {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil { //nolint:gosec // for people
			t.Error(err)
		}
	}
	for _, d := range deployments {
		if table.tampered[d] < 15 {
			t.Errorf("%s: %d tampered variants were tried", d.name, table.tampered[d])
		}
	}
}

// table collects what each column said.
type table struct {
	deployments []*deployment
	rows        []string                            // names of variants
	cells       map[string]map[*deployment][]string // by variant; exceptions' marks, or a fault
	accepted    map[*deployment]map[string]bool
	refused     map[*deployment]map[string]int
	tried       map[*deployment]map[string]int // that were asked to refuse, or could not
	tampered    map[*deployment]int
	notes       []string // reasons for exceptions
}

func newTable(deployments []*deployment) *table {
	tab := &table{
		deployments: deployments, cells: make(map[string]map[*deployment][]string),
		accepted: make(map[*deployment]map[string]bool), refused: make(map[*deployment]map[string]int), tried: make(map[*deployment]map[string]int), tampered: make(map[*deployment]int),
	}
	for _, d := range deployments {
		tab.accepted[d], tab.refused[d], tab.tried[d] = make(map[string]bool), make(map[string]int), make(map[string]int)
	}
	return tab
}

// note returns the mark of a reason.
func (tab *table) note(reason string) string {
	i := slices.Index(tab.notes, reason)
	if i < 0 {
		tab.notes, i = append(tab.notes, reason), len(tab.notes)
	}
	return fmt.Sprintf("[%d]", i+1)
}

// try delivers a variant and asks every column.
func (tab *table) try(t *testing.T, d, other *deployment, v variant, repository string) {
	t.Helper()
	var bundles map[string][]byte
	if v.make != nil {
		bundles = v.make(t, d, other)
	}
	if bundles == nil {
		bundles = d.each(t, nothing)
	}
	delivered := d.deliver(t, repository, bundles)
	if v.arrange != nil {
		v.arrange(t, delivered, other)
	}
	if !slices.Contains(tab.rows, v.name) {
		tab.rows = append(tab.rows, v.name)
		tab.cells[v.name] = make(map[*deployment][]string)
	}
	if !v.genuine {
		tab.tampered[d]++
	}
	var marks []string
	for i, column := range columns {
		program, _, _ := strings.Cut(column, ", ")
		// The short form asks each program once, from one source after the other.
		if !whole && !v.genuine && column != cosignColumn && i%3 != tab.tampered[d]%3 {
			continue
		}
		if !v.genuine {
			tab.tried[d][column]++
		}
		reason := byNature(d, column)
		except := ""
		if v.except != nil {
			except = v.except(d, program)
		}
		reason = cmp.Or(reason, except)
		if reason != "" {
			if mark := tab.note(program + " " + reason); !slices.Contains(marks, mark) {
				marks = append(marks, mark)
			}
			if except != "" || !whole || d.stack == nil && strings.HasSuffix(column, "API") {
				continue
			}
		}
		asked := predicates
		if program == "ours" || !whole {
			asked = asked[:1]
		}
		good := true
		for _, predicateType := range asked {
			got := delivered.ask(t, column, predicateType).refusal(t)
			switch accept := v.genuine && reason == ""; {
			case accept && got != "":
				good = false
				t.Errorf("%s refuses: %s", column, got)
			case !accept && got == "":
				good = false
				t.Errorf("%s accepts it", column)
			case !accept && program == "ours" && !slices.ContainsFunc(v.reasons, func(r string) bool { return strings.Contains(lastLine(got), r) }):
				t.Errorf("%s refuses for another reason than one of %q: %s", column, v.reasons, lastLine(got))
			default:
				t.Logf("%s: %s", column, lastLine(got))
			}
		}
		switch {
		case reason != "":
		case v.genuine:
			tab.accepted[d][column] = good && (tab.accepted[d][column] || v.make == nil)
		case good:
			tab.refused[d][column]++
		}
		if !good {
			marks = append(marks, "**not "+column+"**")
		}
	}
	tab.cells[v.name][d] = marks
}

// lastLine is the last line of an output that says something.
func lastLine(output string) string {
	lines := strings.Split(strings.TrimSpace(output), "\n")
	return lines[len(lines)-1]
}

// String is the table in Markdown.
func (tab *table) String() string {
	var b strings.Builder
	b.WriteString("| deployment |")
	for _, column := range columns {
		b.WriteString(" " + column + " |")
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(columns)) + "\n")
	for _, d := range tab.deployments {
		b.WriteString("| " + d.name + " |")
		for _, column := range columns {
			switch reason := byNature(d, column); {
			case reason != "":
				program, _, _ := strings.Cut(column, ", ")
				b.WriteString(" – " + tab.note(program+" "+reason) + " |")
			case !tab.accepted[d][column]:
				b.WriteString(" **does not accept** |")
			default:
				fmt.Fprintf(&b, " accepts; refuses %d of %d |", tab.refused[d][column], tab.tried[d][column])
			}
		}
		b.WriteString("\n")
	}
	b.WriteString("\n| variant |")
	for _, d := range tab.deployments {
		b.WriteString(" " + d.name + " |")
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(tab.deployments)) + "\n")
	for _, v := range variants() {
		if !slices.Contains(tab.rows, v.name) {
			continue
		}
		verdict := "refused"
		if v.genuine {
			verdict = "accepted"
		}
		b.WriteString("| " + v.name + " |")
		for _, d := range tab.deployments {
			marks, tried := tab.cells[v.name][d]
			switch {
			case !tried:
				b.WriteString(" – |")
			default:
				b.WriteString(strings.TrimRight(" "+verdict+" "+strings.Join(marks, " "), " ") + " |")
			}
		}
		b.WriteString("\n")
	}
	b.WriteString("\n– means that the deployment has nothing of the kind.\n\n")
	for i, note := range tab.notes {
		fmt.Fprintf(&b, "- [%d] %s.\n", i+1, note)
	}
	return b.String()
}
