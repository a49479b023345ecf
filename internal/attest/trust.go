package attest

import (
	"bytes"
	"context"
	"crypto/x509"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	prototrustroot "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/tuf"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/org/attestable-image-action/internal/retry"
	"github.com/org/attestable-image-action/internal/strictjson"
)

// Organizations in the issuer's name of a certificate, by which gh chooses the
// policy, and so do we.
const (
	orgPublicGood = "sigstore.dev"
	orgGitHub     = "GitHub, Inc."
)

// gitHubTUF is the repository of the trust root of GitHub's own Sigstore, for
// private repositories. Its first root of trust, github-tuf-root.json, is the
// one that gh v2.83.2 carries; it is signed by its own keys, and later ones are
// signed by it.
const gitHubTUF = "https://tuf-repo.github.com"

//go:embed github-tuf-root.json
var gitHubTUFRoot []byte

// maxTrustedRoot bounds a trusted root file, in bytes.
const maxTrustedRoot = 16 << 20

// Trust is what bundles are verified against: given trust roots, or those that
// the public Sigstore and GitHub publish with TUF.
type Trust struct {
	roots []*root.TrustedRoot // empty for the public ones

	public, github func() (*root.TrustedRoot, error)
}

// ParseTrust reads trust roots (Sigstore TrustedRoot 0.1 as JSON, or several of
// them as JSON Lines, the form that gh reads).
func ParseTrust(name string, data []byte) (*Trust, error) {
	t := new(Trust)
	err := strictjson.Split(bytes.NewReader(data), func(one []byte) error {
		parsed, err := parseRoot(one)
		if err != nil {
			return fmt.Errorf("%w: it must be a Sigstore TrustedRoot 0.1 in JSON", err)
		}
		t.roots = append(t.roots, parsed)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the trusted root %s: %w", name, err)
	}
	if len(t.roots) == 0 {
		return nil, fmt.Errorf("read the trusted root %s: it is empty", name)
	}
	return t, nil
}

// parseRoot reads one trust root, and refuses what the library would stumble
// over later.
func parseRoot(data []byte) (*root.TrustedRoot, error) {
	parsed, err := root.NewTrustedRootFromJSON(data)
	if err == nil {
		err = strictjson.CheckMessage(data, new(prototrustroot.TrustedRoot))
	}
	if err != nil {
		return nil, err
	}
	if len(parsed.FulcioCertificateAuthorities()) == 0 {
		return nil, errors.New("it names no certificate authority")
	}
	return parsed, nil
}

// ReadTrust reads a file of trust roots.
func ReadTrust(path string) (*Trust, error) {
	data, err := readFile(path, maxTrustedRoot)
	if err != nil {
		return nil, fmt.Errorf("read the trusted root: %w", err)
	}
	return ParseTrust(path, data)
}

// trustedRootTarget is the name of the trust root in a TUF repository.
const trustedRootTarget = "trusted_root.json"

// PublicTrust is what the public Sigstore and GitHub publish with TUF; for a
// tenant of GitHub Enterprise Cloud (ghe.com) the tenant's, whose name in GitHub's
// repository api tells. It is fetched when it is first needed and kept for a day
// in the user's cache.
func PublicTrust(ctx context.Context, h Host, api GitHub) *Trust {
	return &Trust{
		public: sync.OnceValues(func() (*root.TrustedRoot, error) {
			return fetchRoot(ctx, tuf.DefaultMirror, tuf.DefaultRoot(), trustedRootTarget, retry.Transport{})
		}),
		github: sync.OnceValues(func() (*root.TrustedRoot, error) {
			target, err := rootOf(ctx, h, api)
			if err != nil {
				return nil, err
			}
			return fetchRoot(ctx, gitHubTUF, gitHubTUFRoot, target, retry.Transport{})
		}),
	}
}

// rootOf is the name of the trust root of a GitHub in its TUF repository.
func rootOf(ctx context.Context, h Host, api GitHub) (string, error) {
	if !h.tenant() {
		return trustedRootTarget, nil
	}
	domain, err := api.TrustDomain(ctx)
	if err != nil || domain == "" {
		return trustedRootTarget, err
	}
	return domain + "." + trustedRootTarget, nil
}

// fetchRoot fetches the trust root of the TUF repository at mirror, whose first
// root of trust is anchor.
func fetchRoot(ctx context.Context, mirror string, anchor []byte, target string, transport retry.Transport) (*root.TrustedRoot, error) {
	transport.Context = ctx
	options := tuf.DefaultOptions().WithRepositoryBaseURL(mirror).WithRoot(anchor).
		WithCacheValidity(1).WithContext(ctx).
		WithFetcher(fetcher{&http.Client{Transport: &transport}})
	if cache, err := os.UserCacheDir(); err == nil {
		options.CachePath = filepath.Join(cache, "attestable-image", "tuf")
		err = os.MkdirAll(options.CachePath, 0o700)
		if err != nil {
			options = options.WithDisableLocalCache()
		}
	} else {
		options = options.WithDisableLocalCache()
	}
	fail := func(err error) error {
		return fmt.Errorf("fetch the trust root %s from %s: %w: name a trusted root file with --trusted-root to do without", target, mirror, err)
	}
	client, err := tuf.New(options)
	if err != nil {
		return nil, fail(err)
	}
	data, err := client.GetTarget(target)
	if err != nil {
		return nil, fail(err)
	}
	parsed, err := parseRoot(data)
	if err != nil {
		return nil, fail(err)
	}
	return parsed, nil
}

// fetcher is go-tuf's, with our own way to try again.
type fetcher struct{ client *http.Client }

// DownloadFile implements go-tuf's Fetcher.
func (f fetcher) DownloadFile(url string, maxLength int64, _ time.Duration) ([]byte, error) {
	response, err := f.client.Get(url)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, &metadata.ErrDownloadHTTP{StatusCode: response.StatusCode, URL: url}
	}
	data, err := io.ReadAll(io.LimitReader(response.Body, maxLength+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > maxLength {
		return nil, &metadata.ErrDownloadLengthMismatch{Msg: fmt.Sprintf("%s is longer than %d bytes", url, maxLength)}
	}
	// A target may have any form, and is checked by who reads it.
	if !strings.Contains(url, "/targets/") {
		if err := strictjson.Check(data); err != nil {
			return nil, fmt.Errorf("read %s: %w", url, err)
		}
	}
	return data, nil
}

// verifiers returns a verifier for each trust root that a leaf certificate may
// come from. The policy is the one that gh has for the certificate's issuer.
func (t *Trust) verifiers(leaf *x509.Certificate) ([]*verify.Verifier, error) {
	organization := ""
	if len(leaf.Issuer.Organization) > 0 {
		organization = leaf.Issuer.Organization[0]
	}
	roots := t.roots
	if len(roots) == 0 {
		fetch := t.public
		switch organization {
		case orgPublicGood:
		case orgGitHub:
			fetch = t.github
		case localOrganization:
			return nil, errors.New("it was signed with a local trust root, which proves nothing to others: whoever keeps the root verifies with --local-trust DIR")
		default:
			return nil, fmt.Errorf("the certificate was issued by %q, which is neither the public Sigstore nor GitHub: name its trusted root with --trusted-root", leaf.Issuer)
		}
		fetched, err := fetch()
		if err != nil {
			return nil, err
		}
		roots = []*root.TrustedRoot{fetched}
	}
	verifiers := make([]*verify.Verifier, len(roots))
	for i, trusted := range roots {
		var err error
		if verifiers[i], err = verify.NewVerifier(trusted, policy(organization, trusted)...); err != nil {
			return nil, err
		}
	}
	return verifiers, nil
}

// policy is what has to vouch for a signature beside the certificate.
func policy(organization string, trusted *root.TrustedRoot) []verify.VerifierOption {
	// The predicate is read from the payload itself.
	options := []verify.VerifierOption{verify.WithoutStatementPredicate()}
	switch organization {
	case orgPublicGood:
		return append(options, verify.WithSignedCertificateTimestamps(1), verify.WithTransparencyLog(1), verify.WithObserverTimestamps(1))
	case orgGitHub:
		return append(options, verify.WithSignedTimestamps(1))
	}
	options = append(options, verify.WithObserverTimestamps(1))
	if len(trusted.RekorLogs()) > 0 {
		options = append(options, verify.WithTransparencyLog(1))
	}
	return options
}

// readFile reads a file of at most limit bytes.
func readFile(path string, limit int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is longer than %d bytes", path, limit)
	}
	return data, nil
}
