package ami

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// Removed is an AMI that was deregistered, and its snapshots that were deleted.
type Removed struct {
	Region    string   `json:"region"`
	ImageID   string   `json:"ami-id"`
	Name      string   `json:"name"`
	Snapshots []string `json:"snapshot-ids"`
}

// Deregister deregisters AMIs and deletes their snapshots. All of them must have
// been made by Register: otherwise nothing is done. One that fails does not keep
// the others.
func (c *Cloud) Deregister(ctx context.Context, ids []string) ([]Removed, error) {
	if err := c.authenticate(ctx); err != nil {
		return nil, err
	}
	r := c.region(c.Region())
	images, err := r.describeImages(ctx, filter("image-id", ids...))
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		at := slices.IndexFunc(images, func(image types.Image) bool { return aws.ToString(image.ImageId) == id })
		if at < 0 {
			return nil, fmt.Errorf("deregister AMI %s: the account has none such in %s: check the identifier and the region", id, r.name)
		}
		if tagsOf(images[at].Tags)[tagDigest] == "" {
			return nil, fmt.Errorf("deregister AMI %s: it lacks the tag %s, so that register-ami did not make it: use `aws ec2 deregister-image` if it must go", id, tagDigest)
		}
	}
	return r.deregisterAll(ctx, images)
}

// DeregisterFamily deregisters the AMIs of a family but for the newest ones, of
// which it keeps that many.
func (c *Cloud) DeregisterFamily(ctx context.Context, family string, keep int) ([]Removed, error) {
	if err := c.authenticate(ctx); err != nil {
		return nil, err
	}
	return c.region(c.Region()).keep(ctx, family, keep, "")
}

// keep removes the older AMIs of a family so that n remain. The one with the
// identifier current is always one of those.
func (r *region) keep(ctx context.Context, family string, n int, current string) ([]Removed, error) {
	images, err := r.describeImages(ctx, filter("tag:"+tagFamily, family))
	if err != nil {
		return nil, err
	}
	// Only what this program made, and what is complete: a pending one is another
	// run's.
	images = slices.DeleteFunc(images, func(image types.Image) bool {
		tags := tagsOf(image.Tags)
		return tags[tagFamily] != family || tags[tagDigest] == "" ||
			image.State != types.ImageStateAvailable && image.State != types.ImageStateDisabled
	})
	if current != "" {
		images = slices.DeleteFunc(images, func(image types.Image) bool { return aws.ToString(image.ImageId) == current })
		n--
	}
	if len(images) <= n {
		return nil, nil
	}
	return r.deregisterAll(ctx, images[:len(images)-n])
}

func (r *region) deregisterAll(ctx context.Context, images []types.Image) ([]Removed, error) {
	removed := make([]Removed, 0, len(images))
	var failures []error
	for _, image := range images {
		if ctx.Err() != nil {
			return removed, errors.Join(append(failures, context.Cause(ctx))...)
		}
		done, err := r.deregister(ctx, image)
		if done != nil {
			removed = append(removed, *done)
		}
		failures = append(failures, err)
	}
	return removed, errors.Join(failures...)
}

// deregister deregisters an AMI and deletes its snapshots, except those that
// other AMIs are made of, too.
func (r *region) deregister(ctx context.Context, image types.Image) (*Removed, error) {
	id := aws.ToString(image.ImageId)
	a := action{"deregister AMI " + id, "ec2:DeregisterImage", r.arn("image/" + id)}
	out, err := try(ctx, r, a, func(ctx context.Context) (*ec2.DeregisterImageOutput, error) {
		return r.ec2.DeregisterImage(ctx, &ec2.DeregisterImageInput{ImageId: &id, DeleteAssociatedSnapshots: aws.Bool(true)})
	})
	if err != nil && !isCode(err, "InvalidAMIID.NotFound", "InvalidAMIID.Unavailable") {
		return nil, err
	}
	results := map[string]types.SnapshotReturnCodes{}
	if out != nil {
		for _, result := range out.DeleteSnapshotResults {
			results[aws.ToString(result.SnapshotId)] = result.ReturnCode
		}
	}
	removed := &Removed{Region: r.name, ImageID: id, Name: aws.ToString(image.Name)}
	var failures []error
	for _, snapshot := range snapshotsOf(image) {
		switch results[snapshot] {
		case types.SnapshotReturnCodesSuccess:
		case types.SnapshotReturnCodesWarnSkipped:
			r.note("snapshot %s in %s is kept: another AMI is made of it, too", snapshot, r.name)
			continue
		default:
			// It was not deleted, or not said to be.
			if err := r.deleteSnapshot(ctx, snapshot); err != nil {
				failures = append(failures, err)
				continue
			}
		}
		removed.Snapshots = append(removed.Snapshots, snapshot)
	}
	return removed, errors.Join(failures...)
}

// deregisterOnly deregisters an AMI of which no more is known than its
// identifier.
func (r *region) deregisterOnly(ctx context.Context, id string) error {
	_, err := r.deregister(ctx, types.Image{ImageId: &id})
	return err
}
