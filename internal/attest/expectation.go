package attest

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"

	"github.com/org/attestable-image-action/internal/lazyregexp"
)

// Check is one thing that was demanded: what was expected, and what was found.
type Check struct {
	Name     string `json:"name"`     // what was looked at
	Expected string `json:"expected"` // for people
	Found    string `json:"found"`    // for people
	OK       bool   `json:"ok"`       // whether it holds
}

// nothing stands for an empty value that was found.
const nothing = "nothing"

func check(name, expected, found string, ok bool) Check {
	if found == "" {
		found = nothing
	}
	return Check{Name: name, Expected: expected, Found: found, OK: ok}
}

// Expectation is who must have signed.
type Expectation struct {
	Host       Host
	Issuer     string // of the job's identity token; empty for the host's
	Repository string // OWNER/REPO that the artifact was built from, or empty
	Owner      string // owner of that repository, or empty
	Workflow   string // OWNER/REPO/PATH or OWNER/REPO/PATH@REF that holds the signing job; empty for any of Repository or Owner
	Ref        string // refs/heads/…, refs/tags/… that it was built from; empty for any

	SignerRepository string // OWNER/REPO that holds the signing workflow, instead of Workflow; or empty
	SignerDigest     string // commit of the signing workflow, hex; empty for any
	SourceDigest     string // commit that it was built from, hex; empty for any
	Runner           string // github-hosted or self-hosted; empty for any

	Local bool // a local trust root signed, and nothing else counts
}

// Names as GitHub allows them. "." and ".." would climb in a URL's path.
var (
	nameForm = lazyregexp.New(`^[A-Za-z0-9_.-]*[A-Za-z0-9_-][A-Za-z0-9_.-]*$`)
	pathForm = lazyregexp.New(`^[^@\s]+\.ya?ml$`)
	// A commit of Git: SHA-1, or SHA-256.
	commitForm = lazyregexp.New(`^([0-9a-fA-F]{40}|[0-9a-fA-F]{64})$`)
)

// Environments that a job runs in.
const (
	GitHubHosted = "github-hosted"
	SelfHosted   = "self-hosted"
)

// repositoryForm reports whether the text is OWNER/REPO.
func repositoryForm(text string) bool {
	owner, name, both := strings.Cut(text, "/")
	return both && nameForm().MatchString(owner) && nameForm().MatchString(name)
}

// Validate checks the form of what is expected, and that it is enough.
func (e *Expectation) Validate() error {
	signed := e.Workflow + e.SignerRepository + e.SignerDigest
	switch {
	case e.Local && (e.Repository != "" || e.Owner != "" || signed != "" || e.Ref != "" || e.Issuer != "" || e.SourceDigest != "" || e.Runner != ""):
		return errors.New("a local trust root signs for no repository, workflow, ref or issuer: leave them out")
	case e.Local:
		return nil
	case e.Repository == "" && e.Owner == "":
		return errors.New("nothing says whose artifact it must be: give --repo OWNER/REPO or --owner OWNER; anybody can sign something")
	case e.Repository != "" && !repositoryForm(e.Repository):
		return fmt.Errorf("the repository %q is not of the form OWNER/REPO", e.Repository)
	case e.Owner != "" && !nameForm().MatchString(e.Owner):
		return fmt.Errorf("the owner %q is not a name on GitHub", e.Owner)
	case e.SignerRepository != "" && e.Workflow != "":
		return errors.New("the signer's workflow names its repository already: give --signer-workflow or --signer-repo, not both")
	case e.SignerRepository != "" && !repositoryForm(e.SignerRepository):
		return fmt.Errorf("the signer's repository %q is not of the form OWNER/REPO", e.SignerRepository)
	case e.SignerDigest != "" && !commitForm().MatchString(e.SignerDigest):
		return fmt.Errorf("the signer's digest %q is no commit: give all of its 40 or 64 hex digits", e.SignerDigest)
	case e.SourceDigest != "" && !commitForm().MatchString(e.SourceDigest):
		return fmt.Errorf("the source's digest %q is no commit: give all of its 40 or 64 hex digits", e.SourceDigest)
	case e.Runner != "" && e.Runner != GitHubHosted && e.Runner != SelfHosted:
		return fmt.Errorf("there is no runner environment %q: give %s or %s", e.Runner, GitHubHosted, SelfHosted)
	}
	if e.Workflow != "" {
		path, _, _ := strings.Cut(e.Workflow, "@")
		parts := strings.SplitN(path, "/", 3)
		if len(parts) != 3 || !nameForm().MatchString(parts[0]) || !nameForm().MatchString(parts[1]) || !pathForm().MatchString(parts[2]) {
			return fmt.Errorf("the workflow %q is not of the form OWNER/REPO/.github/workflows/FILE.yml, with or without @REF", e.Workflow)
		}
	}
	if e.Ref != "" && !strings.HasPrefix(e.Ref, "refs/") {
		return fmt.Errorf("the ref %q is not a full one such as refs/heads/main or refs/tags/v1", e.Ref)
	}
	return nil
}

// Scope is where GitHub keeps the attestations that are expected.
func (e *Expectation) Scope() string {
	if e.Repository != "" {
		return e.Repository
	}
	return e.Owner
}

// identity checks who signed. GitHub's names do not differ by case; refs and
// paths do.
func (e *Expectation) identity(c certificate.Summary) []Check {
	if e.Local {
		return []Check{
			check("issuer", LocalIssuer, c.Issuer, c.Issuer == LocalIssuer),
			check("signer", LocalIdentity, c.SubjectAlternativeName, c.SubjectAlternativeName == LocalIdentity),
		}
	}
	issuer := e.Issuer
	if issuer == "" {
		issuer = e.Host.Issuer
	}
	checks := []Check{check("issuer", issuer, c.Issuer, c.Issuer == issuer)}
	if e.Repository != "" {
		expected := e.Host.Server + "/" + e.Repository
		checks = append(checks, check("repository", expected, c.SourceRepositoryURI, strings.EqualFold(expected, c.SourceRepositoryURI)))
	}
	if e.Owner != "" {
		expected := e.Host.Server + "/" + e.Owner
		checks = append(checks, check("owner", expected, c.SourceRepositoryOwnerURI, strings.EqualFold(expected, c.SourceRepositoryOwnerURI)))
	}
	checks = append(checks, e.signer(c))
	if e.Ref != "" {
		checks = append(checks, check("ref", e.Ref, c.SourceRepositoryRef, c.SourceRepositoryRef == e.Ref))
	} else {
		checks = append(checks, check("ref", "any", c.SourceRepositoryRef, true))
	}
	// What is asked for only at times takes no line otherwise.
	for _, more := range []struct{ name, expected, found string }{
		{"commit", e.SourceDigest, c.SourceRepositoryDigest},
		{"workflow's commit", e.SignerDigest, c.BuildSignerDigest},
		{"runner", e.Runner, c.RunnerEnvironment},
	} {
		if more.expected != "" {
			checks = append(checks, check(more.name, strings.ToLower(more.expected), more.found, strings.EqualFold(more.expected, more.found)))
		}
	}
	return checks
}

// signer checks the workflow that holds the job. Without one expected it must
// lie in the repository, or with the owner: who may call a reusable workflow of
// others could otherwise pass theirs for one's own.
func (e *Expectation) signer(c certificate.Summary) Check {
	// The name and the extension say the same; whoever believes one of them
	// must not be told two things.
	found, same := c.SubjectAlternativeName, c.SubjectAlternativeName == c.BuildSignerURI
	if !same {
		found += " and " + c.BuildSignerURI
	}
	foundPath, foundRef, _ := strings.Cut(found, "@")
	if e.Workflow == "" {
		prefix := e.Host.Server + "/" + cmp.Or(e.SignerRepository, e.Scope()) + "/"
		return check("workflow", prefix+"…", found, same && len(found) > len(prefix) && strings.EqualFold(found[:len(prefix)], prefix))
	}
	path, ref, fixed := strings.Cut(e.Workflow, "@")
	expected := e.Host.Server + "/" + path
	ok := same && sameWorkflow(expected, foundPath, e.Host.Server)
	if fixed {
		ok = ok && ref == foundRef
		expected += "@" + ref
	}
	return check("workflow", expected, found, ok)
}

// sameWorkflow compares SERVER/OWNER/REPO/PATH: owner and repository without
// regard to case, the path with.
func sameWorkflow(expected, found, server string) bool {
	if len(found) <= len(server) || !strings.EqualFold(found[:len(server)+1], server+"/") {
		return false
	}
	a, b := strings.SplitN(expected[len(server)+1:], "/", 3), strings.SplitN(found[len(server)+1:], "/", 3)
	return len(a) == 3 && len(b) == 3 && strings.EqualFold(a[0], b[0]) && strings.EqualFold(a[1], b[1]) && a[2] == b[2]
}
