package kiwi

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// host is what the kernel of this machine can do.
type host struct {
	vfat bool // mount FAT file systems
}

// readHost finds out what the kernel can do. It fails where nothing can stand in
// for what is missing.
func readHost(ctx context.Context) (host, error) {
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		modprobe(ctx, "loop")
		if _, err := os.Stat("/dev/loop-control"); err != nil {
			return host{}, errors.New("KIWI lays out disks with loop devices, and this machine has none: load the kernel module loop (modprobe loop)")
		}
	}
	return host{vfat: hasFileSystem(ctx, "vfat")}, nil
}

// hasFileSystem reports whether the kernel can mount a file system: it has it, or
// it can load it.
func hasFileSystem(ctx context.Context, name string) bool {
	if registered("/proc/filesystems", name) {
		return true
	}
	modprobe(ctx, name)
	if registered("/proc/filesystems", name) {
		return true
	}
	// Without root nothing could be loaded here, but the kernel loads the module
	// itself when root in the container mounts such a file system.
	var uts unix.Utsname
	if os.Geteuid() == 0 || unix.Uname(&uts) != nil {
		return false
	}
	return moduleListed(filepath.Join("/lib/modules", unix.ByteSliceToString(uts.Release[:]), "modules.dep"), name)
}

// registered reports whether a list like /proc/filesystems has a file system.
func registered(path, name string) bool {
	return anyLine(path, func(line string) bool {
		fields := strings.Fields(line)
		return len(fields) > 0 && fields[len(fields)-1] == name
	})
}

// moduleListed reports whether a list like modules.dep has a module.
func moduleListed(path, name string) bool {
	return anyLine(path, func(line string) bool {
		file, _, _ := strings.Cut(line, ":")
		base, _, _ := strings.Cut(filepath.Base(file), ".")
		return base == name
	})
}

// maxListBytes bounds a list of modules or file systems.
const maxListBytes = 16 << 20

func anyLine(path string, matches func(string) bool) bool {
	file, err := os.Open(path) //nolint:gosec // a path of the kernel's
	if err != nil {
		return false
	}
	defer file.Close()
	lines := bufio.NewScanner(io.LimitReader(file, maxListBytes))
	for lines.Scan() {
		if matches(lines.Text()) {
			return true
		}
	}
	return false
}

// modprobe asks for a kernel module. Whether there is one shows afterwards.
func modprobe(ctx context.Context, name string) {
	program, err := exec.LookPath("modprobe")
	if err != nil {
		program = "/sbin/modprobe"
	}
	_ = exec.CommandContext(ctx, program, "--quiet", name).Run() //nolint:gosec // the names are ours
}
