package main

import (
	"bytes"
	"context"
	"crypto/sha512"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-tpm/tpm2/transport"

	"github.com/org/attestable-image-action/internal/server"
	"github.com/org/attestable-image-action/internal/testenv"
	"github.com/org/attestable-image-action/internal/vm"
	"github.com/org/attestable-image-action/nitrotpm"
)

type openTPM struct{ transport.TPM }

func (openTPM) Close() error { return nil }

// TestClient asks the real service, in front of an emulated NitroTPM, by itself and
// through others who would like to listen.
func TestClient(t *testing.T) {
	emulated, err := vm.EmulateNitroTPM()
	if err != nil {
		t.Fatal(err)
	}
	tpm := openTPM{emulated.Layer(testenv.SoftwareTPM(t))}
	// What firmware records: its separator in PCR 2, and in PCR 4 what it started.
	separator, started := sha512.Sum384(make([]byte, 4)), sha512.Sum384([]byte("an image"))
	testenv.Extend(t, tpm, 2, separator[:])
	testenv.Extend(t, tpm, 4, started[:])
	pcr4 := sha512.Sum384(append(make([]byte, nitrotpm.PCRSize), started[:]...))
	dir := t.TempDir()
	write := func(name, content string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	measurements := func(pcr12 string) string {
		return fmt.Sprintf(`{"Measurements":{"HashAlgorithm":"SHA384","PCR2":"%x","PCR4":"%x","PCR12":%q,"PCR13":"%096d"}}`, nitrotpm.UsualPCR(2), pcr4, pcr12, 0)
	}
	zero := strings.Repeat("0", 96)
	root := write("root.pem", string(emulated.RootPEM()))
	good := write("good.json", measurements(zero))
	old := write("old.json", measurements(strings.Repeat("1", 96)))

	service, err := server.New(server.Config{
		OpenTPM:      func(context.Context) (transport.TPMCloser, error) { return tpm, nil },
		Measurements: []byte(`{"said":"by the instance"}`),
		Log:          slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- service.Serve(ctx, listener) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	instance := "https://" + listener.Addr().String()

	// A relay ends the TLS session with a key of its own, and passes everything on.
	target, err := url.Parse(instance)
	if err != nil {
		t.Fatal(err)
	}
	passed := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}, //nolint:gosec // an attacker
	}
	relay := httptest.NewUnstartedServer(passed)
	relay.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // a client that hangs up
	relay.StartTLS()
	t.Cleanup(relay.Close)

	// Somebody on the way lets the first connection through, cuts it, and answers the
	// next one.
	var connections atomic.Int32
	hijacker, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hijacker.Close() })
	go func() {
		for {
			from, err := hijacker.Accept()
			if err != nil {
				return
			}
			to := listener.Addr().String()
			if connections.Add(1) > 1 {
				to = relay.Listener.Addr().String()
			}
			go splice(from, to, connections.Load() == 1)
		}
	}()

	for name, c := range map[string]struct {
		url  string
		args []string
		want string // part of what is printed, or of the error
		ok   bool
	}{
		"the image":              {instance, []string{"-measurements", good, "-root", root, "-path", "/v1/measurements"}, `{"said":"by the instance"}`, true},
		"one of two generations": {instance, []string{"-measurements", old, "-measurements", good, "-root", root}, "the instance runs " + good, true},
		"another image":          {instance, []string{"-measurements", old, "-root", root}, "PCR 12", false},
		"an emulator":            {instance, []string{"-measurements", good}, "root", false},
		"a relay":                {relay.URL, []string{"-measurements", good, "-root", root}, "public_key: expected", false},
		"another key later":      {"https://" + hijacker.Addr().String(), []string{"-measurements", good, "-root", root}, "another key than the one that is attested", false},
		"no TLS":                 {"http" + strings.TrimPrefix(instance, "https"), []string{"-measurements", good}, "is not a URL as https://", false},
		"no measurements":        {instance, nil, "-measurements at least once", false},
		"a SHA-256 bank":         {instance, []string{"-measurements", write("short.json", `{"Measurements":{"PCR2":"00","PCR4":"00","PCR12":"00"}}`)}, "no PCR 2", false},
		"a path that is away":    {instance, []string{"-measurements", good, "-root", root, "-path", "/v2"}, "404", false},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout bytes.Buffer
			err := run(t.Context(), append(c.args, c.url), &stdout)
			said := stdout.String()
			if err != nil {
				said = err.Error()
			}
			if (err == nil) != c.ok || !strings.Contains(said, c.want) {
				t.Errorf("it says %q, want %q", said, c.want)
			}
		})
	}
	if connections.Load() < 2 {
		t.Error("nobody was asked a second time")
	}
}

// splice connects a connection with an address. With cut, it ends both once the client
// says something behind the first answer, which is longer than any handshake.
func splice(from net.Conn, to string, cut bool) {
	defer from.Close()
	other, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer other.Close()
	var answered atomic.Int64
	go func() {
		defer other.Close()
		buffer := make([]byte, 64<<10)
		for {
			n, err := from.Read(buffer)
			if err != nil || cut && answered.Load() > 3<<10 {
				return
			}
			if _, err := other.Write(buffer[:n]); err != nil {
				return
			}
		}
	}()
	buffer := make([]byte, 64<<10)
	for {
		n, err := other.Read(buffer)
		if err != nil {
			return
		}
		answered.Add(int64(n))
		if _, err := from.Write(buffer[:n]); err != nil {
			return
		}
	}
}
