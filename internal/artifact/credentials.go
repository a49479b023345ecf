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

// isGitHubRegistry tells whether the host is GitHub's container registry:
// ghcr.io, or the one of the GitHub Enterprise Cloud tenant that the job runs on.
func isGitHubRegistry(host string) bool {
	if host == "ghcr.io" {
		return true
	}
	server, err := url.Parse(os.Getenv("GITHUB_SERVER_URL"))
	return err == nil && server.Host != "" && server.Host != "github.com" && host == "containers."+server.Host
}
