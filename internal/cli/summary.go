package cli

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/gha"
	"github.com/org/attestable-image-action/internal/measure"
)

// summary is what the step summary tells.
type summary struct {
	doc            *measure.Document
	imagePath      string
	artifact       string // REF@DIGEST; "" when nothing was pushed
	attestationURL string
	bundlePath     string // "" when nothing was attested
	trustedRoot    string // of a private Sigstore deployment
	repository     string // OWNER/REPO
	signer         string // workflow that signed, OWNER/REPO/PATH@REF
	ref            string // that the image was built from, refs/heads/…
}

func newStepSummaryCommand(a *app) *cobra.Command {
	var s summary
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
			s.repository, s.ref = os.Getenv("GITHUB_REPOSITORY"), os.Getenv("GITHUB_REF")
			s.signer = cmp.Or(s.signer, os.Getenv("GITHUB_WORKFLOW_REF"))
			markdown := s.markdown()
			if s.imagePath != "" {
				// What cannot be inspected is told, and spoils nothing that was made.
				if open, err := inspectOpenings(cmd.Context(), s.imagePath, s.doc); err != nil {
					markdown += fmt.Sprintf("\n### What it leaves open\n\nIt could not be told: %s\n", code(err.Error()))
				} else {
					markdown += open.markdown()
					open.annotate(a.stderr)
				}
			}
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
	return cmd
}

// code is text as inline code of Markdown, in a table cell, too.
func code(text string) string {
	text = strings.NewReplacer("`", "'", "|", "¦", "\n", " ", "\r", " ").Replace(text)
	return "`" + text + "`"
}

func (s *summary) markdown() string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "## Attestable image %s\n\n", code(filepath.Base(s.imagePath)))
	fmt.Fprintf(&b, "%s, Secure Boot %s. An instance that booted exactly this image has these PCRs (%s):\n\n",
		s.doc.Architecture, onOff(s.doc.SecureBoot.Enabled), s.doc.Measurements.HashAlgorithm)
	b.WriteString("| PCR | value | what it covers |\n|---|---|---|\n")
	for _, n := range slices.Sorted(maps.Keys(s.doc.Measurements.PCRs)) {
		fmt.Fprintf(&b, "| %d | %s | %s |\n", n, code(s.doc.PCR(n)), pcrMeaning[n])
	}
	b.WriteString("\n| | |\n|---|---|\n")
	if s.doc.Disk != nil {
		fmt.Fprintf(&b, "| Disk | %s, SHA-256 %s |\n", formatBytes(s.doc.Disk.Size), code(s.doc.Disk.SHA256))
	}
	for _, image := range s.doc.BootChain {
		fmt.Fprintf(&b, "| Boot chain | %s, %s |\n", code(image.Path), formatBytes(image.Size))
	}
	for _, authority := range s.doc.SecureBoot.Authorities {
		fmt.Fprintf(&b, "| Allowed by db | %s |\n", code(authority.Type+" "+authority.Subject))
	}
	if s.artifact == "" {
		b.WriteString("| Artifact | not pushed |\n")
	} else {
		fmt.Fprintf(&b, "| Artifact | %s |\n", code(s.artifact))
		switch {
		case s.attestationURL != "":
			fmt.Fprintf(&b, "| Attestation | %s |\n", s.attestationURL)
		case s.bundlePath == "":
			b.WriteString("| Attestation | **none**: nobody can tell where these values come from |\n")
		}
	}
	if conditions, err := kmsConditions(s.doc); err == nil {
		fmt.Fprintf(&b, "| KMS condition | %s |\n", code(conditions))
	}
	if s.artifact != "" && s.bundlePath != "" {
		b.WriteString(s.verifyCommands())
	}
	return b.String()
}

// pcrMeaning says in a few words what a PCR covers.
var pcrMeaning = map[int]string{
	4:  "the boot chain: every EFI image that firmware loads",
	5:  "the partition table",
	7:  "Secure Boot: its variables, and what let the image run",
	11: "the sections of the unified kernel image",
	12: "what came from outside the unified kernel image",
	13: "extension images",
}

// verifyCommands are for a sceptic with other people's tools.
func (s *summary) verifyCommands() string {
	workflow, _, _ := strings.Cut(s.signer, "@")
	ours, gh, cosign := "", "", ""
	if s.trustedRoot != "" {
		root := " --trusted-root " + quote(s.trustedRoot)
		ours, gh, cosign = root, " --custom-trusted-root "+quote(s.trustedRoot), root
	}
	const measurements = "https://github.com/org/attestable-image-action/measurements/v1"
	repository, artifact := quote(s.repository), quote(s.artifact)
	host, _ := attest.ParseHost(gitHubServer()) // of an Enterprise Server it has no issuer
	identity := quote(host.Server + "/" + s.signer)
	var b strings.Builder
	b.WriteString("\n<details><summary>Verify it yourself</summary>\n\n```console\n")
	fmt.Fprintf(&b, "$ attestable-image verify artifact %s --repo %s --signer-workflow %s --source-ref %s --remeasure%s\n",
		artifact, repository, quote(workflow), quote(s.ref), ours)
	fmt.Fprintf(&b, "$ gh attestation verify oci://%s --repo %s --signer-workflow %s --predicate-type %s%s\n", artifact, repository, quote(workflow), measurements, gh)
	fmt.Fprintf(&b, "$ cosign verify-attestation %s --type %s%s \\\n    --certificate-oidc-issuer %s \\\n    --certificate-identity %s\n",
		artifact, measurements, cosign, quote(cmp.Or(host.Issuer, "ISSUER")), identity)
	fmt.Fprintf(&b, "$ oras pull %s\n", artifact)
	b.WriteString("```\n\n</details>\n")
	return b.String()
}

// quote makes a value one word for a shell, and keeps it inside a code block.
func quote(s string) string {
	s = strings.NewReplacer("\n", " ", "\r", " ", "`", "'").Replace(s)
	safe := strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-_./:@=+,", r)
	}) < 0
	if safe && s != "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
