package ami

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// rootDevice is the name of the root volume, as Amazon's own images for UEFI
// have it.
const rootDevice = "/dev/xvda"

// Placed is an AMI in a region.
type Placed struct {
	Region     string
	ImageID    string
	SnapshotID string
	Name       string
	Existed    bool // it was there already
}

// Result is what Register made or found.
type Result struct {
	AMIs    []Placed  // the first region's first; regions that failed are missing
	Removed []Removed // older AMIs of the family
}

// work is one call of Register.
type work struct {
	*Cloud
	image *Image
	spec  Spec
	run   *run
}

// Register makes an AMI of an image whose attestation was verified, as spec says
// (which CheckSpec returned), or finds the one that is there. In each region
// there is in the end either the AMI as it was asked for, or nothing that this
// call made. Regions do not depend on each other, but all on the first one: an
// error may come with a result that lacks some.
func (c *Cloud) Register(ctx context.Context, image *Image, spec Spec) (*Result, error) {
	if err := c.authenticate(ctx); err != nil {
		return nil, err
	}
	w := &work{Cloud: c, image: image, spec: spec, run: newRun()}
	home := c.region(spec.Region)
	further := make([]*region, len(spec.CopyTo))
	for i, name := range spec.CopyTo {
		further[i] = c.region(name)
		// A region that cannot be used is told before anything is uploaded.
		if _, err := w.find(ctx, further[i]); err != nil {
			return nil, err
		}
		if err := further[i].checkArchitecture(ctx, image.architecture); err != nil {
			return nil, err
		}
	}
	first, err := w.makeIn(ctx, home)
	if err != nil {
		return nil, errors.Join(err, first.ledger.undo(ctx, home))
	}
	units, failures := w.makeElsewhere(ctx, further)
	if ctx.Err() != nil {
		// Whoever stops the run wants nothing of it.
		return nil, errors.Join(context.Cause(ctx), undoAll(ctx, append(units, first)))
	}
	result := &Result{AMIs: []Placed{*first.placed}}
	for _, u := range units {
		if u.placed != nil {
			result.AMIs = append(result.AMIs, *u.placed)
		}
	}
	if spec.Keep > 0 {
		for _, placed := range result.AMIs {
			removed, err := c.region(placed.Region).keep(ctx, spec.Family, spec.Keep, placed.ImageID)
			result.Removed = append(result.Removed, removed...)
			failures = append(failures, err)
		}
	}
	return result, errors.Join(failures...)
}

// unit is an AMI in one region with what this run made for it.
type unit struct {
	region *region
	placed *Placed // nil when it failed
	ledger *ledger
}

// undoAll removes what a run made in all regions at once, since a runner kills
// it soon.
func undoAll(ctx context.Context, units []unit) error {
	errs := make([]error, len(units))
	var undoing sync.WaitGroup
	for i, u := range units {
		undoing.Go(func() { errs[i] = u.ledger.undo(ctx, u.region) })
	}
	undoing.Wait()
	return errors.Join(errs...)
}

// makeIn makes or finds the AMI in a region. With an error the unit has the ledger
// of what is to be undone, and no AMI.
func (w *work) makeIn(ctx context.Context, r *region) (u unit, err error) {
	u = unit{region: r, ledger: &ledger{run: w.run}}
	defer func() {
		if err != nil {
			u.placed = nil
		}
	}()
	if u.placed, err = w.find(ctx, r); err != nil {
		return u, err
	}
	found, err := w.clear(ctx, r, u.placed == nil)
	if err != nil {
		return u, err
	}
	if u.placed == nil {
		u.placed = found
	}
	if u.placed == nil {
		if err := w.checkName(ctx, r); err != nil {
			return u, err
		}
		if err := r.checkArchitecture(ctx, w.image.architecture); err != nil {
			return u, err
		}
		if u.placed, err = w.make(ctx, r, u.ledger); err != nil {
			return u, err
		}
	} else {
		r.note("AMI %s in %s is of this artifact already: nothing is uploaded", u.placed.ImageID, r.name)
	}
	return u, r.share(ctx, u.placed.ImageID, w.spec.ShareWith)
}

// make uploads the disk and registers it.
func (w *work) make(ctx context.Context, r *region, l *ledger) (*Placed, error) {
	s, err := w.start(ctx, r, l)
	if err != nil {
		return nil, err
	}
	defer s.end()
	if err := w.upload(ctx, s); err != nil {
		return nil, err
	}
	id, err := w.register(ctx, r, s.id, l)
	if isCode(err, "InvalidAMIName.Duplicate") {
		return w.other(ctx, r, s.id, l, err)
	}
	if err != nil {
		return nil, err
	}
	l.images = append(l.images, id)
	image, err := r.waitForImage(ctx, id)
	if err != nil {
		return nil, err
	}
	s.end()
	if err := r.tag(ctx, s.id, map[string]string{tagAlive: aliveDone}); err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		r.note("%v; should the AMI be deregistered without its snapshot, the next run removes that", err)
	}
	return w.settle(ctx, r, l, &Placed{Region: r.name, ImageID: id, SnapshotID: s.id, Name: aws.ToString(image.Name)})
}

// upload opens the disk, and streams it into a snapshot until that is completed.
func (w *work) upload(ctx context.Context, s *snapshot) error {
	put, why, err := w.put(ctx, s)
	if err != nil {
		return fmt.Errorf("upload %s: %w", w.image.Reference(), err)
	}
	s.note("wrote %d blocks of %d KiB and left out %d: %s", put.blocks, BlockSize>>10, put.omitted, why)
	if err := s.complete(ctx, put); err != nil {
		return err
	}
	s.note("snapshot %s holds the attested disk, SHA-256 %s: waiting for EBS to complete it", s.id, w.image.document.Disk.SHA256)
	return s.wait(ctx)
}

func (w *work) put(ctx context.Context, s *snapshot) (*sums, string, error) {
	disk, err := w.image.artifact.Disk(ctx)
	if err != nil {
		return nil, "", err
	}
	defer disk.Close()
	head := make([]byte, headSize)
	n, err := io.ReadFull(disk, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF { //nolint:errorlint // ReadFull's own
		return nil, "", err
	}
	head = head[:n]
	policy := newZeroPolicy(w.spec.Zeros, head, w.image.Size())
	if s.Begin != nil {
		s.Begin(s.name, w.image.Size())
	}
	p := newPacer()
	put, err := w.image.stream(ctx, io.MultiReader(bytes.NewReader(head), disk), policy,
		func(ctx context.Context, b *block) error { return s.put(ctx, b, p) }, s.Progress)
	return put, policy.why, err
}

// start starts the run's snapshot. That AWS was asked is in the ledger before.
func (w *work) start(ctx context.Context, r *region, l *ledger) (*snapshot, error) {
	in := r.startRequest(w)
	asking, stop := graceful(ctx, r.patience.grace)
	defer stop()
	l.start = in
	s, err := r.startSnapshot(asking, in)
	if s != nil {
		l.snapshot = s.id
	} else if code(err) != "" && judge(err) == final {
		l.start = nil // AWS refused: there is none
	}
	if err != nil {
		return nil, err
	}
	alive, end := context.WithCancel(ctx)
	var beating sync.WaitGroup
	beating.Go(func() { s.keepAlive(alive) })
	s.end = func() { end(); beating.Wait() }
	fail := func(format string, args ...any) (*snapshot, error) {
		s.end()
		return nil, fmt.Errorf("start snapshot %s in %s: %w", s.id, r.name, fmt.Errorf(format, args...))
	}
	switch {
	case ctx.Err() != nil:
		s.end()
		return nil, context.Cause(ctx)
	case s.encrypted && w.spec.Zeros == OmitZeros:
		return fail("the account encrypts every snapshot, and blocks that were never written read as garbage on an encrypted volume, which breaks dm-verity: zero blocks inside partitions cannot be omitted here")
	case w.spec.Encrypt && !s.encrypted:
		return fail("it was to be encrypted, and AWS does not say that it is")
	}
	return s, nil
}

// register makes an AMI of a completed snapshot.
func (w *work) register(ctx context.Context, r *region, snapshot string, l *ledger) (string, error) {
	tags := w.image.allTags(w.spec)
	tags[tagRun] = w.run.token
	in := &ec2.RegisterImageInput{
		Name: &w.spec.Name, Description: &w.spec.Description,
		Architecture:       w.image.architecture,
		BootMode:           types.BootModeValuesUefi,
		TpmSupport:         types.TpmSupportValuesV20,
		ImdsSupport:        types.ImdsSupportValuesV20,
		EnaSupport:         aws.Bool(true),
		VirtualizationType: aws.String(string(types.VirtualizationTypeHvm)),
		RootDeviceName:     aws.String(rootDevice),
		// Whether the volume is encrypted follows from the snapshot: to say it,
		// too, is an error.
		BlockDeviceMappings: []types.BlockDeviceMapping{{
			DeviceName: aws.String(rootDevice),
			Ebs:        &types.EbsBlockDevice{SnapshotId: &snapshot, VolumeType: types.VolumeTypeGp3, DeleteOnTermination: aws.Bool(true)},
		}},
		// Tags of snapshots are an error here: the snapshot has had them since it
		// was started.
		TagSpecifications: []types.TagSpecification{{ResourceType: types.ResourceTypeImage, Tags: ec2Tags(tags)}},
	}
	if w.image.uefiData != "" {
		in.UefiData = &w.image.uefiData
	}
	if err := ctx.Err(); err != nil {
		return "", context.Cause(ctx)
	}
	asking, stop := graceful(ctx, r.patience.grace)
	defer stop()
	l.asked = true
	a := action{"register the AMI", "ec2:RegisterImage", r.arn("image/*") + " and " + r.arn("snapshot/"+snapshot)}
	out, err := try(asking, r, a, func(ctx context.Context) (*ec2.RegisterImageOutput, error) { return r.ec2.RegisterImage(ctx, in) })
	if err != nil {
		if code(err) != "" && judge(err) == final && !isCode(err, "InvalidAMIName.Duplicate") {
			l.asked = false
		}
		return "", err
	}
	return aws.ToString(out.ImageId), nil
}

// other finds the AMI that has the name which this run wanted: that of another
// run for the same artifact, or this run's own, whose answer was lost.
func (w *work) other(ctx context.Context, r *region, snapshot string, l *ledger, refusal error) (*Placed, error) {
	placed, err := w.findSoon(ctx, r)
	if err != nil {
		return nil, err
	}
	if placed == nil {
		images, err := r.describeImages(ctx, filter("name", w.spec.Name))
		if err != nil || len(images) == 0 {
			return nil, errors.Join(refusal, err)
		}
		return nil, w.nameTaken(r, images[0])
	}
	if placed.SnapshotID == snapshot {
		return placed, nil
	}
	r.note("another run registered AMI %s of this artifact meanwhile: it is taken, and what this run uploaded removed", placed.ImageID)
	return placed, w.giveUp(ctx, r, l)
}

// settle makes two runs that registered the same artifact at the same time agree
// on one AMI: the older one stays.
func (w *work) settle(ctx context.Context, r *region, l *ledger, mine *Placed) (*Placed, error) {
	placed, err := w.find(ctx, r)
	if err != nil {
		return nil, err
	}
	if placed == nil || placed.ImageID == mine.ImageID {
		return mine, nil
	}
	r.note("another run made AMI %s of this artifact before %s: it stays, and %s is removed", placed.ImageID, mine.ImageID, mine.ImageID)
	return placed, w.giveUp(ctx, r, l)
}

// giveUp removes what this run made, since another run's AMI is taken.
func (w *work) giveUp(ctx context.Context, r *region, l *ledger) error {
	if err := l.undo(ctx, r); err != nil {
		return err
	}
	*l = ledger{run: w.run}
	return nil
}

// waitForImage waits until an AMI is available.
func (r *region) waitForImage(ctx context.Context, id string) (*types.Image, error) {
	a := action{"look at AMI " + id, "ec2:DescribeImages", "*"}
	start := time.Now()
	for wait := r.patience.poll / 2; ; wait = min(wait*3/2, r.patience.maxPoll) {
		out, err := try(ctx, r, a, func(ctx context.Context) (*ec2.DescribeImagesOutput, error) {
			out, err := r.ec2.DescribeImages(ctx, &ec2.DescribeImagesInput{ImageIds: []string{id}})
			if isCode(err, "InvalidAMIID.NotFound", "InvalidAMIID.Unavailable") && time.Since(start) < r.patience.appear {
				err = &notYetError{err}
			}
			return out, err
		})
		if err != nil {
			return nil, err
		}
		if len(out.Images) == 1 {
			switch image := out.Images[0]; image.State {
			case types.ImageStateAvailable:
				return &image, nil
			case types.ImageStatePending, types.ImageStateTransient:
			default:
				reason := ""
				if image.StateReason != nil {
					reason = ": " + aws.ToString(image.StateReason.Message)
				}
				return nil, fmt.Errorf("wait for AMI %s in %s: its state is %s%s", id, r.name, image.State, reason)
			}
		}
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
	}
}
