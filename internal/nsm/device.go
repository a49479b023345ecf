package nsm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sys/unix"
)

// Devices of a TPM: with the kernel's resource manager, which every kernel has
// since 4.12, and without.
const (
	deviceManaged = "/dev/tpmrm0"
	deviceRaw     = "/dev/tpm0"
)

// openWait is the time between two tries to open a device that is in use.
const openWait = 50 * time.Millisecond

// Open opens the TPM of this machine, or the device of a given path, for one user
// of this package at a time. It waits while another has it, until ctx is done.
func Open(ctx context.Context, path string) (transport.TPMCloser, error) {
	if path == "" {
		path = deviceManaged
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			path = deviceRaw
		}
	}
	for {
		file, err := openDevice(path)
		switch {
		case err == nil:
			return transport.FromReadWriteCloser(file), nil
		case errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("open the TPM: %w: this machine has none, or none that this process sees", err)
		case errors.Is(err, fs.ErrPermission):
			return nil, fmt.Errorf("open the TPM: %w: be root, or in the group that the device belongs to", err)
		case !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EWOULDBLOCK):
			return nil, fmt.Errorf("open the TPM: %w", err)
		}
		select {
		case <-time.After(openWait):
		case <-ctx.Done():
			return nil, fmt.Errorf("open the TPM: %s is in use by somebody else: %w", path, ctx.Err())
		}
	}
}

// openDevice opens a device and locks it. The kernel lets several programs open
// /dev/tpmrm0, and only the lock keeps one of ours from sweeping away what another
// one works with; it ends with the process, however that ends.
func openDevice(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0) // nothing is created
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && info.Mode()&os.ModeDevice == 0 {
		err = fmt.Errorf("%s is not a device", path)
	}
	if err == nil {
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}
