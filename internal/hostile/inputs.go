package hostile

import (
	"encoding/base64"
	"slices"
)

// Source is who chooses an input on EC2.
type Source string

// The sources.
const (
	Registrar      Source = "registrar of the AMI"   // UefiData of RegisterImage
	SnapshotWriter Source = "writer of the snapshot" // every byte of the disk that no PCR covers
	Owner          Source = "owner of the instance"  // disks, interfaces, user data, the serial console
	Network        Source = "network"                // who answers the machine's broadcasts
	Hypervisor     Source = "hypervisor"             // EC2 itself, which an instance has to trust
)

// Input is what a machine takes from outside and no bound PCR need record.
type Input struct {
	ID   string // lower case with hyphens; never changes
	Name string // for people
	From Source
	// Early inputs steer the firmware or the boot loader, and some PCR should show it:
	// they are tried one by one, as far as the hand-over.
	Early bool
	// Alone inputs share a boot with no other; those with the same Excludes not with
	// each other.
	Alone    bool
	Excludes string
	// Inherent inputs are part of what a virtual machine is: no image can be without
	// them, and an instance has to trust who gives them.
	Inherent bool

	put func(*setup) error
}

// All are the inputs that the battery knows, those that matter most first.
func All() []Input {
	return slices.Concat(byVariables(), byCredentials(), byPartitions(), byDisks(), byESP(), byConsoles(), byNetwork(), byMachine(), untried())
}

// untried are inputs that the battery cannot give yet: a report names them, so that
// nobody takes its list for all that there is.
func untried() []Input {
	list := []struct {
		id, name string
		from     Source
		why      string
	}{
		{"efi-key-option", "EFI variable Key0000: a key that starts another boot option", Registrar, "nobody presses the key before the firmware looks; serial-firmware-keys presses others"},
		{"attached-lvm", "an attached disk: an LVM volume group", Owner, "without device mapper no program makes one in a file"},
		{"attached-multipath", "attached disks: two paths to one disk", Owner, "QEMU's devices here are single paths"},
		{"attached-bcache", "an attached disk: a cache of bcache", Owner, "no program makes one here"},
		{"iscsi-firmware", "ACPI table iBFT: an iSCSI disk", Hypervisor, "it needs an iSCSI target"},
		{"network-neighbours", "network: router advertisements and DHCPv6 of a stranger", Network, "QEMU's network has one router, which says no more than addresses"},
		{"device-tree", "device tree", Hypervisor, "the firmware gives the operating system ACPI"},
		{"memory-size", "another size of memory", Hypervisor, "--memory chooses it"},
		{"tpm-state", "what the TPM kept from earlier boots", Owner, "each boot has a new TPM"},
	}
	inputs := make([]Input, 0, len(list))
	for _, u := range list {
		inputs = append(inputs, Input{ID: u.id, Name: u.name, From: u.from, put: func(*setup) error { return notTried(u.why) }})
	}
	return inputs
}

func encoded(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
