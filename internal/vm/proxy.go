package vm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sys/unix"
)

// Layer stands between the guest and the TPM: it wraps the TPM that it is given
// and may answer a command itself, change it, or pass it on. A layer sees the
// guest's commands one at a time and never those of this package.
type Layer func(next transport.TPM) transport.TPM

// Commands of the control channel (swtpm_ioctls(3)), each four bytes,
// big-endian.
const (
	ctrlInit      = 2
	ctrlShutdown  = 3
	ctrlStop      = 14
	ctrlSetDataFD = 16
)

// proxy stands between QEMU and swtpm. QEMU speaks swtpm's control protocol
// over one socket, and hands over a second one, the data channel, on which the
// guest's TPM commands come. The proxy keeps QEMU's data channel and has one of
// its own to swtpm.
type proxy struct {
	swtpmControl *net.UnixConn
	qemuControl  *net.UnixConn

	mu   sync.Mutex    // one TPM command at a time
	tpm  transport.TPM // swtpm itself
	data *net.UnixConn // what tpm speaks over
	// guest is what the guest's commands reach: the layers, the recorder, swtpm.
	guest transport.TPM
	rec   *recorder
}

// newProxy makes a proxy over the two control channels. It gives swtpm a data
// channel, sets the TPM's banks, and leaves the TPM stopped, as QEMU expects to
// find it.
func newProxy(swtpmControl, qemuControl *net.UnixConn, layers []Layer, rec *recorder) (*proxy, error) {
	p := &proxy{swtpmControl: swtpmControl, qemuControl: qemuControl, rec: rec}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	err = p.control(ctrlSetDataFD, nil, unix.UnixRights(int(theirs.Fd())))
	theirs.Close()
	if err != nil {
		ours.Close()
		return nil, err
	}
	p.data = ours
	p.tpm = stream{ours}
	rec.next = p.tpm
	p.guest = rec
	for _, layer := range layers {
		p.guest = layer(p.guest)
	}
	if err := errors.Join(
		p.control(ctrlInit, []byte{0, 0, 0, 0}, nil),
		allocateBanks(p.tpm),
		p.control(ctrlStop, nil, nil),
	); err != nil {
		ours.Close()
		return nil, err
	}
	return p, nil
}

// control sends one control command to swtpm and awaits its answer, a result
// code of four bytes.
func (p *proxy) control(code uint32, arguments, rights []byte) error {
	message := append(binary.BigEndian.AppendUint32(nil, code), arguments...)
	if _, _, err := p.swtpmControl.WriteMsgUnix(message, rights, nil); err != nil {
		return fmt.Errorf("send control command %d to swtpm: %w", code, err)
	}
	answer := make([]byte, 4)
	if _, err := io.ReadFull(p.swtpmControl, answer); err != nil {
		return fmt.Errorf("read swtpm's answer to control command %d: %w", code, err)
	}
	if result := binary.BigEndian.Uint32(answer); result != 0 {
		return fmt.Errorf("swtpm answered control command %d with error %#x", code, result)
	}
	return nil
}

// serve forwards until QEMU or swtpm closes its end. An error means that the
// TPM is no more of use to the guest.
func (p *proxy) serve() error {
	done := make(chan error, 2)
	go func() {
		_, err := io.Copy(p.qemuControl, p.swtpmControl)
		done <- err
	}()
	go func() { done <- p.serveControl() }()
	err := <-done
	if errors.Is(err, net.ErrClosed) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return nil
	}
	return err
}

// serveControl forwards QEMU's control commands. QEMU writes each in one piece
// and waits for its answer before the next, so what one read returns is one
// command, or a further part of a long one.
func (p *proxy) serveControl() error {
	buffer := make([]byte, 64<<10)
	rights := make([]byte, unix.CmsgSpace(4*4))
	for {
		n, rightsSize, _, _, err := p.qemuControl.ReadMsgUnix(buffer, rights)
		if n == 0 || err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if n == 4 {
			switch binary.BigEndian.Uint32(buffer) {
			case ctrlSetDataFD:
				channel, err := receivedConn(rights[:rightsSize])
				if err != nil {
					return fmt.Errorf("take over QEMU's TPM channel: %w", err)
				}
				go p.serveData(channel)
				if _, err := p.qemuControl.Write(make([]byte, 4)); err != nil {
					return err
				}
				continue
			case ctrlShutdown:
				// QEMU is about to end; the TPM must outlive it, so that
				// its last values can be read.
				if _, err := p.qemuControl.Write(make([]byte, 4)); err != nil {
					return err
				}
				continue
			}
		}
		if n >= 4 && binary.BigEndian.Uint32(buffer) == ctrlInit {
			p.mu.Lock()
			p.rec.reset()
			p.mu.Unlock()
		}
		if _, err := p.swtpmControl.Write(buffer[:n]); err != nil {
			return err
		}
	}
}

// serveData carries the guest's TPM commands to the TPM and back.
func (p *proxy) serveData(channel net.Conn) {
	defer channel.Close()
	for {
		cmd, err := readMessage(channel)
		if err != nil {
			return // QEMU has ended, which Boot sees for itself
		}
		p.mu.Lock()
		response, err := p.guest.Send(cmd)
		p.mu.Unlock()
		if err != nil {
			p.rec.fail(err)
			return
		}
		if _, err := channel.Write(response); err != nil {
			return
		}
	}
}

// readPCRs reads the PCRs between two commands of the guest.
func (p *proxy) readPCRs() (PCRs, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return readPCRs(p.tpm)
}

// close ends both channels to swtpm, which then ends itself.
func (p *proxy) close() {
	p.data.Close()
	p.swtpmControl.Close()
	p.qemuControl.Close()
}

// socketPair makes two connected sockets: one for this process, one to hand on.
func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := socketPairDescriptors()
	if err != nil {
		return nil, nil, fmt.Errorf("make a pair of sockets: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "socketpair")
	ours, err := unixConn(fds[0])
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// unixConn makes a connection of a socket's descriptor, and takes it over.
func unixConn(fd int) (*net.UnixConn, error) {
	file := os.NewFile(uintptr(fd), "socket")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("use socket: %w", err)
	}
	connection, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, errors.New("use socket: not a unix socket")
	}
	return connection, nil
}

// receivedConn is the one socket that came with a control message.
func receivedConn(rights []byte) (*net.UnixConn, error) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil, err
	}
	for _, message := range messages {
		fds, err := unix.ParseUnixRights(&message)
		if err != nil {
			return nil, err
		}
		if len(fds) == 1 {
			return unixConn(fds[0])
		}
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
	return nil, errors.New("no socket came with the message")
}
