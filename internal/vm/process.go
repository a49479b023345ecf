package vm

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"
)

// killWait is how long a killed process may take to end before it is given up
// on: one that hangs inside the kernel never does.
const killWait = 10 * time.Second

// process is a program that dies with this one.
type process struct {
	name   string
	cmd    *exec.Cmd
	stderr *tail
	done   chan struct{} // closed when the process has ended and was reaped
	err    error         // of Wait; valid after done
}

// start starts cmd. Its standard error is kept for messages, and every
// descriptor in cmd.ExtraFiles may be closed by the caller afterwards.
func start(cmd *exec.Cmd) (*process, error) {
	p := &process{name: filepath.Base(cmd.Path), cmd: cmd, stderr: &tail{}, done: make(chan struct{})}
	cmd.Stderr = p.stderr
	cmd.WaitDelay = killWait
	// In a group of its own, Ctrl-C on the terminal reaches this process only,
	// which then ends the others in order.
	cmd.SysProcAttr = ownGroup()
	started := make(chan error, 1)
	go func() {
		// The kernel sends the signal when the starting *thread* ends, so that
		// thread must live as long as the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.done)
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	return p, nil
}

// kill ends the process and waits until it is gone.
func (p *process) kill() error {
	if p == nil {
		return nil
	}
	_ = p.cmd.Process.Kill() // it may have ended already
	select {
	case <-p.done:
		return nil
	case <-time.After(killWait + time.Second):
		return fmt.Errorf("%s (process %d) was killed and does not end: it hangs inside the kernel", p.name, p.cmd.Process.Pid)
	}
}

// failure is the error of a process that ended too early, with what it said.
func (p *process) failure() error {
	what := "ended"
	if p.err != nil {
		what = "failed (" + p.err.Error() + ")"
	}
	if said := p.stderr.String(); said != "" {
		return fmt.Errorf("%s %s: %s", p.name, what, said)
	}
	return fmt.Errorf("%s %s and said nothing", p.name, what)
}

// tail keeps the last few kilobytes written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailSize = 4 << 10

// Write implements io.Writer.
func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, b...)
	if len(t.b) > tailSize {
		t.b = append(t.b[:0], t.b[len(t.b)-tailSize:]...)
	}
	return len(b), nil
}

// String returns what was kept as one line.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var lines []string
	for line := range strings.Lines(string(bytes.TrimSpace(t.b))) {
		lines = append(lines, strings.TrimSpace(line))
	}
	return strings.Join(lines, "; ")
}
