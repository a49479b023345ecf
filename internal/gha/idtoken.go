package gha

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"

	"github.com/sethvargo/go-githubactions"

	"github.com/org/attestable-image-action/internal/retry"
)

// ErrNoIDToken says that the job was not allowed to ask for an identity token.
var ErrNoIDToken = errors.New("the job may not get an identity token: add 'permissions: id-token: write' to it (with contents: read, packages: write and attestations: write); pull requests from forks never get one")

// IDToken asks the runner for an OpenID Connect token (compact JWT) of the job
// for audience. It is a secret, and good for minutes.
func IDToken(ctx context.Context, audience string) (string, error) {
	return idToken(ctx, audience, retry.Transport{})
}

// idToken is IDToken with other times to wait, for tests.
func idToken(ctx context.Context, audience string, transport retry.Transport) (string, error) {
	if os.Getenv("ACTIONS_ID_TOKEN_REQUEST_URL") == "" || os.Getenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN") == "" {
		return "", ErrNoIDToken
	}
	transport.MaxBody, transport.Context = 1<<20, ctx
	client := &http.Client{Transport: &transport, CheckRedirect: retry.CheckRedirect}
	token, err := githubactions.New(githubactions.WithHTTPClient(client)).GetIDToken(ctx, audience)
	var refused *githubactions.RequestFailedError
	switch {
	case errors.As(err, &refused):
		// Its body is left out: a proxy's page helps nobody, and may repeat the
		// request with its token.
		return "", fmt.Errorf("ask GitHub for an identity token for %q: it answered %d %s: start the job again, and if that does not help check https://www.githubstatus.com",
			audience, refused.StatusCode, http.StatusText(refused.StatusCode))
	case err != nil:
		return "", fmt.Errorf("ask GitHub for an identity token for %q: %w", audience, err)
	case token == "":
		return "", fmt.Errorf("ask GitHub for an identity token for %q: the answer holds none: start the job again", audience)
	}
	return token, nil
}
