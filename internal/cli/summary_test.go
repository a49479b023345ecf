package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/ami"
	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/audit"
	"github.com/org/attestable-image-action/internal/gha"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
)

// TestSummaryNamesTheTools holds that a builder without a digest is told by its packages.
func TestSummaryNamesTheTools(t *testing.T) {
	for want, digest := range map[string]string{"builder dddddddddddd…": "sha256:" + strings.Repeat("d", 64), "tools cccccccccccc…": ""} {
		doc := &measure.Document{Builder: &measure.BuilderInfo{Digest: digest, KIWI: "10.3.9", PackagesSHA256: strings.Repeat("c", 64)}}
		if got := (&summary{doc: doc}).markdown(nil, nil); !strings.Contains(got, "KIWI NG 10.3.9</b><br/>"+want) {
			t.Errorf("the chain lacks %q:\n%s", want, got)
		}
	}
}

func TestStepSummary(t *testing.T) {
	disk := testenv.GoldenDisk(t, "stub257")
	status, document, stderr := execute(t, "measure", "--format", "json", disk)
	if status != 0 {
		t.Fatalf("status %d: %s", status, stderr)
	}
	dir := t.TempDir()
	measurements, times := filepath.Join(dir, "measurements.json"), filepath.Join(dir, "times.jsonl")
	for path, content := range map[string]string{
		measurements: document,
		times:        `{"step":"prepare","seconds":9}` + "\nnonsense\n" + `{"step":"build","seconds":125.4}` + "\n" + `{"step":"measure","seconds":0.2}` + "\n" + `{"step":"measure","seconds":0.3}` + "\n" + `{"step":"push","seconds":4,"stored":1048576}` + "\n",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, value := range map[string]string{
		"GITHUB_REPOSITORY": "octo-org/image", "GITHUB_WORKFLOW_REF": "octo-org/image/.github/workflows/image.yml@refs/heads/main",
		"GITHUB_REF": "refs/heads/main", "GITHUB_SHA": "5f3d6c1b0a9e8d7c6b5a493827160f5e4d3c2b1a", "GITHUB_SERVER_URL": "", timesVariable: "",
	} {
		t.Setenv(name, value)
	}
	const pushed = "ghcr.io/octo-org/image@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for _, tc := range []struct {
		name          string
		args          []string
		want, without []string
	}{
		{
			"measured only", nil,
			[]string{
				"## Attestable image `stub257`", "**Built and measured, not pushed**", "[`octo-org/image@5f3d6c1`](https://github.com/octo-org/image/commit/5f3d6c1b0a9e8d7c6b5a493827160f5e4d3c2b1a)",
				"\nPCR4=352f78001f431ceb", "(`push: false`)", "**No PCR covers the root file system**", `"kms:RecipientAttestation:NitroTPMPCR12": "0000`, "class instance,artifact,attestations absent",
			},
			[]string{"gh attestation verify", "**Attested**", "| step |"},
		},
		{"of a fork", []string{"--fork", "--pushed", "skipped"}, []string{"> [!NOTE]\n> This is a pull request from a fork"}, []string{"push: false"}},
		{"stopped by fail-on", []string{"--inspected", "failure", "--pushed", "skipped"}, []string{"> [!CAUTION]\n> **Nothing was pushed, because the inspection failed**"}, nil},
		{"that could not be pushed", []string{"--inspected", "success", "--pushed", "failure"}, []string{"> [!CAUTION]\n> **The push failed**"}, nil},
		{"pushed", []string{"--artifact", pushed}, []string{"ARTIFACT=" + pushed + "\n", "**Pushed, not attested**", "> [!WARNING]", "class instance,attestations absent"}, []string{"gh attestation verify"}},
		{"that could not be attested", []string{"--artifact", pushed, "--bundle-path", "/b", "--attested", "failure"}, []string{"**The attestation failed**"}, []string{"gh attestation verify", "**Attested**"}},
		{
			"attested", []string{"--artifact", pushed, "--bundle-path", "/b", "--attestation-url", "https://github.com/octo-org/image/attestations/7", "--times", times},
			[]string{
				"**Attested**: a disk of 96.0 MiB", "[attestation](https://github.com/octo-org/image/attestations/7)",
				"\ngh attestation verify oci://" + pushed + " --repo octo-org/image",
				"--signer-workflow octo-org/image/.github/workflows/image.yml --source-ref refs/heads/main",
				"\noras pull " + pushed + "\nzstd -d --sparse *.raw.zst\n",
				"| build with KIWI NG | 2&nbsp;min&nbsp;5&nbsp;s |", "| predict the PCRs, SHA-256 of the disk | 0.5&nbsp;s |", "compressed 1.0 MiB", "| **together** | **2&nbsp;min&nbsp;19&nbsp;s** |",
				"identity[\"<b>Workflow, which signs</b><br/>image.yml<br/>main\"]", "class instance absent",
			},
			[]string{"[!", "attestable-image rebuild"},
		},
		{
			"attested in a reusable workflow",
			[]string{"--artifact", pushed, "--bundle-path", "/b", "--signer", "octo-org/workflows/.github/workflows/build.yml@refs/tags/v1"},
			[]string{
				"--signer-workflow octo-org/workflows/.github/workflows/build.yml --source-ref refs/heads/main",
				"--repo octo-org/image --signer-workflow octo-org/workflows/.github/workflows/build.yml --predicate-type",
				"--certificate-oidc-issuer https://token.actions.githubusercontent.com",
				"--certificate-identity https://github.com/octo-org/workflows/.github/workflows/build.yml@refs/tags/v1",
				"<br/>octo-org/workflows/build.yml<br/>tags/v1",
			},
			[]string{"image.yml"},
		},
		{
			"hostile", []string{"--image-path", "/tmp/a`|<b>\n# x.raw", "--artifact", "x/y@sha256:ab`$(id)`", "--bundle-path", "/b"},
			[]string{`'x/y@sha256:ab'\''$(id)'\'''`, "It could not be told"}, []string{"\n# x.raw", "`|<b>"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, stdout, stderr := execute(t, append([]string{"step-summary", "--image-path", disk, measurements}, tc.args...)...)
			if status != 0 {
				t.Fatalf("status %d: %s", status, stderr)
			}
			for _, want := range tc.want {
				if !strings.Contains(stdout, want) {
					t.Errorf("the summary lacks %q:\n%s", want, stdout)
				}
			}
			for _, not := range tc.without {
				if strings.Contains(stdout, not) {
					t.Errorf("the summary has %q:\n%s", not, stdout)
				}
			}
			safeMarkdown(t, stdout, "octo-org/image")
		})
	}
	if status, _, stderr := execute(t, "step-summary", filepath.Join(t.TempDir(), "none")); status != 1 || !strings.Contains(stderr, "write the step summary") {
		t.Errorf("without the document: status %d, %q", status, stderr)
	}
}

// hostileNames would end or begin something in Markdown, HTML, Mermaid or a shell.
var hostileNames = []string{
	"`", "```", "~~~", "`$(touch pwned)`", "x\n```\n# title", "x\r\n\r\n---", "x\u2028```", "|", "a|b|c", "\\|", `\`, `\` + "`",
	"<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</code></td></table><h1>x", "<!--", "-->", "&lt;b&gt;", "<details open>", "</details>",
	"[x](javascript:alert(1))", "![x](https://evil.example/a.png)", "[x]: https://evil.example", "https://evil.example/x", "www.evil.example", "@octocat", "#1", "octo-org/image#1",
	"**x**", "__x__", "$x^2$", "$$x$$", "# title", "> quote", "- [ ] x", "1. x", "x\n| a | b |\n|---|---|", ":shipit:", "\u202egnp.exe", "\x00\x1b[31m", "\xff\xfe",
	`"]`, `"] --> evil["x`, `x"];click build "javascript:alert(1)"`, `click build href "https://evil.example"`, "end", "x\nend", "%%{init: {\"theme\": \"dark\"}}%%", "%% x", "#quot;", "#35;", "style x:#fff;",
	"classDef x fill:#fff;", "---\ntitle: x\n---", "<br/>", "subgraph x", "x --> y", "x:::absent", "`**x**`", "{{x}}", "((x))",
	"0/0", "www.", "::error::x", "##[error]x", "\n::set-output name=x::y", "${{ github.token }}", "'; touch pwned; '", strings.Repeat("long/", 5000), strings.Repeat("ü", 5000),
}

var (
	chartLine = regexp.MustCompile(`^(flowchart TB|  [a-z]+\["(<b>|</b>|<br/>|#\d{1,7};|[A-Za-z0-9 ./,…-])*"\]|  [a-z]+ (-->|---->|-\.->) [a-z]+|  classDef absent stroke-dasharray:5 5|  class [a-z,]+ absent)$`)
	// Of a cell, or of a line outside of tables and blocks: code, HTML of ours, links to
	// the server, character references, and text.
	inlineCode = regexp.MustCompile("`[^`|\n]*`")
	ownHTML    = regexp.MustCompile(`</?(b|br|wbr|code|details|summary)>`)
	charRef    = regexp.MustCompile(`&(#\d{1,7}|nbsp);`)
	address    = regexp.MustCompile(`(?i)www\.[a-z0-9]|:shipit:|javascript:[^ <*]`)
	ownLink    = regexp.MustCompile(`\[(attestation|Lock them|[^\[\]]*)?\]\(https://github\.com/(octo-org/image/|org/attestable-image-action)[A-Za-z0-9._~:/?%=&@+#-]*\)`)
)

// safeMarkdown holds that a summary of a run in repository has no markup but its own,
// whatever it names.
func safeMarkdown(t *testing.T, markdown, repository string) {
	t.Helper()
	block, columns := "", 0
	for line := range strings.SplitSeq(strings.TrimSuffix(markdown, "\n"), "\n") {
		if fence, ok := strings.CutPrefix(line, "```"); ok {
			switch {
			case block == "" && (fence == "sh" || fence == "json" || fence == "mermaid"):
				block = fence
			case block != "" && fence == "":
				block = ""
			default:
				t.Errorf("%q begins or ends a block", line)
			}
			continue
		}
		switch block {
		case "mermaid":
			if !chartLine.MatchString(line) || len(line) > 2000 {
				t.Errorf("the chart has the line %.300q", line)
			}
			continue
		case "sh", "json":
			if strings.ContainsAny(line, "`\r") {
				t.Errorf("a block has the line %.300q", line)
			}
			continue
		}
		// With the tags of ours, which end an address.
		tagged := ownLink.ReplaceAllString(charRef.ReplaceAllString(inlineCode.ReplaceAllString(line, ""), ""), "")
		if repositoryName().MatchString(repository) { // the job's own, which is linked as a whole
			tagged = strings.ReplaceAll(tagged, "[](https://github.com/"+repository+")", "")
		}
		if found := address.FindString(tagged); found != "" {
			t.Errorf("%q is left of an address in %.300q", found, line)
		}
		rest := ownHTML.ReplaceAllString(tagged, "")
		for _, bad := range []string{"<", "`", "](", "![", "://", "@", "\\", "\r", "\u2028", "\u202e", "\x00", "##["} {
			if strings.Contains(rest, bad) {
				t.Errorf("%q is left in %.300q", bad, line)
			}
		}
		cells := strings.Count(rest, "|")
		if row := strings.HasPrefix(line, "|"); row && columns > 0 && cells != columns || !row && cells > 0 {
			t.Errorf("a row has other cells than the table's head: %.300q", line)
		}
		columns = cells
	}
	if block != "" {
		t.Errorf("a block of %s has no end", block)
	}
	if len(markdown) > maxStepSummary {
		t.Errorf("the summary has %d bytes", len(markdown))
	}
}

// hostileSummary is a summary in which somebody chose every name.
func hostileSummary(name string) (*summary, *openings) {
	s := &summary{
		doc: &measure.Document{
			Measurements: measure.Measurements{HashAlgorithm: measure.SHA384, PCRs: map[int]string{4: strings.Repeat("a", 96), 7: strings.Repeat("b", 96), 12: strings.Repeat("0", 96)}},
			Architecture: name, Disk: &measure.DiskInfo{SHA256: strings.Repeat("c", 64), Size: 1 << 30},
			BootChain:  []measure.ImageInfo{{Path: name, Size: 1}},
			SecureBoot: measure.SecureBootInfo{Enabled: true, Authorities: []measure.AuthorityInfo{{Type: "EFI_CERT_X509", Subject: name}}},
			Builder:    &measure.BuilderInfo{Image: name, Digest: "sha256:" + strings.Repeat("d", 64), KIWI: name, Inputs: measure.BuildInputs{Recipe: &measure.BuildRecipe{Overlay: name}, PackagesSHA256: strings.Repeat("e", 64)}},
		},
		imagePath: "/tmp/" + name + ".raw", artifact: name + "@sha256:" + name, attestationURL: name, bundlePath: "/b", trustedRoot: name,
		signer: name + "@" + name, server: "https://github.com", repository: name, ref: name, commit: name,
		times: []timeRecord{{name, 1, 1}, {"push", 1, 1}},
	}
	s.doc.Events = []measure.EventInfo{{PCR: 4, Description: name, Digest: "a"}}
	before := *s.doc
	before.Architecture, before.Events, before.Measurements.PCRs = "x86_64", nil, map[int]string{4: strings.Repeat("d", 96)}
	content, err := before.Marshal()
	s.previous = &previous{Reference: name, Measurements: content}
	if err != nil {
		s.previous.Problem = name
	}
	report := &audit.Report{}
	for i := range 60 {
		report.Findings = append(report.Findings, audit.Finding{ID: fmt.Sprintf("rule-%d", i/6), Severity: audit.High, Partition: 2, Path: name, Detail: name, Fix: "Remove it."})
	}
	report.Findings = append(report.Findings, audit.Finding{ID: name, Path: name, Detail: name, Fix: name})
	placed := map[string]placedFinding{"rule-1": {report.Findings[6], gha.Place{File: name, Line: 7}}}
	return s, &openings{coverage: &audit.Coverage{VerityProblem: name}, report: report, placed: placed}
}

// TestHostileNamesInSummary gives everything that a summary names each of the names.
func TestHostileNamesInSummary(t *testing.T) {
	for i, name := range hostileNames {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			s, open := hostileSummary(name)
			safeMarkdown(t, s.markdown(open, nil), s.repository)
			safeMarkdown(t, s.markdown(nil, fmt.Errorf("inspect %s", name)), s.repository)
			s.repository, s.commit = "octo-org/image", strings.Repeat("5", 40)
			safeMarkdown(t, s.markdown(open, nil), s.repository)
			s.artifact, s.fork = "", true
			safeMarkdown(t, s.markdown(open, nil), s.repository)
			safeMarkdown(t, verifiedMarkdown(artifact.Reference{}, &attest.Verdict{
				Checks: []attest.Check{{Name: name, Found: name, OK: true}},
				Origin: attest.Origin{Repository: "https://github.com/" + name, Commit: name, Ref: name, Workflow: name},
			}, s.doc), name)
			placed := ami.Placed{Region: name, ImageID: name, SnapshotID: name, Name: name}
			r := registration{Artifact: name, Architecture: name, Result: ami.Result{
				AMIs: []ami.Placed{placed, placed, placed, placed, placed, placed}, Removed: []ami.Removed{{Region: name, ImageID: name, Snapshots: []string{name, name}}},
			}}
			safeMarkdown(t, r.markdown(), name)
		})
	}
}

func FuzzSummary(f *testing.F) {
	for _, name := range hostileNames {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		s, open := hostileSummary(name)
		safeMarkdown(t, s.markdown(open, nil), s.repository)
	})
}

// TestSummaryIsCut holds that a summary never becomes too long for GitHub, and says
// where it ends.
func TestSummaryIsCut(t *testing.T) {
	section := strings.Repeat("x", maxStepSummary/3)
	got := joinSections([]string{"first\n", section, "", section, section, "last"})
	if len(got) > maxStepSummary || !strings.HasPrefix(got, "first\n\nx") || !strings.Contains(got, "is cut here") || strings.Contains(got, "last") {
		t.Errorf("%d bytes: %.40q … %q", len(got), got, got[max(0, len(got)-200):])
	}
	if got := joinSections([]string{"a\n", "", "b\n"}); got != "a\n\nb\n" {
		t.Errorf("got %q", got)
	}
}

func TestRecordTimes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "times.jsonl")
	t.Setenv(timesVariable, path)
	if status, _, stderr := execute(t, "measure", testenv.GoldenDisk(t, "stub257")); status != 0 {
		t.Fatal(stderr)
	}
	if status, _, _ := execute(t, "measure", "none.raw"); status != 1 {
		t.Fatalf("status %d", status)
	}
	times, err := readTimes(path)
	if err != nil || len(times) != 1 || times[0].Step != "measure" || times[0].Seconds <= 0 {
		t.Errorf("%+v, %v", times, err)
	}
	for seconds, want := range map[float64]string{0: "0.0 s", 0.25: "0.2 s", 9.96: "10 s", 59.4: "59 s", 59.6: "1 min 0 s", 3599.6: "1 h 0 min", 7325: "2 h 2 min"} {
		if got := formatSeconds(seconds); got != want {
			t.Errorf("%v seconds are %q, want %q", seconds, got, want)
		}
	}
}
