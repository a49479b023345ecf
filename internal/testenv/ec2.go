package testenv

import (
	"bufio"
	"bytes"
	_ "embed"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// motoAWS starts moto with what it does otherwise than AWS set right.
//
//go:embed moto_aws.py
var motoAWS []byte

// EC2 is EC2 and the EBS direct APIs: moto's server behind a proxy that keeps
// what it was asked, and that can answer in moto's place.
type EC2 struct {
	URL string // of the proxy
	// Direct is moto's own, past the proxy.
	Direct string

	mu        sync.Mutex
	requests  []AWSRequest
	intercept func(w http.ResponseWriter, r *http.Request, call AWSRequest, forward http.Handler) bool
}

// AWSRequest is a call that was made of the proxy.
type AWSRequest struct {
	Operation string     // RegisterImage, PutSnapshotBlock, …
	Region    string     // that it was signed for
	AccessKey string     // that it was signed with
	Form      url.Values // parameters of EC2's calls
	Path      string
	Header    http.Header
}

// shared is the one of SharedEC2.
var shared struct {
	mu   sync.Mutex
	ec2  *EC2
	host processHost
}

// SharedEC2 is an EC2 without anything in it, to which AWS's SDK is pointed by
// the environment. moto takes seconds to start: the tests of a package share one
// server, one after the other. StopShared ends it, in TestMain.
func SharedEC2(t testing.TB) *EC2 {
	t.Helper()
	program := Tool(t, "moto_server")
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.ec2 == nil {
		e, err := startEC2(&shared.host, program)
		if err != nil {
			t.Fatal(err)
		}
		shared.ec2 = e
	}
	e := shared.ec2
	response, err := http.Post(e.Direct+"/moto-api/reset", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	e.Forget()
	useAWS(t, e.URL)
	return e
}

// StopShared ends what tests shared.
func StopShared() {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	shared.host.end()
	shared.ec2 = nil
}

// processHost keeps servers up for as long as a test binary runs.
type processHost struct {
	dirs     []string
	cleanups []func()
}

func (h *processHost) TempDir() string {
	dir, err := os.MkdirTemp("", "attestable-image-")
	if err != nil {
		panic(err)
	}
	h.dirs = append(h.dirs, dir)
	return dir
}

func (h *processHost) Cleanup(f func())    { h.cleanups = append(h.cleanups, f) }
func (h *processHost) Logf(string, ...any) {}

func (h *processHost) end() {
	for _, f := range slices.Backward(h.cleanups) {
		f()
	}
	for _, dir := range h.dirs {
		_ = os.RemoveAll(dir)
	}
	h.cleanups, h.dirs = nil, nil
}

func startEC2(h Host, program string) (*EC2, error) {
	script := filepath.Join(h.TempDir(), "moto_aws.py")
	if err := os.WriteFile(script, motoAWS, 0o600); err != nil {
		return nil, err
	}
	python, err := interpreter(program)
	if err != nil {
		return nil, err
	}
	e := new(EC2)
	err = startOnPorts(h, "moto_aws", 1, func(ports []int) (*exec.Cmd, string) {
		e.Direct = fmt.Sprintf("http://127.0.0.1:%d", ports[0])
		cmd := exec.Command(python, script, "-H", "127.0.0.1", "-p", fmt.Sprint(ports[0]))
		cmd.Env = append(os.Environ(), "MOTO_EC2_LOAD_DEFAULT_AMIS=false")
		return cmd, e.Direct + "/moto-api/data.json"
	})
	if err != nil {
		return nil, err
	}
	target, err := url.Parse(e.Direct)
	if err != nil {
		return nil, err
	}
	forward := httputil.NewSingleHostReverseProxy(target)
	forward.Transport = &http.Transport{MaxIdleConnsPerHost: 64}
	forward.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
	e.URL = serve(h, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { e.serve(w, r, forward) }))
	return e, nil
}

// interpreter is the Python that a script of moto's installation runs with.
func interpreter(script string) (string, error) {
	f, err := os.Open(script)
	if err != nil {
		return "", err
	}
	defer f.Close()
	line, err := bufio.NewReader(io.LimitReader(f, 4096)).ReadString('\n')
	python, ok := strings.CutPrefix(strings.TrimSpace(line), "#!")
	if err != nil || !ok || strings.Contains(python, " ") {
		return "", fmt.Errorf("%s does not begin with the Python that runs it, but with %q", script, line)
	}
	return python, nil
}

var scopeForm = regexp.MustCompile(`Credential=([^/]+)/[0-9]+/([^/]+)/([^/]+)/aws4_request`)

func (e *EC2) serve(w http.ResponseWriter, r *http.Request, forward http.Handler) {
	call := AWSRequest{Path: r.URL.Path, Header: r.Header.Clone()}
	if scope := scopeForm.FindStringSubmatch(r.Header.Get("Authorization")); scope != nil {
		call.AccessKey, call.Region = scope[1], scope[2]
	}
	switch {
	case r.Method == http.MethodPost && r.URL.Path == "/snapshots":
		call.Operation = "StartSnapshot"
	case r.Method == http.MethodPost && strings.HasPrefix(r.URL.Path, "/snapshots/completion/"):
		call.Operation = "CompleteSnapshot"
	case r.Method == http.MethodPut && strings.HasPrefix(r.URL.Path, "/snapshots/"):
		call.Operation = "PutSnapshotBlock"
	case r.Method == http.MethodPost && r.URL.Path == "/":
		body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		if err != nil {
			return // the client went away
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		call.Form, _ = url.ParseQuery(string(body)) // what is no form has no Action
		call.Operation = call.Form.Get("Action")
	default:
		call.Operation = r.Method + " " + r.URL.Path
	}
	e.mu.Lock()
	e.requests = append(e.requests, call)
	intercept := e.intercept
	e.mu.Unlock()
	if intercept != nil && intercept(w, r, call, forward) {
		return
	}
	forward.ServeHTTP(w, r)
}

// Requests are the calls so far; only those of some operations, unless none are
// named.
func (e *EC2) Requests(operations ...string) []AWSRequest {
	e.mu.Lock()
	defer e.mu.Unlock()
	var found []AWSRequest
	for _, call := range e.requests {
		wanted := len(operations) == 0
		for _, operation := range operations {
			wanted = wanted || call.Operation == operation
		}
		if wanted {
			found = append(found, call)
		}
	}
	return found
}

// Forget forgets the calls so far.
func (e *EC2) Forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.requests = nil
}

// Intercept lets f answer calls in moto's place, until the test ends; where it
// returns false, moto answers. Through forward it may also ask moto, and then do
// as it likes with the answer.
func (e *EC2) Intercept(t testing.TB, f func(w http.ResponseWriter, r *http.Request, call AWSRequest, forward http.Handler) bool) {
	t.Helper()
	set := func(f func(http.ResponseWriter, *http.Request, AWSRequest, http.Handler) bool) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.intercept = f
	}
	set(f)
	t.Cleanup(func() { set(nil) })
}

// Refuse answers a call as AWS refuses one: in XML for EC2, in JSON for the EBS
// direct APIs.
func (call *AWSRequest) Refuse(w http.ResponseWriter, status int, code, message string) {
	if call.Form != nil {
		w.Header().Set("Content-Type", "text/xml")
		w.WriteHeader(status)
		fmt.Fprintf(w, "<Response><Errors><Error><Code>%s</Code><Message>%s</Message></Error></Errors><RequestID>1</RequestID></Response>", code, message)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Amzn-Errortype", code)
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"message": %q}`, message)
}

// Reset breaks the connection of a call off, as a router does.
func Reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // RST
	}
	_ = conn.Close()
}

// LoseAnswer has a call done, and then breaks the connection off.
func LoseAnswer(w http.ResponseWriter, r *http.Request, forward http.Handler) {
	forward.ServeHTTP(&lostAnswer{header: http.Header{}}, r)
	Reset(w)
}

type lostAnswer struct{ header http.Header }

func (l *lostAnswer) Header() http.Header         { return l.header }
func (l *lostAnswer) Write(p []byte) (int, error) { return len(p), nil }
func (l *lostAnswer) WriteHeader(int)             {}
