package cli

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/gha"
	"github.com/org/attestable-image-action/internal/lazyregexp"
	"github.com/org/attestable-image-action/internal/measure"
)

// maxStepSummary bounds the summary, in bytes: GitHub takes 1 MiB of all that a step
// writes, and nothing when it is more.
const maxStepSummary = 512 << 10

// summary is what the step summary tells.
type summary struct {
	doc            *measure.Document
	imagePath      string
	artifact       string // REF@DIGEST; "" when nothing was pushed
	attestationURL string
	bundlePath     string // "" when nothing was attested
	trustedRoot    string // of a private Sigstore deployment
	signer         string // workflow that signed, OWNER/REPO/PATH@REF
	times          []timeRecord
	previous       *previous // to compare with; nil for none

	// Of the job.
	server     string // URL of GitHub
	repository string // OWNER/REPO
	ref        string // that the image was built from, refs/heads/…
	commit     string

	// What became of steps, in GitHub's words (success, failure, skipped); "" where
	// that is not known.
	inspected, pushed, attested string
	fork                        bool // the run is of a pull request from a fork
}

func newStepSummaryCommand(a *app) *cobra.Command {
	var s summary
	var description, overlay, times, previous string
	var inspect bool
	cmd := &cobra.Command{
		Use:    "step-summary MEASUREMENTS",
		Short:  "Write the step summary of the action, Markdown",
		Hidden: true, // a part of action.yml
		Args:   oneArg("the measurements document"),
		RunE: func(cmd *cobra.Command, args []string) error {
			content, err := readBounded(args[0], maxMeasurements)
			if err != nil {
				return fmt.Errorf("write the step summary: %w", err)
			}
			if s.doc, err = measure.ParseDocument(content); err != nil {
				return fmt.Errorf("write the step summary: %s: %w", args[0], err)
			}
			if s.times, err = readTimes(times); err != nil {
				return fmt.Errorf("write the step summary: %w", err)
			}
			if s.previous, err = readPrevious(previous); err != nil {
				return fmt.Errorf("write the step summary: %w", err)
			}
			s.server = cmp.Or(os.Getenv("GITHUB_SERVER_URL"), "https://github.com")
			s.repository, s.ref, s.commit = os.Getenv("GITHUB_REPOSITORY"), os.Getenv("GITHUB_REF"), os.Getenv("GITHUB_SHA")
			s.signer = cmp.Or(s.signer, os.Getenv("GITHUB_WORKFLOW_REF"))
			var open *openings
			var problem error
			if s.imagePath != "" && inspect {
				// What cannot be inspected is told, and spoils nothing that was made.
				if open, problem = inspectOpenings(cmd.Context(), s.imagePath, s.doc, newImageSource(description, overlay)); problem == nil {
					open.annotate(a.stderr)
				}
			}
			markdown := s.markdown(open, problem)
			if gha.Enabled() {
				return gha.AddSummary(markdown)
			}
			fmt.Fprint(a.stdout, markdown)
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&s.imagePath, "image-path", "", "path of the raw disk")
	flags.StringVar(&s.artifact, "artifact", "", "what was pushed, REF@DIGEST")
	flags.StringVar(&s.attestationURL, "attestation-url", "", "GitHub's page of the attestation")
	flags.StringVar(&s.bundlePath, "bundle-path", "", "file of the Sigstore bundles")
	flags.StringVar(&s.signer, "signer", "", "workflow that signed, OWNER/REPO/PATH@REF; in a reusable workflow not the one of the environment")
	flags.StringVar(&s.trustedRoot, "trusted-root", "", "trusted root of a private Sigstore deployment")
	flags.BoolVar(&inspect, "inspect", true, "tell what the image leaves open")
	flags.StringVar(&description, "description", "", "directory of the KIWI description in the workspace")
	flags.StringVar(&overlay, "overlay", "", "directory of the overlay in the workspace")
	flags.StringVar(&times, "times", "", "file in which the steps left how long they took")
	flags.StringVar(&previous, "previous", "", "file that previous-measurements wrote")
	flags.StringVar(&s.inspected, "inspected", "", "what became of the inspection: success, failure or skipped")
	flags.StringVar(&s.pushed, "pushed", "", "what became of the push")
	flags.StringVar(&s.attested, "attested", "", "what became of the attestation")
	flags.BoolVar(&s.fork, "fork", false, "the run is of a pull request from a fork")
	return cmd
}

// markdown is the summary, the most important first. What is longer than the limit is
// cut between its sections.
func (s *summary) markdown(open *openings, problem error) string {
	sections := []string{s.head(open), s.chain(), s.values()}
	if s.previous != nil {
		sections = append(sections, s.previous.markdown(s.doc))
	}
	switch {
	case open != nil:
		sections = append(sections, open.markdown(s.blob))
	case problem != nil:
		sections = append(sections, fmt.Sprintf("### What it leaves open\n\nIt could not be told: %s\n", plain(shorten(problem.Error(), 500))))
	}
	sections = append(sections, s.costs(), s.checks())
	return joinSections(sections)
}

// joinSections puts sections below each other as far as the limit goes.
func joinSections(sections []string) string {
	const cut = "*The summary is cut here: GitHub takes no more. The job's log has all of it.*\n"
	var b strings.Builder
	for _, section := range sections {
		if section == "" {
			continue
		}
		if b.Len()+len(section)+len(cut)+2 > maxStepSummary {
			b.WriteString("\n" + cut)
			break
		}
		if b.Len() > 0 {
			b.WriteString("\n")
		}
		b.WriteString(section)
	}
	return b.String()
}

// name is the image's, as its file has it.
func (s *summary) name() string {
	if s.imagePath == "" {
		return ""
	}
	return strings.TrimSuffix(filepath.Base(s.imagePath), ".raw")
}

// isAttested reports whether the artifact has attestations.
func (s *summary) isAttested() bool {
	return s.artifact != "" && s.bundlePath != "" && (s.attested == "" || s.attested == "success")
}

var (
	commitHash     = lazyregexp.New(`^[0-9a-f]{40}$`)
	repositoryName = lazyregexp.New(`^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$`)
)

// source is where the image comes from, with a link.
func (s *summary) source() string {
	if s.repository == "" {
		return ""
	}
	text, target := s.repository, s.server+"/"+s.repository
	if !repositoryName().MatchString(s.repository) {
		target = ""
	}
	if commitHash().MatchString(s.commit) {
		text += "@" + s.commit[:7]
		target += "/commit/" + s.commit
	}
	return link(code(shorten(text, 100)), target)
}

// blob is a place in the source, with a link.
func (s *summary) blob(at gha.Place) string {
	text, target := at.File, ""
	if repositoryName().MatchString(s.repository) && commitHash().MatchString(s.commit) {
		target = s.server + "/" + s.repository + "/blob/" + s.commit + "/" + at.File
	}
	if at.Line > 0 {
		text += fmt.Sprintf(":%d", at.Line)
		target += fmt.Sprintf("#L%d", at.Line)
	}
	return link(breakable(shorten(text, 200)), target)
}

// workflow is the workflow that signed, without the ref.
func (s *summary) workflow() string {
	workflow, _, _ := strings.Cut(s.signer, "@")
	return workflow
}

// head says in one line what was made and whether it is attested.
func (s *summary) head(open *openings) string {
	var b strings.Builder
	fmt.Fprintf(&b, "## Attestable image %s\n\n", code(shorten(cmp.Or(s.name(), s.doc.Architecture), 100)))
	what := "a disk"
	if s.doc.Disk != nil {
		what += " of " + formatBytes(s.doc.Disk.Size)
	}
	if s.doc.Architecture != "" {
		what += " for " + plain(shorten(s.doc.Architecture, 40))
	}
	what += ", Secure Boot " + onOff(s.doc.SecureBoot.Enabled)
	if source := s.source(); source != "" {
		what += ", from " + source
	}
	told := ""
	switch {
	case s.isAttested():
		fmt.Fprintf(&b, "**Attested**: %s, signed as %s", what, code(shorten(s.workflow(), 200)))
		if strings.HasPrefix(s.attestationURL, s.server+"/") {
			b.WriteString(" (" + link("attestation", s.attestationURL) + ")")
		}
		b.WriteString(".")
	case s.artifact != "":
		fmt.Fprintf(&b, "**Pushed, not attested**: %s.", what)
		told = alert("WARNING", "This job did not attest it (`attest: false`). Until another one does, nobody can tell where the values below come from.")
		if s.attested == "failure" {
			told = alert("CAUTION", "**The attestation failed**; the job's log says why. Nobody can tell where the values below come from.")
		}
	default:
		fmt.Fprintf(&b, "**Built and measured, not pushed**: %s.", what)
		switch {
		case s.inspected == "failure":
			told = alert("CAUTION", "**Nothing was pushed, because the inspection failed**: the image leaves something open that `fail-on` does not allow, or is not what its root hash says. The findings are below.")
		case s.pushed == "failure":
			told = alert("CAUTION", "**The push failed**; the job's log says why. Nobody but this job has the image.")
		case s.fork:
			told = alert("NOTE", "This is a pull request from a fork, whose runs can neither push nor sign. The values below are what the image would have.")
		default:
			told = alert("NOTE", "Nothing was pushed (`push: false`), so nothing is attested. Nobody but this job has the image.")
		}
	}
	if open != nil {
		b.WriteString(" " + open.sentence())
	}
	b.WriteString("\n")
	if told != "" {
		b.WriteString("\n" + told)
	}
	return b.String()
}

// chain draws what leads from the source to an instance: two columns and six rows, so
// that it can be read on a narrow screen, too.
func (s *summary) chain() string {
	var c chart
	commit := refName(s.ref)
	if s.commit != "" {
		commit += " at " + digestStart(s.commit)
	}
	c.node("source", "Source", s.repository, commit)
	tool, builder, packages := "KIWI NG", "", ""
	if built := s.doc.Builder; built != nil {
		tool += " " + built.KIWI
		// One that is from no registry has no digest that means anything elsewhere: its
		// packages tell what it is.
		builder = "builder " + digestStart(strings.TrimPrefix(built.Digest, "sha256:"))
		if built.Digest == "" {
			builder = "tools " + digestStart(built.PackagesSHA256)
		}
		if built.Inputs.PackagesSHA256 != "" {
			packages = "packages " + digestStart(built.Inputs.PackagesSHA256)
		}
		if built.Inputs.PackagesLocked {
			packages += ", locked"
		}
	}
	c.node("build", tool, builder, packages)
	size, digest := "", ""
	if s.doc.Disk != nil {
		size, digest = formatBytes(s.doc.Disk.Size), digestStart("sha256:"+s.doc.Disk.SHA256)
	}
	c.node("disk", "Disk", size, digest)
	c.node("pcrs", "PCRs, predicted", pcrLines(s.doc)...)
	c.edge("source", "build")
	c.edge("build", "disk")
	c.edge("disk", "pcrs")
	absent := []string{"instance"}
	if s.artifact == "" {
		c.node("artifact", "OCI artifact", "not pushed")
		c.later("disk", "artifact")
		absent = append(absent, "artifact")
	} else {
		place, digest, _ := strings.Cut(s.artifact, "@")
		c.node("artifact", "OCI artifact", place, digestStart(digest))
		c.edge("disk", "artifact")
	}
	if s.isAttested() {
		_, ref, _ := strings.Cut(s.signer, "@")
		workflow := strings.TrimPrefix(strings.Replace(s.workflow(), ".github/workflows/", "", 1), s.repository+"/")
		c.node("identity", "Workflow, which signs", workflow, refName(ref))
		c.node("attestations", "Attestations", "provenance, measurements")
		c.edge("source", "identity")
		c.edge("pcrs", "attestations")
		c.edge("artifact", "attestations")
		c.around("identity", "attestations")
	} else {
		c.node("attestations", "Attestations", "none")
		c.later("pcrs", "attestations")
		c.later("artifact", "attestations")
		absent = append(absent, "attestations")
	}
	c.node("instance", "AMI, instance", "has to have these PCRs")
	c.later("attestations", "instance")
	c.absent(absent...)
	return c.markdown()
}

// pcrLines are the PCRs that a key policy may bind, shortened.
func pcrLines(doc *measure.Document) []string {
	var lines []string
	for _, n := range measure.DefaultPCRs {
		if value := doc.PCR(n); value != "" {
			lines = append(lines, fmt.Sprintf("%d  %s", n, digestStart(value)))
		}
	}
	return lines
}

// valueLines are what one pastes elsewhere, as NAME=VALUE.
func valueLines(doc *measure.Document, artifact string) string {
	var lines strings.Builder
	for _, n := range slices.Sorted(maps.Keys(doc.Measurements.PCRs)) {
		fmt.Fprintf(&lines, "PCR%d=%s\n", n, quote(doc.PCR(n)))
	}
	if doc.Disk != nil {
		fmt.Fprintf(&lines, "DISK_SHA256=%s\n", quote(doc.Disk.SHA256))
	}
	if artifact != "" {
		fmt.Fprintf(&lines, "ARTIFACT=%s\n", quote(artifact))
	}
	return lines.String()
}

// refName is a ref as people say it.
func refName(ref string) string {
	return strings.TrimPrefix(strings.TrimPrefix(ref, "refs/heads/"), "refs/")
}

// values are what one pastes elsewhere.
func (s *summary) values() string {
	var b strings.Builder
	b.WriteString("### PCRs\n\nWhat an instance has that booted exactly this image:\n\n")
	b.WriteString(fence("sh", valueLines(s.doc, s.artifact)))
	b.WriteString("\n| PCR | covers |\n|---|---|\n")
	for _, n := range slices.Sorted(maps.Keys(s.doc.Measurements.PCRs)) {
		fmt.Fprintf(&b, "| %d | %s |\n", n, pcrMeaning[n])
	}
	if conditions, err := kmsConditions(s.doc); err == nil {
		var indented bytes.Buffer
		if json.Indent(&indented, []byte(conditions), "", "  ") == nil {
			bound := "4 and 12"
			if s.doc.SecureBoot.Enabled {
				bound = "7 and 12"
			}
			fmt.Fprintf(&b, "\nThe condition for a key of AWS KMS that only this image may use (with Secure Boot %s, PCR %s):\n\n%s",
				onOff(s.doc.SecureBoot.Enabled), bound, fence("json", indented.String()))
		}
	}
	return b.String()
}

// pcrMeaning says in a few words what a PCR covers.
var pcrMeaning = map[int]string{
	4:  "the boot chain: every EFI image that firmware loads",
	5:  "the partition table",
	7:  "Secure Boot: its variables, and what let the image run",
	9:  "what the kernel was handed: command line and initrd",
	11: "the sections of the unified kernel image",
	12: "what came from outside the unified kernel image",
	13: "extension images",
}

// stepNames say what the commands of the action do.
var stepNames = map[string]string{
	"prepare": "make the program ready", "build": "build with KIWI NG", "sign": "sign for Secure Boot", "measure": "predict the PCRs, SHA-256 of the disk",
	"inspect": "look for what is open", "sbom": "list what is installed", "push": "compress and push", "pull": "fetch the disk", "attest": "sign and store the attestations",
}

// costs are sizes and times.
func (s *summary) costs() string {
	var sizes []string
	if s.doc.Disk != nil {
		sizes = append(sizes, "disk "+formatBytes(s.doc.Disk.Size))
	}
	var rows strings.Builder
	total := 0.0
	for _, t := range s.times {
		name, known := stepNames[t.Step]
		if !known {
			continue
		}
		total += t.Seconds
		fmt.Fprintf(&rows, "| %s | %s |\n", name, unbroken(formatSeconds(t.Seconds)))
		if t.Stored > 0 {
			sizes = append(sizes, "compressed "+formatBytes(t.Stored))
		}
	}
	for _, image := range s.doc.BootChain {
		if len(sizes) == 8 {
			sizes = append(sizes, "…")
			break
		}
		sizes = append(sizes, code(shorten(image.Path, 80))+" "+formatBytes(image.Size))
	}
	if len(sizes) == 0 && total == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("### Size and time\n\n")
	if len(sizes) > 0 {
		text := strings.Join(sizes, ", ")
		b.WriteString(strings.ToUpper(text[:1]) + text[1:] + ".\n")
	}
	if total > 0 {
		fmt.Fprintf(&b, "\n| step | time |\n|---|---:|\n%s| **together** | **%s** |\n", rows.String(), unbroken(formatSeconds(total)))
	}
	for _, authority := range s.doc.SecureBoot.Authorities {
		fmt.Fprintf(&b, "\nAllowed by db: %s\n", code(shorten(authority.Type+" "+authority.Subject, 200)))
	}
	return b.String()
}

// checks are commands for a sceptic, with this program and with other people's.
func (s *summary) checks() string {
	if !s.isAttested() {
		return ""
	}
	ours, gh, cosign := "", "", ""
	if s.trustedRoot != "" {
		root := " --trusted-root " + quote(s.trustedRoot)
		ours, gh, cosign = root, " --custom-trusted-root "+quote(s.trustedRoot), root
	}
	const measurements = "https://github.com/org/attestable-image-action/measurements/v1"
	reference, repository, workflow := quote(s.artifact), quote(s.repository), quote(s.workflow())
	host, _ := attest.ParseHost(gitHubServer()) // of an Enterprise Server it has no issuer
	var b strings.Builder
	b.WriteString("### Do not take our word for it\n\n")
	block := func(title, command string) {
		fmt.Fprintf(&b, "<details><summary>%s</summary>\n\n%s\n</details>\n", title, fence("sh", command))
	}
	block("Verify all of it, and predict the PCRs again from the disk: <code>attestable-image</code>", fmt.Sprintf(
		"attestable-image verify artifact %s --repo %s --signer-workflow %s --source-ref %s --remeasure%s",
		reference, repository, workflow, quote(s.ref), ours))
	block("Verify the signature with GitHub's program: <code>gh</code>", fmt.Sprintf(
		"gh attestation verify oci://%s --repo %s --signer-workflow %s --predicate-type %s%s", reference, repository, workflow, measurements, gh))
	block("Verify it with Sigstore's: <code>cosign</code>", fmt.Sprintf(
		"cosign verify-attestation %s --type %s%s \\\n  --certificate-oidc-issuer %s \\\n  --certificate-identity %s",
		reference, measurements, cosign, quote(cmp.Or(host.Issuer, "ISSUER")), quote(host.Server+"/"+s.signer)))
	block("Have the disk and its measurements: <code>oras</code>, <code>zstd</code>", fmt.Sprintf(
		"oras pull %s\nzstd -d --sparse *.raw.zst", reference))
	if s.canRebuild() {
		block("Build it again from the source, and compare: <code>attestable-image rebuild</code>", fmt.Sprintf(
			"attestable-image rebuild %s --repo %s --signer-workflow %s --source-ref %s%s", reference, repository, workflow, quote(s.ref), ours))
		if !s.doc.Builder.Inputs.PackagesLocked {
			b.WriteString("\nThe packages were not locked: a build of another day may get others, and the disk is then another. [Lock them](https://github.com/org/attestable-image-action#reproducible-builds).\n")
		}
	}
	return b.String()
}

// unbroken is text that stays on one line.
func unbroken(text string) string { return strings.ReplaceAll(text, " ", "&nbsp;") }

// canRebuild reports whether the artifact says what to build.
func (s *summary) canRebuild() bool {
	return s.doc.Builder != nil && s.doc.Builder.Inputs.Recipe != nil && s.doc.Disk != nil
}
