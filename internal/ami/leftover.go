package ami

import (
	"context"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// clear removes snapshots that killed runs left behind, and waits for a run that
// is just uploading the same artifact, unless wait is false. What it returns is
// the AMI that came of that.
//
// A snapshot is removed when it bears the tags of a run, no AMI is made of it,
// and the run is dead: EBS gave the snapshot up; the process was one of this
// machine and is gone; or, of the same artifact, the run left no sign of life
// for the lease, as seen from here, whatever the clocks say. See
// docs/decisions/0012.
func (w *work) clear(ctx context.Context, r *region, wait bool) (*Placed, error) {
	candidates, err := w.unfinished(ctx, r)
	if err != nil {
		return nil, err
	}
	for _, s := range candidates {
		id, tags := aws.ToString(s.SnapshotId), tagsOf(s.Tags)
		switch {
		case s.State == types.SnapshotStateError, isDead(tags[tagOwner]), isLongAgo(tags[tagAlive]):
			if err := w.removeLeftover(ctx, r, id); err != nil {
				return nil, err
			}
		case wait && tags[tagDigest] == w.image.Digest():
			placed, err := w.watch(ctx, r, id, tags[tagAlive])
			if err != nil || placed != nil {
				return placed, err
			}
		}
	}
	return nil, nil
}

// unfinished lists the snapshots of other runs that no AMI is made of.
func (w *work) unfinished(ctx context.Context, r *region) ([]types.Snapshot, error) {
	snapshots, err := r.describeSnapshots(ctx, filter("tag-key", tagAlive))
	if err != nil {
		return nil, err
	}
	var candidates []types.Snapshot
	var ids []string
	for _, s := range snapshots {
		tags := tagsOf(s.Tags)
		if tags[tagRun] == "" || tags[tagDigest] == "" || tags[tagRun] == w.run.token || tags[tagAlive] == aliveDone {
			continue
		}
		candidates = append(candidates, s)
		ids = append(ids, aws.ToString(s.SnapshotId))
	}
	used, err := r.usedSnapshots(ctx, ids)
	if err != nil {
		return nil, err
	}
	free := candidates[:0]
	for _, s := range candidates {
		if !used[aws.ToString(s.SnapshotId)] {
			free = append(free, s)
		}
	}
	return free, nil
}

func (w *work) removeLeftover(ctx context.Context, r *region, id string) error {
	err := r.deleteSnapshot(ctx, id)
	if isCode(err, "InvalidSnapshot.InUse") {
		return nil // an AMI was made of it meanwhile
	}
	if err == nil {
		r.note("removed snapshot %s in %s, which a run that was killed left behind", id, r.name)
	}
	return err
}

// watch waits until another run's snapshot has become an AMI, which it returns,
// or is gone, or nobody works on it any more, whereupon it removes it.
func (w *work) watch(ctx context.Context, r *region, id, alive string) (*Placed, error) {
	r.note("another run is uploading this artifact to snapshot %s in %s: waiting for it, or for its last sign of life to be %s old", id, r.name, r.patience.lease)
	seen := time.Now()
	for {
		if err := sleep(ctx, min(r.patience.lease/4, r.patience.maxPoll)); err != nil {
			return nil, err
		}
		if placed, err := w.find(ctx, r); err != nil || placed != nil {
			return placed, err
		}
		candidates, err := w.unfinished(ctx, r)
		if err != nil {
			return nil, err
		}
		there, dead := false, false
		for _, s := range candidates {
			if aws.ToString(s.SnapshotId) != id {
				continue
			}
			tags := tagsOf(s.Tags)
			there, dead = true, s.State == types.SnapshotStateError || isDead(tags[tagOwner])
			if now := tags[tagAlive]; now != alive {
				alive, seen = now, time.Now()
			}
		}
		switch {
		case !there:
			// It is gone, or an AMI was made of it that find does not see yet.
			placed, err := w.findSoon(ctx, r)
			return placed, err
		case dead, time.Since(seen) > r.patience.lease:
			return nil, w.removeLeftover(ctx, r, id)
		}
	}
}

// findSoon is find for an AMI that may have been made a moment ago.
func (w *work) findSoon(ctx context.Context, r *region) (*Placed, error) {
	for range 4 {
		placed, err := w.find(ctx, r)
		if err != nil || placed != nil {
			return placed, err
		}
		if err := sleep(ctx, r.patience.poll); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// ledger is what this run made, or may have made, in one region.
type ledger struct {
	run      *run
	start    *ebs.StartSnapshotInput // sent, and perhaps answered
	snapshot string
	images   []string
	// asked tells that AWS was asked for an AMI, and perhaps did not answer.
	asked bool
}

// undo removes it all, in a time of its own.
func (l *ledger) undo(ctx context.Context, r *region) error {
	if l.start == nil && !l.asked {
		return nil
	}
	r = r.hurried()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.patience.cleanUp)
	defer cancel()
	if err := l.remove(ctx, r); err != nil {
		what := "what this run made"
		if l.snapshot != "" {
			what = "snapshot " + l.snapshot
		}
		return fmt.Errorf("%s in %s could not be removed: EBS itself gives up a snapshot that nothing is written to for %d minutes, and the next run for the same artifact removes it: %w",
			what, r.name, abandonAfter, err)
	}
	return nil
}

func (l *ledger) remove(ctx context.Context, r *region) error {
	if l.asked {
		// An answer may have been lost on its way.
		images, err := r.describeImages(ctx, filter("tag:"+tagRun, l.run.token))
		if err != nil {
			return err
		}
		for _, image := range images {
			if _, err := r.deregister(ctx, image); err != nil {
				return err
			}
		}
		for _, id := range l.images {
			if err := r.deregisterOnly(ctx, id); err != nil {
				return err
			}
		}
		snapshots, err := r.describeSnapshots(ctx, filter("tag:"+tagRun, l.run.token))
		if err != nil {
			return err
		}
		for _, s := range snapshots {
			if err := r.deleteSnapshot(ctx, aws.ToString(s.SnapshotId)); err != nil {
				return err
			}
		}
	}
	if l.snapshot == "" && l.start != nil {
		// Whether the snapshot was started is not known: asked with the same
		// token, AWS says which one it is.
		s, err := r.startSnapshot(ctx, l.start)
		if s == nil {
			return err
		}
		l.snapshot = s.id
	}
	if l.snapshot != "" {
		return r.deleteSnapshot(ctx, l.snapshot)
	}
	return nil
}
