package cli

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/gha"
	"github.com/org/attestable-image-action/internal/kmspolicy"
	"github.com/org/attestable-image-action/internal/server"
	"github.com/org/attestable-image-action/nitrotpm"
)

// freshNonce is the size of a nonce that is drawn here, in bytes.
const freshNonce = 32

// instanceFlags are the flags of verify instance.
type instanceFlags struct {
	artifacts, measurements, pcrs []string
	anyImage                      bool
	without                       []int
	nonce, userData, at           string
	anyNonce                      bool
	maxAge, wait                  time.Duration
	roots                         []string
	format                        string
	whose                         verifyFlags
}

func newVerifyInstanceCommand(a *app) *cobra.Command {
	var f instanceFlags
	cmd := &cobra.Command{
		Use:   "instance URL | FILE",
		Short: "Verify a running instance, or an attestation document: which image it booted",
		Long: `Verify which image an instance booted, from the attestation document of its
NitroTPM: fetched from the service (serve) at a URL with a fresh nonce, or read
from a file (- for standard input) with the nonce that was sent for it.

Checked are the chain to AWS's root, pinned by its fingerprint; that every
certificate is valid now; the leaf; the signature; the timestamp; the nonce; the
PCRs; and, of a URL, that the document vouches for the key of the TLS session, so
that the session ends inside the instance.

The PCRs are compared with those of an artifact, which is verified first as verify
artifact does it; of a file, for which nothing vouches; or with given values. With
Secure Boot off PCR 4 and 12 are needed, with Secure Boot on 7 and 12; PCR 2 (with
Secure Boot off) and 13 are compared, too, and mean an instance to which nothing was
added where no value is given. --without-pcr leaves them out, and the verdict says so.
Each --artifact and --measurements is one generation that is accepted; all --pcr
together are one more.

The result is a table of checks. Exit status 1 says that one does not hold.`,
		Example: `  attestable-image verify instance https://203.0.113.7:8443 --artifact ghcr.io/owner/image@sha256:… --repo owner/image
  attestable-image verify instance document.cbor --nonce 7d9a41… --measurements measurements.json
  attestable-image verify instance document.cbor --any-nonce --at 2026-03-01T12:00:00Z --pcr 4=352f78… --pcr 12=000000…`,
		Args: oneArg("the URL of the instance's service, or the file of a document"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.verifyInstance(cmd.Context(), f, args[0]) },
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&f.artifacts, "artifact", nil, "`REF` of an artifact whose PCRs are accepted, once it is verified")
	flags.StringArrayVar(&f.measurements, "measurements", nil, "measurements document in `FILE` whose PCRs are accepted")
	flags.StringArrayVar(&f.pcrs, "pcr", nil, "`N=HEX`: a PCR's value of the SHA-384 bank")
	flags.IntSliceVar(&f.without, "without-pcr", nil, withoutPCRHelp)
	flags.BoolVar(&f.anyImage, "any-image", false, "accept whatever was booted: the verdict says who the instance is, and not what it runs")
	flags.StringVar(&f.nonce, "nonce", "", "`HEX|FILE` that the document must have (default for a URL: a fresh one)")
	flags.BoolVar(&f.anyNonce, "any-nonce", false, "of a FILE: accept any nonce and none, so that the document may be an old one")
	flags.StringVar(&f.userData, "user-data", "", "`FILE` that the document must have as user_data (default: any)")
	flags.StringVar(&f.at, "at", "", "of a FILE: `TIME` of the check, as 2026-03-01T12:00:00Z (default now)")
	flags.DurationVar(&f.maxAge, "max-age", 0, "how old the document may be (default: as long as its certificate is valid; for a URL 5m)")
	flags.DurationVar(&f.wait, "wait", 0, "of a URL: how long to ask again while the instance is not up or busy")
	flags.StringArrayVar(&f.roots, "root", nil, "root to believe instead of AWS's: a certificate in PEM in `FILE`, or its SHA-256 in hex; for emulators")
	f.whose.add(flags)
	flags.StringVar(&f.format, "format", "table", "table for people, or json for programs")
	return cmd
}

// instanceVerification is the result of verify instance, as --format json prints it.
type instanceVerification struct {
	Subject    string            `json:"subject"`              // the URL or file
	Verified   bool              `json:"verified"`             // whether every check holds
	ModuleID   string            `json:"moduleID"`             // of the NitroTPM, which names the instance
	Timestamp  string            `json:"timestamp"`            // RFC 3339
	Generation string            `json:"generation,omitempty"` // name of the image that it booted, of those that are accepted
	PCRs       map[string]string `json:"pcrs"`                 // of the document, hex by number
	Checks     []nitrotpm.Check  `json:"checks"`
	Notes      []string          `json:"notes,omitempty"` // what was seen and decides nothing
}

func (a *app) verifyInstance(ctx context.Context, f instanceFlags, subject string) error {
	remote := strings.Contains(subject, "://")
	policy, err := f.policy(remote)
	if err != nil {
		return err
	}
	// Whose image it must be is settled before the instance is asked: its document
	// is fresh for a while only.
	if policy.Accept, err = a.references(ctx, &f); err != nil {
		return err
	}
	if err := policy.Validate(); err != nil {
		return usageError{err}
	}
	content, err := a.fetchDocument(ctx, &f, subject, remote, &policy)
	if err != nil {
		return err
	}
	document, err := nitrotpm.Parse(content)
	if err != nil {
		return fmt.Errorf("%s: %w", subject, err)
	}
	verdict, err := policy.Verify(document)
	if verdict == nil {
		return err
	}
	if remote {
		for i := range verdict.Checks {
			if verdict.Checks[i].Name == "public_key" {
				verdict.Checks[i].Name = "TLS key"
			}
		}
	}
	return a.printInstance(f.format, subject, document, verdict)
}

// policy reads the flags, but for the PCRs.
func (f *instanceFlags) policy(remote bool) (p nitrotpm.Policy, err error) {
	switch {
	case f.format != "table" && f.format != "json":
		return p, usagef("--format: there is no format %q: give table or json", f.format)
	case remote && (f.at != "" || f.anyNonce):
		return p, usagef("an instance that is asked answers now, and with the nonce that it is sent: leave out --at and --any-nonce")
	case f.nonce != "" && f.anyNonce:
		return p, usagef("--nonce and --any-nonce cannot be given together")
	case !remote && f.nonce == "" && !f.anyNonce:
		return p, usagef("give in --nonce what was sent to have this document made; or say with --any-nonce that it may be an old one")
	case f.maxAge < 0 || f.wait < 0:
		return p, usagef("--max-age and --wait are not negative")
	case !remote && f.wait > 0:
		return p, usagef("a file is not waited for: leave out --wait")
	}
	images := len(f.artifacts) + len(f.measurements) + len(f.pcrs)
	if images == 0 && !f.anyImage {
		return p, usagef("say which image it must be with --artifact, --measurements or --pcr; or with --any-image that it may be any")
	}
	if images > 0 && f.anyImage {
		return p, usagef("--any-image cannot be given together with --artifact, --measurements or --pcr")
	}
	if len(f.artifacts) == 0 && !reflect.DeepEqual(f.whose, verifyFlags{bundleFrom: "auto"}) {
		return p, usagef("the flags that say who must have signed are about --artifact: give one, or leave them out")
	}
	if len(f.without) > 0 && f.anyImage {
		return p, usagef("--any-image compares no PCR: leave out --without-pcr")
	}
	if err := checkWithout(f.without); err != nil {
		return p, err
	}
	p = nitrotpm.Policy{AnyNonce: f.anyNonce, AnyPCRs: f.anyImage, MaxAge: f.maxAge, WithoutPCRs: f.without}
	if remote && p.MaxAge == 0 {
		p.MaxAge = 5 * time.Minute
	}
	if f.at != "" {
		if p.At, err = time.Parse(time.RFC3339, f.at); err != nil {
			return p, usagef("--at: %q is not a time as 2026-03-01T12:00:00Z", f.at)
		}
	}
	for _, value := range f.roots {
		content := []byte(value)
		if raw, err := hex.DecodeString(strings.ReplaceAll(value, ":", "")); err != nil || len(raw) != 32 {
			if content, err = readBounded(value, 64<<10); err != nil {
				return p, usagef("--root: %q is neither a SHA-256 fingerprint in hex nor a file that can be read", value)
			}
		}
		root, err := nitrotpm.ParseRoot(content)
		if err != nil {
			return p, fmt.Errorf("--root %s: %w", value, err)
		}
		p.Roots = append(p.Roots, root)
	}
	if p.UserData, err = fieldFile("user-data", f.userData); err != nil {
		return p, err
	}
	if p.Nonce, err = hexOrFile("nonce", f.nonce); err != nil {
		return p, err
	}
	if remote && p.Nonce == nil {
		p.Nonce = make([]byte, freshNonce)
		if _, err := rand.Read(p.Nonce); err != nil {
			return p, fmt.Errorf("draw a nonce: %w", err)
		}
	}
	return p, nil
}

// references are the generations that are accepted; artifacts are verified.
func (a *app) references(ctx context.Context, f *instanceFlags) ([]nitrotpm.Reference, error) {
	var references []nitrotpm.Reference
	add := func(g kmspolicy.Generation) error {
		r, err := g.Reference(nitrotpm.IdentityPCRs(g.Document.SecureBoot.Enabled))
		if err != nil {
			return fmt.Errorf("%s: %w", g.Name, err)
		}
		references = append(references, r)
		return nil
	}
	f.whose.format = "table"
	for _, ref := range f.artifacts {
		g, err := a.attestedGeneration(ctx, &f.whose, ref, "the instance is not asked: ")
		if err != nil {
			return nil, err
		}
		if err := add(g); err != nil {
			return nil, err
		}
	}
	for _, path := range f.measurements {
		g, err := a.unattestedGeneration(path)
		if err != nil {
			return nil, err
		}
		if err := add(g); err != nil {
			return nil, err
		}
	}
	if len(f.pcrs) > 0 {
		// Which of the two boots it is follows from the values that are given.
		given := nitrotpm.Reference{Name: "--pcr", PCRs: map[int][]byte{}}
		for _, value := range f.pcrs {
			number, digits, ok := strings.Cut(value, "=")
			n, err := strconv.Atoi(number)
			raw, wrong := hex.DecodeString(digits)
			if !ok || err != nil || wrong != nil || n < 0 || n >= nitrotpm.PCRCount || len(raw) != nitrotpm.PCRSize {
				return nil, usagef("--pcr: %q is not N=HEX with the 96 digits of a PCR of the SHA-384 bank", value)
			}
			if given.PCRs[n] != nil {
				return nil, usagef("--pcr: PCR %d is given twice", n)
			}
			if slices.Contains(f.without, n) {
				return nil, usagef("--pcr gives PCR %d, and --without-pcr leaves it out: choose", n)
			}
			given.PCRs[n] = raw
		}
		given.SecureBoot = given.PCRs[4] == nil
		references = append(references, given)
	}
	return references, nil
}

// fetchDocument gets the document, and of a URL the key that it has to vouch for.
func (a *app) fetchDocument(ctx context.Context, f *instanceFlags, subject string, remote bool, policy *nitrotpm.Policy) (content []byte, err error) {
	switch {
	case remote:
		content, policy.PublicKey, err = server.Await(ctx, subject, policy.Nonce, f.wait)
		return content, err
	case subject == "-":
		content, err = io.ReadAll(io.LimitReader(os.Stdin, nitrotpm.MaxDocument+1))
	default:
		content, err = readBounded(subject, nitrotpm.MaxDocument)
	}
	if err != nil {
		return nil, fmt.Errorf("read the attestation document: %w", err)
	}
	return content, nil
}

// subjectName is a URL or file, for verdictTable.
type subjectName string

func (s subjectName) String() string { return string(s) }

// printInstance prints the verdict, and says on standard error what first does not
// hold.
func (a *app) printInstance(format, subject string, d *nitrotpm.Document, verdict *nitrotpm.Verdict) error {
	var failed nitrotpm.Check
	first := slices.IndexFunc(verdict.Checks, func(c nitrotpm.Check) bool { return !c.OK })
	bad := first >= 0
	if bad {
		failed = verdict.Checks[first]
	}
	if format == "json" {
		out := instanceVerification{
			Subject: subject, Verified: !bad, ModuleID: d.ModuleID, Timestamp: d.Timestamp.Format(time.RFC3339),
			Generation: verdict.Generation, PCRs: map[string]string{}, Checks: verdict.Checks, Notes: verdict.Notes,
		}
		for n, value := range d.PCRs {
			out.PCRs[strconv.Itoa(n)] = hex.EncodeToString(value)
		}
		encoder := json.NewEncoder(a.stdout)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(out); err != nil {
			return err
		}
	} else {
		table := new(attest.Verdict)
		for _, c := range verdict.Checks {
			table.Checks = append(table.Checks, attest.Check(c))
		}
		if verdict.Generation != "" {
			table.Notes = append(table.Notes, "the image is that of "+verdict.Generation)
		}
		table.Notes = append(table.Notes, verdict.Notes...)
		if _, err := fmt.Fprint(a.stdout, verdictTable(subjectName(printable(subject)), table, a.width())); err != nil {
			return err
		}
	}
	if !bad {
		return nil
	}
	sentence := fmt.Sprintf("%s does not verify: %s: expected %s, found %s", printable(subject), failed.Name, printable(failed.Expected), printable(failed.Found))
	if failed.Name == "PCR 2" || failed.Name == "PCR 13" {
		sentence += "; --without-pcr " + strings.TrimPrefix(failed.Name, "PCR ") + " would accept whatever it is"
	}
	fmt.Fprintf(a.stderr, "Error: %s\n", sentence)
	gha.Error(a.stderr, "attestable-image", sentence)
	return errDoesNotVerify
}
