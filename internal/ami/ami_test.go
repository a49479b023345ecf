package ami

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
)

func TestMain(m *testing.M) {
	status := m.Run()
	testenv.StopShared()
	os.Exit(status)
}

// hasty is a patience for tests.
var hasty = patience{
	attempts: 12, backoff: time.Millisecond, maxBackoff: 20 * time.Millisecond,
	call: 3 * time.Second, putFloor: 500 * time.Millisecond,
	poll: 20 * time.Millisecond, maxPoll: 100 * time.Millisecond, appear: 2 * time.Second,
	beat: 100 * time.Millisecond, lease: 2 * time.Second, grace: time.Second, cleanUp: 20 * time.Second,
}

const (
	home  = "eu-central-1"
	there = "eu-west-1"
)

// text is compressible, noise is not.
func text(n int) []byte {
	var b bytes.Buffer
	r := rand.New(rand.NewPCG(1, 2))
	for b.Len() < n {
		fmt.Fprintf(&b, "line %d says %x\n", b.Len(), r.Uint32N(1000))
	}
	return b.Bytes()[:n]
}

func noise(n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	return data
}

// diskSize is no multiple of BlockSize.
const diskSize = 12<<20 + 8192

// testDisk is a disk of 24 blocks and a bit with a partition table and a
// partition from 1 MiB to 9 MiB, which has zero blocks in it; blocks 2 to 6 and
// 17 are in use, the table and its backup besides.
func testDisk(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(diskSize); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(testenv.Tool(t, "sgdisk"), "--clear", "--new=1:2048:+8M", path).CombinedOutput(); err != nil {
		t.Fatalf("sgdisk: %v\n%s", err, out)
	}
	for offset, data := range map[int64][]byte{1 << 20: text(1 << 20), 2<<20 + 100: noise(1 << 20), 9<<20 - 100: text(100)} {
		if _, err := f.WriteAt(data, offset); err != nil {
			t.Fatal(err)
		}
	}
	disk, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return disk
}

// document is what measurements of a disk may be. PCR 4 tells disks apart.
func document(disk []byte) *measure.Document {
	sum := sha256.Sum256(disk)
	pcr := hex.EncodeToString(sum[:]) + strings.Repeat("0", 32)
	return &measure.Document{
		SchemaVersion: 1, Architecture: "x86_64",
		Measurements: measure.Measurements{HashAlgorithm: measure.SHA384, PCRs: map[int]string{2: strings.Repeat("2", 96), 4: pcr, 7: strings.Repeat("7", 96), 12: strings.Repeat("0", 96), 13: strings.Repeat("0", 96)}},
		Disk:         &measure.DiskInfo{SHA256: hex.EncodeToString(sum[:]), Size: int64(len(disk))},
	}
}

// pushed is a disk pushed as an artifact, with the document that is attested.
type pushed struct {
	reference artifact.Reference
	document  *measure.Document
	disk      []byte
}

func push(t testing.TB, place string, disk []byte, uefiData []byte) pushed {
	t.Helper()
	ref, err := artifact.ParseReference(place)
	if err != nil {
		t.Fatal(err)
	}
	doc := document(disk)
	raw, err := doc.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	result, err := artifact.Push(t.Context(), ref, artifact.Content{
		Name: "test-1.0", DiskSize: int64(len(disk)), UEFIData: uefiData,
		OpenDisk:     func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(disk)), nil },
		Measurements: func(string, int64) ([]byte, error) { return raw, nil },
		Annotations:  map[string]string{artifact.AnnotationVersion: "1.0"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return pushed{result.Reference, doc, disk}
}

var testOrigin = Origin{
	Repository: "https://github.com/octo-org/image", Commit: strings.Repeat("c", 40),
	Workflow: "https://github.com/octo-org/image/.github/workflows/image.yml@refs/heads/main",
}

// image opens what was pushed.
func (p pushed) image(t testing.TB) *Image {
	t.Helper()
	a, err := artifact.Open(t.Context(), p.reference)
	if err != nil {
		t.Fatal(err)
	}
	i, err := NewImage(t.Context(), a, p.document, testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// layout pushes a disk to a layout.
func layout(t testing.TB, disk []byte) pushed {
	t.Helper()
	return push(t, "oci:"+filepath.Join(t.TempDir(), "layout"), disk, nil)
}

// notes are what a Cloud said.
type notes struct {
	mu    sync.Mutex
	lines []string
}

func (n *notes) add(line string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lines = append(n.lines, line)
}

func (n *notes) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Join(n.lines, "\n")
}

func (n *notes) holds(t *testing.T, want string) {
	t.Helper()
	if !strings.Contains(n.String(), want) {
		t.Errorf("it was not said that %q:\n%s", want, n)
	}
}

// cloud opens the account that the environment points to.
func cloud(t testing.TB) (*Cloud, *notes) {
	t.Helper()
	c, err := Open(t.Context(), home)
	if err != nil {
		t.Fatal(err)
	}
	c.patience = hasty
	n := new(notes)
	c.Note = n.add
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("notes:\n%s", n)
		}
	})
	return c, n
}

// register registers an image as spec says.
func register(ctx context.Context, c *Cloud, i *Image, spec Spec) (*Result, error) {
	if spec.Region == "" {
		spec.Region = home
	}
	spec, err := i.CheckSpec(spec)
	if err != nil {
		return nil, err
	}
	return c.Register(ctx, i, spec)
}

// look sees what there is in a region, past the proxy and with the SDK alone.
type look struct {
	ec2 *ec2.Client
	ebs *ebs.Client
}

func lookAt(t testing.TB, e *testenv.EC2, region string) look {
	t.Helper()
	cfg, err := config.LoadDefaultConfig(context.Background(), config.WithRegion(region), config.WithBaseEndpoint(e.Direct))
	if err != nil {
		t.Fatal(err)
	}
	cfg.BaseEndpoint = aws.String(e.Direct)
	return look{
		ec2.NewFromConfig(cfg, func(o *ec2.Options) { o.BaseEndpoint = aws.String(e.Direct) }),
		ebs.NewFromConfig(cfg, func(o *ebs.Options) { o.BaseEndpoint = aws.String(e.Direct) }),
	}
}

func (l look) images(t testing.TB) []types.Image {
	t.Helper()
	out, err := l.ec2.DescribeImages(context.Background(), &ec2.DescribeImagesInput{Owners: []string{"self"}})
	if err != nil {
		t.Fatal(err)
	}
	return out.Images
}

func (l look) snapshots(t testing.TB) []types.Snapshot {
	t.Helper()
	out, err := l.ec2.DescribeSnapshots(context.Background(), &ec2.DescribeSnapshotsInput{OwnerIds: []string{"self"}})
	if err != nil {
		t.Fatal(err)
	}
	return out.Snapshots
}

// nothing fails the test when a region holds an AMI or a snapshot.
func (l look) nothing(t *testing.T) {
	t.Helper()
	if images := l.images(t); len(images) > 0 {
		t.Errorf("%d AMIs are left", len(images))
	}
	for _, s := range l.snapshots(t) {
		t.Errorf("snapshot %s is left, %s", aws.ToString(s.SnapshotId), s.State)
	}
}

// one fails the test unless a region holds one AMI and its snapshot, which
// reads back as the disk.
func (l look) one(t *testing.T, disk []byte) types.Image {
	t.Helper()
	images, snapshots := l.images(t), l.snapshots(t)
	if len(images) != 1 || len(snapshots) != 1 {
		t.Fatalf("%d AMIs and %d snapshots are there", len(images), len(snapshots))
	}
	id := aws.ToString(snapshots[0].SnapshotId)
	if snapshotOf(images[0]) != id {
		t.Fatalf("AMI of %s beside snapshot %s", snapshotOf(images[0]), id)
	}
	if got := l.readBack(t, id, len(disk)); !bytes.Equal(got, disk) {
		t.Fatalf("the snapshot does not read back as the disk")
	}
	return images[0]
}

// readBack reads a snapshot block by block; what was not written is zero.
func (l look) readBack(t *testing.T, id string, size int) []byte {
	t.Helper()
	volume := make([]byte, (size+BlockSize-1)/BlockSize*BlockSize)
	out, err := l.ebs.ListSnapshotBlocks(context.Background(), &ebs.ListSnapshotBlocksInput{SnapshotId: &id})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range out.Blocks {
		block, err := l.ebs.GetSnapshotBlock(context.Background(), &ebs.GetSnapshotBlockInput{SnapshotId: &id, BlockIndex: b.BlockIndex, BlockToken: b.BlockToken})
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(block.BlockData)
		_ = block.BlockData.Close()
		if err != nil || len(data) != BlockSize {
			t.Fatalf("block %d: %d bytes, %v", aws.ToInt32(b.BlockIndex), len(data), err)
		}
		copy(volume[int(aws.ToInt32(b.BlockIndex))*BlockSize:], data)
	}
	if len(bytes.Trim(volume[size:], "\x00")) > 0 {
		t.Error("the last block is not padded with zeros")
	}
	return volume[:size]
}

// mutating are the calls that change something.
var mutating = []string{
	"StartSnapshot", "PutSnapshotBlock", "CompleteSnapshot", "RegisterImage", "CopyImage", "CreateTags",
	"ModifyImageAttribute", "DeregisterImage", "DeleteSnapshot",
}

// TestRegister takes a disk to an AMI from each kind of place, reads it back,
// looks at what was asked on the wire, and does it again.
func TestRegister(t *testing.T) {
	disk := testDisk(t)
	places := map[string]func(t *testing.T) string{
		"layout": func(t *testing.T) string { return "oci:" + filepath.Join(t.TempDir(), "layout") },
	}
	for _, kind := range testenv.RegistryKinds {
		places["registry "+kind.Name] = func(t *testing.T) string { return kind.Start(t).Host + "/octo-org/image:v1" }
	}
	for name, place := range places {
		t.Run(name, func(t *testing.T) {
			e := testenv.SharedEC2(t)
			p := push(t, place(t), disk, nil)
			i := p.image(t)
			c, said := cloud(t)
			var total, done int64
			c.Begin, c.Progress = func(_ string, n int64) { total = n }, func(n int64) { done += n }
			result, err := register(t.Context(), c, i, Spec{Tags: map[string]string{"team": "a b"}, Description: "words"})
			if err != nil {
				t.Fatal(err)
			}
			image := lookAt(t, e, home).one(t, disk)
			placed := result.AMIs[0]
			want := Placed{Region: home, ImageID: aws.ToString(image.ImageId), SnapshotID: snapshotOf(image), Name: "test-1.0-" + p.reference.Digest.Hex[:12]}
			if len(result.AMIs) != 1 || placed != want {
				t.Errorf("%+v, want %+v", result.AMIs, want)
			}
			if total != diskSize || done != total {
				t.Errorf("progress told of %d of %d bytes", done, total)
			}
			said.holds(t, "wrote 19 blocks of 512 KiB and left out 6: zero blocks that touch neither a partition nor a partition table")
			checkWire(t, e, i, placed)
			checkTags(t, image, i)

			e.Forget()
			again, err := register(t.Context(), c, i, Spec{})
			if err != nil {
				t.Fatal(err)
			}
			if want.Existed = true; again.AMIs[0] != want {
				t.Errorf("again: %+v, want %+v", again.AMIs[0], want)
			}
			if calls := e.Requests(mutating...); len(calls) > 0 {
				t.Errorf("again: %s was asked for", calls[0].Operation)
			}
		})
	}
}

// checkWire holds what is asked of AWS, as AWS documents it.
func checkWire(t *testing.T, e *testenv.EC2, i *Image, placed Placed) {
	t.Helper()
	var order []string
	for _, call := range e.Requests() {
		if len(order) == 0 || order[len(order)-1] != call.Operation {
			order = append(order, call.Operation)
		}
		if call.Region != home {
			t.Errorf("%s was asked of %s", call.Operation, call.Region)
		}
	}
	order = slices.DeleteFunc(order, func(s string) bool { return strings.HasPrefix(s, "Describe") || s == "CreateTags" })
	order = slices.Compact(order)
	if want := []string{"StartSnapshot", "PutSnapshotBlock", "CompleteSnapshot", "RegisterImage"}; !slices.Equal(order, want) {
		t.Errorf("the order is %q", order)
	}
	calls := e.Requests("RegisterImage")
	if len(calls) != 1 {
		t.Fatalf("%d calls of RegisterImage", len(calls))
	}
	form := calls[0].Form
	want := map[string]string{
		"Action": "RegisterImage", "Version": "2016-11-15", "Name": placed.Name, "Description": "words",
		"Architecture": "x86_64", "BootMode": "uefi", "TpmSupport": "v2.0", "ImdsSupport": "v2.0", "EnaSupport": "true",
		"VirtualizationType": "hvm", "RootDeviceName": "/dev/xvda",
		"BlockDeviceMapping.1.DeviceName":              "/dev/xvda",
		"BlockDeviceMapping.1.Ebs.SnapshotId":          placed.SnapshotID,
		"BlockDeviceMapping.1.Ebs.VolumeType":          "gp3",
		"BlockDeviceMapping.1.Ebs.DeleteOnTermination": "true",
		"TagSpecification.1.ResourceType":              "image",
	}
	if i.uefiData != "" {
		want["UefiData"] = i.uefiData
	}
	for key, values := range form {
		if strings.HasPrefix(key, "TagSpecification.1.Tag.") {
			continue
		}
		if len(values) != 1 || want[key] != values[0] {
			t.Errorf("RegisterImage has %s = %q, want %q", key, values, want[key])
		}
		delete(want, key)
	}
	for key := range want {
		t.Errorf("RegisterImage lacks %s", key)
	}
	complete := e.Requests("CompleteSnapshot")
	puts := map[string]bool{}
	for _, call := range e.Requests("PutSnapshotBlock") {
		puts[call.Path] = true
	}
	if len(complete) != 1 || complete[0].Header.Get("X-Amz-Changedblockscount") != fmt.Sprint(len(puts)) ||
		complete[0].Header.Get("X-Amz-Checksum-Algorithm") != "SHA256" || complete[0].Header.Get("X-Amz-Checksum-Aggregation-Method") != "LINEAR" {
		t.Errorf("%d calls of CompleteSnapshot, %d blocks: %v", len(complete), len(puts), complete)
	}
}

func checkTags(t *testing.T, image types.Image, i *Image) {
	t.Helper()
	tags := tagsOf(image.Tags)
	for key, want := range map[string]string{
		"Name": aws.ToString(image.Name), "team": "a b",
		"attestable-image:digest": i.Digest(), "attestable-image:repository": testOrigin.Repository,
		"attestable-image:commit": testOrigin.Commit, "attestable-image:workflow": testOrigin.Workflow,
		"attestable-image:pcr2": i.PCR(2), "attestable-image:pcr13": i.PCR(13), "attestable-image:pcr4": i.PCR(4), "attestable-image:pcr7": i.PCR(7), "attestable-image:pcr12": i.PCR(12),
		"attestable-image:artifact": tagValue(i.Reference()), "attestable-image:family": i.DefaultFamily(),
	} {
		if tags[key] != want || want == "" {
			t.Errorf("tag %s is %q, want %q", key, tags[key], want)
		}
	}
}
