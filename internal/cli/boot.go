package cli

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/vm"
	"github.com/org/attestable-image-action/nitrotpm"
)

func newBootCommand(a *app) *cobra.Command {
	var predict predictFlags
	var until, serialLog, format, accel string
	var limit time.Duration
	var memory int
	var console, nitroTPM, outbound bool
	var firmware vm.Firmware
	var rootFile string
	var forwards []string
	var hostile hostileFlags
	cmd := &cobra.Command{
		Use:   "boot DISK",
		Short: "Boot a disk under QEMU and compare every event and PCR with the prediction",
		Long: `Boot a raw disk under QEMU with UEFI firmware (OVMF or AAVMF) and a software TPM,
and set what was recorded beside what is predicted, event by event. The disk is
never written to, and nothing inside it has to help: the TPM itself is read.

The PCRs are compared at the hand-over from firmware to kernel. Without --until
the boot ends there; with it, when that text has appeared on the serial line.

With --forward the guest has a network, on which it is reached at these ports and
reaches nobody, and runs until the command is interrupted (Ctrl-C). With --outbound
it may open connections, too: to this machine's 127.0.0.1 as 10.0.2.2, and to
whatever this machine reaches. With --nitrotpm its TPM answers for attestation
documents as a NitroTPM does. Whatever is signed then says that it is emulated, and
chains to a root that is made for this boot and written to --nitrotpm-root, for
verify instance --root.

With --hostile the disk is booted again and again, under the inputs that a machine
takes from outside: EFI variables, SMBIOS strings, attached disks, keys on the serial
line and many more. An input that has an effect, while every PCR that identifies the
image stays as it is, is OPEN, and the exit status 1. Which inputs there are, and who
controls them, is in the table. It takes some minutes.`,
		Example: `  attestable-image boot image.raw
  attestable-image boot image.raw --nitrotpm --nitrotpm-root root.pem --forward 8443
  attestable-image boot image.raw --until "ready" --serial-log serial.log
  attestable-image boot image.raw --hostile --until "ready"
  attestable-image boot --PK PK.esl --KEK KEK.esl --db db.esl image.raw`,
		Args: oneArg("the raw disk to boot"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if format != "table" && format != "json" {
				return usagef("--format: there is no format %q: give table or json", format)
			}
			if accel != vm.TCG && accel != vm.KVM {
				return usagef("--accel: there is no accelerator %q: give %s or %s", accel, vm.TCG, vm.KVM)
			}
			if nitroTPM != (rootFile != "") {
				return usagef("--nitrotpm and --nitrotpm-root belong together: without its root nobody believes an emulated NitroTPM")
			}
			if err := hostile.validate(cmd.Flags()); err != nil {
				return err
			}
			if (firmware.Code == "") != (firmware.Vars == "") {
				return usagef("--firmware-code and --firmware-vars belong together: give both files of the firmware")
			}
			forwarded, err := parseForwards(forwards)
			if err != nil {
				return err
			}
			if hostile.on {
				predict.addPCRs(nitrotpm.IdentityPCRs(predict.pk != ""))
			}
			o, err := predict.options()
			if err != nil {
				return err
			}
			d, err := disk.Open(args[0])
			if err != nil {
				return err
			}
			defer d.Close()
			p, err := measure.Disk(cmd.Context(), d, o)
			if err != nil {
				return err
			}
			boot := vm.Options{
				Disk: args[0], Arch: p.Architecture, Accel: accel, Memory: memory,
				Firmware: firmware, SecureBoot: o.SecureBoot, TimeLimit: limit, SerialLog: serialLog,
				Forwards: forwarded, Outbound: outbound, UntilDone: len(forwarded) > 0 && until == "",
			}
			if nitroTPM {
				emulated, err := vm.EmulateNitroTPM()
				if err != nil {
					return err
				}
				if err := os.WriteFile(rootFile, emulated.RootPEM(), 0o644); err != nil { //nolint:gosec // a certificate is no secret
					return fmt.Errorf("write the root of the emulated NitroTPM: %w", err)
				}
				boot.Layers = append(boot.Layers, emulated.Layer)
			}
			if until != "" {
				boot.Until = func(line string) bool { return strings.Contains(line, until) }
			}
			if console {
				boot.Console = a.stderr
			}
			if hostile.on {
				return a.bootHostile(cmd.Context(), p, boot, hostile, format)
			}
			if !a.quiet {
				fmt.Fprintf(a.stderr, "booting %s under QEMU (%s, at most %s)\n", args[0], accel, limit)
				for _, f := range forwarded {
					fmt.Fprintf(a.stderr, "127.0.0.1:%d leads to port %d of the guest\n", f.Host, f.Guest)
				}
				if boot.UntilDone {
					fmt.Fprintln(a.stderr, "the guest runs until it powers off or this command is interrupted")
				}
			}
			result, err := vm.Boot(cmd.Context(), boot)
			if err != nil {
				if result != nil {
					err = fmt.Errorf("%w; the serial line is in %s", err, result.SerialLog)
				}
				return err
			}
			return a.reportBoot(p, result, format)
		},
	}
	predict.add(cmd)
	flags := cmd.Flags()
	flags.StringVar(&until, "until", "", "end the boot when the serial line shows a line with this `TEXT`")
	flags.StringVar(&serialLog, "serial-log", "", "`FILE` for what the serial line shows (default a temporary one)")
	flags.DurationVar(&limit, "time-limit", 5*time.Minute, "longest time that the boot may take")
	flags.StringVar(&accel, "accel", vm.TCG, "QEMU's accelerator: tcg or kvm")
	flags.IntVar(&memory, "memory", 1024, "the machine's memory in `MIB`")
	flags.BoolVar(&console, "console", false, "show the serial line on standard error")
	flags.StringVar(&firmware.Code, "firmware-code", "", "UEFI firmware in `FILE` (default the distribution's OVMF or AAVMF); needs --firmware-vars")
	flags.StringVar(&firmware.Vars, "firmware-vars", "", "the firmware's variables to start with, in `FILE`, which is copied")
	flags.StringArrayVar(&forwards, "forward", nil, "lead `PORT` of 127.0.0.1 to the same port of the guest, HOST:GUEST to another")
	flags.BoolVar(&outbound, "outbound", false, "let the guest open connections, to this machine (10.0.2.2) and beyond")
	flags.BoolVar(&nitroTPM, "nitrotpm", false, "emulate a NitroTPM; needs --nitrotpm-root")
	flags.StringVar(&rootFile, "nitrotpm-root", "", "`FILE` for the root certificate of the emulated NitroTPM")
	hostile.add(flags)
	flags.StringVar(&format, "format", "table", "table for people, or json for programs")
	return cmd
}

// parseForwards reads PORT and HOST:GUEST.
func parseForwards(values []string) ([]vm.Forward, error) {
	var forwards []vm.Forward
	for _, value := range values {
		host, guest, two := strings.Cut(value, ":")
		if !two {
			guest = host
		}
		h, err := strconv.ParseUint(host, 10, 16)
		g, wrong := strconv.ParseUint(guest, 10, 16)
		if err != nil || wrong != nil || h == 0 || g == 0 {
			return nil, usagef("--forward: %q is neither a port nor two as 8443:443", value)
		}
		forwards = append(forwards, vm.Forward{Host: uint16(h), Guest: uint16(g)})
	}
	return forwards, nil
}

// oneArg demands exactly one argument, and says which.
func oneArg(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) == 0 || args[0] == "" {
			return usagef("give %s", what)
		}
		if len(args) > 1 {
			return usagef("%q is one argument too many: give only %s", args[1], what)
		}
		return nil
	}
}

// bootReport is the JSON form of a comparison.
type bootReport struct {
	Equal         bool
	HashAlgorithm measure.Bank
	Firmware      string // path of the firmware's code
	SerialLog     string
	PCRs          []bootPCR
}

type bootPCR struct {
	PCR                 int
	Equal               bool
	Predicted, Recorded string // hex
	Events              []bootEvent
}

type bootEvent struct {
	Equal               bool
	Type, Description   string `json:",omitempty"`
	Predicted, Recorded string // digests in hex, "" where there is no event
}

func newBootReport(p *measure.Prediction, result *vm.Result) *bootReport {
	report := &bootReport{Equal: true, HashAlgorithm: p.Bank, Firmware: result.Firmware.Code, SerialLog: result.SerialLog}
	for _, c := range result.Compare(p) {
		pcr := bootPCR{PCR: c.PCR, Equal: c.Equal(), Predicted: hex.EncodeToString(c.Predicted), Recorded: hex.EncodeToString(c.Recorded)}
		report.Equal = report.Equal && pcr.Equal
		for _, pair := range c.Events {
			e := bootEvent{Equal: pair.Equal()}
			if pair.Recorded != nil {
				e.Recorded = hex.EncodeToString(pair.Recorded.Digest)
				if pair.Recorded.Logged {
					e.Type = pair.Recorded.Type.String()
				}
			}
			if pair.Predicted != nil {
				e.Predicted, e.Type, e.Description = hex.EncodeToString(pair.Predicted.Digest), pair.Predicted.Type.String(), pair.Predicted.Description
			}
			pcr.Events = append(pcr.Events, e)
		}
		report.PCRs = append(report.PCRs, pcr)
	}
	return report
}

// reportBoot prints the comparison and turns a difference into exit status 1.
func (a *app) reportBoot(p *measure.Prediction, result *vm.Result, format string) error {
	report := newBootReport(p, result)
	if format == "json" {
		out, err := json.MarshalIndent(report, "", "  ")
		if err != nil {
			return fmt.Errorf("write the comparison: %w", err)
		}
		fmt.Fprintf(a.stdout, "%s\n", out)
	} else {
		report.print(a.stdout)
		fmt.Fprintf(a.stdout, "\nhanded over after %s under %s, %s\nserial line: %s\n",
			result.HandOverAfter.Round(100*time.Millisecond), result.Accel, result.Firmware.Code, result.SerialLog)
	}
	if !report.Equal {
		return errDoesNotVerify
	}
	return nil
}

// print shows each PCR with its events. A line has 78 characters at most but
// for the whole values, which are there to be copied.
func (r *bootReport) print(w io.Writer) {
	for _, pcr := range r.PCRs {
		verdict := "equal"
		if !pcr.Equal {
			verdict = "DIFFERENT"
		}
		fmt.Fprintf(w, "PCR%d  %s\n  predicted %s\n  recorded  %s\n", pcr.PCR, verdict, pcr.Predicted, pcr.Recorded)
		marked := false
		for _, e := range pcr.Events {
			mark := "="
			if !e.Equal {
				mark = "!"
				if !marked {
					mark, marked = "✗", true
				}
			}
			fmt.Fprintf(w, "    %s %-16s %-16s %s\n", mark, short(e.Predicted), short(e.Recorded), describeEvent(e))
		}
	}
	if r.Equal {
		fmt.Fprintln(w, "\nEvery PCR and every event is as predicted.")
	} else {
		fmt.Fprintln(w, "\nThe boot is NOT as predicted; ✗ marks the first event of a PCR that differs.")
	}
}

func describeEvent(e bootEvent) string {
	if e.Description == "" {
		return e.Type
	}
	return printable(e.Description)
}

// short is the beginning of a digest in hex, "-" for none.
func short(digest string) string {
	if digest == "" {
		return "-"
	}
	return digest[:min(16, len(digest))]
}
