package cli

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/ami"
	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/audit"
	"github.com/org/attestable-image-action/internal/measure"
)

// TestNothingSpeaksToTheRunner holds that no text from outside (a name on a
// disk, a server's answer, a bundle) becomes a command of the Actions runner,
// which reads "::name::" at the beginning of a line and "##[name]" anywhere.
func TestNothingSpeaksToTheRunner(t *testing.T) {
	const hostile = "::set-output name=digest::evil a\n  ::set-output name=digest::evil\r::stop-commands::x\x1b[2J ##[set-output name=digest]evil"
	t.Setenv("GITHUB_ACTIONS", "true")
	ref, verdict := testVerdict(t)
	verdict.Checks[3].Found = hostile
	verdict.Attestations = append(verdict.Attestations, attest.Reported{Source: hostile, Reason: hostile})
	verdict.Notes = append(verdict.Notes, hostile)
	doc := &measure.Document{
		BootChain:  []measure.ImageInfo{{Path: hostile}},
		SecureBoot: measure.SecureBootInfo{Authorities: []measure.AuthorityInfo{{Subject: hostile}}},
	}
	for name, show := range map[string]func(w *bytes.Buffer){
		"error": func(w *bytes.Buffer) { (&app{stderr: w}).reportError(errors.New(hostile)) },
		"joined error": func(w *bytes.Buffer) {
			(&app{stderr: w}).reportError(errors.Join(errors.New("a"), errors.New(hostile)))
		},
		"wrong line":   func(w *bytes.Buffer) { run(t.Context(), &app{stdout: w, stderr: w}, []string{"x" + hostile}) },
		"verdict":      func(w *bytes.Buffer) { w.WriteString(verdictTable(ref, verdict, 0)) },
		"measurements": func(w *bytes.Buffer) { printMeasurements(w, doc) },
		"inspection": func(w *bytes.Buffer) {
			(&inspection{
				Measurements: doc, Partitions: []inspectedPartition{{Name: hostile}},
				Coverage: &audit.Coverage{Regions: []audit.Region{{PCR: audit.NoPCR, What: hostile, Why: hostile}}},
			}).print(w)
		},
		"registration": func(w *bytes.Buffer) {
			r := registration{Result: ami.Result{AMIs: []ami.Placed{{Name: hostile}}}}
			_ = r.printTable(w)
			(&app{stderr: w}).tell("%s", hostile)
		},
		"event": func(w *bytes.Buffer) { w.WriteString(describeEvent(bootEvent{Description: hostile})) },
	} {
		t.Run(name, func(t *testing.T) {
			var w bytes.Buffer
			show(&w)
			for line := range strings.Lines(w.String()) {
				ours := strings.HasPrefix(line, "::error title=attestable-image::")
				if !ours && strings.HasPrefix(strings.TrimSpace(line), "::") || strings.Contains(line, "##[") || strings.ContainsAny(line, "\r\x1b") {
					t.Errorf("the runner obeys %q", line)
				}
			}
			if !strings.Contains(w.String(), "evil") {
				t.Errorf("what was said is lost: %q", w.String())
			}
		})
	}
}
