package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/org/attestable-image-action/internal/ami"
	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/gha"
	"github.com/org/attestable-image-action/internal/measure"
)

// registerFlags are the flags of register-ami.
type registerFlags struct {
	verify verifyFlags

	region, name, description, family string
	copyTo, shareWith, tags           []string
	keep                              int
	zeroBlocks                        string
	encrypt                           bool
	kmsKey                            string
	timeLimit                         time.Duration
}

func newRegisterAMICommand(a *app) *cobra.Command {
	var f registerFlags
	cmd := &cobra.Command{
		Use:   "register-ami REF",
		Short: "Verify an artifact, stream its disk into an EBS snapshot, and register an AMI",
		Long: `Verify an artifact as 'verify artifact' does, and make an attestable AMI of it:
UEFI, TPM 2.0, IMDSv2, and the Secure Boot variables that the artifact carries.

Nothing is asked of AWS before the attestations hold for --repo and
--signer-workflow. Then the disk is streamed from the registry into an EBS
snapshot with the EBS direct APIs: no instance, no bucket, and no temporary
file. The snapshot is completed only when size and SHA-256 of the disk are the
attested ones. Credentials and region come from where AWS's tools take them.

An AMI of the same artifact that is there already is returned. A run that fails
or is stopped removes what it made, in each region by itself; what a killed run
left behind is removed by the next one. AMIs and snapshots bear tags that begin
with attestable-image: and say artifact, repository, commit, workflow and PCRs.

Zero blocks that touch neither a partition nor a partition table are left out
(--zero-blocks outside-partitions). "write" writes every block. "omit" leaves
out zero blocks inside partitions, too: they read as garbage on a volume that is
encrypted, now or when it is launched, and dm-verity then stops the machine.`,
		Example: `  attestable-image register-ami ghcr.io/owner/image@sha256:... --repo owner/image \
      --signer-workflow owner/image/.github/workflows/image.yml --source-ref refs/heads/main
  attestable-image register-ami ghcr.io/owner/image:v1 --repo owner/image \
      --signer-workflow owner/image/.github/workflows/image.yml \
      --region eu-central-1 --copy-to eu-west-1,us-east-1 --share-with 123456789012 --keep 3
  attestable-image register-ami oci:layout --local-trust trust --region eu-central-1`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("give the reference of the artifact to make an AMI of, and nothing else")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.registerAMI(cmd.Context(), f, args[0])
		},
	}
	flags := cmd.Flags()
	f.verify.add(flags)
	flags.Lookup("repo").Usage += "; needed"
	flags.Lookup("signer-workflow").Usage = "workflow that must have signed: `OWNER/REPO/PATH`, with or without @REF; needed"
	flags.StringVar(&f.verify.format, "format", "table", "table for people, or json for programs")
	flags.StringVar(&f.region, "region", "", "`REGION` to upload to (default: the configured one)")
	flags.StringVar(&f.name, "name", "", "`NAME` of the AMI (default: image name, version and the beginning of the digest)")
	flags.StringVar(&f.description, "description", "", "description of the AMI and its snapshot (default: the artifact's reference)")
	flags.StringVar(&f.family, "family", "", "`NAME` of the AMIs that replace each other, for --keep (default: the repository of the registry, the image's name and the architecture)")
	flags.StringSliceVar(&f.copyTo, "copy-to", nil, "further `REGION` to make the AMI in, which is uploaded to, too; repeatable, or separated by commas")
	flags.StringSliceVar(&f.shareWith, "share-with", nil, "`ACCOUNT`, or ARN of an organisation or organisational unit, that may launch the AMI; repeatable")
	flags.IntVar(&f.keep, "keep", 0, "deregister older AMIs of the family, with their snapshots, so that `N` remain in each region (default: all)")
	flags.StringVar(&f.zeroBlocks, "zero-blocks", ami.OutsidePartitions.String(), "zero blocks that are not written: outside-partitions, write (none) or omit (all)")
	flags.BoolVar(&f.encrypt, "encrypt", false, "encrypt the snapshot with the account's default key for EBS")
	flags.StringVar(&f.kmsKey, "kms-key", "", "encrypt it with the KMS key of this `ARN`")
	flags.StringArrayVar(&f.tags, "tag", nil, "further tag `KEY=VALUE` of AMI and snapshot; repeatable")
	flags.DurationVar(&f.timeLimit, "time-limit", 3*time.Hour, "give up, and remove what was made, after this `TIME`")
	return cmd
}

// errTimeLimit says why a run ended before it was done.
var errTimeLimit = errors.New("the time limit has passed: give more with --time-limit, or look at what is slow")

func (a *app) registerAMI(ctx context.Context, f registerFlags, reference string) error {
	spec, err := f.spec()
	if err != nil {
		return usageError{err}
	}
	artifactImage, verdict, err := f.verify.verify(ctx, reference)
	if err != nil {
		return err
	}
	if failed, bad := verdict.Failed(); bad || verdict.Measurements == nil {
		fmt.Fprint(a.stderr, verdictTable(artifactImage.Reference, verdict, 0))
		return fmt.Errorf("make an AMI of %s: it does not verify, and nothing was asked of AWS: %s: expected %s, found %s",
			artifactImage.Reference, failed.Name, failed.Expected, failed.Found)
	}
	doc, err := measure.ParseDocument(verdict.Measurements)
	if err != nil {
		return fmt.Errorf("make an AMI of %s: %w", artifactImage.Reference, err)
	}
	origin := ami.Origin{Repository: verdict.Origin.Repository, Commit: verdict.Origin.Commit, Workflow: verdict.Origin.Workflow}
	if f.verify.localTrust != "" {
		origin.Workflow = attest.LocalIdentity
	}
	image, err := ami.NewImage(ctx, artifactImage, doc, origin)
	if err != nil {
		return err
	}
	a.tell("verified: %d checks hold, and this is the artifact that is attested: %s", len(verdict.Checks), image.Reference())

	cloud, err := a.openCloud(ctx, f.region)
	if err != nil {
		return err
	}
	spec.Region = cloud.Region()
	if spec, err = image.CheckSpec(spec); err != nil {
		return usageError{err}
	}
	var bar *progress
	cloud.Begin = func(region string, total int64) {
		if bar != nil {
			bar.finish()
		}
		bar = a.newProgress("upload to "+region, total)
	}
	cloud.Progress = func(n int64) { bar.add(n) }
	limited, cancel := context.WithTimeoutCause(ctx, f.timeLimit, errTimeLimit)
	defer cancel()
	result, err := cloud.Register(limited, image, spec)
	if bar != nil {
		bar.finish()
	}
	if result != nil {
		r := registration{Artifact: image.Reference(), Architecture: image.Architecture(), Family: spec.Family, Result: *result}
		err = errors.Join(a.printRegistration(f.verify.format, r), err)
	}
	return err
}

// openCloud opens the AWS account, whose notes go to standard error.
func (a *app) openCloud(ctx context.Context, region string) (*ami.Cloud, error) {
	cloud, err := ami.Open(ctx, region)
	if err != nil {
		return nil, err
	}
	cloud.Note = func(note string) { a.tell("%s", note) }
	return cloud, nil
}

// tell prints what a person should know meanwhile.
func (a *app) tell(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintln(a.stderr, printable(fmt.Sprintf(format, args...)))
	}
}

// spec reads what is wanted of the AMI.
func (f *registerFlags) spec() (ami.Spec, error) {
	s := ami.Spec{
		Name: f.name, Description: f.description, Family: f.family, CopyTo: f.copyTo, Keep: f.keep,
		Encrypt: f.encrypt || f.kmsKey != "", KMSKey: f.kmsKey, Tags: map[string]string{},
	}
	if f.verify.localTrust == "" {
		// Whose artifact it must be is not left to a default here: what is
		// registered is launched.
		switch {
		case f.verify.repository == "":
			return s, errors.New("give the repository that the artifact must have been built from, --repo OWNER/REPO")
		case f.verify.workflow == "":
			return s, errors.New("give the workflow that must have signed, --signer-workflow OWNER/REPO/.github/workflows/FILE.yml")
		}
	}
	if f.timeLimit <= 0 {
		return s, fmt.Errorf("--time-limit: %s is no time to work in", f.timeLimit)
	}
	if f.keep < 0 {
		return s, fmt.Errorf("--keep: %d AMIs cannot be kept", f.keep)
	}
	var err error
	if s.Zeros, err = ami.ParseZeroBlocks(f.zeroBlocks); err != nil {
		return s, fmt.Errorf("--zero-blocks: %w", err)
	}
	for _, region := range append([]string{f.region}, f.copyTo...) {
		if region == "" {
			continue
		}
		if err := ami.CheckRegion(region); err != nil {
			return s, err
		}
	}
	if f.name != "" {
		if err := ami.CheckName(f.name); err != nil {
			return s, fmt.Errorf("--name: %w", err)
		}
	}
	for _, with := range f.shareWith {
		p, err := ami.ParsePrincipal(strings.TrimSpace(with))
		if err != nil {
			return s, fmt.Errorf("--share-with: %w", err)
		}
		s.ShareWith = append(s.ShareWith, p)
	}
	for _, tag := range f.tags {
		key, value, err := ami.ParseTag(tag)
		if err != nil {
			return s, fmt.Errorf("--tag: %w", err)
		}
		s.Tags[key] = value
	}
	return s, nil
}

// registration is the result of register-ami.
type registration struct {
	Artifact     string
	Architecture string
	Family       string
	ami.Result
}

// registrationReport is the result of register-ami, as --format json prints it.
type registrationReport struct {
	Artifact     string `json:"artifact"` // REPOSITORY@sha256:HEX
	Name         string `json:"name"`     // of the AMI
	Region       string `json:"region"`   // that it was registered in first
	ImageID      string `json:"ami-id"`
	SnapshotID   string `json:"snapshot-id"`
	Architecture string `json:"architecture"`
	Family       string `json:"family"`  // the AMIs that replace each other
	Existed      bool   `json:"existed"` // whether an earlier run registered it
	// AMIs are all of them, by region.
	AMIs    map[string]registeredAMI `json:"amis"`
	Removed []ami.Removed            `json:"removed"` // older ones, of --keep
}

// registeredAMI is an AMI as --format json and the step's output show it.
type registeredAMI struct {
	ImageID    string `json:"ami-id"`
	SnapshotID string `json:"snapshot-id"`
}

func (r *registration) byRegion() map[string]registeredAMI {
	amis := map[string]registeredAMI{}
	for _, placed := range r.AMIs {
		amis[placed.Region] = registeredAMI{placed.ImageID, placed.SnapshotID}
	}
	return amis
}

// printRegistration prints the result, and tells it to the runner.
func (a *app) printRegistration(format string, r registration) error {
	first := r.AMIs[0]
	amis, err := json.Marshal(r.byRegion())
	if err != nil {
		return fmt.Errorf("print the AMIs: %w", err)
	}
	if format == "json" {
		err = r.printJSON(a.stdout)
	} else {
		err = r.printTable(a.stdout)
	}
	for _, output := range []struct{ name, value string }{
		{"ami-id", first.ImageID}, {"snapshot-id", first.SnapshotID}, {"amis", string(amis)},
	} {
		err = errors.Join(err, gha.SetOutput(output.name, output.value))
	}
	return errors.Join(err, gha.AddSummary(r.markdown()))
}

func (r *registration) printJSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(registrationReport{
		r.Artifact, r.AMIs[0].Name, r.AMIs[0].Region, r.AMIs[0].ImageID, r.AMIs[0].SnapshotID, r.Architecture, r.Family,
		r.AMIs[0].Existed, r.byRegion(), append([]ami.Removed{}, r.Removed...),
	})
}

func (r *registration) printTable(w io.Writer) error {
	var b strings.Builder
	for _, placed := range r.AMIs {
		state := "registered"
		if placed.Existed {
			state = "was there"
		}
		fmt.Fprintf(&b, "%-16s %-21s %-22s %-10s  %s\n", placed.Region, placed.ImageID, placed.SnapshotID, state, printable(placed.Name))
	}
	for _, removed := range r.Removed {
		fmt.Fprintf(&b, "%-16s %-21s %-22s %-10s  %s\n", removed.Region, removed.ImageID, strings.Join(removed.Snapshots, ","), "removed", printable(removed.Name))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
