package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/gha"
	"github.com/org/attestable-image-action/internal/measure"
)

func newVerifyCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Verify an artifact and what is attested of it, or a running instance",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("there is nothing called %q to verify: write verify artifact REF or verify instance URL", args[0])
			}
			return usagef("say what to verify: verify artifact REF, or verify instance URL")
		},
		RunE: func(*cobra.Command, []string) error { return nil },
	}
	cmd.AddCommand(newVerifyArtifactCommand(a), newVerifyInstanceCommand(a))
	return cmd
}

// verifyFlags are the flags of verify artifact.
type verifyFlags struct {
	repository, owner, workflow, ref, issuer string
	hostname, signerRepository               string
	signerDigest, sourceDigest, runner       string
	denySelfHosted                           bool
	trustedRoot, localTrust                  string
	bundle, bundleFrom                       string
	bundleFromOCI                            bool
	remeasure                                bool
	builders                                 []string
	requireBuilders                          int
	format                                   string
	predict                                  predictFlags
}

func newVerifyArtifactCommand(a *app) *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "artifact REF",
		Short: "Verify an artifact: who built it, and what a boot of it will measure",
		Long: `Verify an artifact in a registry, or in an OCI layout (oci:DIR): that its
manifest is the one that is attested, that provenance and measurements were
signed by one run of a workflow of the expected repository, that both say the same
as the signer's certificate, and that the attested measurements are those inside the
artifact. --remeasure also fetches the disk and predicts the PCRs again.

The bundles are taken from --bundle, or from the registry, or from GitHub when
the registry has none that will do; neither needs an account for what is
public. They are verified with the public trust root, or with --trusted-root.

--builder names repositories of others who built the artifact again (rebuild) and
attest the same measurements. Of them and the signer, --require-builders must, each
of another owner.

The result is a table of checks. Exit status 1 says that one does not hold. In a
job of GitHub Actions the outputs artifact, digest, pcr2, pcr4, pcr7, pcr11,
pcr12, pcr13 and measurements are set when all hold, as far as they are attested.`,
		Example: `  attestable-image verify artifact ghcr.io/owner/image:v1 --repo owner/image
  attestable-image verify artifact ghcr.io/owner/image:v1 --repo owner/image \
      --signer-workflow owner/image/.github/workflows/image.yml --source-ref refs/heads/main --remeasure
  attestable-image verify artifact ghcr.io/owner/image:v1 --repo owner/image \
      --builder alice/rebuild --builder bob/rebuild --require-builders 2
  attestable-image verify artifact oci:layout --local-trust trust`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("give the reference of the artifact to verify, and nothing else")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.verifyArtifact(cmd.Context(), f, args[0])
		},
	}
	flags := cmd.Flags()
	f.add(flags)
	flags.BoolVar(&f.remeasure, "remeasure", false, "fetch the disk, check it, and predict its PCRs again")
	flags.StringVar(&f.format, "format", "table", "table for people, or json for programs")
	flags.StringVar(&f.predict.pk, "PK", "", "with --remeasure, for Secure Boot: platform key, `FILE` as measure takes it")
	flags.StringVar(&f.predict.kek, "KEK", "", "with --remeasure, for Secure Boot: key exchange keys, `FILE` as measure takes it")
	flags.StringVar(&f.predict.db, "db", "", "with --remeasure, for Secure Boot: allowed signers and digests, `FILE` as measure takes it")
	flags.StringVar(&f.predict.dbx, "dbx", "", "with --remeasure, for Secure Boot: forbidden signers and digests, `FILE` as measure takes it")
	return cmd
}

// add defines the flags that say whose artifact it must be, and where its
// bundles are.
func (f *verifyFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.repository, "repo", "", "`OWNER/REPO` that it must have been built from")
	flags.StringVar(&f.owner, "owner", "", "owner of the repository that it must have been built from")
	flags.StringVar(&f.workflow, "signer-workflow", "", "workflow that must have signed: `OWNER/REPO/PATH`, with or without @REF (default: any of the repository or owner)")
	flags.StringVar(&f.signerRepository, "signer-repo", "", "`OWNER/REPO` whose workflow must have signed, as that of a reusable one, instead of --signer-workflow")
	flags.StringVar(&f.signerDigest, "signer-digest", "", "`COMMIT` of the workflow that must have signed (default: any)")
	flags.StringVar(&f.sourceDigest, "source-digest", "", "`COMMIT` that it must have been built from (default: any)")
	flags.BoolVar(&f.denySelfHosted, "deny-self-hosted-runners", false, "accept only what a runner of GitHub's signed")
	flags.StringVar(&f.runner, "runner-environment", "", "`KIND` of the runner that must have signed: github-hosted or self-hosted (default: any)")
	flags.StringVar(&f.hostname, "hostname", "", "`HOST` of GitHub that --repo or --owner is on, as octo.ghe.com (default: that of GITHUB_SERVER_URL, or github.com)")
	flags.StringVar(&f.ref, "source-ref", "", "`REF` that it must have been built from, as refs/heads/main (default: any)")
	flags.StringVar(&f.issuer, "cert-oidc-issuer", "", "`URL` of the issuer of the signer's identity (default: GitHub's)")
	flags.StringVar(&f.trustedRoot, "trusted-root", "", "Sigstore trusted root `FILE` (default: the public one, and GitHub's)")
	flags.StringVar(&f.localTrust, "local-trust", "", "accept only what the local trust root in `DIR` signed")
	flags.StringVar(&f.bundle, "bundle", "", "`FILE` of Sigstore bundles, one a line")
	flags.StringVar(&f.bundleFrom, "bundle-from", "auto", "where to fetch bundles: registry, github or auto")
	flags.StringArrayVar(&f.builders, "builder", nil, "`OWNER/REPO` of somebody else who built it again and attests the same, or OWNER/REPO/PATH of the workflow; may be repeated, or a list separated by commas or new lines")
	flags.IntVar(&f.requireBuilders, "require-builders", 0, "`NUMBER` of builders of different owners that must attest it, the signer among them (default: the signer and every --builder)")
	flags.BoolVar(&f.bundleFromOCI, "bundle-from-oci", false, "the same as --bundle-from=registry, as gh calls it")
	flags.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		switch name {
		case "ref": // what one tries first
			name = "source-ref"
		case "custom-trusted-root": // as gh calls it
			name = "trusted-root"
		}
		return pflag.NormalizedName(name)
	})
}

// verification is the result of verify artifact, as --format json prints it.
type verification struct {
	Reference string `json:"reference"`        // with the digest that was verified
	Verified  bool   `json:"verified"`         // whether every check holds
	Failed    string `json:"failed,omitempty"` // name of the first check that does not hold
	attest.Verdict
}

func (a *app) verifyArtifact(ctx context.Context, f verifyFlags, reference string) error {
	image, verdict, err := f.verify(ctx, reference)
	if err != nil {
		return err
	}
	if _, failed := verdict.Failed(); f.remeasure && !failed {
		checks, _, err := a.remeasure(ctx, f, image, verdict.Measurements)
		if err != nil {
			return err
		}
		verdict.Checks = append(verdict.Checks, checks...)
	}
	if err := a.printVerification(f.format, image.Reference, verdict); err != nil {
		return err
	}
	return tellVerified(image.Reference, verdict)
}

// tellVerified sets the outputs of a step, and its summary. It is called when
// every check holds, and for nothing else.
func tellVerified(ref artifact.Reference, verdict *attest.Verdict) error {
	if !gha.Enabled() {
		return nil
	}
	doc, err := measure.ParseDocument(verdict.Measurements)
	if err != nil {
		return fmt.Errorf("hand on what was verified of %s: %w", ref, err)
	}
	outputs := [][2]string{
		{"artifact", ref.String()}, {"digest", ref.Digest.String()},
		{"measurements", string(verdict.Measurements)},
		{"source-repository", verdict.Origin.Repository}, {"source-digest", verdict.Origin.Commit},
	}
	for _, n := range measure.DefaultPCRs {
		value := doc.PCR(n)
		if value == "" {
			continue
		}
		outputs = append(outputs, [2]string{"pcr" + strconv.Itoa(n), value})
	}
	for _, output := range outputs {
		if err := gha.SetOutput(output[0], output[1]); err != nil {
			return err
		}
	}
	return gha.AddSummary(verifiedMarkdown(ref, verdict, doc))
}

// verify opens an artifact and checks it, its attestations, and that it says of
// itself what is attested. The verdict may be that it does not verify: only one
// without a failed check says something about the artifact.
func (f *verifyFlags) verify(ctx context.Context, reference string) (*artifact.Artifact, *attest.Verdict, error) {
	ref, err := artifact.ParseReference(reference)
	if err != nil {
		return nil, nil, usageError{err}
	}
	expected, err := f.expectation()
	if err != nil {
		return nil, nil, usageError{err}
	}
	if err := f.validate(); err != nil {
		return nil, nil, err
	}
	trust, err := f.trust(ctx, expected.Host)
	if err != nil {
		return nil, nil, err
	}
	image, err := artifact.Open(ctx, ref)
	if err != nil {
		return nil, nil, err
	}
	digest := image.Reference.Digest
	sources, err := f.sources(image.Reference, expected)
	if err != nil {
		return nil, nil, err
	}
	verdict, err := attest.Verify(ctx, trust, expected, digest.Hex, sources...)
	if err == nil && f.voting() {
		err = f.vote(ctx, trust, expected, verdict, image.Reference)
	}
	if err != nil {
		return nil, nil, err
	}
	asked := "the one that " + ref.String() + " names"
	if ref.HasDigest() {
		asked = ref.Digest.String()
	}
	verdict.Checks = slices.Insert(verdict.Checks, 0, attest.Check{Name: "manifest", Expected: asked, Found: digest.String(), OK: true})
	if verdict.Measurements != nil {
		checks, err := compareInside(ctx, image, verdict.Measurements)
		if err != nil {
			return nil, nil, err
		}
		verdict.Checks = append(verdict.Checks, checks...)
	}
	return image, verdict, nil
}

// expectation reads who must have signed.
func (f *verifyFlags) expectation() (attest.Expectation, error) {
	e := attest.Expectation{
		Issuer: f.issuer, Repository: f.repository, Owner: f.owner, Workflow: f.workflow, Ref: f.ref, Local: f.localTrust != "",
		SignerRepository: f.signerRepository, SignerDigest: f.signerDigest, SourceDigest: f.sourceDigest, Runner: f.runner,
	}
	if f.denySelfHosted {
		if f.runner == attest.SelfHosted {
			return e, errors.New("--deny-self-hosted-runners and --runner-environment=self-hosted cannot both hold")
		}
		e.Runner = attest.GitHubHosted
	}
	server := gitHubServer()
	if f.hostname != "" {
		server = "https://" + f.hostname
	}
	// As gh writes a repository of another host than github.com.
	if strings.Count(f.repository, "/") == 2 {
		var host string
		host, e.Repository, _ = strings.Cut(f.repository, "/")
		if f.hostname != "" && !strings.EqualFold(host, f.hostname) {
			return e, fmt.Errorf("--repo names the host %s and --hostname %s", host, f.hostname)
		}
		server = "https://" + host
	}
	var err error
	e.Host, err = attest.ParseHost(server)
	if err != nil && (!errors.Is(err, attest.ErrServer) || f.issuer == "" && !e.Local) {
		return e, fmt.Errorf("%w; to verify what one signed, give --cert-oidc-issuer, too", err)
	}
	// gh writes a workflow with its host, too, where that is another.
	if u, err := url.Parse(e.Host.Server); err == nil {
		e.Workflow = strings.TrimPrefix(e.Workflow, u.Host+"/")
	}
	return e, e.Validate()
}

func (f *verifyFlags) validate() error {
	if f.bundleFromOCI && f.bundleFrom == "auto" {
		f.bundleFrom = "registry"
	}
	f.builders = strings.FieldsFunc(strings.Join(f.builders, ","), func(r rune) bool { return r == ',' || unicode.IsSpace(r) })
	switch {
	case f.format != "table" && f.format != "json":
		return usagef("--format: there is no format %q: give table or json", f.format)
	case !slices.Contains([]string{"auto", "registry", "github"}, f.bundleFrom):
		return usagef("--bundle-from: bundles come from registry, github or auto, not from %q; a file is named with --bundle", f.bundleFrom)
	case f.bundleFromOCI && f.bundleFrom != "registry":
		return usagef("--bundle-from-oci and --bundle-from=%s cannot both hold", f.bundleFrom)
	case f.bundle != "" && f.bundleFrom != "auto":
		return usagef("--bundle and --bundle-from cannot be given together")
	case f.localTrust != "" && f.trustedRoot != "":
		return usagef("--local-trust and --trusted-root cannot be given together")
	case f.localTrust != "" && f.voting():
		return usagef("what a local trust root signs is nobody's vote: leave out --builder and --require-builders")
	case f.requireBuilders < 0 || f.requireBuilders > 1+len(f.builders):
		return usagef("--require-builders=%d: there are the signer and %d of --builder: name more, or require from 1 to %d", f.requireBuilders, len(f.builders), 1+len(f.builders))
	case f.localTrust != "" && f.bundleFrom == "github":
		return usagef("GitHub keeps nothing that a local trust root signed: leave out --bundle-from")
	}
	_, err := f.namedBuilders()
	return err
}

func (f *verifyFlags) trust(ctx context.Context, host attest.Host) (*attest.Trust, error) {
	switch {
	case f.localTrust != "":
		return attest.ReadLocalTrust(f.localTrust)
	case f.trustedRoot != "":
		return attest.ReadTrust(f.trustedRoot)
	}
	return attest.PublicTrust(ctx, host, gitHubAt(host)), nil
}

// sources are where to look for bundles, in order.
func (f *verifyFlags) sources(ref artifact.Reference, expected attest.Expectation) ([]attest.Source, error) {
	if f.bundle != "" {
		bundles, err := attest.ReadBundles(f.bundle)
		if err != nil {
			return nil, err
		}
		return []attest.Source{{Name: f.bundle, Fetch: func(context.Context) ([]attest.Candidate, error) { return bundles, nil }}}, nil
	}
	registry := attest.Source{Name: "the registry", Fetch: func(ctx context.Context) ([]attest.Candidate, error) {
		return fetchReferrers(ctx, ref, attest.Predicates)
	}}
	if ref.IsLayout() {
		registry.Name = "the layout"
	}
	github := attest.Source{Name: gitHubName, Fetch: func(ctx context.Context) ([]attest.Candidate, error) {
		return gitHubAt(expected.Host).Bundles(ctx, expected.Scope(), ref.Digest.Hex)
	}}
	switch {
	case f.bundleFrom == "registry" || expected.Local:
		return []attest.Source{registry}, nil
	case f.bundleFrom == "github":
		return []attest.Source{github}, nil
	}
	return []attest.Source{registry, github}, nil
}

// gitHubServer is the URL of the GitHub that is meant when nobody names one.
func gitHubServer() string { return cmp.Or(os.Getenv("GITHUB_SERVER_URL"), "https://github.com") }

// tokenServer is the URL of the GitHub that the token is of: that which a job runs on, and
// for a person's what gh calls GH_HOST.
func tokenServer() string {
	if host := os.Getenv("GH_HOST"); host != "" && os.Getenv("GITHUB_SERVER_URL") == "" {
		return "https://" + host
	}
	return gitHubServer()
}

// gitHubAt is the API of a GitHub. A token and an API of the environment are those of one
// GitHub: about another one that API is not asked, and it gets no token.
func gitHubAt(host attest.Host) attest.GitHub {
	// An Enterprise Server is an error to ParseHost, and a host all the same.
	if own, _ := attest.ParseHost(tokenServer()); !strings.EqualFold(own.Server, host.Server) {
		return attest.GitHub{API: host.API()}
	}
	return attest.GitHub{API: cmp.Or(os.Getenv("GITHUB_API_URL"), host.API()), Token: gha.Token()}
}

// fetchReferrers fetches the bundles that hang on an artifact, of the predicates
// or of those that are not told.
func fetchReferrers(ctx context.Context, ref artifact.Reference, predicates []string) ([]attest.Candidate, error) {
	found, err := artifact.ListReferrers(ctx, ref, attest.BundleMediaType)
	if err != nil {
		return nil, err
	}
	referrers := found.Descriptors
	// Others can hang as much as they like on an artifact: what is not said to
	// be of use is not fetched, and what is said to be comes first.
	rank := func(d v1.Descriptor) int {
		switch predicate := d.Annotations[attest.AnnotationType]; {
		case slices.Contains(predicates, predicate):
			return 0
		case predicate == "":
			return 1
		}
		return 2
	}
	referrers = slices.DeleteFunc(referrers, func(d v1.Descriptor) bool { return rank(d) == 2 })
	slices.SortStableFunc(referrers, func(x, y v1.Descriptor) int { return rank(x) - rank(y) })
	return attest.FetchAll(ctx, len(referrers), func(i int) attest.Candidate {
		c := attest.Candidate{Source: "referrer " + referrers[i].Digest.String()}
		c.Data, c.Err = found.Get(ctx, referrers[i])
		return c
	})
}

// compareInside compares the attested measurements with what the artifact says
// of itself: the document inside it and the manifest's annotations.
func compareInside(ctx context.Context, image *artifact.Artifact, attested []byte) ([]attest.Check, error) {
	doc, err := measure.ParseDocument(attested)
	if err != nil {
		return []attest.Check{{Name: "attested measurements", Expected: "a measurements document", Found: err.Error()}}, nil
	}
	inside, err := image.Measurements(ctx)
	if err != nil {
		return nil, err
	}
	same, err := attest.CompareMeasurements(attested, inside)
	if err != nil {
		return nil, err
	}
	checks := []attest.Check{same}
	for _, n := range measure.IdentityPCRs {
		annotated := image.Manifest.Annotations["pcr"+strconv.Itoa(n)]
		if measure.MayLack(n) && doc.PCR(n) == "" && annotated == "" {
			continue
		}
		checks = append(checks, compared("annotation pcr"+strconv.Itoa(n), doc.PCR(n), annotated))
	}
	return checks, nil
}

// compared is a check that two values are the same, and there.
func compared(name, expected, found string) attest.Check {
	return attest.Check{Name: name, Expected: cmp.Or(expected, "nothing"), Found: cmp.Or(found, "nothing"), OK: expected == found && expected != ""}
}

// remeasure fetches the disk into a temporary file, checks it against the
// attested document, and predicts the PCRs again, and with them those of
// measure.IdentityPCRs that the document lacks. What was measured is returned, too,
// as far as it came.
func (a *app) remeasure(ctx context.Context, f verifyFlags, image *artifact.Artifact, attested []byte) ([]attest.Check, *measure.Document, error) {
	doc, err := measure.ParseDocument(attested)
	if err != nil {
		return nil, nil, err
	}
	if doc.Disk == nil {
		return []attest.Check{compared("disk", "", "")}, nil, nil
	}
	attestedPCRs := slices.Sorted(maps.Keys(doc.Measurements.PCRs))
	options := measure.Options{Bank: doc.Measurements.HashAlgorithm, Arch: doc.Architecture, PCRs: slices.Clone(attestedPCRs)}
	for _, n := range measure.IdentityPCRs {
		// What can have PCR 12 predicted can have these.
		if measure.MayLack(n) && doc.PCR(12) != "" {
			options.PCRs = append(options.PCRs, n)
		}
	}
	if options.SecureBoot, err = f.predict.secureBoot(); err != nil {
		return nil, nil, err
	}
	if doc.SecureBoot.Enabled && !options.SecureBoot.Enabled() {
		// The artifact's own variables will do: PCR 7 says whether they are those
		// that were attested.
		store, err := image.UEFIData(ctx)
		if err != nil {
			return nil, nil, err
		}
		if len(store) > 0 {
			if options.SecureBoot, err = variablesInStore(store); err != nil {
				return nil, nil, fmt.Errorf("measure %s again: %w: give its Secure Boot variables in --PK, --KEK, --db and --dbx", image.Reference, err)
			}
		}
	}
	if doc.SecureBoot.Enabled != options.SecureBoot.Enabled() {
		return nil, nil, usagef("measure %s again: the attested measurements are for Secure Boot %s: give the variables that they were made with in --PK, --KEK, --db and --dbx, or none", image.Reference, onOff(doc.SecureBoot.Enabled))
	}
	dir, err := os.MkdirTemp("", "attestable-image-")
	if err != nil {
		return nil, nil, fmt.Errorf("make room for the disk: %w", err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "image.raw")
	progress := a.newProgress("fetch disk", doc.Disk.Size)
	// The artifact as it was read knows no progress: it is opened once more,
	// by its digest.
	if image, err = artifact.Open(ctx, image.Reference, artifact.WithProgress(progress.add)); err == nil {
		err = image.RestoreDisk(ctx, path, doc.Disk.SHA256, doc.Disk.Size)
	}
	progress.finish()
	expected := fmt.Sprintf("sha256:%s, %d bytes", doc.Disk.SHA256, doc.Disk.Size)
	if err != nil {
		if ctx.Err() != nil {
			return nil, nil, err
		}
		return []attest.Check{{Name: "disk", Expected: expected, Found: err.Error()}}, nil, nil
	}
	checks := []attest.Check{{Name: "disk", Expected: expected, Found: expected, OK: true}}
	d, err := disk.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer d.Close()
	prediction, err := measure.Disk(ctx, d, options)
	if err != nil {
		return append(checks, attest.Check{Name: "disk measured again", Expected: "the attested PCRs", Found: err.Error()}), nil, nil
	}
	again := prediction.Document()
	again.Disk = doc.Disk // which RestoreDisk checked
	for _, n := range attestedPCRs {
		checks = append(checks, compared("PCR"+strconv.Itoa(n)+" measured again", doc.PCR(n), again.PCR(n)))
	}
	for _, difference := range measure.Compare(doc, again) {
		if !strings.HasPrefix(difference.Field, "PCR") {
			checks = append(checks, compared(difference.Field+" measured again", difference.Attested, difference.Measured))
		}
	}
	return checks, again, nil
}

// printVerification prints the verdict, and says on standard error what first
// does not hold.
func (a *app) printVerification(format string, ref artifact.Reference, verdict *attest.Verdict) error {
	failed, bad := verdict.Failed()
	if format == "json" {
		encoder := json.NewEncoder(a.stdout)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(verification{Reference: ref.String(), Verified: !bad, Failed: failed.Name, Verdict: *verdict}); err != nil {
			return err
		}
	} else if _, err := fmt.Fprint(a.stdout, verdictTable(ref, verdict, a.width())); err != nil {
		return err
	}
	if !bad {
		return nil
	}
	sentence := fmt.Sprintf("%s does not verify: %s: expected %s, found %s", ref, failed.Name, printable(failed.Expected), printable(failed.Found))
	fmt.Fprintf(a.stderr, "Error: %s\n", sentence)
	gha.Error(a.stderr, "attestable-image", sentence)
	return errDoesNotVerify
}
