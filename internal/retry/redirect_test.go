package retry

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// TestCheckRedirect has a server send a request with a token elsewhere.
func TestCheckRedirect(t *testing.T) {
	seen := map[string]string{}
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		seen[r.Host] = r.Header.Get("Authorization")
	}))
	defer elsewhere.Close()
	target := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/end" {
			seen["same"] = r.Header.Get("Authorization")
			return
		}
		http.Redirect(w, r, target, http.StatusTemporaryRedirect)
	}))
	defer server.Close()
	client := &http.Client{CheckRedirect: CheckRedirect}
	for _, to := range []string{server.URL + "/end", elsewhere.URL, strings.Replace(elsewhere.URL, "127.0.0.1", "localhost", 1)} {
		target = to
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer secret")
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
	}
	if seen["same"] != "Bearer secret" {
		t.Error("the token did not reach the same host")
	}
	delete(seen, "same")
	if len(seen) != 2 {
		t.Errorf("asked were %v", seen)
	}
	for host, token := range seen {
		if token != "" {
			t.Errorf("%s got the token", host)
		}
	}
}

func TestMayCarryToken(t *testing.T) {
	for address, want := range map[string]bool{
		"https://api.github.com": true, "http://api.github.com": false, "http://127.0.0.1:1": true, "http://[::1]:1": true,
		"http://localhost:1": true, "http://localhost.evil.example": false, "http://10.0.0.1": false, "ftp://api.github.com": false,
	} {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		if got := MayCarryToken(u); got != want {
			t.Errorf("%s: %v", address, got)
		}
	}
}
