package ami

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// copyAll copies an AMI to all regions at once. A region that fails does not
// keep the others from being done; when ctx ends, nothing is undone yet.
func (w *work) copyAll(ctx context.Context, home *region, source *Placed, regions []*region) ([]unit, []error) {
	units, failures := make([]unit, len(regions)), make([]error, len(regions))
	var copying sync.WaitGroup
	for i, r := range regions {
		copying.Go(func() { units[i], failures[i] = w.copy(ctx, home, source, r) })
	}
	copying.Wait()
	return units, failures
}

// copy makes or finds the AMI in a further region.
func (w *work) copy(ctx context.Context, home *region, source *Placed, r *region) (u unit, err error) {
	u = unit{region: r, ledger: &ledger{run: w.run}}
	defer func() {
		if err == nil {
			return
		}
		u.placed = nil
		if ctx.Err() == nil {
			err = errors.Join(fmt.Errorf("copy AMI %s to %s: %w", source.ImageID, r.name, err), u.ledger.undo(ctx, r))
		}
	}()
	if u.placed, err = w.find(ctx, r); err != nil {
		return u, err
	}
	if u.placed != nil {
		r.note("AMI %s in %s is of this artifact already: nothing is copied", u.placed.ImageID, r.name)
		return u, r.share(ctx, u.placed.ImageID, w.spec.ShareWith)
	}
	id, err := w.startCopy(ctx, home, source, r, u.ledger)
	if isCode(err, "InvalidAMIName.Duplicate") {
		u.placed, err = w.other(ctx, r, "", u.ledger, err)
		if err != nil {
			return u, err
		}
		return u, r.share(ctx, u.placed.ImageID, w.spec.ShareWith)
	}
	if err != nil {
		return u, err
	}
	u.ledger.images = append(u.ledger.images, id)
	r.note("AMI %s in %s is a copy of %s: waiting for it", id, r.name, source.ImageID)
	image, err := r.waitForImage(ctx, id)
	if err != nil {
		return u, err
	}
	if why := w.unfit(*image); why != "" {
		return u, fmt.Errorf("AWS's copy %s is not what was copied: %s", id, why)
	}
	mine := &Placed{Region: r.name, ImageID: id, SnapshotID: snapshotOf(*image), Name: aws.ToString(image.Name)}
	if u.placed, err = w.settle(ctx, r, u.ledger, mine); err != nil {
		return u, err
	}
	return u, r.share(ctx, u.placed.ImageID, w.spec.ShareWith)
}

func (w *work) startCopy(ctx context.Context, home *region, source *Placed, r *region, l *ledger) (string, error) {
	tags := w.image.allTags(w.spec)
	tags[tagRun] = w.run.token
	in := &ec2.CopyImageInput{
		Name: &w.spec.Name, Description: &w.spec.Description,
		SourceImageId: &source.ImageID, SourceRegion: &home.name,
		ClientToken: aws.String(w.run.clientToken("copy " + r.name)),
		TagSpecifications: []types.TagSpecification{
			{ResourceType: types.ResourceTypeImage, Tags: ec2Tags(tags)},
			{ResourceType: types.ResourceTypeSnapshot, Tags: ec2Tags(tags)},
		},
	}
	if w.spec.Encrypt {
		in.Encrypted = aws.Bool(true)
		if key := keyIn(w.spec.KMSKey, r.name); key != "" {
			in.KmsKeyId = &key
		} else if w.spec.KMSKey != "" {
			r.note("the copy in %s is encrypted with the account's default key there: %s is of one region only", r.name, w.spec.KMSKey)
		}
	}
	if err := ctx.Err(); err != nil {
		return "", context.Cause(ctx)
	}
	asking, stop := graceful(ctx, r.patience.grace)
	defer stop()
	l.asked = true
	a := action{"start the copy", "ec2:CopyImage", r.arn("image/*") + " and " + r.arn("snapshot/*")}
	out, err := try(asking, r, a, func(ctx context.Context) (*ec2.CopyImageOutput, error) { return r.ec2.CopyImage(ctx, in) })
	if err != nil {
		if code(err) != "" && judge(err) == final {
			l.asked = false
		}
		return "", err
	}
	return aws.ToString(out.ImageId), nil
}

// keyIn is the replica of a multi-Region KMS key in a region, or "" for the key
// of a single region.
func keyIn(arn, region string) string {
	parts := strings.Split(arn, ":")
	if len(parts) != 6 || !strings.HasPrefix(parts[5], "key/mrk-") {
		return ""
	}
	parts[3] = region
	return strings.Join(parts, ":")
}

// share lets others launch an AMI. Those who may already are no error.
func (r *region) share(ctx context.Context, id string, principals []Principal) error {
	if len(principals) == 0 {
		return nil
	}
	add := make([]types.LaunchPermission, 0, len(principals))
	for _, p := range principals {
		var permission types.LaunchPermission
		switch {
		case p.Account != "":
			permission.UserId = aws.String(p.Account)
		case p.Organization != "":
			permission.OrganizationArn = aws.String(p.Organization)
		default:
			permission.OrganizationalUnitArn = aws.String(p.Unit)
		}
		add = append(add, permission)
	}
	a := action{"share AMI " + id, "ec2:ModifyImageAttribute", r.arn("image/" + id)}
	_, err := try(ctx, r, a, func(ctx context.Context) (*ec2.ModifyImageAttributeOutput, error) {
		return r.ec2.ModifyImageAttribute(ctx, &ec2.ModifyImageAttributeInput{
			ImageId: &id, LaunchPermission: &types.LaunchPermissionModifications{Add: add},
		})
	})
	return err
}
