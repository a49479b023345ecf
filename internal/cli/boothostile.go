package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/audit"
	"github.com/org/attestable-image-action/internal/gha"
	"github.com/org/attestable-image-action/internal/hostile"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/vm"
)

// hostileFlags are the flags of boot --hostile.
type hostileFlags struct {
	on     bool
	audit  string
	inputs []string
	failOn string
}

func (f *hostileFlags) add(flags *pflag.FlagSet) {
	flags.BoolVar(&f.on, "hostile", false, "boot the disk under inputs from outside that no PCR records, and report which had an effect")
	flags.StringArrayVar(&f.inputs, "hostile-input", nil, "try only the input with this `ID`; may be repeated; needs --hostile")
	flags.StringVar(&f.audit, "audit-output", "", "add the report to `FILE`, which inspect --audit-output wrote, for attest --audit; needs --hostile")
	flags.StringVar(&f.failOn, "fail-on", hostileSeverity.String(), "fail when an open input, which has the severity high, has this `SEVERITY` or a higher one: critical, high, medium, low or info; empty only reports; needs --hostile")
}

// hostileSeverity is what an open input weighs.
const hostileSeverity = audit.High

// validate refuses flags that would do nothing together.
func (f *hostileFlags) validate(flags *pflag.FlagSet) error {
	if !f.on {
		for _, name := range []string{"hostile-input", "audit-output", "fail-on"} {
			if flags.Changed(name) {
				return usagef("--%s is for --hostile: give both, or neither", name)
			}
		}
		return nil
	}
	for _, name := range []string{"forward", "outbound", "nitrotpm", "serial-log", "console"} {
		if flags.Changed(name) {
			return usagef("--hostile boots many times, each time with its own devices: leave out --%s", name)
		}
	}
	if _, err := failOnSeverity(f.failOn); err != nil {
		return err
	}
	_, err := f.selected()
	return err
}

// selected are the inputs to try; nil means all.
func (f *hostileFlags) selected() ([]hostile.Input, error) {
	var selected []hostile.Input
	all := hostile.All()
	for _, id := range f.inputs {
		i := slices.IndexFunc(all, func(input hostile.Input) bool { return input.ID == id })
		if i < 0 {
			return nil, usagef("--hostile-input: there is no input %q: docs/reference/hostile-inputs.md lists them", id)
		}
		selected = append(selected, all[i])
	}
	return selected, nil
}

// bootHostile boots the disk under each input and reports.
func (a *app) bootHostile(ctx context.Context, p *measure.Prediction, boot vm.Options, f hostileFlags, format string) error {
	inputs, err := f.selected()
	if err != nil {
		return err
	}
	limit, err := failOnSeverity(f.failOn)
	if err != nil {
		return err
	}
	var report *audit.Report
	if f.audit != "" {
		content, err := readBounded(f.audit, maxMeasurements)
		if err == nil {
			report, err = audit.ParseReport(content)
		}
		if err != nil {
			return fmt.Errorf("add the report of hostile boots to %s: %w", f.audit, err)
		}
	}
	result, err := hostile.Run(ctx, p, hostile.Options{Boot: boot, Inputs: inputs, Progress: func(text string) {
		if !a.quiet {
			fmt.Fprintln(a.stderr, text)
		}
	}})
	if err != nil {
		return err
	}
	if report != nil {
		report.HostileBoot = result
		content, err := report.Marshal()
		if err == nil {
			err = artifact.WriteFile(f.audit, content)
		}
		if err != nil {
			return fmt.Errorf("add the report of hostile boots to %s: %w", f.audit, err)
		}
	}
	if format == "json" {
		out, err := json.MarshalIndent(result, "", "  ")
		if err != nil {
			return fmt.Errorf("write the report of hostile boots: %w", err)
		}
		fmt.Fprintf(a.stdout, "%s\n", out)
	} else {
		printHostile(a.stdout, result)
	}
	open := result.Open()
	if gha.Enabled() && len(open) > 0 {
		for _, input := range open {
			gha.Warning(a.stderr, "hostile input", fmt.Sprintf("%s has an effect that no PCR shows: %s", input.Name, input.Seen))
		}
	}
	if limit != nil && hostileSeverity >= *limit && len(open) > 0 {
		return errDoesNotVerify
	}
	return nil
}

// printHostile shows the inputs that had an effect first.
func printHostile(w io.Writer, r *audit.HostileBoot) {
	counts := map[audit.HostileResult]int{}
	for _, result := range []audit.HostileResult{audit.Open, audit.NotTried, audit.Stopped, audit.Inherent, audit.Measured, audit.NoEffect} {
		for _, input := range r.Inputs {
			if input.Result != result {
				continue
			}
			counts[result]++
			name := string(result)
			if result == audit.Open {
				name = "OPEN"
			}
			if len(input.PCRs) > 0 {
				name += " (PCR " + numbers(input.PCRs) + ")"
			}
			fmt.Fprintf(w, "%-20s %s\n", name, input.Name)
			fmt.Fprintf(w, "%20s %s, %s\n", "", input.ID, input.ControlledBy)
			if input.Seen != "" {
				for line := range strings.Lines(wrap(printable(input.Seen), 58)) {
					fmt.Fprintf(w, "%20s %s\n", "", strings.TrimSpace(line))
				}
			}
		}
	}
	fmt.Fprintf(w, "\n%d inputs in %d boots; the PCRs that identify the image: %s\n", len(r.Inputs), r.Boots, numbers(r.BoundPCRs))
	fmt.Fprintf(w, "%d open, %d not tried, %d stopped the boot, %d measured, %d without effect\n",
		counts[audit.Open], counts[audit.NotTried], counts[audit.Stopped], counts[audit.Measured], counts[audit.NoEffect])
}

func numbers(list []int) string {
	text := make([]string, len(list))
	for i, n := range list {
		text[i] = strconv.Itoa(n)
	}
	return strings.Join(text, ", ")
}
