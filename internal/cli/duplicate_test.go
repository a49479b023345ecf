package cli

import (
	"os"

	"golang.org/x/sys/unix"
)

// duplicate returns a descriptor of its own for an open file.
func duplicate(f *os.File) (int, error) { return unix.Dup(int(f.Fd())) }
