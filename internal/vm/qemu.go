package vm

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"

	"github.com/org/attestable-image-action/internal/lazyregexp"
)

// Accelerators.
const (
	// TCG translates the guest's code. It works on every machine.
	TCG = "tcg"
	// KVM runs the guest's code on the processor: several times faster, where
	// the kernel allows it.
	KVM = "kvm"
)

// qemuVersion matches the first line of qemu-system-* --version.
var qemuVersion = lazyregexp.New(`version (\d+)\.(\d+)`)

// qemuMajor asks a QEMU for its major version.
func qemuMajor(ctx context.Context, path string) (int, error) {
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("ask %s for its version: %w", path, err)
	}
	match := qemuVersion().FindSubmatch(out)
	if match == nil {
		return 0, fmt.Errorf("ask %s for its version: it says %q", path, strings.TrimSpace(string(out)))
	}
	return strconv.Atoi(string(match[1]))
}

// cpuModel chooses the guest's processor. Under TCG it is the largest one that
// QEMU can translate, less what its version gets wrong.
func cpuModel(arch, accelerator string, major int) string {
	switch {
	case accelerator == KVM:
		return "host"
	case arch == "aarch64":
		return "max,pauth=off" // translating pointer authentication takes most of the time
	case major < 8:
		// QEMU 7.2: a soft lock-up in code that uses fast string moves, and a rare
		// double fault after cmpxchg16b. SVM stays on: udev fails without it.
		return "max,erms=off,fsrm=off,cx16=off"
	default:
		return "max"
	}
}

// descriptors of QEMU's files, in the order in which they are handed on.
const (
	memoryFD = 3 + iota
	varsFD
	tpmFD
	monitorFD
)

// escape doubles the commas of a value in QEMU's option lists.
func escape(value string) string { return strings.ReplaceAll(value, ",", ",,") }

// arguments are QEMU's for one boot of disk, an absolute path.
func arguments(o *Options, disk, cpu string) []string {
	machine, tpm, acceleration, snapshot := "q35,smm=off", "tpm-crb", o.Accel, "on"
	if o.Scratch {
		snapshot = "off"
	}
	if o.Firmware.SMM {
		machine = "q35,smm=on"
	}
	if o.Arch == "aarch64" {
		machine, tpm = "virt", "tpm-tis-device"
	}
	if o.Accel == TCG {
		acceleration = "tcg,thread=multi"
	}
	args := []string{
		"-name", "attestable-image", "-no-user-config", "-nodefaults", "-no-reboot",
		"-machine", machine + ",memory-backend=memory",
		"-accel", acceleration, "-cpu", cpu,
		"-smp", strconv.Itoa(o.CPUs), "-m", strconv.Itoa(o.Memory),
		"-object", fmt.Sprintf("memory-backend-file,id=memory,size=%dM,mem-path=/proc/self/fd/%d,share=on", o.Memory, memoryFD),
		"-display", "none", "-monitor", "none", "-serial", "stdio",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=" + escape(o.Firmware.Code),
		"-drive", fmt.Sprintf("if=pflash,format=raw,unit=1,file=/proc/self/fd/%d", varsFD),
		"-chardev", fmt.Sprintf("socket,id=tpm,fd=%d", tpmFD),
		"-tpmdev", "emulator,id=tpm0,chardev=tpm",
		"-device", tpm + ",tpmdev=tpm0",
		"-drive", "if=none,id=disk,format=raw,snapshot=" + snapshot + ",file=" + escape(disk),
		// Without a boot index the firmware tries another boot option first,
		// which leaves two more events in PCR 4.
		"-device", "virtio-blk-pci,drive=disk,bootindex=0",
		"-device", "virtio-rng-pci",
	}
	if len(o.Forwards) == 0 && !o.Outbound {
		args = append(args, "-nic", "none")
	} else {
		var forwards strings.Builder
		for _, f := range o.Forwards {
			fmt.Fprintf(&forwards, ",hostfwd=tcp:127.0.0.1:%d-:%d", f.Host, f.Guest)
		}
		restrict := "on"
		if o.Outbound {
			restrict = "off"
		}
		// Without its ROM the firmware has nothing to boot from the network with.
		args = append(args, "-netdev", "user,id=net,restrict="+restrict+forwards.String(), "-device", "virtio-net-pci,netdev=net,romfile=")
	}
	if o.Firmware.SMM {
		args = append(args, "-global", "driver=cfi.pflash01,property=secure,value=on")
	}
	if o.Operate != nil {
		args = append(args, "-chardev", fmt.Sprintf("socket,id=monitor,fd=%d", monitorFD), "-mon", "chardev=monitor,mode=control")
	}
	return append(args, o.Arguments...)
}
