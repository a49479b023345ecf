package ami

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/org/attestable-image-action/internal/testenv"
)

var everybody = []Principal{
	{Account: "123456789013"},
	{Organization: "arn:aws:organizations::123456789012:organization/o-0123456789"},
	{Unit: "arn:aws:organizations::123456789012:ou/o-0123456789/ou-0123-01234567"},
}

func (l look) permissions(t *testing.T, id string) string {
	t.Helper()
	out, err := l.ec2.DescribeImageAttribute(t.Context(), &ec2.DescribeImageAttributeInput{ImageId: &id, Attribute: types.ImageAttributeNameLaunchPermission})
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, p := range out.LaunchPermissions {
		list = append(list, aws.ToString(p.UserId)+aws.ToString(p.OrganizationArn)+aws.ToString(p.OrganizationalUnitArn))
	}
	return strings.Join(list, " ")
}

// TestFurtherRegions uploads to two more regions and shares, and does it again. No AMI
// is made of another one: a role that may copy may publish what is not its own.
func TestFurtherRegions(t *testing.T) {
	disk := testDisk(t)
	p := layout(t, disk)
	e := testenv.SharedEC2(t)
	c, _ := cloud(t)
	spec := Spec{CopyTo: []string{there, "us-east-1"}, ShareWith: everybody}
	result, err := register(t.Context(), c, p.image(t), spec)
	if err != nil {
		t.Fatal(err)
	}
	if len(result.AMIs) != 3 {
		t.Fatalf("%+v", result.AMIs)
	}
	want := fmt.Sprint(everybody[0], everybody[1], everybody[2])
	want = strings.Join(strings.Fields(strings.NewReplacer("arn", " arn").Replace(want)), " ")
	for n, region := range []string{home, there, "us-east-1"} {
		l := lookAt(t, e, region)
		images, snapshots := l.images(t), l.snapshots(t)
		if len(images) != 1 || len(snapshots) != 1 {
			t.Fatalf("%s: %d AMIs, %d snapshots", region, len(images), len(snapshots))
		}
		checkTags2(t, images[0].Tags, p.image(t))
		checkTags2(t, snapshots[0].Tags, p.image(t))
		if got := result.AMIs[n]; got.Region != region || got.ImageID != aws.ToString(images[0].ImageId) || got.SnapshotID != aws.ToString(snapshots[0].SnapshotId) {
			t.Errorf("%+v", got)
		}
		if got := l.permissions(t, aws.ToString(images[0].ImageId)); got != want {
			t.Errorf("%s: shared with %q, want %q", region, got, want)
		}
	}
	if calls := e.Requests("CopyImage", "CopySnapshot"); len(calls) > 0 {
		t.Errorf("%s was asked for", calls[0].Operation)
	}
	if calls := e.Requests("StartSnapshot"); len(calls) != 3 {
		t.Errorf("%d snapshots were started", len(calls))
	}
	e.Forget()
	again, err := register(t.Context(), c, p.image(t), spec)
	if err != nil {
		t.Fatal(err)
	}
	for n, placed := range again.AMIs {
		if !placed.Existed || placed.ImageID != result.AMIs[n].ImageID {
			t.Errorf("again: %+v, first %+v", placed, result.AMIs[n])
		}
	}
	if calls := e.Requests("StartSnapshot", "RegisterImage"); len(calls) > 0 {
		t.Errorf("again: %s was asked for", calls[0].Operation)
	}
}

func checkTags2(t *testing.T, tags []types.Tag, i *Image) {
	t.Helper()
	have := tagsOf(tags)
	for key, want := range i.tags(i.DefaultFamily()) {
		if have[key] != want {
			t.Errorf("tag %s is %q, want %q", key, have[key], want)
		}
	}
}

// TestFurtherRegionFails fails in one of two regions: the other one is done, and nothing
// is left in the first.
func TestFurtherRegionFails(t *testing.T) {
	p := layout(t, testDisk(t))
	failing := func(operation string, fault func(w http.ResponseWriter, call testenv.AWSRequest)) func(http.ResponseWriter, *http.Request, testenv.AWSRequest, http.Handler) bool {
		return func(w http.ResponseWriter, _ *http.Request, call testenv.AWSRequest, _ http.Handler) bool {
			if call.Region != there || call.Operation != operation {
				return false
			}
			fault(w, call)
			return true
		}
	}
	denied := func(w http.ResponseWriter, call testenv.AWSRequest) {
		call.Refuse(w, http.StatusForbidden, "UnauthorizedOperation", "no")
	}
	for name, tc := range map[string]struct {
		intercept func(http.ResponseWriter, *http.Request, testenv.AWSRequest, http.Handler) bool
		want      string
	}{
		"uploading denied":   {failing("StartSnapshot", denied), "make the AMI in eu-west-1: start a snapshot in eu-west-1: the AWS credentials lack the permission ebs:StartSnapshot on"},
		"registering denied": {failing("RegisterImage", denied), "make the AMI in eu-west-1: register the AMI in eu-west-1: the AWS credentials lack the permission ec2:RegisterImage on"},
		"sharing denied":     {failing("ModifyImageAttribute", denied), "make the AMI in eu-west-1: share AMI ami-"},
		"the AMI fails": {func(w http.ResponseWriter, r *http.Request, call testenv.AWSRequest, forward http.Handler) bool {
			if call.Region != there || call.Operation != "DescribeImages" || call.Form.Get("ImageId.1") == "" {
				return false
			}
			fmt.Fprintf(w, `<DescribeImagesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><imagesSet><item><imageId>%s</imageId><imageState>failed</imageState><stateReason><message>Client.InternalError</message></stateReason></item></imagesSet></DescribeImagesResponse>`, call.Form.Get("ImageId.1"))
			return true
		}, "its state is failed: Client.InternalError"},
	} {
		t.Run(name, func(t *testing.T) {
			e := testenv.SharedEC2(t)
			e.Intercept(t, tc.intercept)
			c, _ := cloud(t)
			result, err := register(t.Context(), c, p.image(t), Spec{CopyTo: []string{there, "us-east-1"}, ShareWith: everybody})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v\nwant: %s", err, tc.want)
			}
			if result == nil || len(result.AMIs) != 2 || result.AMIs[0].Region != home || result.AMIs[1].Region != "us-east-1" {
				t.Fatalf("%+v", result)
			}
			for _, region := range []string{home, "us-east-1"} {
				if l := lookAt(t, e, region); len(l.images(t)) != 1 || len(l.snapshots(t)) != 1 {
					t.Errorf("%s: %d AMIs, %d snapshots", region, len(l.images(t)), len(l.snapshots(t)))
				}
			}
			lookAt(t, e, there).nothing(t)
		})
	}
	t.Run("region not enabled", func(t *testing.T) {
		e := testenv.SharedEC2(t)
		e.Intercept(t, failing("DescribeImages", func(w http.ResponseWriter, call testenv.AWSRequest) {
			call.Refuse(w, http.StatusUnauthorized, "AuthFailure", "AWS was not able to validate the provided access credentials")
		}))
		c, _ := cloud(t)
		_, err := register(t.Context(), c, p.image(t), Spec{CopyTo: []string{there}})
		if err == nil || !strings.Contains(err.Error(), "in eu-west-1: AWS does not take the credentials in this region: enable the region") {
			t.Error(err)
		}
		if calls := e.Requests(mutating...); len(calls) > 0 {
			t.Errorf("%s was asked for", calls[0].Operation)
		}
	})
}

// TestEncrypt asks for encrypted snapshots, with keys of their regions.
func TestEncrypt(t *testing.T) {
	disk := testDisk(t)
	p := layout(t, disk)
	multi := "arn:aws:kms:eu-central-1:123456789012:key/mrk-0123456789"
	single := "arn:aws:kms:eu-central-1:123456789012:key/0123456789"
	for key, elsewhere := range map[string]string{"": "", single: "", multi: strings.Replace(multi, home, there, 1)} {
		t.Run(key, func(t *testing.T) {
			e := testenv.SharedEC2(t)
			var mu sync.Mutex
			asked := map[string]string{} // for snapshots, by region
			e.Intercept(t, func(_ http.ResponseWriter, r *http.Request, call testenv.AWSRequest, _ http.Handler) bool {
				if call.Operation == "StartSnapshot" {
					body, err := io.ReadAll(r.Body)
					if err != nil {
						t.Error(err)
					}
					r.Body = io.NopCloser(bytes.NewReader(body))
					mu.Lock()
					defer mu.Unlock()
					asked[call.Region] = string(body)
				}
				return false
			})
			c, _ := cloud(t)
			if _, err := register(t.Context(), c, p.image(t), Spec{Encrypt: true, KMSKey: key, CopyTo: []string{there}}); err != nil {
				t.Fatal(err)
			}
			image := lookAt(t, e, home).one(t, disk)
			if !isEncrypted(image) {
				t.Error("it is not encrypted")
			}
			for field := range e.Requests("RegisterImage")[0].Form {
				if strings.HasSuffix(field, "Encrypted") || strings.HasSuffix(field, "KmsKeyId") {
					t.Errorf("RegisterImage has %s", field)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			for region, want := range map[string]string{home: key, there: elsewhere} {
				var in struct {
					Encrypted bool
					Key       string `json:"KmsKeyArn"`
				}
				if err := json.Unmarshal([]byte(asked[region]), &in); err != nil || !in.Encrypted || in.Key != want {
					t.Errorf("%s: asked for %s (%v), want the key %q", region, asked[region], err, want)
				}
			}
		})
	}
	t.Run("an AMI that is not encrypted", func(t *testing.T) {
		testenv.SharedEC2(t)
		c, _ := cloud(t)
		if _, err := register(t.Context(), c, p.image(t), Spec{}); err != nil {
			t.Fatal(err)
		}
		_, err := register(t.Context(), c, p.image(t), Spec{Encrypt: true})
		if err == nil || !strings.Contains(err.Error(), "which is of this artifact, but not as it is wanted (its snapshot is not encrypted): give another one with --name") {
			t.Error(err)
		}
	})
	t.Run("an account that encrypts everything", func(t *testing.T) {
		e := testenv.SharedEC2(t)
		e.Intercept(t, func(w http.ResponseWriter, r *http.Request, call testenv.AWSRequest, forward http.Handler) bool {
			if call.Operation != "StartSnapshot" {
				return false
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusCreated)
			id := lookAt(t, e, home).leave(t, nil)
			fmt.Fprintf(w, `{"SnapshotId": %q, "BlockSize": 524288, "Status": "pending", "SseType": "sse-ebs", "KmsKeyArn": "arn:aws:kms:x"}`, id)
			return true
		})
		c, _ := cloud(t)
		_, err := register(t.Context(), c, p.image(t), Spec{Zeros: OmitZeros})
		if err == nil || !strings.Contains(err.Error(), "the account encrypts every snapshot") {
			t.Error(err)
		}
		lookAt(t, e, home).nothing(t)
	})
}

// TestName takes a name that another AMI has, before and after the upload.
func TestName(t *testing.T) {
	disk := testDisk(t)
	p := layout(t, disk)
	other := layout(t, append(slices.Clone(disk), make([]byte, 512)...))
	taken := func(t *testing.T, c *Cloud) {
		t.Helper()
		if _, err := register(t.Context(), c, other.image(t), Spec{Name: "taken"}); err != nil {
			t.Fatal(err)
		}
	}
	const want = `the name "taken" is that of ami-`
	t.Run("before", func(t *testing.T) {
		e := testenv.SharedEC2(t)
		c, _ := cloud(t)
		taken(t, c)
		e.Forget()
		_, err := register(t.Context(), c, p.image(t), Spec{Name: "taken"})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "which is not of this artifact: give another one with --name") {
			t.Error(err)
		}
		if calls := e.Requests(mutating...); len(calls) > 0 {
			t.Errorf("%s was asked for", calls[0].Operation)
		}
	})
	t.Run("meanwhile", func(t *testing.T) {
		e := testenv.SharedEC2(t)
		c, _ := cloud(t)
		late, _ := cloud(t)
		e.Intercept(t, func(_ http.ResponseWriter, _ *http.Request, call testenv.AWSRequest, _ http.Handler) bool {
			if call.Operation == "CompleteSnapshot" && len(lookAt(t, e, home).images(t)) == 0 {
				late.config.BaseEndpoint = aws.String(e.Direct)
				taken(t, late)
			}
			return false
		})
		_, err := register(t.Context(), c, p.image(t), Spec{Name: "taken"})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Error(err)
		}
		if l := lookAt(t, e, home); len(l.images(t)) != 1 || len(l.snapshots(t)) != 1 {
			t.Errorf("%d AMIs, %d snapshots", len(l.images(t)), len(l.snapshots(t)))
		}
	})
}

// TestKeep keeps the newest AMIs of a family, in each region, and none of
// another family is touched.
func TestKeep(t *testing.T) {
	disk := testDisk(t)
	e := testenv.SharedEC2(t)
	c, _ := cloud(t)
	place := "oci:" + t.TempDir()
	version := func(n int) *Image {
		d := slices.Clone(disk)
		d[3<<20] = byte(n)
		i := push(t, place, d, nil).image(t)
		// moto's times are of a second.
		time.Sleep(1100 * time.Millisecond)
		return i
	}
	stranger, err := register(t.Context(), c, version(100), Spec{Family: "another"})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for n := range 4 {
		result, err := register(t.Context(), c, version(n), Spec{CopyTo: []string{there}, Keep: 2})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, result.AMIs[0].ImageID)
		if removed := len(result.Removed); removed != 2*min(1, max(0, n-1)) {
			t.Errorf("%d AMIs were removed after %d", removed, n+1)
		}
	}
	l := lookAt(t, e, home)
	var left []string
	for _, image := range l.images(t) {
		left = append(left, aws.ToString(image.ImageId))
	}
	slices.Sort(left)
	want := []string{ids[2], ids[3], stranger.AMIs[0].ImageID}
	slices.Sort(want)
	if !slices.Equal(left, want) || len(l.snapshots(t)) != 3 {
		t.Errorf("%q are left with %d snapshots, want %q", left, len(l.snapshots(t)), want)
	}
	if other := lookAt(t, e, there); len(other.images(t)) != 2 || len(other.snapshots(t)) != 2 {
		t.Errorf("%d AMIs, %d snapshots in the other region", len(other.images(t)), len(other.snapshots(t)))
	}

	removed, err := c.DeregisterFamily(t.Context(), version(3).DefaultFamily(), 1)
	if err != nil || len(removed) != 1 || removed[0].ImageID != ids[2] || len(removed[0].Snapshots) != 1 {
		t.Errorf("%+v, %v", removed, err)
	}
	if removed, err := c.DeregisterFamily(t.Context(), "nobody", 0); err != nil || len(removed) != 0 {
		t.Errorf("%+v, %v", removed, err)
	}
	removed, err = c.Deregister(t.Context(), []string{ids[3], stranger.AMIs[0].ImageID})
	if err != nil || len(removed) != 2 {
		t.Errorf("%+v, %v", removed, err)
	}
	l.nothing(t)
	if _, err := c.Deregister(t.Context(), []string{ids[3]}); err == nil || !strings.Contains(err.Error(), "the account has none such in eu-central-1") {
		t.Error(err)
	}
	for _, call := range e.Requests("DeregisterImage") {
		if call.Form.Get("DeleteAssociatedSnapshots") != "true" {
			t.Errorf("%v", call.Form)
		}
	}
}

// TestDeregisterOthers leaves AMIs alone that somebody else made.
func TestDeregisterOthers(t *testing.T) {
	p := layout(t, testDisk(t))
	e := testenv.SharedEC2(t)
	c, _ := cloud(t)
	result, err := register(t.Context(), c, p.image(t), Spec{})
	if err != nil {
		t.Fatal(err)
	}
	id := result.AMIs[0].ImageID
	l := lookAt(t, e, home)
	if _, err := l.ec2.DeleteTags(t.Context(), &ec2.DeleteTagsInput{Resources: []string{id}, Tags: []types.Tag{{Key: aws.String(tagDigest)}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Deregister(t.Context(), []string{id}); err == nil || !strings.Contains(err.Error(), "register-ami did not make it") {
		t.Error(err)
	}
	if len(l.images(t)) != 1 {
		t.Error("it is gone")
	}
}
