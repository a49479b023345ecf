package audit

// HostileBoot is what boot --hostile found: a member of the audit report, and of a
// form of its own.
type HostileBoot struct {
	SchemaVersion int   `json:"schemaVersion"` // HostileBootVersion
	SecureBoot    bool  `json:"secureBoot"`
	BoundPCRs     []int `json:"boundPCRs"` // those that identify the image
	Boots         int   `json:"boots"`     // that were needed
	// Inputs are all that were to be tried, in the order of the battery.
	Inputs []HostileInput `json:"inputs"`
}

// HostileBootVersion is the version of HostileBoot's form.
const HostileBootVersion = 1

// HostileInput is an input from outside, and what became of it.
type HostileInput struct {
	ID   string `json:"id"`   // in lower case with hyphens; it does not change from version to version
	Name string `json:"name"` // for people
	// ControlledBy is who chooses the input on EC2: "registrar of the AMI", "writer of
	// the snapshot", "owner of the instance", "network" or "hypervisor".
	ControlledBy string        `json:"controlledBy"`
	Result       HostileResult `json:"result"`
	// PCRs are those bound ones that changed.
	PCRs []int `json:"pcrs,omitempty"`
	// Seen is what the effect was, or why the input was not tried.
	Seen string `json:"seen,omitempty"`
}

// HostileResult is what became of an input.
type HostileResult string

const (
	// NoEffect means that the image behaved as without the input.
	NoEffect HostileResult = "no effect"
	// Measured means that a bound PCR changed, so that nobody trusts the machine.
	Measured HostileResult = "measured"
	// Stopped means that the image did not come up, with bound PCRs as they were, and
	// nothing else was seen. Who can do that can switch the machine off, too.
	Stopped HostileResult = "stopped"
	// Open means that the input had an effect which no bound PCR shows.
	Open HostileResult = "open"
	// Inherent means that there was an effect, as in every virtual machine: who gives
	// the input has to be trusted anyway.
	Inherent HostileResult = "inherent"
	// NotTried means that nothing is known.
	NotTried HostileResult = "not tried"
)

// Open returns the inputs with an effect that no bound PCR shows.
func (h *HostileBoot) Open() []HostileInput {
	var open []HostileInput
	for _, i := range h.Inputs {
		if i.Result == Open {
			open = append(open, i)
		}
	}
	return open
}
