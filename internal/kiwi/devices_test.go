package kiwi

import (
	"slices"
	"testing"
	"testing/fstest"
)

// TestFreeDevices gives a build no device that anything of the machine is on, NVMe disks
// above all, which have numbers of the same kind as partitions of loop devices.
func TestFreeDevices(t *testing.T) {
	sys := fstest.MapFS{
		"block/loop0/loop/backing_file": {Data: []byte("/var/lib/snapd/snaps/core.snap\n")},
		"block/loop1/size":              {Data: []byte("0\n")},
		"block/loop3/loop/backing_file": {Data: []byte("/srv/disk\n")},
	}
	for _, number := range []string{"7:0", "7:1", "7:3", "8:0", "259:0", "259:1", "259:3", "259:4"} {
		sys["dev/block/"+number+"/dev"] = &fstest.MapFile{Data: []byte(number + "\n")}
	}
	d, err := freeDevices(sys)
	if err != nil {
		t.Fatal(err)
	}
	if len(d.loops) != loopCount || !slices.Equal(d.loops[:4], []int{1, 2, 4, 5}) {
		t.Errorf("loop devices are %v", d.loops)
	}
	if len(d.partitions) != partitionCount || !slices.Equal(d.partitions[:4], []int{2, 5, 6, 7}) {
		t.Errorf("partitions are %v", d.partitions)
	}
	if _, err := freeDevices(fstest.MapFS{}); err == nil {
		t.Error("a machine without /sys has free devices")
	}
}
