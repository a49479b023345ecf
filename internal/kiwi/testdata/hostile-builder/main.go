// Command hostile-builder is the bash of a builder image that attacks the machine it runs
// on: it stands in for KIWI, leaves in /output what ATTACK says, and tries to open block
// devices that are not its own.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const result = `{"disk_image": {"filename": "/output/build/x.raw"}}`

func main() {
	if strings.HasSuffix(os.Args[len(os.Args)-1], "/clean") {
		return
	}
	var log strings.Builder
	put := func(name, content string) {
		path := filepath.Join("/output", name)
		_ = os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			fmt.Fprintln(&log, err)
		}
	}
	put("builder.kiwi", "KIWI (next generation) version 10.3.9\n")
	put("builder.packages", "bash 5.2 amd64\n")
	put("build/kiwi.result.json", result)
	put("build/x.raw", "a disk")
	if kind, name, ok := strings.Cut(os.Getenv("ATTACK"), " "); ok {
		path := filepath.Join("/output", name)
		_ = os.RemoveAll(path)
		var err error
		switch kind {
		case "environ":
			err = os.Symlink("/proc/self/environ", path)
		case "link":
			err = os.Symlink("/etc", path)
		case "fifo":
			err = syscall.Mkfifo(path, 0o666)
		case "node":
			err = syscall.Mknod(path, syscall.S_IFBLK|0o666, 7<<8)
		case "setuid":
			put(name, "a disk")
			err = os.Chmod(path, 0o755|os.ModeSetuid|os.ModeSetgid)
		}
		if err != nil {
			fmt.Fprintln(&log, err)
		}
	}
	devices(&log)
	if os.Getenv("ATTACK") != "environ kiwi.log" {
		put("kiwi.log", log.String())
	}
	var uid, gid int
	_, _ = fmt.Sscanf(os.Getenv("OWNER"), "%d:%d", &uid, &gid)
	_ = filepath.WalkDir("/output", func(path string, _ os.DirEntry, _ error) error {
		_ = os.Lchown(path, uid, gid)
		return nil
	})
}

// devices tells which block devices can be opened, and what is to be seen of terminals.
func devices(log *strings.Builder) {
	entries, err := os.ReadDir("/sys/dev/block")
	if err != nil {
		fmt.Fprintln(log, err)
	}
	for _, entry := range entries {
		var major, minor int
		if _, err := fmt.Sscanf(entry.Name(), "%d:%d", &major, &minor); err != nil {
			continue
		}
		_ = os.Remove("/node")
		if err := syscall.Mknod("/node", syscall.S_IFBLK|0o600, minor&0xff|major<<8|(minor&^0xff)<<12); err != nil {
			fmt.Fprintln(log, err)
			continue
		}
		file, err := os.Open("/node")
		if err == nil {
			_ = file.Close()
			fmt.Fprintln(log, "opened", entry.Name())
		}
		fmt.Fprintln(log, "tried", entry.Name())
	}
	terminals, _ := filepath.Glob("/dev/pts/[0-9]*")
	for _, terminal := range terminals {
		fmt.Fprintln(log, "terminal", terminal)
	}
}
