package artifact

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// statusError is a registry's refusal.
type statusError struct {
	status int
	detail string        // the registry's own words, quoted; "" when it gave none
	wait   time.Duration // that it asks for before the next attempt
}

func (e *statusError) Error() string {
	s := fmt.Sprintf("%d %s", e.status, http.StatusText(e.status))
	if e.detail != "" {
		s += ", " + e.detail
	}
	return s
}

// newStatusError reads the refusal from an answer: distribution-spec 1.1,
// "Error Codes".
func newStatusError(response *http.Response) error {
	err := transport.CheckError(response)
	var refused *transport.Error
	if !errors.As(err, &refused) {
		return err
	}
	return fromTransport(refused, retryAfter(response.Header))
}

func fromTransport(refused *transport.Error, wait time.Duration) *statusError {
	e := &statusError{status: refused.StatusCode, wait: wait}
	if len(refused.Errors) > 0 {
		first := refused.Errors[0]
		e.detail = quote(strings.Trim(string(first.Code)+": "+first.Message, ": "))
	}
	return e
}

// intent is what a registry was asked for, which decides what a refusal means.
type intent int

const (
	toRead intent = iota
	toWrite
)

// explain turns an error of a registry into a sentence that says what to do.
func explain(doing string, ref Reference, want intent, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", doing, ref, &fault{cause: err, advice: advice(ref, want, err)})
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

// advice is the whole sentence for an error; "" when the error is one already.
func advice(ref Reference, want intent, err error) string {
	var (
		refused *statusError
		raw     *transport.Error
		hang    *hangError
		dns     *net.DNSError
		web     *url.Error
	)
	if !errors.As(err, &refused) && errors.As(err, &raw) {
		refused = fromTransport(raw, 0)
	}
	host := ref.Host()
	switch {
	case refused != nil:
		return refusalAdvice(ref, want, refused)
	case errors.As(err, &hang):
		return fmt.Sprintf("the registry hangs (%s): try again, and look at the registry, and at a proxy in between, if it stays so", hang)
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return ""
	case errors.As(err, &dns):
		return fmt.Sprintf("the name %s cannot be resolved (%s): check the reference and the network", dns.Name, dns.Err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("nothing listens at %s (connection refused): check the host and port in the reference", host)
	case errors.Is(err, errPlainHTTP):
		return fmt.Sprintf("%s: serve %s over HTTPS", errPlainHTTP, host)
	case errors.As(err, &web):
		// The URL may carry a signature that no log should show.
		return fmt.Sprintf("the registry cannot be reached (%v): check the reference, the network and the proxy settings", web.Err)
	}
	return ""
}

func refusalAdvice(ref Reference, want intent, e *statusError) string {
	host := ref.Host()
	onGitHub := isGitHubRegistry(host)
	switch e.status {
	case http.StatusUnauthorized:
		if onGitHub {
			return fmt.Sprintf("the registry wants other credentials (%s): in a workflow give the job's token as github-token, elsewhere run `docker login %s`", e, host)
		}
		return fmt.Sprintf("the registry wants other credentials (%s): run `docker login %s` before", e, host)
	case http.StatusForbidden:
		switch {
		case onGitHub && want == toWrite:
			return fmt.Sprintf("the registry does not let these credentials write (%s): the job needs `permissions: packages: write`, and if the package exists already, its settings must give this repository the role Write under Manage Actions access", e)
		case onGitHub:
			return fmt.Sprintf("the registry does not let these credentials read (%s): the job needs `permissions: packages: read`, and a private package must give this repository access in its settings", e)
		case want == toWrite:
			return fmt.Sprintf("the registry does not let these credentials write (%s): give the account the right to push to %s", e, ref.Place())
		}
		return fmt.Sprintf("the registry does not let these credentials read (%s): give the account the right to pull from %s", e, ref.Place())
	case http.StatusNotFound:
		if want == toWrite {
			return fmt.Sprintf("the registry knows no such repository (%s): create it first if this registry does not create repositories by itself, and check its name", e)
		}
		return fmt.Sprintf("there is no such artifact (%s): check repository, tag and digest, and log in if it is private", e)
	case http.StatusRequestEntityTooLarge:
		return fmt.Sprintf("the registry refuses an upload of this size (%s): raise its limit, or that of the proxy before it (nginx: client_max_body_size 0)", e)
	case http.StatusTooManyRequests:
		if e.wait > 0 {
			return fmt.Sprintf("the registry wants fewer requests (%s): try again in %s", e, e.wait.Round(time.Second))
		}
		return fmt.Sprintf("the registry wants fewer requests (%s) and went on saying so: try again later, with credentials if there were none", e)
	}
	if e.status >= 500 {
		return fmt.Sprintf("the registry failed again and again (%s): try again later, and look at the registry's log or status page", e)
	}
	return fmt.Sprintf("the registry refused (%s)", e)
}
