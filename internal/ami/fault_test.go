package ami

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/org/attestable-image-action/internal/testenv"
)

// faults break calls of AWS at random: as often as rate says, in one of the ways
// of the world.
type faults struct {
	rate  float64
	kinds []string

	mu   sync.Mutex
	rand *rand.Rand
	seen map[string]int
}

var allFaults = []string{"throttle", "throttle snapshot", "500", "503", "reset", "lost answer", "hang"}

func newFaults(seed uint64, rate float64, kinds ...string) *faults {
	return &faults{rate: rate, kinds: kinds, rand: rand.New(rand.NewPCG(seed, 1)), seen: map[string]int{}}
}

// inject breaks calls of some operations, or of all when none are named.
func (f *faults) inject(t *testing.T, e *testenv.EC2, operations ...string) {
	t.Helper()
	over, end := context.WithCancel(context.Background())
	t.Cleanup(end)
	e.Intercept(t, func(w http.ResponseWriter, r *http.Request, call testenv.AWSRequest, forward http.Handler) bool {
		f.mu.Lock()
		hit := f.rand.Float64() < f.rate && (len(operations) == 0 || slices.Contains(operations, call.Operation))
		kind := f.kinds[f.rand.IntN(len(f.kinds))]
		if hit {
			f.seen[kind]++
		}
		f.mu.Unlock()
		if !hit {
			return false
		}
		switch kind {
		case "throttle":
			code := "ThrottlingException"
			if call.Form != nil {
				code = "RequestLimitExceeded"
			}
			call.Refuse(w, http.StatusBadRequest, code, "slow down")
		case "throttle snapshot":
			call.Refuse(w, http.StatusBadRequest, "RequestThrottledException", "slow down")
		case "500":
			call.Refuse(w, http.StatusInternalServerError, "InternalServerException", "oops")
		case "503":
			http.Error(w, "<html>Service Unavailable</html>", http.StatusServiceUnavailable)
		case "reset":
			testenv.Reset(w)
		case "lost answer":
			testenv.LoseAnswer(w, r, forward)
		case "hang":
			select {
			case <-r.Context().Done():
			case <-over.Done():
			}
		}
		return true
	})
}

// TestFaults breaks a fifth of all calls and expects one right AMI, again and
// again. ATTESTABLE_IMAGE_LONG=1 makes it a hundred runs.
func TestFaults(t *testing.T) {
	runs := 4
	if os.Getenv("ATTESTABLE_IMAGE_LONG") == "1" {
		runs = 100
	}
	e := testenv.SharedEC2(t)
	disk := testDisk(t)
	p := layout(t, disk)
	ended, seen := map[string]int{}, map[string]int{}
	for n := range runs {
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			e := testenv.SharedEC2(t)
			c, _ := cloud(t)
			c.patience.call, c.patience.putFloor = 1500*time.Millisecond, 200*time.Millisecond
			f := newFaults(uint64(n), 0.2, allFaults...)
			f.inject(t, e)
			_, err := register(t.Context(), c, p.image(t), Spec{})
			if err != nil {
				// It may fail, but then it must leave nothing.
				t.Log(err)
				ended["nothing"]++
				lookAt(t, e, home).nothing(t)
			} else {
				ended["one AMI"]++
				lookAt(t, e, home).one(t, disk)
			}
			for kind, times := range f.seen {
				seen[kind] += times
			}
		})
	}
	t.Logf("%d runs ended with %v after %v", runs, ended, seen)
	_ = e
	if ended["one AMI"] < runs*9/10 {
		t.Errorf("%d of %d runs made an AMI", ended["one AMI"], runs)
	}
}

// TestEachFault breaks one kind of call for good, or once, in one way.
func TestEachFault(t *testing.T) {
	disk := testDisk(t)
	p := layout(t, disk)
	denied := func(w http.ResponseWriter, call testenv.AWSRequest) {
		code := "AccessDeniedException"
		if call.Form != nil {
			code = "UnauthorizedOperation"
		}
		call.Refuse(w, http.StatusForbidden, code, "You are not authorized to perform this operation. Encoded authorization failure message: AAAABBBB")
	}
	refuse := func(status int, code, message string) func(http.ResponseWriter, testenv.AWSRequest) {
		return func(w http.ResponseWriter, call testenv.AWSRequest) { call.Refuse(w, status, code, message) }
	}
	reset := func(w http.ResponseWriter, _ testenv.AWSRequest) { testenv.Reset(w) }
	for name, tc := range map[string]struct {
		operation string
		fault     func(http.ResponseWriter, testenv.AWSRequest)
		times     int    // calls that it happens to; 0 for all
		want      string // of the error; "" when an AMI is made
		calls     int    // of the operation, when that matters
	}{
		"StartSnapshot denied":         {"StartSnapshot", denied, 0, "the AWS credentials lack the permission ebs:StartSnapshot on arn:aws:ec2:eu-central-1::snapshot/*: allow it in the role's policy", 1},
		"PutSnapshotBlock denied":      {"PutSnapshotBlock", denied, 0, "the AWS credentials lack the permission ebs:PutSnapshotBlock on arn:aws:ec2:eu-central-1::snapshot/snap-", 0},
		"CompleteSnapshot denied":      {"CompleteSnapshot", denied, 0, "the AWS credentials lack the permission ebs:CompleteSnapshot on arn:aws:ec2:eu-central-1::snapshot/snap-", 1},
		"DescribeSnapshots denied":     {"DescribeSnapshots", denied, 0, "the AWS credentials lack the permission ec2:DescribeSnapshots on *", 1},
		"DescribeImages denied":        {"DescribeImages", denied, 0, "the AWS credentials lack the permission ec2:DescribeImages on *", 1},
		"RegisterImage denied":         {"RegisterImage", denied, 0, "the AWS credentials lack the permission ec2:RegisterImage on arn:aws:ec2:eu-central-1::image/*", 1},
		"CreateTags denied":            {"CreateTags", denied, 0, "", 0},
		"DescribeInstanceTypes denied": {"DescribeInstanceTypes", denied, 0, "", 1},
		"no such architecture": {"DescribeInstanceTypes", func(w http.ResponseWriter, _ testenv.AWSRequest) {
			_, _ = w.Write([]byte(`<DescribeInstanceTypesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><instanceTypeSet/></DescribeInstanceTypesResponse>`))
		}, 0, "look for instance types in eu-central-1: there is none of architecture x86_64 with a NitroTPM: choose another region", 0},
		"region not enabled":       {"DescribeImages", refuse(401, "AuthFailure", "AWS was not able to validate the provided access credentials"), 0, "enable the region for the account", 1},
		"unknown credentials":      {"DescribeImages", refuse(403, "InvalidClientTokenId", "The security token included in the request is invalid."), 0, "AWS does not know the credentials", 1},
		"quota of snapshots":       {"StartSnapshot", refuse(402, "ServiceQuotaExceededException", "too many pending"), 0, "a quota of the account is used up", 1},
		"throttled for good":       {"PutSnapshotBlock", refuse(400, "ThrottlingException", "x"), 0, "AWS wants fewer requests and went on saying so", 0},
		"failing for good":         {"PutSnapshotBlock", refuse(500, "InternalServerException", "x"), 0, "AWS failed again and again", 0},
		"resetting for good":       {"CompleteSnapshot", reset, 0, "AWS cannot be reached", 12},
		"started once too often":   {"StartSnapshot", refuse(500, "InternalServerException", "x"), 3, "", 4},
		"block not readable":       {"PutSnapshotBlock", refuse(400, "ValidationException", "Failed to read block data"), 5, "", 0},
		"damaged block":            {"PutSnapshotBlock", refuse(400, "ValidationException", "The checksum does not match"), 1, "", 0},
		"damaged blocks for good":  {"PutSnapshotBlock", refuse(400, "ValidationException", "The checksum does not match"), 0, "AWS received other bytes than were sent", 0},
		"signature refused":        {"PutSnapshotBlock", refuse(403, "InvalidSignatureException", "Signature expired"), 0, "check the secret key, the clock of this machine", 0},
		"signature refused once":   {"PutSnapshotBlock", refuse(403, "InvalidSignatureException", "Signature mismatch"), 1, "", 0},
		"snapshot not known yet":   {"PutSnapshotBlock", refuse(404, "ResourceNotFoundException", "The snapshot does not exist."), 20, "", 0},
		"snapshot gone":            {"PutSnapshotBlock", refuse(404, "ResourceNotFoundException", "The snapshot does not exist."), 0, "AWS refused: ResourceNotFoundException", 0},
		"AMI not known yet":        {"RegisterImage", reset, 2, "", 3},
		"wrong parameters":         {"RegisterImage", refuse(400, "InvalidParameterValue", "UefiData"), 0, "register the AMI in eu-central-1: AWS refused: InvalidParameterValue: UefiData", 1},
		"expired for good":         {"PutSnapshotBlock", refuse(403, "ExpiredTokenException", "The security token included in the request is expired"), 0, "the AWS credentials expired, and no newer ones are there: give the session more time (role-duration-seconds", 0},
		"page instead of an API":   {"StartSnapshot", func(w http.ResponseWriter, _ testenv.AWSRequest) { _, _ = w.Write([]byte("<html>welcome</html>")) }, 0, "AWS cannot be reached", 0},
		"cannot be checked at all": {"CompleteSnapshot", refuse(400, "ValidationException", "ChangedBlocksCount is wrong"), 0, "AWS refused: ValidationException: ChangedBlocksCount is wrong", 1},
	} {
		t.Run(name, func(t *testing.T) {
			e := testenv.SharedEC2(t)
			var calls atomic.Int64
			e.Intercept(t, func(w http.ResponseWriter, _ *http.Request, call testenv.AWSRequest, _ http.Handler) bool {
				if call.Operation != tc.operation {
					return false
				}
				if n := calls.Add(1); tc.times > 0 && n > int64(tc.times) {
					return false
				}
				tc.fault(w, call)
				return true
			})
			c, _ := cloud(t)
			c.patience.beat = time.Hour
			_, err := register(t.Context(), c, p.image(t), Spec{})
			switch {
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("%v\nwant: %s", err, tc.want)
			case tc.want == "" && err != nil:
				t.Error(err)
			}
			if err != nil && strings.Contains(err.Error(), "AAAABBBB") {
				t.Errorf("what only a program can read is shown: %v", err)
			}
			if n := calls.Load(); tc.calls > 0 && n != int64(tc.calls) {
				t.Errorf("%d calls, want %d", n, tc.calls)
			}
			if tc.want == "" {
				lookAt(t, e, home).one(t, disk)
			} else {
				lookAt(t, e, home).nothing(t)
			}
		})
	}
}

// TestDeniedIsNotTriedAgain counts the puts that are refused: no more than were
// on their way at the first refusal.
func TestDeniedIsNotTriedAgain(t *testing.T) {
	p := layout(t, testDisk(t))
	e := testenv.SharedEC2(t)
	e.Intercept(t, func(w http.ResponseWriter, _ *http.Request, call testenv.AWSRequest, _ http.Handler) bool {
		if call.Operation == "PutSnapshotBlock" {
			call.Refuse(w, http.StatusForbidden, "AccessDeniedException", "no")
			return true
		}
		return false
	})
	c, _ := cloud(t)
	if _, err := register(t.Context(), c, p.image(t), Spec{}); err == nil {
		t.Fatal("it was done")
	}
	seen := map[string]bool{}
	for _, call := range e.Requests("PutSnapshotBlock") {
		if seen[call.Path] {
			t.Errorf("%s was tried again", call.Path)
		}
		seen[call.Path] = true
	}
	if len(seen) == 0 || len(seen) > firstInFlight {
		t.Errorf("%d blocks were tried", len(seen))
	}
}

// TestStop stops a run at its nth call, at each in turn: nothing may be left.
func TestStop(t *testing.T) {
	disk := testDisk(t)
	p := layout(t, disk)
	stops := [][2]string{
		{"StartSnapshot", home}, {"PutSnapshotBlock", home}, {"CompleteSnapshot", home}, {"RegisterImage", home}, {"ModifyImageAttribute", home},
		{"DescribeSnapshots", home}, {"StartSnapshot", there}, {"PutSnapshotBlock", there}, {"RegisterImage", there}, {"ModifyImageAttribute", there},
	}
	for _, stop := range stops {
		operation, region := stop[0], stop[1]
		for _, when := range []string{"before", "after", "lost"} {
			t.Run(operation+" "+region+" "+when, func(t *testing.T) {
				e := testenv.SharedEC2(t)
				ctx, stop := context.WithCancelCause(t.Context())
				stopped := errors.New("stopped by the test")
				var once atomic.Bool
				e.Intercept(t, func(w http.ResponseWriter, r *http.Request, call testenv.AWSRequest, forward http.Handler) bool {
					if call.Operation != operation || call.Region != region || !once.CompareAndSwap(false, true) {
						return false
					}
					switch when {
					case "before":
						stop(stopped)
						time.Sleep(20 * time.Millisecond)
						return false
					case "after":
						forward.ServeHTTP(w, r)
						stop(stopped)
					case "lost":
						stop(stopped)
						testenv.LoseAnswer(w, r, forward)
					}
					return true
				})
				c, _ := cloud(t)
				spec := Spec{CopyTo: []string{there}, ShareWith: []Principal{{Account: "123456789012"}}}
				result, err := register(ctx, c, p.image(t), spec)
				if err == nil || !errors.Is(err, stopped) {
					t.Errorf("%v, %v", result, err)
				}
				if !once.Load() {
					t.Error("it was never stopped")
				}
				lookAt(t, e, home).nothing(t)
				lookAt(t, e, there).nothing(t)
			})
		}
	}
}

// TestExpiry lets the credentials expire in the middle of an upload. Those of a
// provider are renewed, once; those of the environment cannot be.
func TestExpiry(t *testing.T) {
	disk := testDisk(t)
	p := layout(t, disk)
	var sessions atomic.Int64
	provider := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"AccessKeyId": "session%d", "SecretAccessKey": "s", "Token": "t%[1]d", "Expiration": %q}`,
			sessions.Add(1), time.Now().Add(time.Hour).Format(time.RFC3339))
	})
	expire := func(t *testing.T, e *testenv.EC2, valid func(key string) bool) {
		t.Helper()
		e.Intercept(t, func(w http.ResponseWriter, _ *http.Request, call testenv.AWSRequest, _ http.Handler) bool {
			if valid(call.AccessKey) {
				return false
			}
			call.Refuse(w, http.StatusForbidden, "ExpiredTokenException", "The security token included in the request is expired")
			return true
		})
	}
	t.Run("renewed", func(t *testing.T) {
		e := testenv.SharedEC2(t)
		useProvider(t, provider)
		var puts atomic.Int64
		expire(t, e, func(key string) bool { return key != "session1" || puts.Add(1) < 12 })
		c, _ := cloud(t)
		if _, err := register(t.Context(), c, p.image(t), Spec{}); err != nil {
			t.Fatal(err)
		}
		if n := sessions.Load(); n != 2 {
			t.Errorf("%d sessions were asked for", n)
		}
		lookAt(t, e, home).one(t, disk)
	})
	t.Run("not renewed", func(t *testing.T) {
		e := testenv.SharedEC2(t)
		var calls atomic.Int64
		expire(t, e, func(string) bool { return calls.Add(1) < 12 })
		c, _ := cloud(t)
		_, err := register(t.Context(), c, p.image(t), Spec{})
		for _, want := range []string{"the AWS credentials expired", "role-duration-seconds", "could not be removed", "the next run for the same artifact removes it"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v\nwant: %s", err, want)
			}
		}
		left := lookAt(t, e, home).snapshots(t)
		if len(left) != 1 || !strings.Contains(err.Error(), aws.ToString(left[0].SnapshotId)) {
			t.Errorf("%d snapshots are left, and the error is %v", len(left), err)
		}
		// With new credentials the next run does what it says. This process is
		// that of the first run, and lives: its last sign of life has to age.
		calls.Store(-1 << 40)
		if _, err := register(t.Context(), c, p.image(t), Spec{}); err != nil {
			t.Fatal(err)
		}
		lookAt(t, e, home).one(t, disk)
	})
}
