package retry

import (
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// maxRedirects is how many redirects are followed, as net/http does.
const maxRedirects = 10

// ErrPlainHTTP refuses to send a secret in the clear.
var ErrPlainHTTP = errors.New("a token is sent over https only: check the address")

// CheckRedirect is for an http.Client whose requests carry a token: the token goes to the
// host that it was meant for, and over TLS. net/http itself would send it to subdomains, to
// other ports, and without TLS.
func CheckRedirect(request *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return errors.New("the server redirects in a circle")
	}
	if from := via[0].URL; request.URL.Scheme != from.Scheme || !strings.EqualFold(request.URL.Host, from.Host) {
		request.Header.Del("Authorization")
	}
	return nil
}

// MayCarryToken reports whether a token may be sent to an address: over TLS, or to this
// machine.
func MayCarryToken(u *url.URL) bool {
	ip := net.ParseIP(u.Hostname())
	return u.Scheme == "https" || u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}
