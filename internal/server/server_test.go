package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/org/attestable-image-action/internal/nsm"
	"github.com/org/attestable-image-action/internal/testenv"
	"github.com/org/attestable-image-action/internal/vm"
	"github.com/org/attestable-image-action/nitrotpm"
)

// shared lets each request open and close a TPM that stays.
type shared struct {
	transport.TPM
	users *atomic.Int32
}

func (s shared) Close() error {
	s.users.Add(-1)
	return nil
}

// start serves on loopback until the test ends, and returns the URL.
func start(t *testing.T, config Config) (string, *Server) {
	t.Helper()
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	s, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return "https://" + listener.Addr().String(), s
}

// nitro is an emulated NitroTPM in front of a real software TPM, for one user at a
// time, and a test that there never is a second.
func nitro(t *testing.T) (*vm.NitroTPM, func(context.Context) (transport.TPMCloser, error)) {
	t.Helper()
	n, err := vm.EmulateNitroTPM()
	if err != nil {
		t.Fatal(err)
	}
	tpm := n.Layer(testenv.SoftwareTPM(t))
	users := new(atomic.Int32)
	return n, func(context.Context) (transport.TPMCloser, error) {
		if users.Add(1) != 1 {
			t.Error("the TPM has two users")
		}
		return shared{tpm, users}, nil
	}
}

var insecure = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}

func post(t *testing.T, url, kind, body string) (status int, answer string, header http.Header) {
	t.Helper()
	response, err := insecure.Post(url, kind, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(content), response.Header
}

var nonce = []byte("0123456789abcdef0123456789abcdef")

func TestServe(t *testing.T) {
	n, open := nitro(t)
	log := new(records)
	url, s := start(t, Config{OpenTPM: open, Measurements: []byte(`{"a": 1}`), Log: slog.New(slog.NewJSONHandler(log, nil))})
	document, key, err := Fetch(t.Context(), url, nonce)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(key, s.PublicKey()) {
		t.Errorf("the session has the key %x", key)
	}
	d, err := nitrotpm.Parse(document)
	if err != nil {
		t.Fatal(err)
	}
	policy := nitrotpm.Policy{Roots: []nitrotpm.Root{nitrotpm.Fingerprint(n.Root())}, Nonce: nonce, AnyPCRs: true, PublicKey: key}
	if _, err := policy.Verify(d); err != nil {
		t.Error(err)
	}
	for path, want := range map[string]string{"/healthz": "ok\n", "/v1/measurements": `{"a": 1}`} {
		response, err := insecure.Get(url + path)
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || string(content) != want {
			t.Errorf("%s: %q, %v", path, content, err)
		}
	}
	body := fmt.Sprintf(`{"nonce": %q, "user_data": "ZGF0YQ=="}`, base64.StdEncoding.EncodeToString(nonce))
	status, answer, header := post(t, url+"/v1/attestation", "application/json", body)
	if d, err = nitrotpm.Parse([]byte(answer)); err != nil || status != 200 || string(d.UserData) != "data" || header.Get("Cache-Control") != "no-store" {
		t.Errorf("status %d, %v", status, err)
	}
	// A record is written when its request was answered.
	for strings.Count(log.String(), "\n") < 4 {
		runtime.Gosched()
	}
	if strings.Count(log.String(), `"request":"POST /v1/attestation"`) != 2 || strings.Contains(log.String(), "ZGF0YQ") {
		t.Errorf("log %s", log.String())
	}
}

// records is a log that may be read while it is written.
type records struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (r *records) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.Write(p)
}

func (r *records) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.String()
}

func TestRefuses(t *testing.T) {
	_, open := nitro(t)
	url, _ := start(t, Config{OpenTPM: open})
	good := base64.StdEncoding.EncodeToString(nonce)
	for _, tc := range []struct {
		name, kind, body string
		status           int
		reason           string
	}{
		{"no JSON", "text/plain", "nonce", 415, "not JSON"},
		{"empty", "application/json", "", 400, "nonce"},
		{"no nonce", "application/json", "{}", 400, "0 bytes"},
		{"short nonce", "application/json", `{"nonce": "QQ=="}`, 400, "1 bytes"},
		{"long nonce", "application/json", `{"nonce": "` + strings.Repeat("QUFB", 200) + `"}`, 400, "600 bytes"},
		{"nonce in hex", "application/json", `{"nonce": "zz"}`, 400, "base64"},
		{"unknown member", "application/json", `{"nonce": "` + good + `", "x": 1}`, 400, "base64"},
		{"nonce twice", "application/json", `{"nonce": "` + good + `", "nonce": "` + good + `"}`, 400, "base64"},
		{"two values", "application/json", `{"nonce": "` + good + `"}{}`, 400, "base64"},
		{"large user_data", "application/json", `{"nonce": "` + good + `", "user_data": "` + strings.Repeat("QUFB", 400) + `"}`, 400, "1200 bytes"},
		{"own public_key", "application/json", `{"nonce": "` + good + `", "public_key": "QUFB"}`, 400, "not the caller's"},
		{"public_key null", "application/json", `{"nonce": "` + good + `", "public_key": {}}`, 400, "not the caller's"},
		{"too large", "application/json", `{"nonce": "` + strings.Repeat("A", 9000) + `"}`, 413, "8192 bytes"},
		{"nested deeply", "application/json", strings.Repeat("[", 8000), 400, "base64"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, answer, _ := post(t, url+"/v1/attestation", tc.kind, tc.body)
			var failure struct{ Error string }
			if err := json.Unmarshal([]byte(answer), &failure); err != nil || status != tc.status || !strings.Contains(failure.Error, tc.reason) {
				t.Errorf("status %d, %s; want %d, %q", status, answer, tc.status, tc.reason)
			}
		})
	}
	for path, want := range map[string]int{"/v1/attestation": 405, "/": 404, "/v1/measurements": 404, "/../etc/passwd": 404} {
		response, err := insecure.Get(url + path)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("GET %s: status %d, want %d", path, response.StatusCode, want)
		}
	}
}

// TestTPMErrors has a TPM that fails in the middle, as none can be made to: the
// caller learns no more than that, and the next request is answered.
func TestTPMErrors(t *testing.T) {
	n, open := nitro(t)
	var failing atomic.Uint32
	url, _ := start(t, Config{OpenTPM: func(ctx context.Context) (transport.TPMCloser, error) {
		tpm, err := open(ctx)
		return failsAt{tpm, &failing}, err
	}})
	for _, code := range []tpm2.TPMCC{tpm2.TPMCCCreatePrimary, tpm2.TPMCCNVDefineSpace, tpm2.TPMCCNVWrite, 0x20000001, tpm2.TPMCCNVRead} {
		failing.Store(uint32(code))
		if _, _, err := Fetch(t.Context(), url, nonce); err == nil || !strings.Contains(err.Error(), "502 Bad Gateway: \"the TPM gave no document\"") {
			t.Errorf("command %#x fails: error %v", uint32(code), err)
		}
		failing.Store(0)
		document, _, err := Fetch(t.Context(), url, nonce)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := nitrotpm.Parse(document); err != nil {
			t.Error(err)
		}
	}
	if handles := indices(t, n); len(handles) > 0 {
		t.Errorf("NV indices left behind: %x", handles)
	}
	url, _ = start(t, Config{OpenTPM: func(context.Context) (transport.TPMCloser, error) { return nil, errors.New("secret of the machine") }})
	if _, _, err := Fetch(t.Context(), url, nonce); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("error %v", err)
	}
	url, _ = start(t, Config{OpenTPM: func(context.Context) (transport.TPMCloser, error) { return nil, nsm.ErrNotNitroTPM }})
	if _, _, err := Fetch(t.Context(), url, nonce); err == nil || !strings.Contains(err.Error(), "no NitroTPM") {
		t.Errorf("error %v", err)
	}
}

type failsAt struct {
	transport.TPMCloser
	code *atomic.Uint32
}

func (f failsAt) Send(cmd []byte) ([]byte, error) {
	if code := uint32(cmd[6])<<24 | uint32(cmd[7])<<16 | uint32(cmd[8])<<8 | uint32(cmd[9]); code == f.code.Load() {
		return []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1}, nil // TPM_RC_FAILURE
	}
	return f.TPMCloser.Send(cmd)
}

func indices(t *testing.T, n *vm.NitroTPM) []tpm2.TPMHandle {
	t.Helper()
	return handles(t, n, 0x01000000)
}

// handles are those of a kind that a TPM has, from the first of the kind on (TPM 2.0
// part 2, section 7.2).
func handles(t *testing.T, tpm transport.TPM, first uint32) []tpm2.TPMHandle {
	t.Helper()
	response, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 16}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
	list, err := response.CapabilityData.Data.Handles()
	if err != nil {
		t.Fatal(err)
	}
	return list.Handle
}

// TestNothingStays asks several hundred times, many at once, for documents and for
// what is refused. When it is over there is nothing of it: in the TPM no index, session
// or key, in the process no goroutine and no open file. bench/serve.sh soak does it
// 100,000 times, with the real process.
func TestNothingStays(t *testing.T) {
	n, open := nitro(t)
	url, s := start(t, Config{OpenTPM: open, Rate: 1e6, Burst: 1e6, Queue: 400})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	body := fmt.Sprintf(`{"nonce": %q}`, base64.StdEncoding.EncodeToString(nonce))
	ask := func(body string, want int) {
		response, err := client.Post(url+"/v1/attestation", "application/json", strings.NewReader(body))
		if err != nil {
			t.Error(err)
			return
		}
		defer response.Body.Close()
		if content, err := io.ReadAll(response.Body); err != nil || response.StatusCode != want {
			t.Errorf("status %d, want %d: %.100q, %v", response.StatusCode, want, content, err)
		}
	}
	ask(body, 200)
	files := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			testenv.Missing(t, err)
		}
		return len(entries)
	}
	// What is closed is gone a moment later.
	settle := func(what string, count func() int, base int) {
		for deadline := time.Now().Add(20 * time.Second); count() > base; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %d, and %d before", what, count(), base)
			}
		}
	}
	time.Sleep(100 * time.Millisecond)
	goroutines, opened := runtime.NumGoroutine(), files()
	var all sync.WaitGroup
	for k := range 360 {
		all.Go(func() {
			switch k % 6 {
			case 0, 1, 2:
				ask(body, 200)
			case 3:
				ask(`{"nonce": "AAAA"}`, 400)
			case 4:
				ask(strings.Repeat(" ", 9000), 413)
			case 5:
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(k)*time.Millisecond)
				defer cancel()
				_, _, _ = Fetch(ctx, url, nonce) // goes away somewhere on the way
			}
		})
	}
	all.Wait()
	settle("requests in the queue", func() int { return len(s.queue) }, 0)
	settle("goroutines", runtime.NumGoroutine, goroutines)
	settle("open files", files, opened)
	for what, first := range map[string]uint32{"NV indices": 0x01000000, "sessions": 0x02000000, "saved sessions": 0x03000000, "keys": 0x80000000} {
		if h := handles(t, n, first); len(h) > 0 {
			t.Errorf("%s left behind: %x", what, h)
		}
	}
}

// TestTPMResets resets the TPM between two requests, lets it suspend, and resets it
// in the middle of a request, at each of its commands. That request fails, or does
// not mind; the next is answered, and nothing is left.
func TestTPMResets(t *testing.T) {
	n, err := vm.EmulateNitroTPM()
	if err != nil {
		t.Fatal(err)
	}
	soft, reset := testenv.ResettableTPM(t)
	n.Layer(soft)
	var at atomic.Uint32
	url, _ := start(t, Config{Rate: 1e6, Burst: 1e6, OpenTPM: func(context.Context) (transport.TPMCloser, error) {
		return intercepted{n, func(code uint32) []byte {
			if at.CompareAndSwap(code, 0) {
				reset(n, tpm2.TPMSUClear)
			}
			return nil
		}}, nil
	}})
	fetch := func(when string) {
		t.Helper()
		if _, _, err := Fetch(t.Context(), url, nonce); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if left := slices.Concat(indices(t, n), handles(t, n, 0x02000000), handles(t, n, 0x80000000)); len(left) > 0 {
			t.Errorf("%s: left behind: %x", when, left)
		}
	}
	fetch("first")
	reset(n, tpm2.TPMSUState)
	fetch("after a suspend")
	reset(n, tpm2.TPMSUClear)
	fetch("after a reset")
	for _, code := range []tpm2.TPMCC{
		tpm2.TPMCCGetCapability, tpm2.TPMCCContextLoad, tpm2.TPMCCStartAuthSession, tpm2.TPMCCNVDefineSpace, tpm2.TPMCCNVWrite,
		tpm2.TPMCCNVReadPublic, 0x20000001, tpm2.TPMCCNVRead, tpm2.TPMCCNVUndefineSpace, tpm2.TPMCCFlushContext,
	} {
		at.Store(uint32(code))
		if _, _, err := Fetch(t.Context(), url, nonce); err != nil && !strings.Contains(err.Error(), `502 Bad Gateway: "the TPM gave no document"`) {
			t.Errorf("reset at %#x: %v", uint32(code), err)
		}
		if at.Swap(0) != 0 {
			t.Errorf("there is no command %#x", uint32(code))
		}
		fetch(fmt.Sprintf("after a reset at %#x", uint32(code)))
	}
}

// TestTPMIsBusy has a TPM that wants each command sent again, as it may when it tests
// itself, and one that never does anything else.
func TestTPMIsBusy(t *testing.T) {
	n, open := nitro(t)
	retry := []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 9, 0x22} // TPM_RC_RETRY
	var always atomic.Bool
	refused := map[uint32]bool{}
	url, _ := start(t, Config{OpenTPM: func(ctx context.Context) (transport.TPMCloser, error) {
		tpm, err := open(ctx)
		return intercepted{tpm, func(code uint32) []byte {
			if always.Load() || !refused[code] {
				refused[code] = true
				return retry
			}
			return nil
		}}, err
	}})
	if _, _, err := Fetch(t.Context(), url, nonce); err != nil {
		t.Error(err)
	}
	always.Store(true)
	if _, _, err := Fetch(t.Context(), url, nonce); err == nil || !strings.Contains(err.Error(), "502 Bad Gateway") {
		t.Errorf("error %v", err)
	}
	always.Store(false)
	if _, _, err := Fetch(t.Context(), url, nonce); err != nil {
		t.Error(err)
	}
	if left := indices(t, n); len(left) > 0 {
		t.Errorf("NV indices left behind: %x", left)
	}
}

// intercepted is a TPM that a test answers for, as none can be made to do.
type intercepted struct {
	transport.TPM
	answer func(code uint32) []byte // nil to go on
}

func (i intercepted) Send(cmd []byte) ([]byte, error) {
	if response := i.answer(binary.BigEndian.Uint32(cmd[6:])); response != nil {
		return response, nil
	}
	return i.TPM.Send(cmd)
}

func (i intercepted) Close() error {
	if c, ok := i.TPM.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// TestQueue lets one request have the TPM, fill the queue, and one more come.
func TestQueue(t *testing.T) {
	_, open := nitro(t)
	entered, proceed := make(chan struct{}), make(chan struct{})
	url, s := start(t, Config{Queue: 3, OpenTPM: func(ctx context.Context) (transport.TPMCloser, error) {
		entered <- struct{}{}
		<-proceed
		return open(ctx)
	}})
	results := make(chan error, 3)
	for range 3 {
		go func() {
			_, _, err := Fetch(t.Context(), url, nonce)
			results <- err
		}()
	}
	<-entered
	for len(s.queue) < 3 {
		runtime.Gosched()
	}
	if _, _, err := Fetch(t.Context(), url, nonce); err == nil || !strings.Contains(err.Error(), "503 Service Unavailable") {
		t.Errorf("error %v", err)
	}
	proceed <- struct{}{}
	for range 2 {
		<-entered
		proceed <- struct{}{}
	}
	for range 3 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

// TestCallerGoesAway makes room in the queue when a caller that waits is gone.
func TestCallerGoesAway(t *testing.T) {
	_, open := nitro(t)
	entered, proceed := make(chan struct{}, 2), make(chan struct{})
	url, s := start(t, Config{Queue: 2, OpenTPM: func(ctx context.Context) (transport.TPMCloser, error) {
		entered <- struct{}{}
		<-proceed
		return open(ctx)
	}})
	first := make(chan error, 1)
	go func() {
		_, _, err := Fetch(t.Context(), url, nonce)
		first <- err
	}()
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, _, err := Fetch(ctx, url, nonce)
		gone <- err
	}()
	for len(s.queue) < 2 {
		runtime.Gosched()
	}
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	for len(s.queue) > 1 {
		runtime.Gosched()
	}
	proceed <- struct{}{}
	if err := <-first; err != nil {
		t.Error(err)
	}
}

func TestRate(t *testing.T) {
	b := newBucket(2, 3)
	now := time.Unix(1000, 0)
	taken := func(at time.Time) (n int) {
		for b.take(at) {
			n++
		}
		return n
	}
	for _, tc := range []struct {
		after time.Duration
		want  int
	}{{0, 3}, {0, 0}, {499 * time.Millisecond, 0}, {500 * time.Millisecond, 1}, {400 * time.Millisecond, 0}, {1500 * time.Millisecond, 2}, {time.Hour, 3}} {
		if got := taken(now.Add(tc.after)); got != tc.want {
			t.Errorf("%d tokens after %s, want %d", got, tc.after, tc.want)
		}
	}
	_, open := nitro(t)
	url, _ := start(t, Config{OpenTPM: open, Rate: 0.001, Burst: 1})
	if _, _, err := Fetch(t.Context(), url, nonce); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Fetch(t.Context(), url, nonce); err == nil || !strings.Contains(err.Error(), "429 Too Many Requests") {
		t.Errorf("error %v", err)
	}
}

// TestSlowClients holds more connections open than there is room for, each of
// which says nothing, and asks as one that does. The others are cut off after the
// time for a header.
func TestSlowClients(t *testing.T) {
	if testing.Short() {
		t.Skip("slow clients are waited for")
	}
	_, open := nitro(t)
	url, _ := start(t, Config{OpenTPM: open, Connections: 4})
	address := strings.TrimPrefix(url, "https://")
	for n := range 6 { // so that a client comes in before it gives up
		var conn net.Conn
		var err error
		if n%2 == 0 {
			conn, err = net.Dial("tcp", address) // does not even begin with TLS
		} else {
			conn, err = (&net.Dialer{}).Dial("tcp", address)
			if err == nil {
				_, err = conn.Write([]byte{0x16, 0x03, 0x01}) // the beginning of a handshake
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if _, _, err := Fetch(t.Context(), url, nonce); err != nil {
		t.Error(err)
	}
}

// TestSlowBodies has clients that send the header or the body of a request a byte at a
// time. They hold a connection, and neither the TPM nor a place in its queue, so that
// others are answered meanwhile.
func TestSlowBodies(t *testing.T) {
	_, open := nitro(t)
	url, s := start(t, Config{OpenTPM: open, Connections: 64, Queue: 2, Rate: 1e6, Burst: 1e6})
	address := strings.TrimPrefix(url, "https://")
	body := fmt.Sprintf(`{"nonce": %q}`, base64.StdEncoding.EncodeToString(nonce))
	head := fmt.Sprintf("POST /v1/attestation HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", len(body))
	ctx, cancel := context.WithCancel(t.Context())
	var slow sync.WaitGroup
	defer slow.Wait()
	defer cancel()
	for k := range 48 {
		conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		sent := len(head) - 4 // what comes at once
		if k%2 == 0 {
			sent = len(head)
		}
		slow.Go(func() {
			request := []byte(head + body)
			if _, err := conn.Write(request[:sent]); err != nil {
				t.Error(err)
			}
			for _, b := range request[sent:] {
				select {
				case <-ctx.Done():
					return
				case <-time.After(time.Second): // longer than the service waits for all
				}
				if _, err := conn.Write([]byte{b}); err != nil {
					return // cut off
				}
			}
		})
	}
	for range 10 {
		if _, _, err := Fetch(t.Context(), url, nonce); err != nil {
			t.Error(err)
		}
	}
	if len(s.queue) > 0 {
		t.Errorf("%d wait for the TPM", len(s.queue))
	}
}

// TestManyRequests sends 10,000 requests at once. Each is answered: with a
// document, or with the reason why not; memory stays in bounds, and nothing stays
// in the TPM.
func TestManyRequests(t *testing.T) {
	if testing.Short() {
		t.Skip("10,000 requests take a while")
	}
	n, open := nitro(t)
	url, _ := start(t, Config{OpenTPM: open, Connections: 64, Queue: 16})
	// The client's side keeps few connections, since each end has a descriptor in
	// this process, and all requests at once.
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxConnsPerHost: 128, MaxIdleConnsPerHost: 128,
	}}
	defer client.CloseIdleConnections()
	body := fmt.Sprintf(`{"nonce": %q}`, base64.StdEncoding.EncodeToString(nonce))
	var statuses [600]atomic.Int32
	var peak atomic.Uint64
	var all sync.WaitGroup
	for k := range 10_000 {
		all.Go(func() {
			response, err := client.Post(url+"/v1/attestation", "application/json", strings.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			defer response.Body.Close()
			if _, err := io.Copy(io.Discard, response.Body); err != nil {
				t.Error(err)
			}
			statuses[response.StatusCode].Add(1)
			if k%500 == 0 {
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				peak.Store(max(peak.Load(), m.HeapInuse+m.StackInuse))
			}
		})
	}
	all.Wait()
	good, busy, many := statuses[200].Load(), statuses[503].Load(), statuses[429].Load()
	if good == 0 || good+busy+many != 10_000 {
		t.Errorf("%d documents, %d busy, %d too many", good, busy, many)
	}
	// 10,000 callers are in this process, too, with a goroutine or two each.
	if peak.Load() > 512<<20 {
		t.Errorf("%d MiB in use", peak.Load()>>20)
	}
	t.Logf("%d documents, %d busy, %d too many, %d MiB in use at most", good, busy, many, peak.Load()>>20)
	if handles := indices(t, n); len(handles) > 0 {
		t.Errorf("NV indices left behind: %x", handles)
	}
}

func TestFetchRefuses(t *testing.T) {
	for url, reason := range map[string]string{
		"http://127.0.0.1:1": "not a URL as https", "https://": "not a URL as https", "https://user@host": "not a URL as https",
		"https://host?x=1": "not a URL as https", "https://127.0.0.1:1": "connection refused",
	} {
		if _, _, err := Fetch(t.Context(), url, nonce); err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("%s: error %v", url, err)
		}
	}
	for name, tc := range map[string]struct {
		handler http.HandlerFunc
		reason  string
	}{
		"endless": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1<<20)) }, "more than 16384 bytes"},
		"elsewhere": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://example.com", http.StatusTemporaryRedirect)
		}, "it answers 307 Temporary Redirect"},
		"hostile": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "{\"error\": \"\x1b[2J\"}", 500) }, `500 Internal Server Error: ""`},
	} {
		server := httptest.NewTLSServer(tc.handler)
		defer server.Close()
		if _, _, err := Fetch(t.Context(), server.URL, nonce); err == nil || !strings.Contains(err.Error(), tc.reason) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// TestActivated runs this test again with a socket, as systemd runs a service.
func TestActivated(t *testing.T) {
	if os.Getenv("ATTESTABLE_IMAGE_ACTIVATED") == "1" {
		t.Setenv("LISTEN_PID", fmt.Sprint(os.Getpid())) // which the parent cannot know before
		listener, err := Activated()
		if err != nil || listener == nil {
			t.Fatal(listener, err)
		}
		defer listener.Close()
		if os.Getenv("LISTEN_FDS") != "" {
			t.Error("children would find the socket, too")
		}
		conn, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		return
	}
	if listener, err := Activated(); listener != nil || err != nil {
		t.Error(listener, err)
	}
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	file, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := exec.Command(os.Args[0], "-test.run=^TestActivated$")
	cmd.Env = append(os.Environ(), "ATTESTABLE_IMAGE_ACTIVATED=1", "LISTEN_FDS=1", "LISTEN_FDNAMES=https")
	cmd.ExtraFiles = []*os.File{file}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	conn, err := net.Dial("tcp", listener.Addr().String()) // waits in the queue
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if content, err := io.ReadAll(conn); err != nil || string(content) != "hello" {
		t.Errorf("%q, %v", content, err)
	}
}
