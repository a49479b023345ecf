package cli

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"
)

// commands lists every command in the order of the chain of evidence.
func commands(a *app) []*cobra.Command {
	return []*cobra.Command{
		newBuildCommand(a),
		newMeasureCommand(a),
		newInspectCommand(a),
		newSBOMCommand(a),
		newDiffCommand(a),
		newSignCommand(a),
		newBootCommand(a),
		newPushCommand(a),
		newPullCommand(a),
		newAttestCommand(a),
		newVerifyCommand(a),
		newRebuildCommand(a),
		newKMSPolicyCommand(a),
		newRegisterAMICommand(a),
		newDeregisterAMICommand(a),
		newAttestationDocumentCommand(a),
		newKMSDecryptCommand(a),
		newServeCommand(a),
		newStepSummaryCommand(a),
		newPreviousMeasurementsCommand(a),
		newVersionCommand(a),
	}
}

// linuxOnly are the commands that work with what only Linux has: loop devices and
// containers, QEMU's and the kernel's interfaces, a NitroTPM. The others are the
// client, which runs on every system.
var linuxOnly = []string{"build", "boot", "rebuild", "attestation-document", "kms-decrypt", "serve"}

// refuseOutsideLinux lets the commands of linuxOnly say so on another system, before
// they do anything.
func refuseOutsideLinux(root *cobra.Command, system string) {
	for _, cmd := range root.Commands() {
		if system != "linux" && slices.Contains(linuxOnly, cmd.Name()) {
			cmd.RunE = func(cmd *cobra.Command, _ []string) error {
				return fmt.Errorf("run %s on %s: it needs Linux; run it on a Linux machine", cmd.CommandPath(), system)
			}
		}
	}
}
