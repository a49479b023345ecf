// Lister is the init of a guest: it writes what the kernel has unpacked to the
// serial line, one file a line, and ends the guest.
package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

func main() {
	console, err := os.OpenFile("/dev/console", os.O_WRONLY, 0)
	if err != nil {
		panic(err)
	}
	fmt.Fprintf(console, "\nBEGIN\n")
	list(console, "/")
	fmt.Fprintf(console, "END\n")
	syscall.Sync()
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
}

func list(console *os.File, dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		fmt.Fprintf(console, "FILE %q %v\n", dir, err)
		return
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		var st syscall.Stat_t
		if err := syscall.Lstat(name, &st); err != nil {
			fmt.Fprintf(console, "FILE %q %v\n", name, err)
			continue
		}
		var content []byte
		size := st.Size
		switch st.Mode & syscall.S_IFMT {
		case syscall.S_IFREG:
			content, _ = os.ReadFile(name)
		case syscall.S_IFLNK:
			target, _ := os.Readlink(name)
			content = []byte(target)
		default:
			size = 0
		}
		if name == "/init" {
			continue
		}
		fmt.Fprintf(console, "FILE %q %o %d %d %d %x\n", name, st.Mode, st.Uid, st.Gid, size, sha256.Sum256(content))
		if st.Mode&syscall.S_IFMT == syscall.S_IFDIR && name != "/dev" && name != "/root" {
			list(console, name)
		}
	}
}
