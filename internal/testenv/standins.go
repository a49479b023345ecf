package testenv

import "testing"

// StartIssuer starts the stand-in for GitHub's OIDC issuer alone, under its
// loopback address.
func StartIssuer(t testing.TB) *Issuer {
	t.Helper()
	i, err := startIssuer(t, "")
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// StartGitHub starts the stand-in for GitHub's API alone.
func StartGitHub(t testing.TB) *GitHub {
	t.Helper()
	return startGitHub(t)
}

// StartProxy starts a proxy that knows no name yet.
func StartProxy(t testing.TB) *Proxy {
	t.Helper()
	p, err := startProxy(t)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
