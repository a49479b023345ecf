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
	return slices.Concat(byVariables(), byCredentials(), byPartitions(), byDisks(), byESP(), byConsoles(), byNetwork(), byMachine())
}

func encoded(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
