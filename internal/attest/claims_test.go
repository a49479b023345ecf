package attest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/org/attestable-image-action/internal/testenv"
)

func TestVerifyToken(t *testing.T) {
	issuer, other := testenv.StartIssuer(t), testenv.StartIssuer(t)
	for _, tc := range []struct {
		name     string
		from     *testenv.Issuer
		audience string
		change   map[string]any
		want     string
	}{
		{name: "good"},
		{name: "of an enterprise's own issuer", change: map[string]any{"iss": issuer.URL + "/octo-enterprise"}},
		{name: "for another audience", audience: "sigstore", want: `expected audience "nobody"`},
		{name: "signed by another issuer", from: other, change: map[string]any{"iss": issuer.URL}, want: "failed to verify signature"},
		{name: "of an issuer whose name begins like it", change: map[string]any{"iss": issuer.URL + "0.evil.example"}, want: "it was issued by"},
		{name: "expired", change: map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}, want: "token is expired"},
		{name: "of no job", change: map[string]any{"job_workflow_ref": ""}, want: `it lacks the claim "job_workflow_ref": is it a token of a GitHub Actions job?`},
		{name: "with a claim of another case", change: map[string]any{"Repository": "evil/image"}, want: `member "Repository" is not spelt "repository"`},
		{name: "with another audience of another case", change: map[string]any{"Aud": "sigstore"}, want: "read the job's identity token"},
		{name: "with a number for text", change: map[string]any{"run_id": 7}, want: "decode its claims"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			from, audience := issuer, AudienceClaims
			if tc.from != nil {
				from = tc.from
			}
			if tc.audience != "" {
				audience = tc.audience
			}
			claims := testenv.DefaultRun.Claims()
			maps.Copy(claims, tc.change)
			token, err := from.Token(audience, claims)
			if err != nil {
				t.Fatal(err)
			}
			got, err := VerifyToken(context.Background(), token, issuer.URL, AudienceClaims)
			switch {
			case tc.want != "":
				if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), token) {
					t.Errorf("error %v, want one about %q", err, tc.want)
				}
			case err != nil:
				t.Error(err)
			case got.Repository != "octo-org/image" || got.Visibility != "public" || got.RunAttempt != "1" || got.SHA == "":
				t.Errorf("claims %+v", got)
			}
		})
	}
	t.Run("tampered", func(t *testing.T) {
		token, err := issuer.Token(AudienceClaims, testenv.DefaultRun.Claims())
		if err != nil {
			t.Fatal(err)
		}
		parts := strings.Split(token, ".")
		foreign, err := issuer.Token(AudienceClaims, testenv.Run{Repository: "evil/image"}.Claims())
		if err != nil {
			t.Fatal(err)
		}
		parts[1] = strings.Split(foreign, ".")[1]
		if _, err := VerifyToken(context.Background(), strings.Join(parts, "."), issuer.URL, AudienceClaims); err == nil || !strings.Contains(err.Error(), "failed to verify signature") {
			t.Errorf("error %v", err)
		}
	})
	for _, token := range []string{"", "x", "a.b.c", "eyJhbGciOiJub25lIn0.e30."} {
		if _, err := VerifyToken(context.Background(), token, issuer.URL, AudienceClaims); err == nil {
			t.Errorf("%q is taken for a token", token)
		}
	}
	t.Run("no issuer", func(t *testing.T) {
		server := httptest.NewServer(http.NotFoundHandler())
		defer server.Close()
		if _, err := VerifyToken(context.Background(), "a.b.c", server.URL, AudienceClaims); err == nil || !strings.Contains(err.Error(), "fetch the keys of the issuer "+server.URL+": 404") {
			t.Errorf("error %v", err)
		}
	})
}

func TestParseHost(t *testing.T) {
	for server, want := range map[string]struct {
		host Host
		api  string
		err  error
	}{
		"https://github.com":         {Host{"https://github.com", "https://token.actions.githubusercontent.com", "github.com"}, "https://api.github.com", nil},
		"https://GitHub.com/":        {Host{"https://GitHub.com", "https://token.actions.githubusercontent.com", "github.com"}, "https://api.github.com", nil},
		"https://octo.ghe.com":       {Host{"https://octo.ghe.com", "https://token.actions.octo.ghe.com", "octo.ghe.com"}, "https://api.octo.ghe.com", nil},
		"https://github.example.com": {Host{"https://github.example.com", "", "github.example.com"}, "https://github.example.com/api/v3", ErrServer},
		"https://evilghe.com":        {Host{"https://evilghe.com", "", "evilghe.com"}, "https://evilghe.com/api/v3", ErrServer},
	} {
		got, err := ParseHost(server)
		if got != want.host || !errors.Is(err, want.err) || got.API() != want.api {
			t.Errorf("%s: %+v with API %s, error %v", server, got, got.API(), err)
		}
	}
	for _, server := range []string{"", "github.com", "https://", "ftp://github.com", "https://github.com/x", "https://a b"} {
		if _, err := ParseHost(server); err == nil || !strings.Contains(err.Error(), "it is no URL such as https://github.com") {
			t.Errorf("%q: error %v", server, err)
		}
	}
}

func TestInstanceFor(t *testing.T) {
	github, err := ParseHost("https://github.com")
	if err != nil {
		t.Fatal(err)
	}
	tenant, err := ParseHost("https://octo.ghe.com")
	if err != nil {
		t.Fatal(err)
	}
	if i := InstanceFor(github, "public"); i.Fulcio != "https://fulcio.sigstore.dev" || len(i.Logs) != 1 || i.Logs[0] != (Log{"https://rekor.sigstore.dev", 1}) || len(i.Timestamps) != 0 {
		t.Errorf("public: %+v", i)
	}
	// What is not known to be public must not get into a public log.
	for _, visibility := range []string{"private", "internal", ""} {
		if i := InstanceFor(github, visibility); i.Fulcio != "https://fulcio.githubapp.com" || len(i.Logs) != 0 || len(i.Timestamps) != 1 || !strings.HasPrefix(i.Timestamps[0], "https://timestamp.githubapp.com/") {
			t.Errorf("%q: %+v", visibility, i)
		}
	}
	if i := InstanceFor(tenant, "public"); i.Fulcio != "https://fulcio.octo.ghe.com" || len(i.Logs) != 0 || len(i.Timestamps) != 1 || !strings.HasPrefix(i.Timestamps[0], "https://timestamp.octo.ghe.com/") {
		t.Errorf("tenant: %+v", i)
	}
}

// testTime is when the tests' signing configurations are valid.
var testTime = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)

func TestParseInstance(t *testing.T) {
	const (
		media  = `"mediaType":"application/vnd.dev.sigstore.signingconfig.v0.2+json"`
		valid  = `,"validFor":{"start":"2026-01-01T00:00:00Z"},"operator":"x"}`
		ca     = `,"caUrls":[{"url":"https://ca","majorApiVersion":1` + valid + `]`
		tsa    = `,"tsaUrls":[{"url":"https://tsa","majorApiVersion":1` + valid + `],"tsaConfig":{"selector":"ANY"}`
		rekor1 = `,"rekorTlogUrls":[{"url":"https://rekor","majorApiVersion":1` + valid + `],"rekorTlogConfig":{"selector":"ANY"}`
	)
	rekor2 := strings.Replace(rekor1, "Version\":1", "Version\":2", 1)
	now := testTime
	for name, tc := range map[string]struct {
		data string
		want string // error, or nothing
	}{
		"with everything":         {"{" + media + ca + tsa + rekor2 + "}", ""},
		"Rekor v1 alone":          {"{" + media + ca + rekor1 + "}", ""},
		"timestamps alone":        {"{" + media + ca + tsa + "}", ""},
		"empty":                   {"", "it must be a Sigstore SigningConfig v0.2 in JSON"},
		"something else":          {`{"mediaType":"x"}`, "unsupported SigningConfig media type: x"},
		"unknown members":         {`{"hello":1}`, "it must be a Sigstore SigningConfig v0.2 in JSON"},
		"no CA":                   {"{" + media + tsa + "}", "choose from its caUrls"},
		"nothing that tells time": {"{" + media + ca + "}", "it names neither a timestamp authority nor a log"},
		"Rekor v2 alone":          {"{" + media + ca + rekor2 + "}", "tells no time, and there is no timestamp authority"},
		"no selector":             {"{" + media + ca + strings.Replace(tsa, "ANY", "SERVICE_SELECTOR_UNDEFINED", 1) + "}", "choose from its tsaUrls"},
		"no rekorTlogConfig":      {"{" + media + ca + strings.Split(rekor1, `,"rekorTlogConfig"`)[0] + "}", "without a rekorTlogConfig"},
		"no tsaConfig":            {"{" + media + ca + strings.Split(tsa, `,"tsaConfig"`)[0] + "}", "without a tsaConfig"},
		"an unknown version":      {"{" + media + strings.Replace(ca, "Version\":1", "Version\":9", 1) + tsa + "}", "no matching service found"},
		"not valid any more": {"{" + media + strings.Replace(ca, `{"start":"2026-01-01T00:00:00Z"}`, `{"start":"2025-01-01T00:00:00Z","end":"2025-02-01T00:00:00Z"}`, 1) + tsa + "}",
			"no matching service found"},
	} {
		t.Run(name, func(t *testing.T) {
			i, err := parseInstance([]byte(tc.data), now)
			if tc.want == "" {
				if err != nil || i.Fulcio != "https://ca" {
					t.Errorf("%+v, error %v", i, err)
				}
			} else if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one about %q", err, tc.want)
			}
		})
	}
	if _, err := ReadInstance("testdata/missing.json"); err == nil || !strings.Contains(err.Error(), "read the signing configuration: open testdata/missing.json") {
		t.Errorf("error %v", err)
	}
	if _, err := ReadInstance("testdata/public-good-root.json"); err == nil || !strings.Contains(err.Error(), "read the signing configuration testdata/public-good-root.json: it must be") {
		t.Errorf("error %v", err)
	}
}

// TestSelectors holds which of several services a signing configuration chooses.
func TestSelectors(t *testing.T) {
	service := func(url, operator string, version int, start, end string) string {
		if end != "" {
			end = `,"end":"` + end + `"`
		}
		return fmt.Sprintf(`{"url":"https://%s","majorApiVersion":%d,"validFor":{"start":%q%s},"operator":%q}`, url, version, start, end, operator)
	}
	const old, recent, future = "2025-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"
	cas := strings.Join([]string{
		service("ca-old", "x", 1, old, ""), service("ca-ended", "x", 1, recent, "2026-02-01T00:00:00Z"),
		service("ca-new", "x", 1, recent, ""), service("ca-later", "x", 1, future, ""), service("ca-v9", "x", 9, recent, ""),
	}, ",")
	stamps := strings.Join([]string{
		service("tsa-a", "a", 1, old, ""), service("tsa-a2", "a", 1, recent, ""), service("tsa-b", "b", 1, old, ""),
		service("tsa-c", "c", 1, old, ""), service("tsa-d", "d", 1, future, ""),
	}, ",")
	logs := strings.Join([]string{service("rekor1", "a", 1, recent, ""), service("rekor2", "a", 2, old, "")}, ",")
	for name, tc := range map[string]struct {
		selector string
		stamps   int // how many are chosen
		want     string
	}{
		"any":            {`"ANY"`, 1, ""},
		"all":            {`"ALL"`, 3, ""},
		"exactly two":    {`"EXACT","count":2`, 2, ""},
		"exactly four":   {`"EXACT","count":4`, 0, "choose from its tsaUrls"},
		"exactly none":   {`"EXACT"`, 0, "choose from its tsaUrls"},
		"nothing chosen": {`"SERVICE_SELECTOR_UNDEFINED"`, 0, "choose from its tsaUrls"},
	} {
		t.Run(name, func(t *testing.T) {
			i, err := parseInstance(fmt.Appendf(nil, `{"mediaType":"application/vnd.dev.sigstore.signingconfig.v0.2+json","caUrls":[%s],"oidcUrls":[%s],`+
				`"tsaUrls":[%s],"tsaConfig":{"selector":%s},"rekorTlogUrls":[%s],"rekorTlogConfig":{"selector":"ALL"}}`,
				cas, service("issuer", "x", 1, old, ""), stamps, tc.selector, logs), testTime)
			if tc.want != "" {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("error %v, want one about %q", err, tc.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if i.Fulcio != "https://ca-new" || i.Issuer != "https://issuer" || len(i.Timestamps) != tc.stamps {
				t.Errorf("%+v", i)
			}
			// The newest version of the API, and of an operator the newest service.
			if !slices.Equal(i.Logs, []Log{{"https://rekor2", 2}}) || slices.Contains(i.Timestamps, "https://tsa-a") || slices.Contains(i.Timestamps, "https://tsa-d") {
				t.Errorf("%+v", i)
			}
		})
	}
}

// TestInstanceURLs holds which services can be named one by one.
func TestInstanceURLs(t *testing.T) {
	const ca, tsa, log = "https://fulcio.example.com", "https://tsa.example.com/api/v1/timestamp", "https://rekor.example.com"
	for _, tc := range []struct {
		name     string
		instance Instance
		want     string
	}{
		{"timestamps", Instance{Fulcio: ca, Timestamps: []string{tsa}}, ""},
		{"Rekor v1", Instance{Fulcio: ca, Logs: []Log{{log, 1}}}, ""},
		{"Rekor v2 and timestamps", Instance{Fulcio: ca, Timestamps: []string{tsa}, Logs: []Log{{log, 2}}}, ""},
		{"Rekor v2 alone", Instance{Fulcio: ca, Logs: []Log{{log, 2}}}, "tells no time"},
		{"Rekor v3", Instance{Fulcio: ca, Logs: []Log{{log, 3}}}, "there is no version 3"},
		{"no time", Instance{Fulcio: ca}, "names neither a timestamp authority nor a log"},
		{"no URL", Instance{Fulcio: "fulcio.example.com", Timestamps: []string{tsa}}, `"fulcio.example.com" is no URL`},
		{"a file", Instance{Fulcio: ca, Timestamps: []string{"file:///etc/passwd"}}, "is no URL"},
		{"no URL of a log", Instance{Fulcio: ca, Logs: []Log{{"rekor", 1}}}, "is no URL"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.instance.Validate()
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one about %q", err, tc.want)
			}
		})
	}
}
