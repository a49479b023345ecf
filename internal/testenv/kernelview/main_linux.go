// Command kernelview is the init of a guest that shows how Linux sees file systems:
// it mounts each image of a disk read-only, lists and opens what it is told, and
// writes what it found to the serial line. The images may be hostile; that is why a
// guest looks at them.
package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// image is one to look at, as the host wrote it to /images.json.
type image struct {
	Number int
	Kind   string // as mount(2) takes it
	Offset int64  // bytes on /dev/vda
	Size   int64
	Names  []string
}

func main() {
	err := run()
	fmt.Println("END", err)
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

func run() error {
	for _, m := range [][3]string{{"devtmpfs", "/dev", "devtmpfs"}, {"proc", "/proc", "proc"}} {
		if err := os.MkdirAll(m[1], 0o755); err != nil { //nolint:gosec // a directory of the guest
			return err
		}
		if err := unix.Mount(m[0], m[1], m[2], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	loadModules()
	content, err := os.ReadFile("/images.json")
	if err != nil {
		return err
	}
	var images []image
	if err := json.Unmarshal(content, &images); err != nil {
		return err
	}
	if err := os.MkdirAll("/m", 0o755); err != nil { //nolint:gosec // a directory of the guest
		return err
	}
	for _, i := range images {
		fmt.Println("\nBEGIN", i.Number)
		fmt.Println("\nSEEN", i.Number, look(i))
	}
	return nil
}

// loadModules loads those of /modules, each when those are there that it needs.
func loadModules() {
	paths, _ := filepath.Glob("/modules/*")
	for range paths {
		for _, path := range paths {
			if f, err := os.Open(path); err == nil { //nolint:gosec // a file of the guest
				_ = unix.FinitModule(int(f.Fd()), "", 0) //nolint:gosec // a descriptor fits
				_ = f.Close()
			}
		}
	}
}

// look mounts an image and says what it finds by each name, separated by spaces.
func look(i image) string {
	device, release, err := attach(i)
	if err != nil {
		return "attach:" + reason(err)
	}
	defer release()
	options := ""
	if i.Kind == "ext4" {
		options = "errors=continue" // the image might say panic
	}
	if err := unix.Mount(device, "/m", i.Kind, unix.MS_RDONLY, options); err != nil {
		return "mount:" + reason(err)
	}
	defer func() {
		if err := unix.Unmount("/m", 0); err != nil {
			_ = unix.Unmount("/m", unix.MNT_DETACH)
		}
	}()
	seen := make([]string, 0, len(i.Names))
	for _, name := range i.Names {
		text, err := describe(filepath.Join("/m", name))
		if err != nil {
			text = reason(err)
		}
		seen = append(seen, text)
	}
	return strings.Join(seen, " ")
}

// attach makes a loop device of an image's bytes.
func attach(i image) (device string, release func(), err error) {
	backing, err := os.Open("/dev/vda")
	if err != nil {
		return "", nil, err
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return "", nil, err
	}
	defer control.Close()
	number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE) //nolint:gosec // a descriptor fits
	if err != nil {
		return "", nil, err
	}
	device = fmt.Sprintf("/dev/loop%d", number)
	loop, err := os.OpenFile(device, os.O_RDONLY, 0)
	if err != nil {
		return "", nil, err
	}
	config := unix.LoopConfig{Fd: uint32(backing.Fd())} //nolint:gosec // a descriptor fits
	config.Info.Offset, config.Info.Sizelimit = uint64(i.Offset), uint64(i.Size)
	config.Info.Flags = unix.LO_FLAGS_READ_ONLY
	if err := unix.IoctlLoopConfigure(int(loop.Fd()), &config); err != nil { //nolint:gosec // a descriptor fits
		_ = loop.Close()
		return "", nil, err
	}
	return device, func() {
		_ = unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0) //nolint:gosec // a descriptor fits
		_ = loop.Close()
	}, nil
}

// reason is "-" for what is not there, and else "!" and the number of the error.
func reason(err error) string {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return "-"
	}
	if number, ok := errors.AsType[unix.Errno](err); ok {
		return fmt.Sprintf("!%d", int(number))
	}
	return "!"
}

// maxRead bounds what is read of a file, in bytes.
const maxRead = 64 << 10

// describe is the beginning of a digest over a file: its mode, owner, and what it
// holds.
func describe(path string) (string, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return "", err
	}
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%v %d:%d", info.Mode(), stat.Uid, stat.Gid)
	switch mode := info.Mode(); {
	case mode.IsRegular():
		fmt.Fprintf(h, " %d ", info.Size())
		f, err := os.Open(path) //nolint:gosec // a file of the guest
		if err != nil {
			return "", err
		}
		defer f.Close()
		if _, err := io.Copy(h, io.LimitReader(f, maxRead)); err != nil {
			return "", err
		}
	case mode.Type() == fs.ModeSymlink:
		target, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, " %s", target)
	case mode.IsDir():
		f, err := os.Open(path) //nolint:gosec // a directory of the guest
		if err != nil {
			return "", err
		}
		defer f.Close()
		names, err := f.Readdirnames(-1)
		if err != nil {
			return "", err
		}
		slices.Sort(names)
		fmt.Fprintf(h, " %q", names)
	case mode&fs.ModeDevice != 0:
		fmt.Fprintf(h, " %d", stat.Rdev)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:6]), nil
}
