//go:build !linux

package vm

import (
	"errors"
	"os"
	"syscall"
	"time"
)

// A virtual machine needs Linux: here only the program compiles, and the command
// refuses before it comes this far.

func memoryFile(string) (*os.File, error) { return nil, errors.ErrUnsupported }

func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }

func socketPairDescriptors() ([2]int, error) { return [2]int{}, errors.ErrUnsupported }

func processorTime(int) (time.Duration, error) { return 0, errors.ErrUnsupported }
