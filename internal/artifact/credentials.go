package artifact

import (
	"net/url"
	"os"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/org/attestable-image-action/internal/gha"
)

// keychain looks credentials up in the docker configuration, and for GitHub's
// registry in a job there.
var keychain = authn.NewMultiKeychain(authn.DefaultKeychain, actionsKeychain{})

// actionsKeychain gives GitHub's registry the job's own token.
type actionsKeychain struct{}

// Resolve implements authn.Keychain.
func (actionsKeychain) Resolve(target authn.Resource) (authn.Authenticator, error) {
	actor, token := os.Getenv("GITHUB_ACTOR"), gha.Token()
	if !gha.Enabled() || token == "" || !isGitHubRegistry(target.RegistryStr()) {
		return authn.Anonymous, nil
	}
	if actor == "" {
		actor = "x-access-token"
	}
	return authn.FromConfig(authn.AuthConfig{Username: actor, Password: token}), nil
}

// isGitHubRegistry tells whether the host is the container registry of the GitHub that
// the job runs on, which its token is for: ghcr.io is that of github.com alone.
func isGitHubRegistry(host string) bool {
	server, err := url.Parse(os.Getenv("GITHUB_SERVER_URL"))
	switch {
	case err != nil:
		return false
	case server.Host == "" || server.Host == "github.com":
		return host == "ghcr.io"
	}
	return server.Scheme == "https" && host == "containers."+server.Host
}
