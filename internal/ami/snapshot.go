package ami

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	ebstypes "github.com/aws/aws-sdk-go-v2/service/ebs/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// abandonAfter is when EBS itself cancels a snapshot that nothing is written to,
// in minutes: the least that StartSnapshot takes.
const abandonAfter = 10

// snapshot is one that this run writes.
type snapshot struct {
	*region
	id        string
	encrypted bool
	started   time.Time
	end       func() // the signs of life
}

// startRequest is the request that starts the run's snapshot. Sent twice, it
// starts one.
func (r *region) startRequest(w *work) *ebs.StartSnapshotInput {
	in := &ebs.StartSnapshotInput{
		VolumeSize:  aws.Int64((w.image.Size() + 1<<30 - 1) >> 30),
		ClientToken: aws.String(w.run.clientToken("snapshot " + r.name)),
		Description: &w.spec.Description,
		Timeout:     aws.Int32(abandonAfter),
	}
	if w.spec.Encrypt {
		in.Encrypted = aws.Bool(true)
	}
	if key := w.spec.keyIn(r.name); key != "" {
		in.KmsKeyArn = &key
	} else if w.spec.KMSKey != "" {
		r.note("the snapshot in %s is encrypted with the account's default key there: %s is of one region only", r.name, w.spec.KMSKey)
	}
	tags := w.snapshotTags()
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		in.Tags = append(in.Tags, ebstypes.Tag{Key: aws.String(key), Value: aws.String(tags[key])})
	}
	return in
}

// snapshotTags are those of the snapshot while it is made.
func (w *work) snapshotTags() map[string]string {
	tags := w.image.allTags(w.spec)
	tags[tagRun], tags[tagOwner], tags[tagAlive] = w.run.token, w.run.owner, w.run.began
	if w.run.owner == "" {
		delete(tags, tagOwner)
	}
	return tags
}

func (r *region) startSnapshot(ctx context.Context, in *ebs.StartSnapshotInput) (*snapshot, error) {
	a := action{"start a snapshot", "ebs:StartSnapshot", r.arn("snapshot/*")}
	out, err := try(ctx, r, a, func(ctx context.Context) (*ebs.StartSnapshotOutput, error) { return r.ebs.StartSnapshot(ctx, in) })
	if err != nil {
		return nil, err
	}
	s := &snapshot{region: r, id: aws.ToString(out.SnapshotId), started: time.Now()}
	s.encrypted = aws.ToString(out.KmsKeyArn) != "" || out.SseType != "" && out.SseType != ebstypes.SSETypeNone
	if s.id == "" {
		return nil, fmt.Errorf("start a snapshot in %s: AWS's answer names none", r.name)
	}
	if size := aws.ToInt32(out.BlockSize); size != BlockSize {
		return s, fmt.Errorf("start a snapshot in %s: its blocks have %d bytes, and %d are expected", r.name, size, BlockSize)
	}
	return s, nil
}

// put stores one block. Repeating it is harmless: the same data replaces itself.
func (s *snapshot) put(ctx context.Context, b *block, p *pacer) error {
	a := action{fmt.Sprintf("put block %d into snapshot %s", b.index, s.id), "ebs:PutSnapshotBlock", s.arn("snapshot/" + s.id)}
	checksum := base64.StdEncoding.EncodeToString(b.digest[:])
	_, err := tryPaced(ctx, s.region, a, p, func(ctx context.Context) (*ebs.PutSnapshotBlockOutput, error) {
		out, err := s.ebs.PutSnapshotBlock(ctx, &ebs.PutSnapshotBlockInput{
			SnapshotId: &s.id, BlockIndex: &b.index, BlockData: bytes.NewReader(b.data),
			DataLength: aws.Int32(BlockSize), Checksum: &checksum, ChecksumAlgorithm: ebstypes.ChecksumAlgorithmChecksumAlgorithmSha256,
		})
		return out, s.young(err)
	})
	return err
}

// young marks the refusal that a snapshot is not known, as long as it may be
// known soon.
func (s *snapshot) young(err error) error {
	if isCode(err, "ResourceNotFoundException", "InvalidSnapshot.NotFound") && time.Since(s.started) < s.patience.appear {
		return &notYetError{err}
	}
	return err
}

// notYetError says that what was just made cannot be seen everywhere yet.
type notYetError struct{ err error }

func (e *notYetError) Error() string { return e.err.Error() }
func (e *notYetError) Unwrap() error { return e.err }

// complete seals the snapshot, with a checksum of all that was put.
func (s *snapshot) complete(ctx context.Context, put *sums) error {
	a := action{"complete snapshot " + s.id, "ebs:CompleteSnapshot", s.arn("snapshot/" + s.id)}
	_, err := try(ctx, s.region, a, func(ctx context.Context) (*ebs.CompleteSnapshotOutput, error) {
		out, err := s.ebs.CompleteSnapshot(ctx, &ebs.CompleteSnapshotInput{
			SnapshotId: &s.id, ChangedBlocksCount: &put.blocks, Checksum: &put.checksum,
			ChecksumAlgorithm:         ebstypes.ChecksumAlgorithmChecksumAlgorithmSha256,
			ChecksumAggregationMethod: ebstypes.ChecksumAggregationMethodChecksumAggregationLinear,
		})
		return out, s.young(err)
	})
	return err
}

// wait waits until the snapshot is completed.
func (s *snapshot) wait(ctx context.Context) error {
	a := action{"look at snapshot " + s.id, "ec2:DescribeSnapshots", "*"}
	for wait := s.patience.poll; ; wait = min(wait*3/2, s.patience.maxPoll) {
		out, err := try(ctx, s.region, a, func(ctx context.Context) (*ec2.DescribeSnapshotsOutput, error) {
			out, err := s.ec2.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []string{s.id}})
			return out, s.young(err)
		})
		if err != nil {
			return err
		}
		if len(out.Snapshots) == 1 {
			switch found := out.Snapshots[0]; found.State {
			case types.SnapshotStateCompleted:
				return nil
			case types.SnapshotStateError:
				return fmt.Errorf("complete snapshot %s in %s: EBS gave it up (%s): run again, and look at the KMS key if it is encrypted", s.id, s.name, aws.ToString(found.StateMessage))
			}
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// keepAlive leaves signs of life on the snapshot until ctx ends.
func (s *snapshot) keepAlive(ctx context.Context) {
	for sleep(ctx, s.patience.beat) == nil {
		if err := s.tag(ctx, s.id, map[string]string{tagAlive: aliveNow()}); err != nil && ctx.Err() == nil {
			s.note("%v; another run for the same artifact may take this one for dead", err)
			if judge(err) == final {
				return
			}
		}
	}
}

// tag sets tags of a snapshot or an AMI.
func (r *region) tag(ctx context.Context, id string, tags map[string]string) error {
	a := action{"tag " + id, "ec2:CreateTags", r.arn(resourceType(id) + "/" + id)}
	_, err := try(ctx, r, a, func(ctx context.Context) (*ec2.CreateTagsOutput, error) {
		return r.ec2.CreateTags(ctx, &ec2.CreateTagsInput{Resources: []string{id}, Tags: ec2Tags(tags)})
	})
	return err
}

func resourceType(id string) string {
	if imageIDForm().MatchString(id) {
		return "image"
	}
	return "snapshot"
}

func ec2Tags(tags map[string]string) []types.Tag {
	list := make([]types.Tag, 0, len(tags))
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		list = append(list, types.Tag{Key: aws.String(key), Value: aws.String(tags[key])})
	}
	return list
}

// tagsOf is the reverse of ec2Tags.
func tagsOf(list []types.Tag) map[string]string {
	tags := make(map[string]string, len(list))
	for _, tag := range list {
		tags[aws.ToString(tag.Key)] = aws.ToString(tag.Value)
	}
	return tags
}

// deleteSnapshot deletes a snapshot, and is content when it is gone.
func (r *region) deleteSnapshot(ctx context.Context, id string) error {
	a := action{"delete snapshot " + id, "ec2:DeleteSnapshot", r.arn("snapshot/" + id)}
	_, err := try(ctx, r, a, func(ctx context.Context) (*ec2.DeleteSnapshotOutput, error) {
		return r.ec2.DeleteSnapshot(ctx, &ec2.DeleteSnapshotInput{SnapshotId: &id})
	})
	if isCode(err, "InvalidSnapshot.NotFound") {
		return nil
	}
	return err
}
