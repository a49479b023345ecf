package testenv

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Host is what the servers of this package need of the one who starts them. A
// testing.TB is one; a program that keeps the servers up for something else,
// such as a workflow run, can be another.
type Host interface {
	// TempDir returns a new directory that outlives the servers.
	TempDir() string
	// Cleanup registers a function to run at the end, last one first.
	Cleanup(func())
	// Logf prints a line for whoever looks into a failure.
	Logf(format string, args ...any)
}

// readyTimeout bounds the start of one server. It is long because the machine
// may be busy, and never waited out when the server fails.
const readyTimeout = time.Minute

// startAttempts is how often a server is started on new ports when the chosen
// ones were taken between probing and use.
const startAttempts = 5

// logTail is how much of a server's log is shown when a test failed, in bytes.
const logTail = 4 << 10

// server is a child process that ends with the test.
type server struct {
	name string
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{} // closed when the process has ended
	stop sync.Once
}

// startServer starts cmd as name, in a process group of its own that the
// kernel ends should this process die. Output goes to a file.
func startServer(h Host, name string, cmd *exec.Cmd) (*server, error) {
	log, err := os.Create(filepath.Join(h.TempDir(), name+".log"))
	if err != nil {
		return nil, fmt.Errorf("create the log of %s: %w", name, err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := cmd.Start(); err != nil {
		_ = log.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	s := &server{name: name, cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended is in its log; kill is the usual way
		close(s.done)
	}()
	h.Cleanup(func() {
		s.kill()
		if failed, ok := h.(interface{ Failed() bool }); ok && failed.Failed() {
			h.Logf("log of %s:\n%s", name, s.tail())
		}
	})
	return s, nil
}

// kill ends the process and all that it started, and waits for it.
func (s *server) kill() {
	s.stop.Do(func() {
		_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
		<-s.done
		_ = s.log.Close()
	})
}

// tail returns the end of the server's log.
func (s *server) tail() []byte {
	data, err := os.ReadFile(s.log.Name())
	if err != nil {
		return []byte(err.Error())
	}
	return data[max(0, len(data)-logTail):]
}

// errPortTaken says that a server ended because somebody else had its port.
var errPortTaken = errors.New("port already in use")

// ready waits until url answers 200 through client.
func (s *server) ready(client *http.Client, url string) error {
	deadline := time.Now().Add(readyTimeout)
	for {
		resp, err := client.Get(url)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(resp.Status)
		}
		select {
		case <-s.done:
			tail := s.tail()
			if bytes.Contains(tail, []byte("address already in use")) {
				return errPortTaken
			}
			return fmt.Errorf("%s ended while it was starting:\n%s", s.name, tail)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s was not ready within %s (%w):\n%s", s.name, readyTimeout, err, s.tail())
		}
	}
}

// startOnPorts starts the command that command makes for n free loopback
// ports, and waits until the URL that it returns answers.
func startOnPorts(h Host, name string, n int, command func(ports []int) (cmd *exec.Cmd, readyURL string)) error {
	var err error
	for range startAttempts {
		var ports []int
		if ports, err = freePorts(n); err != nil {
			return err
		}
		cmd, readyURL := command(ports)
		var s *server
		if s, err = startServer(h, name, cmd); err != nil {
			return err
		}
		if err = s.ready(http.DefaultClient, readyURL); err == nil {
			return nil
		}
		s.kill()
		if !errors.Is(err, errPortTaken) {
			break
		}
	}
	return fmt.Errorf("start %s: %w", name, err)
}

// freePorts returns n TCP ports that nobody listens on, on any interface. They
// may be taken before they are used: see startOnPorts.
func freePorts(n int) ([]int, error) {
	ports := make([]int, n)
	for i := range ports {
		// Some servers serve metrics on all interfaces, so probe all.
		l, err := net.Listen("tcp", ":0") //nolint:gosec // closed below, before anything is served
		if err != nil {
			return nil, fmt.Errorf("look for a free port: %w", err)
		}
		defer l.Close() // only at the end, so that no port is returned twice
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports, nil
}

// serve answers with handler on a free loopback port and returns the base URL,
// without a slash at its end.
func serve(h Host, handler http.Handler) string {
	s := httptest.NewServer(handler)
	h.Cleanup(s.Close)
	return s.URL
}
