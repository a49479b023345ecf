package ami

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	ebstypes "github.com/aws/aws-sdk-go-v2/service/ebs/types"

	"github.com/org/attestable-image-action/internal/testenv"
)

// leave starts a snapshot as a run that was killed leaves it.
func (l look) leave(t *testing.T, tags map[string]string) string {
	t.Helper()
	in := &ebs.StartSnapshotInput{VolumeSize: aws.Int64(1)}
	for key, value := range tags {
		in.Tags = append(in.Tags, ebstypes.Tag{Key: aws.String(key), Value: aws.String(value)})
	}
	out, err := l.ebs.StartSnapshot(context.Background(), in)
	if err != nil {
		t.Fatal(err)
	}
	return aws.ToString(out.SnapshotId)
}

// deadProcess is the owner of a run whose process has ended.
func deadProcess(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	owner := fmt.Sprintf("%s/%d/%s", machineID(), cmd.Process.Pid, startOf(cmd.Process.Pid))
	if isDead(owner) {
		t.Fatalf("%s counts as dead, and lives", owner)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if !isDead(owner) {
		t.Fatalf("%s counts as alive, and is dead", owner)
	}
	return owner
}

func TestOwner(t *testing.T) {
	this := thisProcess()
	if this == "" || isDead(this) {
		t.Errorf("this process is %q, dead: %t", this, isDead(this))
	}
	deadProcess(t)
	for _, owner := range []string{"", "x", "/1/1", "0123456789abcdef/1/1", machineID() + "/0/1", machineID() + "/-1/1", machineID() + "/x/1", machineID()} {
		if isDead(owner) {
			t.Errorf("%q counts as dead, though nothing is known of it", owner)
		}
	}
	if !isDead(fmt.Sprintf("%s/%d/1", machineID(), os.Getpid())) {
		t.Error("a process whose number was given to this one counts as alive")
	}
	for alive, want := range map[string]bool{
		"": false, "x": false, aliveDone: false, aliveNow(): false,
		time.Now().Add(-30 * time.Minute).UTC().Format(time.RFC3339Nano): false,
		time.Now().Add(-2 * time.Hour).UTC().Format(time.RFC3339Nano):    true,
		time.Now().Add(+2 * time.Hour).UTC().Format(time.RFC3339Nano):    false,
	} {
		if isLongAgo(alive) != want {
			t.Errorf("%q is long ago: %t", alive, !want)
		}
	}
}

// TestLeftovers meets snapshots of earlier runs: those of dead ones are removed,
// all others stay.
func TestLeftovers(t *testing.T) {
	disk := testDisk(t)
	p := layout(t, disk)
	dead := deadProcess(t)
	now, old := aliveNow(), time.Now().Add(-2*time.Hour).UTC().Format(time.RFC3339Nano)
	own := func(owner, alive, digest string) map[string]string {
		return map[string]string{tagRun: "0123", tagOwner: owner, tagAlive: alive, tagDigest: digest}
	}
	digest, other := p.image(t).Digest(), "sha256:"+strings.Repeat("0", 64)
	for name, tc := range map[string]struct {
		tags  map[string]string
		stays bool
	}{
		"of a dead process":                         {own(dead, now, digest), false},
		"of another artifact's dead process":        {own(dead, now, other), false},
		"long ago":                                  {own("another/1/1", old, digest), false},
		"of another artifact, long ago":             {own("another/1/1", old, other), false},
		"without a sign of life for the lease":      {own("another/1/1", now, digest), false},
		"of a run without owner, for the lease":     {map[string]string{tagRun: "0123", tagAlive: now, tagDigest: digest}, false},
		"of another artifact, perhaps alive":        {own("another/1/1", now, other), true},
		"that an AMI was made of":                   {own(dead, aliveDone, digest), true},
		"without a run":                             {map[string]string{tagAlive: now, tagDigest: digest, tagOwner: dead}, true},
		"without a sign of life":                    {map[string]string{tagRun: "0123", tagDigest: digest, tagOwner: dead}, true},
		"without an artifact":                       {map[string]string{tagRun: "0123", tagAlive: now, tagOwner: dead}, true},
		"of somebody else":                          {map[string]string{"Name": "backup"}, true},
		"of a process that lives, of this artifact": {nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			e := testenv.SharedEC2(t)
			l := lookAt(t, e, home)
			c, said := cloud(t)
			if tc.tags == nil {
				// It is waited for until it is given up; here, by its deletion.
				tc.tags = own(thisProcess(), now, digest)
				id := l.leave(t, tc.tags)
				beating, stop := context.WithCancel(t.Context())
				var beats sync.WaitGroup
				beats.Go(func() {
					r := c.region(home)
					for sleep(beating, 300*time.Millisecond) == nil {
						_ = r.tag(beating, id, map[string]string{tagAlive: aliveNow()})
					}
				})
				time.AfterFunc(4*time.Second, func() {
					stop()
					beats.Wait()
					_ = c.region(home).deleteSnapshot(context.Background(), id)
				})
				defer beats.Wait()
				start := time.Now()
				if _, err := register(t.Context(), c, p.image(t), Spec{}); err != nil {
					t.Fatal(err)
				}
				said.holds(t, "another run is uploading this artifact to snapshot "+id)
				if time.Since(start) < 3*time.Second {
					t.Error("it did not wait")
				}
				l.one(t, disk)
				return
			}
			id := l.leave(t, tc.tags)
			if _, err := register(t.Context(), c, p.image(t), Spec{}); err != nil {
				t.Fatal(err)
			}
			there := false
			for _, s := range l.snapshots(t) {
				there = there || aws.ToString(s.SnapshotId) == id
			}
			if there != tc.stays {
				t.Errorf("the snapshot is there: %t", there)
			}
			if len(l.images(t)) != 1 {
				t.Errorf("%d AMIs", len(l.images(t)))
			}
			if !tc.stays {
				said.holds(t, "removed snapshot "+id+" in eu-central-1, which a run that was killed left behind")
			}
		})
	}
}

// TestLeftoverOfAnAMI finds a snapshot whose run was killed after it had
// registered the AMI.
func TestLeftoverOfAnAMI(t *testing.T) {
	disk := testDisk(t)
	p := layout(t, disk)
	e := testenv.SharedEC2(t)
	c, _ := cloud(t)
	result, err := register(t.Context(), c, p.image(t), Spec{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.region(home).tag(t.Context(), result.AMIs[0].SnapshotID, map[string]string{tagAlive: aliveNow(), tagOwner: deadProcess(t)}); err != nil {
		t.Fatal(err)
	}
	again, err := register(t.Context(), c, p.image(t), Spec{})
	if err != nil || again.AMIs[0].ImageID != result.AMIs[0].ImageID {
		t.Fatalf("%+v, %v", again, err)
	}
	lookAt(t, e, home).one(t, disk)
}

// TestRace registers one artifact from several runs at once: one AMI comes of
// it, and all return it.
func TestRace(t *testing.T) {
	disk := testDisk(t)
	p := layout(t, disk)
	for round := range 3 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			const n = 3
			e := testenv.SharedEC2(t)
			// All look for AMIs and leftovers before any has started.
			var ready sync.WaitGroup
			ready.Add(n)
			e.Intercept(t, func(_ http.ResponseWriter, _ *http.Request, call testenv.AWSRequest, _ http.Handler) bool {
				if call.Operation == "StartSnapshot" {
					ready.Done()
					ready.Wait()
				}
				return false
			})
			var runs sync.WaitGroup
			var found [n]*Result
			var errs [n]error
			for run := range n {
				c, _ := cloud(t)
				i := p.image(t)
				runs.Go(func() { found[run], errs[run] = register(t.Context(), c, i, Spec{}) })
			}
			runs.Wait()
			image := lookAt(t, e, home).one(t, disk)
			for run, result := range found {
				if errs[run] != nil || result.AMIs[0].ImageID != aws.ToString(image.ImageId) {
					t.Errorf("run %d: %+v, %v; want %s", run, result, errs[run], aws.ToString(image.ImageId))
				}
			}
		})
	}
}

// TestSettle registers an artifact under another name while a run uploads it:
// the older AMI stays, and both runs return it.
func TestSettle(t *testing.T) {
	disk := testDisk(t)
	p := layout(t, disk)
	e := testenv.SharedEC2(t)
	c, said := cloud(t)
	other, _ := cloud(t)
	i, j := p.image(t), p.image(t)
	var once sync.Once
	var first *Result
	e.Intercept(t, func(_ http.ResponseWriter, _ *http.Request, call testenv.AWSRequest, _ http.Handler) bool {
		if call.Operation == "RegisterImage" {
			once.Do(func() {
				other.config.BaseEndpoint = aws.String(e.Direct)
				w := &work{Cloud: other, image: j, spec: Spec{Region: home, Name: "another", Family: "f", Description: "d"}, run: newRun()}
				placed, err := w.make(t.Context(), other.region(home), &ledger{run: w.run})
				if err != nil {
					t.Error(err)
					return
				}
				first = &Result{AMIs: []Placed{*placed}}
				time.Sleep(1100 * time.Millisecond) // moto's times are of a second
			})
		}
		return false
	})
	result, err := register(t.Context(), c, i, Spec{})
	if err != nil {
		t.Fatal(err)
	}
	if result.AMIs[0].ImageID != first.AMIs[0].ImageID || !result.AMIs[0].Existed {
		t.Errorf("%+v, want %+v", result.AMIs, first.AMIs)
	}
	said.holds(t, "it stays, and ami-")
	lookAt(t, e, home).one(t, disk)
}

// TestSecondRunWaits starts a run while another is uploading: it waits, uploads
// nothing, and returns the other's AMI.
func TestSecondRunWaits(t *testing.T) {
	disk := testDisk(t)
	p := layout(t, disk)
	e := testenv.SharedEC2(t)
	uploading, resume := make(chan struct{}), make(chan struct{})
	var once sync.Once
	e.Intercept(t, func(_ http.ResponseWriter, _ *http.Request, call testenv.AWSRequest, _ http.Handler) bool {
		if call.Operation == "CompleteSnapshot" {
			once.Do(func() { close(uploading) })
			<-resume
		}
		return false
	})
	first, _ := cloud(t)
	second, said := cloud(t)
	i, j := p.image(t), p.image(t)
	var runs sync.WaitGroup
	var a, b *Result
	var errA, errB error
	runs.Go(func() { a, errA = register(t.Context(), first, i, Spec{}) })
	<-uploading
	runs.Go(func() { b, errB = register(t.Context(), second, j, Spec{}) })
	for !strings.Contains(said.String(), "another run is uploading this artifact") {
		time.Sleep(10 * time.Millisecond)
	}
	close(resume)
	runs.Wait()
	if errA != nil || errB != nil || a.AMIs[0].ImageID != b.AMIs[0].ImageID || !b.AMIs[0].Existed {
		t.Errorf("%+v, %v; %+v, %v", a, errA, b, errB)
	}
	if n := len(e.Requests("StartSnapshot")); n != 1 {
		t.Errorf("%d snapshots were started", n)
	}
	lookAt(t, e, home).one(t, disk)
}
