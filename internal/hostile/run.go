package hostile

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/org/attestable-image-action/internal/audit"
	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/vm"
	"github.com/org/attestable-image-action/nitrotpm"
)

// Options say what to try, and on what.
type Options struct {
	// Boot are the options of every boot: disk, architecture, machine, firmware, Secure
	// Boot and, where there is one, the text that says that the image has come up.
	Boot vm.Options
	// Inputs are tried; nil means All.
	Inputs []Input
	// Progress is told before each boot what is in it.
	Progress func(text string)
}

// Run boots a disk under each input and reports what had an effect. The prediction is
// of the same disk under the same Secure Boot variables.
func Run(ctx context.Context, p *measure.Prediction, o Options) (*audit.HostileBoot, error) {
	inputs := o.Inputs
	if inputs == nil {
		inputs = All()
	}
	d, err := disk.Open(o.Boot.Disk)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	table, err := d.GPT()
	if err != nil {
		return nil, err
	}
	secureBoot := o.Boot.SecureBoot.Enabled()
	bound := nitrotpm.IdentityPCRs(secureBoot)
	predicted := map[int]string{}
	for _, pcr := range bound {
		if slices.Contains(p.PCRs, pcr) {
			predicted[pcr] = hex.EncodeToString(p.Value(pcr))
		}
	}
	b := &battery{
		booter:   &machine{image: &image{o.Boot.Disk, secureBoot, p, table, bound}, options: o.Boot},
		progress: o.Progress,
	}
	if err := b.run(ctx, inputs, predicted); err != nil {
		return nil, fmt.Errorf("try hostile inputs on %s: %w", o.Boot.Disk, err)
	}
	list, err := b.report(inputs)
	if err != nil {
		return nil, err
	}
	return &audit.HostileBoot{SchemaVersion: audit.HostileBootVersion, SecureBoot: secureBoot, BoundPCRs: bound, Boots: b.boots, Inputs: list}, nil
}
