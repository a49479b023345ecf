package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/org/attestable-image-action/internal/ami"
)

func newDeregisterAMICommand(a *app) *cobra.Command {
	var region, family, format string
	var keep int
	cmd := &cobra.Command{
		Use:   "deregister-ami AMI... | --family NAME --keep N",
		Short: "Deregister AMIs of register-ami, with their snapshots",
		Long: `Deregister AMIs that register-ami made, and delete their snapshots: those that
are named, or the older ones of a family (the tag attestable-image:family), so
that the N newest remain. AMIs without the tags of register-ami are refused.`,
		Example: `  attestable-image deregister-ami ami-0123456789abcdef0
  attestable-image deregister-ami --region eu-west-1 --family ghcr.io/owner/image:image:x86_64 --keep 3`,
		RunE: func(cmd *cobra.Command, args []string) error {
			keepGiven := cmd.Flags().Changed("keep")
			switch {
			case format != "table" && format != "json":
				return usagef("--format: there is no format %q: give table or json", format)
			case (len(args) > 0) == (family != ""):
				return usagef("give either AMIs, or --family NAME with --keep N")
			case family != "" && !keepGiven, family == "" && keepGiven:
				return usagef("--family and --keep belong together: say how many AMIs of the family remain")
			case keep < 0:
				return usagef("--keep: %d AMIs cannot be kept", keep)
			}
			for _, id := range args {
				if err := ami.CheckImageID(id); err != nil {
					return usageError{err}
				}
			}
			return a.deregisterAMI(cmd.Context(), region, format, args, family, keep)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&region, "region", "", "`REGION` of the AMIs (default: the configured one)")
	flags.StringVar(&family, "family", "", "`NAME` of the family whose older AMIs go")
	flags.IntVar(&keep, "keep", 0, "with --family: how many remain, the newest ones")
	flags.StringVar(&format, "format", "table", "table for people, or json for programs")
	return cmd
}

func (a *app) deregisterAMI(ctx context.Context, region, format string, ids []string, family string, keep int) error {
	if region != "" {
		if err := ami.CheckRegion(region); err != nil {
			return usageError{err}
		}
	}
	cloud, err := a.openCloud(ctx, region)
	if err != nil {
		return err
	}
	var removed []ami.Removed
	if family != "" {
		removed, err = cloud.DeregisterFamily(ctx, family, keep)
	} else {
		removed, err = cloud.Deregister(ctx, ids)
	}
	if format == "json" {
		encoder := json.NewEncoder(a.stdout)
		encoder.SetIndent("", "  ")
		_ = encoder.Encode(append([]ami.Removed{}, removed...)) // who reads it is gone otherwise
		return err
	}
	for _, r := range removed {
		fmt.Fprintf(a.stdout, "%s %s %s %s\n", r.Region, r.ImageID, strings.Join(r.Snapshots, ","), printable(r.Name))
	}
	return err
}
