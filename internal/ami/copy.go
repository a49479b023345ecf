package ami

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// makeElsewhere makes or finds the AMI in further regions, one after the other: each
// gets the disk from the artifact, and none from another AMI. CopyImage would do that,
// too, but IAM has no condition for it by which a role may copy its own AMIs and not
// those of the whole account. A region that fails does not keep the others from being
// done; when ctx ends, nothing is undone yet.
func (w *work) makeElsewhere(ctx context.Context, regions []*region) ([]unit, []error) {
	units, failures := make([]unit, len(regions)), make([]error, len(regions))
	for i, r := range regions {
		units[i] = unit{region: r, ledger: &ledger{run: w.run}}
		if ctx.Err() != nil {
			continue
		}
		var err error
		if units[i], err = w.makeIn(ctx, r); err != nil && ctx.Err() == nil {
			failures[i] = errors.Join(fmt.Errorf("make the AMI in %s: %w", r.name, err), units[i].ledger.undo(ctx, r))
		}
	}
	return units, failures
}

// keyIn is the KMS key for a region: the one that was given, or the replica of a
// multi-Region key, or "".
func (s *Spec) keyIn(region string) string {
	if region == s.Region {
		return s.KMSKey
	}
	return keyIn(s.KMSKey, region)
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
