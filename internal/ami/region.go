package ami

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
)

// patience is how long AWS may take, and how often it is asked.
type patience struct {
	attempts   int           // of one call
	backoff    time.Duration // before the second attempt; doubles
	maxBackoff time.Duration
	call       time.Duration // one attempt of a call, from its start to its answer
	putFloor   time.Duration // least time for one attempt to put a block, whatever earlier ones took
	poll       time.Duration // between two questions for a state, at first
	maxPoll    time.Duration
	appear     time.Duration // until what was just made can be seen
	beat       time.Duration // between two signs of life on a snapshot
	lease      time.Duration // without a sign of life until a run counts as dead
	grace      time.Duration // for a call that must not be cut off once everything else is
	cleanUp    time.Duration // for removing what a run made
}

var defaultPatience = patience{
	attempts:   12,
	backoff:    200 * time.Millisecond,
	maxBackoff: 10 * time.Second,
	call:       30 * time.Second,
	putFloor:   5 * time.Second,
	poll:       2 * time.Second,
	maxPoll:    15 * time.Second,
	appear:     2 * time.Minute,
	beat:       15 * time.Second,
	lease:      90 * time.Second,
	// A runner that cancels a job kills it 10 s after its first signal.
	grace:   2 * time.Second,
	cleanUp: 7 * time.Second,
}

// Cloud is an AWS account.
type Cloud struct {
	// Note is told, in a sentence each, what a person should know meanwhile.
	// It may be called from several goroutines.
	Note func(string)
	// Progress is told of every stretch of the disk that is done, in bytes, one
	// call at a time. Begin is called before the upload to each region.
	Begin    func(region string, total int64)
	Progress func(n int64)

	config   aws.Config
	patience patience
	renewing sync.Mutex
	renewed  time.Time // when credentials were, last
}

// Open reads AWS's configuration and credentials from where AWS's tools take
// them. region is the one to work in; "" for the configured one.
func Open(ctx context.Context, region string) (*Cloud, error) {
	var options []func(*config.LoadOptions) error
	if region != "" {
		if err := CheckRegion(region); err != nil {
			return nil, err
		}
		options = append(options, config.WithRegion(region))
	}
	c, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("read the AWS configuration: %w", err)
	}
	if c.Region == "" {
		return nil, errors.New("no AWS region is set: give --region, or set AWS_REGION")
	}
	if err := CheckRegion(c.Region); err != nil {
		return nil, fmt.Errorf("read the AWS configuration: %w", err)
	}
	return &Cloud{config: c, patience: defaultPatience}, nil
}

// Region is the one that was given or configured.
func (c *Cloud) Region() string { return c.config.Region }

func (c *Cloud) note(format string, args ...any) {
	if c.Note != nil {
		c.Note(fmt.Sprintf(format, args...))
	}
}

// authenticate finds credentials before anything is asked with them.
func (c *Cloud) authenticate(ctx context.Context) error {
	if c.config.Credentials == nil {
		return errNoCredentials
	}
	if _, err := c.config.Credentials.Retrieve(ctx); err != nil {
		if ctx.Err() != nil {
			return err
		}
		return fmt.Errorf("%w (%w)", errNoCredentials, err)
	}
	return nil
}

var errNoCredentials = errors.New("there are no AWS credentials: in a workflow run aws-actions/configure-aws-credentials before, elsewhere log in as for the AWS command line")

// region is EC2 and the EBS direct APIs in one region. The SDK tries nothing
// again: that is try's work, which knows what may be repeated.
type region struct {
	*Cloud
	patience patience
	name     string
	ec2      *ec2.Client
	ebs      *ebs.Client
}

func (c *Cloud) region(name string) *region {
	cfg := c.config.Copy()
	cfg.Region = name
	cfg.Retryer = func() aws.Retryer { return aws.NopRetryer{} }
	cfg.HTTPClient = awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		t.MaxIdleConnsPerHost = maxInFlight + 4
		t.MaxIdleConns = 0
		t.WriteBufferSize = 64 << 10
	})
	return &region{
		Cloud: c, patience: c.patience, name: name,
		ec2: ec2.NewFromConfig(cfg),
		ebs: ebs.NewFromConfig(cfg),
	}
}

// hurried is the region for what has to be done before a runner kills the
// process.
func (r *region) hurried() *region {
	h := *r
	h.patience.call, h.patience.maxBackoff = min(h.patience.call, h.patience.cleanUp/3), 500*time.Millisecond
	return &h
}

// arn is the ARN of a resource of EC2 in the region; snapshots and AMIs have no
// account in theirs.
func (r *region) arn(resource string) string {
	partition := "aws"
	switch {
	case strings.HasPrefix(r.name, "cn-"):
		partition = "aws-cn"
	case strings.HasPrefix(r.name, "us-gov-"):
		partition = "aws-us-gov"
	}
	return "arn:" + partition + ":ec2:" + r.name + "::" + resource
}

// graceful is a context that outlives its parent by a moment: what it is for
// either happened or did not when it ends, and cannot be told if it is cut off.
func graceful(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	detached, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(grace, func() { cancel(context.Cause(ctx)) })
		context.AfterFunc(detached, func() { timer.Stop() })
	})
	return detached, func() { stop(); cancel(nil) }
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
