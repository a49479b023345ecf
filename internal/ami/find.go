package ami

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// describeImages lists the account's own AMIs, the oldest first.
func (r *region) describeImages(ctx context.Context, filters ...types.Filter) ([]types.Image, error) {
	a := action{"look for AMIs", "ec2:DescribeImages", "*"}
	var images []types.Image
	in := &ec2.DescribeImagesInput{Owners: []string{"self"}, Filters: filters, IncludeDisabled: aws.Bool(true)}
	for {
		out, err := try(ctx, r, a, func(ctx context.Context) (*ec2.DescribeImagesOutput, error) { return r.ec2.DescribeImages(ctx, in) })
		if err != nil {
			return nil, err
		}
		images = append(images, out.Images...)
		if aws.ToString(out.NextToken) == "" {
			break
		}
		in.NextToken = out.NextToken
	}
	slices.SortStableFunc(images, func(x, y types.Image) int {
		return cmp.Or(cmp.Compare(aws.ToString(x.CreationDate), aws.ToString(y.CreationDate)), cmp.Compare(aws.ToString(x.ImageId), aws.ToString(y.ImageId)))
	})
	return images, nil
}

// describeSnapshots lists the account's own snapshots.
func (r *region) describeSnapshots(ctx context.Context, filters ...types.Filter) ([]types.Snapshot, error) {
	a := action{"look for snapshots", "ec2:DescribeSnapshots", "*"}
	var snapshots []types.Snapshot
	in := &ec2.DescribeSnapshotsInput{OwnerIds: []string{"self"}, Filters: filters}
	for {
		out, err := try(ctx, r, a, func(ctx context.Context) (*ec2.DescribeSnapshotsOutput, error) {
			return r.ec2.DescribeSnapshots(ctx, in)
		})
		if err != nil {
			return nil, err
		}
		snapshots = append(snapshots, out.Snapshots...)
		if aws.ToString(out.NextToken) == "" {
			return snapshots, nil
		}
		in.NextToken = out.NextToken
	}
}

func filter(name string, values ...string) types.Filter {
	return types.Filter{Name: aws.String(name), Values: values}
}

// snapshotOf is the snapshot of an AMI's root volume, or "".
func snapshotOf(image types.Image) string {
	for _, mapping := range image.BlockDeviceMappings {
		if mapping.Ebs != nil && aws.ToString(mapping.DeviceName) == aws.ToString(image.RootDeviceName) {
			return aws.ToString(mapping.Ebs.SnapshotId)
		}
	}
	return ""
}

// snapshotsOf are the snapshots of all of an AMI's volumes.
func snapshotsOf(image types.Image) []string {
	var ids []string
	for _, mapping := range image.BlockDeviceMappings {
		if mapping.Ebs != nil && aws.ToString(mapping.Ebs.SnapshotId) != "" {
			ids = append(ids, aws.ToString(mapping.Ebs.SnapshotId))
		}
	}
	return ids
}

// unfit says what keeps an AMI from being the one that is wanted, or "".
func (w *work) unfit(image types.Image) string {
	tags := tagsOf(image.Tags)
	for key, want := range w.image.tags(w.spec.Family) {
		if key != tagFamily && key != tagArtifact && tags[key] != want {
			return fmt.Sprintf("its tag %s is %q and not %q", key, tags[key], want)
		}
	}
	switch {
	case image.Architecture != w.image.architecture:
		return fmt.Sprintf("its architecture is %s and not %s", image.Architecture, w.image.architecture)
	case image.BootMode != types.BootModeValuesUefi:
		return fmt.Sprintf("its boot mode is %q and not uefi", image.BootMode)
	case image.TpmSupport != types.TpmSupportValuesV20:
		return "it has no TPM 2.0"
	case image.ImdsSupport != types.ImdsSupportValuesV20:
		return "it does not demand IMDSv2"
	case !aws.ToBool(image.EnaSupport) || image.VirtualizationType != types.VirtualizationTypeHvm:
		return "it lacks HVM or ENA"
	case image.State == types.ImageStateAvailable && snapshotOf(image) == "":
		return "it has no snapshot"
	case w.spec.Encrypt && image.State == types.ImageStateAvailable && !isEncrypted(image):
		return "its snapshot is not encrypted"
	}
	return ""
}

func isEncrypted(image types.Image) bool {
	for _, mapping := range image.BlockDeviceMappings {
		if mapping.Ebs != nil && aws.ToBool(mapping.Ebs.Encrypted) {
			return true
		}
	}
	return false
}

// find looks for the AMI of the artifact, complete and as it is wanted; nil when
// there is none. One that another run is just making is waited for.
func (w *work) find(ctx context.Context, r *region) (*Placed, error) {
	images, err := r.describeImages(ctx, filter("tag:"+tagDigest, w.image.Digest()))
	if err != nil {
		return nil, err
	}
	for _, image := range images {
		id := aws.ToString(image.ImageId)
		switch image.State {
		case types.ImageStateAvailable, types.ImageStatePending, types.ImageStateTransient:
		case types.ImageStateDisabled:
			return nil, fmt.Errorf("look for AMIs in %s: %s is the AMI of this artifact, and somebody disabled it: enable it, or deregister it", r.name, id)
		default:
			r.note("AMI %s in %s is of this artifact, but its state is %s: it is passed over", id, r.name, image.State)
			continue
		}
		if why := w.unfit(image); why != "" {
			r.note("AMI %s in %s is of this artifact, but %s: it is passed over", id, r.name, why)
			continue
		}
		if image.State != types.ImageStateAvailable {
			r.note("AMI %s in %s is being made by another run: waiting for it", id, r.name)
			done, err := r.waitForImage(ctx, id)
			if ctx.Err() != nil {
				return nil, err
			}
			if err != nil {
				r.note("%v", err)
				continue
			}
			if image = *done; w.unfit(image) != "" {
				continue
			}
		}
		placed := &Placed{Region: r.name, ImageID: id, SnapshotID: snapshotOf(image), Name: aws.ToString(image.Name), Existed: true}
		if tagsOf(image.Tags)[tagRun] == w.run.token {
			placed.Existed = false
		}
		return placed, nil
	}
	return nil, nil
}

// checkName fails when another AMI has the name that is wanted, before anything
// is uploaded for it.
func (w *work) checkName(ctx context.Context, r *region) error {
	images, err := r.describeImages(ctx, filter("name", w.spec.Name))
	if err != nil || len(images) == 0 {
		return err
	}
	return w.nameTaken(r, images[0])
}

func (w *work) nameTaken(r *region, image types.Image) error {
	what := "which is not of this artifact"
	if tagsOf(image.Tags)[tagDigest] == w.image.Digest() {
		what = "which is of this artifact, but not as it is wanted"
		if why := w.unfit(image); why != "" {
			what += " (" + why + ")"
		}
	}
	return fmt.Errorf("register the AMI in %s: the name %q is that of %s, %s: give another one with --name, or deregister that AMI", r.name, w.spec.Name, aws.ToString(image.ImageId), what)
}

// checkArchitecture fails when a region has no instance that could run the AMI.
// Where the credentials may not ask, nothing is known.
func (r *region) checkArchitecture(ctx context.Context, architecture types.ArchitectureValues) error {
	a := action{"look for instance types", "ec2:DescribeInstanceTypes", "*"}
	in := &ec2.DescribeInstanceTypesInput{MaxResults: aws.Int32(5), Filters: []types.Filter{
		filter("processor-info.supported-architecture", string(architecture)),
		filter("nitro-tpm-support", "supported"),
	}}
	for {
		out, err := try(ctx, r, a, func(ctx context.Context) (*ec2.DescribeInstanceTypesOutput, error) {
			return r.ec2.DescribeInstanceTypes(ctx, in)
		})
		switch {
		case isCode(err, deniedCodes...):
			r.note("whether %s has instances for %s with a NitroTPM was not checked: the credentials lack ec2:DescribeInstanceTypes", r.name, architecture)
			return nil
		case err != nil:
			return err
		case len(out.InstanceTypes) > 0:
			return nil
		case aws.ToString(out.NextToken) == "":
			return fmt.Errorf("look for instance types in %s: there is none of architecture %s with a NitroTPM: choose another region", r.name, architecture)
		}
		in.NextToken = out.NextToken
	}
}

// usedSnapshots tells which of these snapshots AMIs are made of.
func (r *region) usedSnapshots(ctx context.Context, ids []string) (map[string]bool, error) {
	used := map[string]bool{}
	for batch := range slices.Chunk(ids, 100) { // of a filter's 200 values
		images, err := r.describeImages(ctx, filter("block-device-mapping.snapshot-id", batch...))
		if err != nil {
			return nil, err
		}
		for _, image := range images {
			for _, id := range snapshotsOf(image) {
				used[id] = true
			}
		}
	}
	return used, nil
}
