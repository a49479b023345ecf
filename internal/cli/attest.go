package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/audit"
	"github.com/org/attestable-image-action/internal/gha"
	"github.com/org/attestable-image-action/internal/measure"
)

// attestFlags are the flags of attest.
type attestFlags struct {
	sboms                      sbomFiles
	signingConfig, trustedRoot string
	localTrust                 string
	bundleOutput               string
	audit                      string
	release                    string
	rebuilt                    string
	storageRecord              bool
	urls                       instanceURLs
}

// instanceURLs are the services of a private Sigstore deployment, one by one.
type instanceURLs struct {
	fulcio, rekor, timestamp, issuer string
	rekorVersion                     uint32
}

func (u *instanceURLs) add(flags *pflag.FlagSet) {
	flags.StringVar(&u.fulcio, "fulcio-url", "", "`URL` of the certificate authority of a private Sigstore deployment; needs --trusted-root")
	flags.StringVar(&u.rekor, "rekor-url", "", "`URL` of its transparency log (default: none)")
	flags.Uint32Var(&u.rekorVersion, "rekor-version", 1, "version of the log's API: 1 or 2")
	flags.StringVar(&u.timestamp, "timestamp-server-url", "", "`URL` of its timestamp authority, with the path: https://HOST/api/v1/timestamp")
	flags.StringVar(&u.issuer, "oidc-issuer", "", "`URL` of the issuer of the job's identity that it takes (default: GitHub's)")
}

// given reports whether any of them was named.
func (u *instanceURLs) given() bool {
	return *u != instanceURLs{rekorVersion: 1}
}

func (u *instanceURLs) instance() (attest.Instance, error) {
	i := attest.Instance{Name: u.fulcio, Fulcio: u.fulcio, Issuer: u.issuer}
	if u.timestamp != "" {
		i.Timestamps = []string{u.timestamp}
	}
	if u.rekor != "" {
		i.Logs = []attest.Log{{URL: u.rekor, Version: u.rekorVersion}}
	}
	return i, i.Validate()
}

func newAttestCommand(a *app) *cobra.Command {
	var f attestFlags
	cmd := &cobra.Command{
		Use:   "attest REF@DIGEST",
		Short: "Attest an artifact's provenance and measurements",
		Long: `Attest an artifact in a job of GitHub Actions: make two statements about its
manifest's digest (SLSA provenance, as GitHub's own attest action makes it, and
the measurements inside the artifact), sign them with the job's identity, verify
the signatures, and store the bundles with GitHub and beside the artifact.
--audit adds a third statement: what inspect found that the image leaves open.
--release adds the bundles to a release, too.

What was attested before is not attested again: of the same digest, by the same run
of the workflow, with the same content, and of provenance by the same attempt. A run
that was stopped is completed by its next attempt; another run attests all of it, since
verify artifact takes nothing together that is not of one run.

A public repository signs with the public Sigstore, whose log everybody can
read; a private one with GitHub's, and a tenant of ghe.com with its own;
--signing-config or --fulcio-url names another deployment.
The job needs the permissions id-token: write, attestations: write, and
packages: write for ghcr.io.

--rebuilt is for a second builder, who did not make the artifact: it attests the
measurements alone, after they were compared with those that rebuild --measurements
wrote, and stores the bundle with the builder's own repository on GitHub (verify
artifact --builder looks there), not beside the artifact.

--sbom adds a statement of what is installed, as sbom or another tool lists it.

--local-trust signs without GitHub, with throw-away keys in DIR that are made
when there are none. Such an attestation proves only that the holder of DIR
signed; nothing but --local-trust DIR verifies it.`,
		Example: `  attestable-image attest ghcr.io/owner/image@sha256:...
  attestable-image attest --bundle-output bundles.jsonl ghcr.io/owner/image@sha256:...
  attestable-image attest --rebuilt rebuilt.json ghcr.io/owner/image@sha256:...
  attestable-image attest --local-trust trust oci:layout@sha256:...`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("give the artifact to attest as REF@DIGEST, and nothing else")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.attest(cmd.Context(), f, args[0])
		},
	}
	flags := cmd.Flags()
	f.sboms.add(flags)
	flags.StringVar(&f.signingConfig, "signing-config", "", "Sigstore signing configuration `FILE` of a private deployment; needs --trusted-root")
	flags.StringVar(&f.trustedRoot, "trusted-root", "", "Sigstore trusted root `FILE` to verify the new bundles with (default: the public one)")
	flags.StringVar(&f.localTrust, "local-trust", "", "sign with a local trust root in `DIR`, which is created when it is missing")
	flags.StringVar(&f.audit, "audit", "", "attest this audit report, too: `FILE` that inspect --audit-output wrote for the artifact's disk")
	flags.StringVar(&f.release, "release", "", "add the bundles to the release with this `TAG`, too, as attestations-DIGEST.jsonl; needs contents: write")
	flags.BoolVar(&f.storageRecord, "storage-record", true, "tell the organization's page of linked artifacts where the artifact is; needs artifact-metadata: write")
	flags.StringVar(&f.rebuilt, "rebuilt", "", "attest as a second builder that the disk was built again: `FILE` that rebuild --measurements wrote")
	f.urls.add(flags)
	flags.StringVar(&f.bundleOutput, "bundle-output", "", "append the bundles to `FILE`, one a line")
	return cmd
}

func (f *attestFlags) validate() error {
	switch {
	case f.localTrust != "" && (f.signingConfig != "" || f.trustedRoot != "" || f.urls.given()):
		return usagef("--local-trust signs without any Sigstore deployment: leave out --signing-config, --trusted-root and URLs")
	case f.localTrust != "" && f.release != "":
		return usagef("what a local trust root signs is nothing for a release: leave out --release")
	case f.rebuilt != "" && f.localTrust != "":
		return usagef("a local trust root says nothing of who built: --rebuilt needs the identity of a job")
	case f.rebuilt != "" && (f.release != "" || f.audit != "" || strings.Join(f.sboms, "") != ""):
		return usagef("a second builder attests the measurements and nothing else: leave out --release, --audit and --sbom")
	case f.signingConfig != "" && f.urls.given():
		return usagef("--signing-config names the services already: leave out --fulcio-url, --rekor-url, --rekor-version, --timestamp-server-url and --oidc-issuer")
	case f.urls.given() && f.urls.fulcio == "":
		return usagef("a private Sigstore deployment needs a certificate authority: give --fulcio-url, too")
	case f.urls.given() && f.trustedRoot == "":
		return usagef("--fulcio-url needs --trusted-root: the public trust root does not know a private deployment")
	case f.signingConfig != "" && f.trustedRoot == "":
		return usagef("--signing-config needs --trusted-root: the public trust root does not know a private deployment")
	}
	return nil
}

func (a *app) attest(ctx context.Context, f attestFlags, reference string) error {
	if err := f.validate(); err != nil {
		return err
	}
	ref, err := artifact.ParseReference(reference)
	if err != nil {
		return usageError{err}
	}
	if !ref.HasDigest() {
		return usagef("attest %s: a tag can be moved while one attests: give the digest that push printed, %s@sha256:...", ref, ref.Place())
	}
	sboms, err := f.sboms.read()
	if err != nil {
		return err
	}
	auditReport, err := readAudit(f.audit)
	if err != nil {
		return err
	}
	// What is missing for signing is told before anything is fetched.
	job, err := a.newJob(ctx, f)
	if err != nil {
		return err
	}
	image, err := artifact.Open(ctx, ref)
	if err != nil {
		return err
	}
	measurements, err := image.Measurements(ctx)
	if err != nil {
		return err
	}
	doc, err := checkBeforeAttesting(image, measurements)
	if err != nil {
		return err
	}
	if f.rebuilt != "" {
		if err := checkRebuilt(f.rebuilt, image, doc); err != nil {
			return err
		}
	}
	provenance, err := attest.AddDependencies(job.provenance, dependencies(doc.Builder))
	if err != nil {
		return err
	}
	if err := checkSBOMs(sboms, measurements); err != nil {
		return err
	}
	subject := ref.Place()
	if ref.IsLayout() {
		subject = image.Name
	}
	attestations := []*attestation{
		{predicateType: attest.PredicateProvenance, predicate: provenance},
		{predicateType: attest.PredicateMeasurements, predicate: measurements},
	}
	if f.rebuilt != "" {
		attestations = attestations[1:] // whose provenance it is, somebody else says
	}
	attestations = append(attestations, sbomAttestations(sboms)...)
	if auditReport != nil {
		attestations = append(attestations, &attestation{predicateType: attest.PredicateAudit, predicate: auditReport})
	}
	for _, made := range attestations {
		if made.statement, err = attest.NewStatement(subject, image.Reference.Digest.Hex, made.predicateType, made.predicate); err != nil {
			return err
		}
	}
	stores, err := job.stores(ctx, f, image.Reference)
	if err != nil {
		return err
	}
	if err := job.findExisting(ctx, stores, attestations); err != nil {
		return err
	}
	if err := job.sign(ctx, attestations); err != nil {
		return err
	}
	if err := writeBundles(f.bundleOutput, attestations); err != nil {
		return err
	}
	// For the step summary: no variable of the environment says it.
	if err := gha.SetOutput("signer-workflow", job.workflow); err != nil {
		return err
	}
	if err := a.storeBundles(ctx, stores, attestations); err != nil {
		return err
	}
	if err := job.outputs(attestations); err != nil {
		return err
	}
	if !f.storageRecord || f.rebuilt != "" {
		return nil
	}
	return a.record(ctx, job, image.Reference, image.Manifest.Annotations[artifact.AnnotationVersion])
}

// attestation is one in the making.
type attestation struct {
	predicateType string
	predicate     []byte
	statement     *attest.Statement
	bundle        []byte // once it is signed
	reused        bool   // the bundle is one of an earlier run
	stored        []bool // by store, whether it was there before
	id            string // GitHub's number, once GitHub stored it
}

// readAudit reads the report of --audit, and nothing when there is none.
func readAudit(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	content, err := readBounded(path, attest.MaxPredicate)
	if err == nil {
		_, err = audit.ParseReport(content)
	}
	if err != nil {
		return nil, fmt.Errorf("attest the audit report: %s: %w", path, err)
	}
	return content, nil
}

// checkBeforeAttesting refuses to put a signature under a contradiction.
func checkBeforeAttesting(image *artifact.Artifact, measurements []byte) (*measure.Document, error) {
	doc, err := measure.ParseDocument(measurements)
	if err != nil {
		return nil, fmt.Errorf("attest %s: %w", image.Reference, err)
	}
	for _, n := range measure.IdentityPCRs {
		name := "pcr" + strconv.Itoa(n)
		if annotated := image.Manifest.Annotations[name]; annotated != doc.PCR(n) {
			return nil, fmt.Errorf("attest %s: the manifest's annotation %s is %q and the measurements say %q: push the artifact again", image.Reference, name, annotated, doc.PCR(n))
		}
	}
	return doc, nil
}

// checkRebuilt compares what a second builder measured with what the artifact says.
func checkRebuilt(path string, image *artifact.Artifact, doc *measure.Document) error {
	content, err := readBounded(path, maxMeasurements)
	if err != nil {
		return usagef("read what was built again: %w", err)
	}
	rebuilt, err := measure.ParseDocument(content)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if doc.Disk == nil {
		return fmt.Errorf("attest %s: its measurements do not say which disk they are of", image.Reference)
	}
	if differences := measure.Compare(doc, rebuilt); len(differences) > 0 {
		d := differences[0]
		return fmt.Errorf("attest %s: what was built again is another image: %s is %s in the artifact and %s in %s", image.Reference, d.Field, d.Attested, d.Measured, path)
	}
	return nil
}

// dependencies are what the disk was built with and from, for the provenance, beside
// the source.
func dependencies(b *measure.BuilderInfo) []attest.Dependency {
	if b == nil {
		return nil
	}
	list := []attest.Dependency{
		{Name: "builder", URI: "oci://" + b.Image, SHA256: strings.TrimPrefix(b.Digest, "sha256:")},
		{Name: "builder packages", SHA256: b.PackagesSHA256},
		{Name: "description", SHA256: b.Inputs.DescriptionSHA256},
	}
	if b.Inputs.PackagesSHA256 != "" {
		list = append(list, attest.Dependency{Name: "packages", SHA256: b.Inputs.PackagesSHA256})
	}
	return list
}

// job is who attests, and where the attestations go.
type job struct {
	signer     *attest.Signer
	provenance []byte
	author     attest.Author // who signs
	repository string        // OWNER/REPO; empty for a local trust root
	workflow   string        // OWNER/REPO/PATH@REF that holds the job; likewise
	host       attest.Host
	github     attest.GitHub
}

func (a *app) newJob(ctx context.Context, f attestFlags) (*job, error) {
	if f.localTrust != "" {
		return a.newLocalJob(f.localTrust)
	}
	if !gha.Enabled() {
		return nil, errors.New("attest: there is no identity to sign with outside of a GitHub Actions job: run it in a workflow, or sign with throw-away keys: --local-trust DIR")
	}
	j := new(job)
	var hostErr error
	if j.host, hostErr = attest.ParseHost(gitHubServer()); hostErr != nil && !errors.Is(hostErr, attest.ErrServer) {
		return nil, hostErr
	}
	var instance attest.Instance
	var err error
	private := f.signingConfig != "" || f.urls.given()
	switch {
	case f.signingConfig != "":
		instance, err = attest.ReadInstance(f.signingConfig)
	case private:
		instance, err = f.urls.instance()
	}
	if err != nil {
		return nil, err
	}
	j.github = attest.GitHub{API: os.Getenv("GITHUB_API_URL"), Token: gha.Token()}
	if j.github.API == "" {
		j.github.API = j.host.API()
	}
	trust := attest.PublicTrust(ctx, j.host, j.github)
	if f.trustedRoot != "" {
		if trust, err = attest.ReadTrust(f.trustedRoot); err != nil {
			return nil, err
		}
	}
	issuer := instance.Issuer
	if issuer == "" {
		if hostErr != nil {
			return nil, fmt.Errorf("attest on %s: %w", j.host.Server, hostErr)
		}
		issuer = j.host.Issuer
	}
	if j.github.Token == "" {
		return nil, errors.New("attest: there is no token to store the attestations with: set GITHUB_TOKEN (in a workflow: env: GITHUB_TOKEN: ${{ github.token }}) and give the job 'permissions: attestations: write'")
	}
	token, err := gha.IDToken(ctx, attest.AudienceClaims)
	if err != nil {
		return nil, fmt.Errorf("attest: %w", err)
	}
	claims, err := attest.VerifyToken(ctx, token, issuer, attest.AudienceClaims)
	if err != nil {
		return nil, err
	}
	if !private {
		instance = attest.InstanceFor(j.host, claims.Visibility)
	}
	if !a.quiet {
		fmt.Fprintf(a.stderr, "signing as %s with %s\n", claims.JobWorkflowRef, instance.Name)
	}
	j.repository, j.workflow, j.author = claims.Repository, claims.JobWorkflowRef, claims.Author(j.host.Server)
	if j.provenance, err = claims.Provenance(j.host.Server); err != nil {
		return nil, err
	}
	j.signer = attest.NewSigner(instance, func(ctx context.Context) (string, error) {
		return gha.IDToken(ctx, attest.AudienceSigning)
	}, trust)
	return j, nil
}

// newLocalJob signs with a local trust root, and says so whatever --quiet says.
func (a *app) newLocalJob(dir string) (*job, error) {
	local, err := attest.OpenLocalTrust(dir)
	if err != nil {
		return nil, err
	}
	if local.Created {
		fmt.Fprintf(a.stderr, "created a local trust root in %s; its keys are not encrypted\n", dir)
	}
	fmt.Fprintf(a.stderr, "signing with the local trust root %s: this proves that its holder signed, not who built the image; only --local-trust verifies it\n", dir)
	provenance, err := attest.LocalProvenance()
	if err != nil {
		return nil, err
	}
	return &job{signer: attest.NewLocalSigner(local), provenance: provenance, author: attest.LocalAuthor}, nil
}

// writeBundles appends the bundles to a file before they are stored, so that a
// store that refuses does not cost them. In a job there always is a file.
func writeBundles(path string, attestations []*attestation) error {
	bundles := make([][]byte, len(attestations))
	for i, a := range attestations {
		bundles[i] = a.bundle
	}
	temp := os.Getenv("RUNNER_TEMP")
	inJob := gha.Enabled() && temp != ""
	if path == "" {
		if !inJob {
			return nil
		}
		file, err := os.CreateTemp(temp, "attestations-*.jsonl")
		if err != nil {
			return fmt.Errorf("write the bundles: %w", err)
		}
		path = file.Name()
		if err := file.Close(); err != nil {
			return fmt.Errorf("write the bundles: %w", err)
		}
	}
	if err := attest.AppendBundles(path, bundles...); err != nil {
		return fmt.Errorf("write the bundles: %w", err)
	}
	if !gha.Enabled() {
		return nil
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("write the bundles: %w", err)
	}
	if inJob {
		if err := attest.RecordPath(temp, absolute); err != nil {
			return fmt.Errorf("tell later steps of the bundles: %w", err)
		}
	}
	return gha.SetOutput("bundle-path", absolute)
}
