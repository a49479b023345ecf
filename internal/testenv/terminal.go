package testenv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sys/unix"
)

// Terminal stands in for /dev/tpm0 in front of a TPM, for programs that open a
// device by its path and nothing else: the end of a pseudo-terminal in raw mode,
// which any user can make. It differs from a TPM's device in three points. It does
// not refuse a second program. A response that a program does not read, since it was
// killed, is not dropped before the next command comes. And that there is no more to
// read behind a response it says only after a time.
type Terminal struct {
	Path   string
	master *os.File
	slave  *os.File
	ended  chan error
}

// OpenTerminal makes a device in front of a TPM. end is for programs that read on
// until a response has ended, as AWS's nitro-tpm-attest does: the time, a multiple
// of 100 ms, until such a reading returns nothing. A response that takes longer than
// that is lost, too. With 0 such a reading never returns.
func OpenTerminal(tpm transport.TPM, end time.Duration) (*Terminal, error) {
	t, err := openTerminal(end)
	if err != nil {
		return nil, fmt.Errorf("make a pseudo-terminal: %w", err)
	}
	go func() { t.ended <- t.pass(tpm) }()
	return t, nil
}

func openTerminal(end time.Duration) (*Terminal, error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	master := os.NewFile(uintptr(fd), "ptmx")
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		master.Close()
		return nil, err
	}
	path := fmt.Sprintf("/dev/pts/%d", number)
	slave, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0) // stays open, so that the settings stay
	if err != nil {
		master.Close()
		return nil, err
	}
	settings, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err == nil {
		settings.Iflag, settings.Oflag, settings.Lflag = 0, 0, 0
		settings.Cflag = settings.Cflag&^unix.CSIZE | unix.CS8
		settings.Cc[unix.VMIN], settings.Cc[unix.VTIME] = 1, 0
		if end > 0 {
			settings.Cc[unix.VMIN], settings.Cc[unix.VTIME] = 0, uint8(end/(100*time.Millisecond))
		}
		err = unix.IoctlSetTermios(int(slave.Fd()), unix.TCSETS, settings)
	}
	if err != nil {
		master.Close()
		slave.Close()
		return nil, err
	}
	return &Terminal{Path: path, master: master, slave: slave, ended: make(chan error, 1)}, nil
}

// pass passes commands on until the terminal is closed.
func (t *Terminal) pass(tpm transport.TPM) error {
	for {
		cmd, err := t.command()
		if err != nil {
			return err
		}
		response, err := tpm.Send(cmd)
		if err != nil {
			return err
		}
		if len(response) == 0 { // which the TPM's side says where nobody is there to read
			continue
		}
		if err := unix.IoctlSetInt(int(t.slave.Fd()), unix.TCFLSH, unix.TCIFLUSH); err != nil {
			return err
		}
		if _, err := t.master.Write(response); err != nil {
			return err
		}
	}
}

// command reads a command: both a command and a response begin with a tag of two
// bytes and the size of the whole, big-endian (TPM 2.0 part 1, section 18).
func (t *Terminal) command() ([]byte, error) {
	const header, most = 10, 4096
	cmd := make([]byte, header, most)
	if _, err := io.ReadFull(t.master, cmd); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(cmd[2:])
	if size < header || size > most {
		return nil, fmt.Errorf("a TPM command of %d bytes", size)
	}
	cmd = cmd[:size]
	_, err := io.ReadFull(t.master, cmd[header:])
	return cmd, err
}

// Close ends the device when no program has it open any more.
func (t *Terminal) Close() error {
	t.slave.Close() // which ends the reading with EIO
	err := <-t.ended
	t.master.Close()
	if errors.Is(err, unix.EIO) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// TerminalDevice makes a Terminal that ends with the test, and returns its path.
func TerminalDevice(t testing.TB, tpm transport.TPM, end time.Duration) string {
	t.Helper()
	terminal, err := OpenTerminal(tpm, end)
	if err != nil {
		Missing(t, err)
	}
	t.Cleanup(func() {
		if err := terminal.Close(); err != nil {
			t.Error(err)
		}
	})
	return terminal.Path
}
