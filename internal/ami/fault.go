package ami

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	ebstypes "github.com/aws/aws-sdk-go-v2/service/ebs/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// kind is what an error of AWS means for whoever would try again.
type kind int

const (
	final     kind = iota // it stays as it is
	transient             // it may be gone at once
	throttled             // it is gone when less is asked
	expired               // other credentials are needed
	doubtful              // as a rule final, but a damaged request looks alike
	unseen                // what was just made is not known everywhere yet
)

// Codes of AWS's errors by what they mean. EC2 and the EBS direct APIs name the
// same thing differently.
var (
	throttleCodes = []string{
		"ThrottlingException", "RequestThrottledException", "RequestThrottled", "Throttling", "RequestLimitExceeded",
		"ThrottledException", "TooManyRequestsException", "EC2ThrottledException", "SlowDown", "BandwidthLimitExceeded",
		"ConcurrentLimitExceededException",
	}
	transientCodes = []string{
		"InternalServerException", "InternalError", "InternalFailure", "Unavailable", "ServiceUnavailable",
		"ServiceUnavailableException", "RequestTimeout", "RequestTimeoutException", "BadGateway", "Server.InternalError",
	}
	expiredCodes  = []string{"ExpiredToken", "ExpiredTokenException", "RequestExpired"}
	doubtfulCodes = []string{
		"InvalidSignatureException", "SignatureDoesNotMatch", "IncompleteSignature", "IncompleteSignatureException",
		"ChecksumMismatch", "ChecksumMismatchException", "InvalidChecksum", "RequestTimeTooSkewed",
	}
	deniedCodes = []string{"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "UnauthorizedAccess"}
	wrongCodes  = []string{"AuthFailure", "InvalidClientTokenId", "UnrecognizedClientException", "MissingAuthenticationToken", "MissingAuthenticationTokenException"}
)

// code is the code of AWS's refusal, or "".
func code(err error) string {
	if refused, ok := errors.AsType[smithy.APIError](err); ok {
		return strings.TrimPrefix(refused.ErrorCode(), "Client.")
	}
	return ""
}

// isCode tells whether AWS refused with one of these codes.
func isCode(err error, codes ...string) bool {
	return slices.Contains(codes, code(err)) && code(err) != ""
}

// slowError says that AWS let the time of one attempt pass.
type slowError struct{ after string }

func (e *slowError) Error() string { return "AWS has not answered for " + e.after }

// judge tells what an error means.
func judge(err error) kind {
	var (
		slow      *slowError
		status    *awshttp.ResponseError
		invalid   *ebstypes.ValidationException
		notFound  *net.DNSError
		young     *notYetError
		untrusted *tls.CertificateVerificationError
	)
	c := code(err)
	switch {
	case errors.As(err, &young):
		return unseen
	case slices.Contains(throttleCodes, c):
		return throttled
	case slices.Contains(expiredCodes, c):
		return expired
	case slices.Contains(deniedCodes, c), slices.Contains(wrongCodes, c):
		return final
	case slices.Contains(doubtfulCodes, c):
		return doubtful
	case slices.Contains(transientCodes, c):
		return transient
	case errors.As(err, &invalid):
		switch {
		case invalid.Reason == ebstypes.ValidationExceptionReasonWriteRequestTimeout,
			invalid.Reason == ebstypes.ValidationExceptionReasonConflictingBlockUpdate,
			strings.Contains(invalid.ErrorMessage(), "Failed to read block data"):
			return transient
		case strings.Contains(strings.ToLower(invalid.ErrorMessage()), "checksum"):
			return doubtful
		}
		return final
	case errors.As(err, &status):
		switch s := status.HTTPStatusCode(); {
		case s == http.StatusTooManyRequests || s == http.StatusServiceUnavailable:
			return throttled
		case s >= 500 && s != http.StatusNotImplemented, s == http.StatusRequestTimeout:
			return transient
		case c != "":
			return final
		}
	}
	switch {
	case errors.Is(err, errNoCredentials):
		return final
	case errors.As(err, &slow):
		return transient
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return final
	case errors.As(err, &notFound) && notFound.IsNotFound, errors.As(err, &untrusted):
		return final
	case c == "" && sent(err):
		return transient // the connection, or an answer that is none of AWS's
	}
	return final
}

// sent tells whether a request was on its way when it failed.
func sent(err error) bool {
	var (
		request *smithyhttp.RequestSendError
		decode  *smithy.DeserializationError
		network net.Error
	)
	return errors.As(err, &request) || errors.As(err, &decode) || errors.As(err, &network) || errors.Is(err, io.ErrUnexpectedEOF)
}

// action is a call of AWS, for sentences about its failure.
type action struct {
	doing      string // "register the AMI"
	permission string // "ec2:RegisterImage"
	resource   string // ARN, or "*"
}

// explain turns an error of AWS into a sentence that says what to do.
func (r *region) explain(a action, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s in %s: %w", a.doing, r.name, &fault{cause: err, advice: r.advice(a, err)})
}

// fault is an error with what to do about it.
type fault struct {
	cause  error
	advice string
}

func (f *fault) Error() string {
	if f.advice != "" {
		return f.advice
	}
	return f.cause.Error()
}

func (f *fault) Unwrap() error { return f.cause }

func (r *region) advice(a action, err error) string {
	var (
		slow *slowError
		dns  *net.DNSError
	)
	c := code(err)
	said := said(err)
	switch {
	case slices.Contains(deniedCodes, c):
		more := ""
		var denied *ebstypes.AccessDeniedException
		if errors.As(err, &denied) && denied.Reason == ebstypes.AccessDeniedExceptionReasonDependencyAccessDenied {
			more = ", and the use of the KMS key"
		}
		return fmt.Sprintf("the AWS credentials lack the permission %s on %s: allow it%s in the role's policy (%s)", a.permission, a.resource, more, said)
	case c == "OptInRequired" || c == "AuthFailure":
		return fmt.Sprintf("AWS does not take the credentials in this region: enable the region for the account if it is one that must be, and check the credentials (%s)", said)
	case slices.Contains(wrongCodes, c):
		return fmt.Sprintf("AWS does not know the credentials: check them, and whether they are those of this partition of AWS (%s)", said)
	case slices.Contains(expiredCodes, c):
		return fmt.Sprintf("the AWS credentials expired, and no newer ones are there: give the session more time (role-duration-seconds of aws-actions/configure-aws-credentials, and the role's maximum session duration), and run again (%s)", said)
	case slices.Contains(throttleCodes, c):
		return fmt.Sprintf("AWS wants fewer requests and went on saying so: run again when less is going on in the account, or have the quota raised (%s)", said)
	case c == "ServiceQuotaExceededException" || c == "PendingSnapshotLimitExceeded" || c == "SnapshotLimitExceeded" || c == "ResourceLimitExceeded":
		return fmt.Sprintf("a quota of the account is used up: wait for snapshots that are pending, delete old ones, or have the quota raised (%s)", said)
	case judge(err) == doubtful && (strings.Contains(c, "Signature") || c == "RequestTimeTooSkewed"):
		return fmt.Sprintf("AWS does not take the signature of the request: check the secret key, the clock of this machine, and a proxy in between (%s)", said)
	case judge(err) == doubtful:
		return fmt.Sprintf("AWS received other bytes than were sent: look at this machine's memory, and at a proxy in between (%s)", said)
	case c == "KMSKeyNotFoundException" || strings.Contains(c, "KMSKey") || strings.Contains(c, "KmsKey"):
		return fmt.Sprintf("the KMS key cannot be used: check its ARN, that it is enabled, symmetric and in this region, and its key policy (%s)", said)
	case errors.As(err, &dns) && dns.IsNotFound:
		return fmt.Sprintf("the name %s cannot be resolved: check that %s is an AWS region, and the network", dns.Name, r.name)
	case errors.As(err, &slow):
		return fmt.Sprintf("%s, several times over: try again, and look at the network between here and AWS", slow)
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return ""
	case c != "" && judge(err) == transient:
		return fmt.Sprintf("AWS failed again and again: try again later, and look at AWS's health page (%s)", said)
	case c != "":
		return "AWS refused: " + said
	case sent(err):
		return fmt.Sprintf("AWS cannot be reached: check the network and the proxy settings (%s)", said)
	}
	return ""
}

// said is AWS's own words: the code and the message, without what only a
// program can read.
func said(err error) string {
	if refused, ok := errors.AsType[smithy.APIError](err); ok {
		message, _, _ := strings.Cut(refused.ErrorMessage(), "Encoded authorization failure message")
		const limit = 300
		message = strings.ToValidUTF8(strings.TrimSpace(message), "?")
		if len(message) > limit {
			message = strings.ToValidUTF8(message[:limit], "") + "…"
		}
		if message == "" || message == refused.ErrorCode() {
			return refused.ErrorCode()
		}
		return refused.ErrorCode() + ": " + message
	}
	// What the SDK wraps around the cause names operations and attempts.
	if operation, ok := errors.AsType[*smithy.OperationError](err); ok {
		err = operation.Err
	}
	return err.Error()
}
