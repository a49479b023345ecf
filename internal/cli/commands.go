package cli

import "github.com/spf13/cobra"

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
	}
}
