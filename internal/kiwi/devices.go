package kiwi

import (
	"fmt"
	"io/fs"
	"strconv"
	"strings"
)

// Majors of block devices, see the kernel's devices.txt: loop devices, and partitions
// beyond those that a driver has numbers for. These are a loop device's, but also NVMe
// disks and all that is on them.
const (
	loopMajor     = 7
	extendedMajor = 259
)

// How many loop devices and partitions a build gets. KIWI takes one device with a few
// partitions; the others are for what other programs take in the meantime.
const (
	loopCount      = 8
	partitionCount = 32
)

// devices are the numbers of block devices that a build may use: nothing of the machine
// has them when the build begins.
type devices struct {
	loops      []int // minors of loop devices
	partitions []int // minors of partitions of loop devices
}

// freeDevices looks for numbers that nothing has in sys, which is /sys. The kernel gives
// the lowest ones to whoever asks next.
func freeDevices(sys fs.FS) (devices, error) {
	entries, err := fs.ReadDir(sys, "dev/block")
	if err != nil {
		return devices{}, fmt.Errorf("read which block devices this machine has: %w", err)
	}
	taken := map[int]bool{}
	for _, entry := range entries {
		major, minor, _ := strings.Cut(entry.Name(), ":")
		if number, err := strconv.Atoi(minor); err == nil && major == strconv.Itoa(extendedMajor) {
			taken[number] = true
		}
	}
	var d devices
	for number := 0; len(d.partitions) < partitionCount; number++ {
		if !taken[number] {
			d.partitions = append(d.partitions, number)
		}
	}
	for number := 0; len(d.loops) < loopCount; number++ {
		// There is a directory loop while the device has a file.
		if _, err := fs.Stat(sys, fmt.Sprintf("block/loop%d/loop", number)); err != nil {
			d.loops = append(d.loops, number)
		}
	}
	return d, nil
}

// args are the options that let a container use the devices, and tell it which.
func (d devices) args() []string {
	var args []string
	for _, kind := range []struct {
		major   int
		name    string
		numbers []int
	}{{loopMajor, "LOOPS", d.loops}, {extendedMajor, "PARTITIONS", d.partitions}} {
		words := make([]string, len(kind.numbers))
		for i, number := range kind.numbers {
			words[i] = strconv.Itoa(number)
			args = append(args, "--device-cgroup-rule", fmt.Sprintf("b %d:%d rmw", kind.major, number))
		}
		args = append(args, "--env", kind.name+"="+strings.Join(words, " "))
	}
	return args
}
