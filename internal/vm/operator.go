package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"

	"github.com/org/attestable-image-action/internal/strictjson"
)

// maxMonitorLine bounds one message of QEMU's monitor, in bytes.
const maxMonitorLine = 4 << 20

// Operator does to a running guest what the one who runs it can: it types on the
// serial line, and gives QEMU's machine protocol (QMP) commands.
type Operator struct {
	// HandedOver is closed when the firmware has handed over to the operating system.
	HandedOver <-chan struct{}
	// Disk is the name that QEMU's block layer has for the disk that boots.
	Disk string

	serial  io.WriteCloser
	monitor *net.UnixConn
	mu      sync.Mutex
	replies *bufio.Scanner
	greeted bool
}

// newOperator prepares the operator of a QEMU that is about to start. The end of
// the monitor's channel is QEMU's, and the caller's to close.
func (m *machine) newOperator(cmd *exec.Cmd) (*os.File, error) {
	serial, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("make the serial line's input: %w", err)
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("make a channel to QEMU's monitor: %w", err)
	}
	replies := bufio.NewScanner(ours)
	replies.Buffer(nil, maxMonitorLine)
	m.operator = &Operator{HandedOver: m.handedOver, Disk: "disk", serial: serial, monitor: ours, replies: replies}
	return theirs, nil
}

// operate starts Options.Operate. What it returns ends it, and gives its error.
func (m *machine) operate(ctx context.Context) (end func() error) {
	if m.operator == nil {
		return func() error { return nil }
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- m.o.Operate(ctx, m.operator) }()
	return func() error {
		cancel()
		_ = m.operator.serial.Close() // whoever waits for the guest to read is told
		// A command that was not answered when the guest ended is none that failed.
		_ = m.operator.monitor.Close()
		err := <-done
		if errors.Is(err, os.ErrClosed) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, context.Canceled) || errors.Is(err, net.ErrClosed) {
			return nil
		}
		return err
	}
}

// Type types on the guest's serial line.
func (o *Operator) Type(text string) error {
	_, err := io.WriteString(o.serial, text)
	return err
}

// Break sends a break on the serial line.
func (o *Operator) Break() error {
	return o.Command("chardev-send-break", map[string]any{"id": "serial0"})
}

// Command gives QEMU a command (QEMU, docs/interop/qmp-spec.rst), and waits until it
// is done.
func (o *Operator) Command(name string, arguments map[string]any) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.greeted {
		if err := o.execute("qmp_capabilities", nil); err != nil {
			return err
		}
		o.greeted = true
	}
	return o.execute(name, arguments)
}

func (o *Operator) execute(name string, arguments map[string]any) error {
	command := map[string]any{"execute": name}
	if arguments != nil {
		command["arguments"] = arguments
	}
	line, err := json.Marshal(command)
	if err == nil {
		_, err = o.monitor.Write(append(line, '\n'))
	}
	if err != nil {
		return fmt.Errorf("give QEMU the command %s: %w", name, err)
	}
	for o.replies.Scan() {
		var reply struct {
			Return any `json:"return"`
			Error  *struct {
				Desc string `json:"desc"`
			} `json:"error"`
		}
		if err := strictjson.Unmarshal(o.replies.Bytes(), &reply); err != nil {
			return fmt.Errorf("read QEMU's answer to the command %s: %w", name, err)
		}
		switch {
		case reply.Error != nil:
			return fmt.Errorf("QEMU refuses the command %s: %s", name, reply.Error.Desc)
		case reply.Return != nil: // neither a greeting nor an event
			return nil
		}
	}
	if err := o.replies.Err(); err != nil {
		return fmt.Errorf("read QEMU's answer to the command %s: %w", name, err)
	}
	return fmt.Errorf("read QEMU's answer to the command %s: %w", name, io.ErrUnexpectedEOF)
}
