package testenv

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	prototrustroot "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
)

// Organizations that decide which policy gh applies to a certificate authority.
const (
	PublicGood = "sigstore.dev" // SCT, log entry and observed time
	GitHubInc  = "GitHub, Inc." // signed timestamp
	Private    = "attestable-image tests"
)

// Options choose what StartSigstore starts.
type Options struct {
	// Organization of the certificate authority; default is Private, for which
	// gh demands a timestamp, and a log entry when the trust root names a log.
	Organization string
	// NoRekor leaves the transparency log out, as in GitHub's own instance.
	NoRekor bool
	// Public is the deployment that public repositories use: the Organization
	// PublicGood, a certificate transparency log, and a Rekor v1 beside Rekor v2.
	// Trillian and a database are needed: see scripts/sigstore-matrix.
	Public bool
	// GenuineIssuer gives the issuer the name https://token.actions.githubusercontent.com,
	// which clients of the Proxy can reach. Default is its loopback address.
	GenuineIssuer bool
}

// Stack is a Sigstore deployment on loopback: the real Fulcio, timestamp
// authority and Rekor v2, and for Options.Public a real certificate transparency
// log and Rekor v1, with stand-ins for GitHub's OIDC issuer and REST API.
// The proxy knows the stand-ins as token.actions.githubusercontent.com and
// api.github.com.
type Stack struct {
	FulcioURL    string
	TimestampURL string // with the path of the API
	RekorURL     string // of Rekor v2; empty with NoRekor
	RekorV1URL   string // empty without Public
	// FulcioWithoutSCTURL is a Fulcio with the same keys that adds nothing to a
	// certificate transparency log; empty without Public.
	FulcioWithoutSCTURL string

	Issuer *Issuer
	GitHub *GitHub
	Proxy  *Proxy

	TrustedRoot      string // path of the trust root, indented JSON
	TrustedRootLines string // path of the same as JSON Lines, the form that gh reads
	SigningConfig    string // path of the signing configuration v0.2, JSON

	authority *certificate          // Fulcio's intermediate
	ctLog     *root.TransparencyLog // nil without Public
}

// StartSigstore starts a Stack that ends with the test. It skips the test, or
// fails it when ATTESTABLE_IMAGE_REQUIRE=1, where a server is not installed.
func StartSigstore(t testing.TB, o Options) *Stack {
	t.Helper()
	if testing.Short() {
		t.Skip("the Sigstore servers are not started with -short")
	}
	names := []string{"fulcio", "timestamp-server", "rekor-server-posix"}
	if o.Public {
		if os.Getenv("ATTESTABLE_IMAGE_SIGSTORE_MATRIX") != "1" {
			t.Skip("the logs of the public deployment need a database and more programs: scripts/sigstore-matrix runs this")
		}
		names = append(names, trillianPrograms...)
	}
	for _, name := range names {
		Tool(t, name)
	}
	s, err := NewSigstore(t, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// NewSigstore starts a Stack that ends with h.
func NewSigstore(h Host, o Options) (*Stack, error) {
	switch {
	case o.Public:
		o.Organization = PublicGood
	case o.Organization == "":
		o.Organization = Private
	}
	s := new(Stack)
	var err error
	if s.Proxy, err = startProxy(h); err != nil {
		return nil, err
	}
	issuerURL := ""
	if o.GenuineIssuer {
		issuerURL = GenuineIssuer
	}
	if s.Issuer, err = startIssuer(h, issuerURL); err != nil {
		return nil, err
	}
	s.Proxy.Map("token.actions.githubusercontent.com", s.Issuer.handler())
	s.GitHub = startGitHub(h)
	s.Proxy.Map("api.github.com", s.GitHub.handler)

	ca, err := s.newAuthority(o.Organization)
	if err != nil {
		return nil, err
	}
	logs, ctLogs := make(map[string]*root.TransparencyLog), make(map[string]*root.TransparencyLog)
	if o.Public {
		if err := s.startPublicLogs(h, ca.Root, logs, ctLogs); err != nil {
			return nil, err
		}
	}
	if s.FulcioURL, err = s.startFulcio(h, ca, s.ctLog); err != nil {
		return nil, err
	}
	ca.URI = s.FulcioURL
	if o.Public {
		if s.FulcioWithoutSCTURL, err = s.startFulcio(h, ca, nil); err != nil {
			return nil, err
		}
	}
	var tsa root.SigstoreTimestampingAuthority
	if tsa, err = s.startTimestampAuthority(h); err != nil {
		return nil, err
	}
	if !o.NoRekor {
		log, err := s.startRekor(h)
		if err != nil {
			return nil, err
		}
		logs[hexID(log)] = log
	}
	trusted, err := root.NewTrustedRoot(root.TrustedRootMediaType01,
		[]root.CertificateAuthority{ca}, ctLogs, []root.TimestampingAuthority{&tsa}, logs)
	if err != nil {
		return nil, fmt.Errorf("make the trust root: %w", err)
	}
	return s, s.writeConfiguration(h.TempDir(), trusted)
}

// startPublicLogs starts the certificate transparency log for what is issued
// under top, and Rekor v1, and adds them to the maps of a trust root.
func (s *Stack) startPublicLogs(h Host, top *x509.Certificate, logs, ctLogs map[string]*root.TransparencyLog) error {
	t, err := startTrillian(h)
	if err != nil {
		return err
	}
	if s.ctLog, err = t.startCTLog(h, top); err != nil {
		return err
	}
	ctLogs[hexID(s.ctLog)] = s.ctLog
	rekor, err := t.startRekorV1(h)
	if err != nil {
		return err
	}
	logs[hexID(rekor)] = rekor
	s.RekorV1URL = rekor.BaseURL
	return nil
}

// Genuine maps the names of the services that GitHub's own attest action uses
// for public and private repositories to those of the stack, so that a client of
// the proxy signs there without any configuration.
func (s *Stack) Genuine() error {
	names := map[string]string{
		"fulcio.sigstore.dev": s.FulcioURL, "fulcio.githubapp.com": s.FulcioURL,
		"rekor.sigstore.dev": s.RekorV1URL, "timestamp.githubapp.com": s.TimestampURL,
	}
	for name, service := range names {
		if service == "" {
			continue
		}
		place, err := url.Parse(service)
		if err != nil {
			return err
		}
		s.Proxy.Map(name, Forward(place.Scheme+"://"+place.Host))
	}
	return nil
}

// Env is the environment of a step of run in a job with every permission that
// the action needs.
func (s *Stack) Env(run Run) []string {
	return append(run.Env(),
		"GITHUB_API_URL="+s.GitHub.URL,
		"GITHUB_TOKEN="+s.GitHub.Token,
		"ACTIONS_ID_TOKEN_REQUEST_URL="+s.Issuer.TokenURL,
		"ACTIONS_ID_TOKEN_REQUEST_TOKEN="+s.Issuer.Register(run),
	)
}

// newAuthority makes the keys of a certificate authority: a root and an
// intermediate of organization.
func (s *Stack) newAuthority(organization string) (*root.FulcioCertificateAuthority, error) {
	// gh reads the organization of both: they must be the same.
	top, err := newCertificate(&x509.Certificate{
		Subject:               pkix.Name{Organization: []string{organization}, CommonName: "Root"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("make Fulcio's root: %w", err)
	}
	s.authority, err = newCertificate(&x509.Certificate{
		Subject:               pkix.Name{Organization: []string{organization}, CommonName: "Intermediate"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}, top)
	if err != nil {
		return nil, fmt.Errorf("make Fulcio's intermediate: %w", err)
	}
	return &root.FulcioCertificateAuthority{
		Root:                top.cert,
		Intermediates:       []*x509.Certificate{s.authority.cert},
		ValidityPeriodStart: top.cert.NotBefore,
	}, nil
}

// startFulcio starts Fulcio with the keys of ca, and with a certificate
// transparency log unless it is nil, and returns its URL.
func (s *Stack) startFulcio(h Host, ca *root.FulcioCertificateAuthority, ctLog *root.TransparencyLog) (string, error) {
	path, err := Program("fulcio")
	if err != nil {
		return "", err
	}
	key, err := keyPEM(s.authority.key)
	if err != nil {
		return "", fmt.Errorf("encode Fulcio's key: %w", err)
	}
	// YAML with JSON's quoting; as JSON alone it would be read under other names.
	configuration := fmt.Appendf(nil, "oidc-issuers:\n  %[1]q:\n    issuer-url: %[1]q\n    client-id: sigstore\n    type: github-workflow\n", s.Issuer.URL)
	dir := h.TempDir()
	chainFile, keyFile, configFile := filepath.Join(dir, "chain.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "fulcio.yaml")
	if err := errors.Join(
		os.WriteFile(chainFile, append(s.authority.pem(), certificatePEM(ca.Root)...), 0o600),
		os.WriteFile(keyFile, key, 0o600),
		os.WriteFile(configFile, configuration, 0o600),
	); err != nil {
		return "", fmt.Errorf("write Fulcio's files: %w", err)
	}
	logFlags := []string{"--ct-log-url="}
	if ctLog != nil {
		der, err := x509.MarshalPKIXPublicKey(ctLog.PublicKey)
		if err != nil {
			return "", fmt.Errorf("encode the CT log's key: %w", err)
		}
		logKeyFile := filepath.Join(dir, "ct.pem")
		if err := os.WriteFile(logKeyFile, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
			return "", fmt.Errorf("write the CT log's key: %w", err)
		}
		logFlags = []string{"--ct-log-url=" + ctLog.BaseURL, "--ct-log-public-key-path=" + logKeyFile}
	}
	var base string
	err = startOnPorts(h, "fulcio", 3, func(ports []int) (*exec.Cmd, string) {
		base = "http://127.0.0.1:" + strconv.Itoa(ports[0])
		cmd := exec.Command(path, append([]string{"serve", "--host=127.0.0.1", "--grpc-host=127.0.0.1",
			"--port=" + strconv.Itoa(ports[0]), "--grpc-port=" + strconv.Itoa(ports[1]), "--metrics-port=" + strconv.Itoa(ports[2]),
			"--legacy-unix-domain-socket=@fulcio-" + strconv.Itoa(ports[0]),
			"--ca=fileca", "--fileca-cert=" + chainFile, "--fileca-key=" + keyFile, "--fileca-key-passwd=unused", "--fileca-watch=false",
			"--config-path=" + configFile}, logFlags...)...)
		cmd.Env = append(os.Environ(), s.Proxy.Env()...)
		return cmd, base + "/api/v2/trustBundle"
	})
	return base, err
}

// startTimestampAuthority starts the RFC 3161 server with a key of its own
// making, and asks it for its certificates.
//
// Its metrics always listen on port 2112. So it gets a network namespace of
// its own and is reached through a Unix socket; where the kernel or its
// policy refuses the namespace, a lock lets one server after the other run.
func (s *Stack) startTimestampAuthority(h Host) (root.SigstoreTimestampingAuthority, error) {
	var none root.SigstoreTimestampingAuthority
	path, err := Program("timestamp-server")
	if err != nil {
		return none, err
	}
	// Not h.TempDir: a socket's path has at most 107 bytes.
	dir, err := os.MkdirTemp("", "tsa")
	if err != nil {
		return none, err
	}
	h.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "socket")
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	command := func(attributes *syscall.SysProcAttr) *exec.Cmd {
		cmd := exec.Command(path, "serve", "--scheme=unix", "--socket-path="+socket,
			"--timestamp-signer=memory", "--disable-ntp-monitoring")
		cmd.SysProcAttr = attributes
		return cmd
	}
	id := func(id int) []syscall.SysProcIDMap {
		return []syscall.SysProcIDMap{{ContainerID: id, HostID: id, Size: 1}}
	}
	server, err := startServer(h, "timestamp-server", command(&syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: id(os.Getuid()),
		GidMappings: id(os.Getgid()),
	}))
	if err != nil {
		if err := lockMetricsPort(h); err != nil {
			return none, err
		}
		if server, err = startServer(h, "timestamp-server", command(nil)); err != nil {
			return none, err
		}
	}
	const chainPath = "/api/v1/timestamp/certchain"
	if err := server.ready(client, "http://timestamp"+chainPath); err != nil {
		return none, err
	}
	base := serve(h, &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: "timestamp"})
		},
		Transport: client.Transport,
	})
	s.TimestampURL = base + "/api/v1/timestamp"

	resp, err := http.Get(base + chainPath)
	if err != nil {
		return none, fmt.Errorf("fetch the timestamp authority's certificates: %w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return none, fmt.Errorf("fetch the timestamp authority's certificates: %w", err)
	}
	chain, err := parseCertificates(data)
	if err != nil || len(chain) < 2 {
		return none, fmt.Errorf("the timestamp authority's chain has %d certificates: %w", len(chain), err)
	}
	last := len(chain) - 1
	return root.SigstoreTimestampingAuthority{
		Leaf:                chain[0],
		Intermediates:       chain[1:last],
		Root:                chain[last],
		ValidityPeriodStart: time.Now().Add(-time.Hour),
		URI:                 s.TimestampURL,
	}, nil
}

// lockMetricsPort waits until no other test's timestamp server runs on this
// machine, and holds the others off until the end.
func lockMetricsPort(h Host) error {
	name := filepath.Join(os.TempDir(), "attestable-image-port-2112.lock")
	lock, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o666) //nolint:gosec // shared with other users' tests
	if err != nil {
		return fmt.Errorf("open lock: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		_ = lock.Close()
		return fmt.Errorf("lock %s: %w", name, err)
	}
	h.Cleanup(func() { _ = lock.Close() })
	return nil
}

// startRekor starts Rekor v2 on a directory.
func (s *Stack) startRekor(h Host) (*root.TransparencyLog, error) {
	path, err := Program("rekor-server-posix")
	if err != nil {
		return nil, err
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make Rekor's key: %w", err)
	}
	key, err := keyPEM(private)
	if err != nil {
		return nil, fmt.Errorf("encode Rekor's key: %w", err)
	}
	keyFile := filepath.Join(h.TempDir(), "rekor.pem")
	if err := os.WriteFile(keyFile, key, 0o600); err != nil {
		return nil, fmt.Errorf("write Rekor's key: %w", err)
	}
	// The checkpoint's origin: the host of BaseURL in the trust root, without a port.
	const origin = "127.0.0.1"
	err = startOnPorts(h, "rekor-server-posix", 3, func(ports []int) (*exec.Cmd, string) {
		s.RekorURL = "http://127.0.0.1:" + strconv.Itoa(ports[0])
		return exec.Command(path, "serve", "--http-address=127.0.0.1", "--grpc-address=127.0.0.1",
			"--http-port="+strconv.Itoa(ports[0]), "--grpc-port="+strconv.Itoa(ports[1]), "--http-metrics-port="+strconv.Itoa(ports[2]),
			"--hostname="+origin, "--storage-dir="+h.TempDir(), "--signer-filepath="+keyFile,
			// An addition waits for the next checkpoint.
			"--checkpoint-interval=200ms", "--batch-max-age=50ms"), s.RekorURL + "/healthz"
	})
	if err != nil {
		return nil, err
	}
	// The key's ID by C2SP's signed-note: 1 stands for Ed25519.
	id := sha256.Sum256(append([]byte(origin+"\n\x01"), public...))
	return &root.TransparencyLog{
		BaseURL:             s.RekorURL,
		ID:                  id[:],
		ValidityPeriodStart: time.Now().Add(-time.Hour),
		HashFunc:            crypto.SHA256,
		PublicKey:           public,
		SignatureHashFunc:   crypto.SHA512,
	}, nil
}

// writeConfiguration writes the trust root and the signing configuration.
func (s *Stack) writeConfiguration(dir string, trusted *root.TrustedRoot) error {
	start := time.Now().Add(-time.Hour)
	service := func(url string, version uint32) []root.Service {
		if url == "" {
			return nil
		}
		return []root.Service{{URL: url, MajorAPIVersion: version, ValidityPeriodStart: start, Operator: "attestable-image tests"}}
	}
	anyOf := root.ServiceConfiguration{Selector: prototrustroot.ServiceSelector_ANY}
	signing, err := root.NewSigningConfig(root.SigningConfigMediaType02,
		service(s.FulcioURL, 1), service(s.Issuer.URL, 1), service(s.RekorURL, 2), anyOf, service(s.TimestampURL, 1), anyOf)
	if err != nil {
		return fmt.Errorf("make the signing configuration: %w", err)
	}
	trustedJSON, err := trusted.MarshalJSON()
	if err != nil {
		return fmt.Errorf("encode the trust root: %w", err)
	}
	signingJSON, err := signing.MarshalJSON()
	if err != nil {
		return fmt.Errorf("encode the signing configuration: %w", err)
	}
	var pretty, line, config bytes.Buffer
	if err := errors.Join(json.Indent(&pretty, trustedJSON, "", "  "), json.Compact(&line, trustedJSON), json.Indent(&config, signingJSON, "", "  ")); err != nil {
		return err
	}
	s.TrustedRoot = filepath.Join(dir, "trusted_root.json")
	s.TrustedRootLines = filepath.Join(dir, "trusted_root.jsonl")
	s.SigningConfig = filepath.Join(dir, "signing_config.json")
	return errors.Join(
		os.WriteFile(s.TrustedRoot, pretty.Bytes(), 0o600),
		os.WriteFile(s.TrustedRootLines, append(line.Bytes(), '\n'), 0o600),
		os.WriteFile(s.SigningConfig, config.Bytes(), 0o600),
	)
}
