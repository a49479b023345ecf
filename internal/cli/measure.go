package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/gha"
	"github.com/org/attestable-image-action/internal/measure"
)

// maxVariable bounds the file of a Secure Boot variable, in bytes. The largest
// dbx in the field has some 25 KiB.
const maxVariable = 1 << 20

// predictFlags are the flags of every command that predicts PCRs.
type predictFlags struct {
	pk, kek, db, dbx string
	bank             string
	pcrs             string
	arch             string
}

func (f *predictFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.pk, "PK", "", "Secure Boot platform key: `FILE` of EFI signature lists; turns Secure Boot on")
	flags.StringVar(&f.kek, "KEK", "", "Secure Boot key exchange keys: `FILE` of EFI signature lists")
	flags.StringVar(&f.db, "db", "", "allowed signers and digests: `FILE` of EFI signature lists")
	flags.StringVar(&f.dbx, "dbx", "", "forbidden signers and digests: `FILE` of EFI signature lists")
	flags.StringVar(&f.bank, "bank", "sha384", "bank of PCRs: sha384 or sha256")
	flags.StringVar(&f.pcrs, "pcr", listOf(measure.DefaultPCRs), "PCRs to predict, a `LIST` separated by commas; also 5 and 9")
	flags.StringVar(&f.arch, "arch", "", "architecture to boot, x86_64 or aarch64, when the disk has a boot path for both")
}

// addPCRs has these PCRs predicted, too.
func (f *predictFlags) addPCRs(pcrs []int) {
	for _, n := range pcrs {
		f.pcrs += "," + strconv.Itoa(n)
	}
}

func (f *predictFlags) options() (measure.Options, error) {
	o, err := f.optionsWithoutVariables()
	if err == nil {
		o.SecureBoot, err = f.secureBoot()
	}
	return o, err
}

func (f *predictFlags) optionsWithoutVariables() (measure.Options, error) {
	var o measure.Options
	var err error
	if o.Bank, err = measure.ParseBank(f.bank); err != nil {
		return o, usagef("--bank: %w", err)
	}
	if o.PCRs, err = parsePCRs("--pcr", f.pcrs); err != nil {
		return o, usageError{err}
	}
	switch f.arch {
	case "", "x86_64", "aarch64":
		o.Arch = f.arch
	default:
		return o, usagef("--arch: there is no architecture %q: give x86_64 or aarch64", f.arch)
	}
	return o, nil
}

func (f *predictFlags) secureBoot() (measure.SecureBoot, error) {
	s, err := f.readVariables()
	if err != nil {
		return s, err
	}
	return s, checkVariables(s)
}

// readVariables reads the files that were given.
func (f *predictFlags) readVariables() (measure.SecureBoot, error) {
	var s measure.SecureBoot
	for _, v := range []struct {
		flag, path string
		into       *[]byte
	}{{"PK", f.pk, &s.PK}, {"KEK", f.kek, &s.KEK}, {"db", f.db, &s.DB}, {"dbx", f.dbx, &s.DBX}} {
		if v.path == "" {
			continue
		}
		content, err := readBounded(v.path, maxVariable)
		if err != nil {
			return s, fmt.Errorf("read Secure Boot variable %s: %w", v.flag, err)
		}
		if len(content) == 0 {
			return s, fmt.Errorf("read Secure Boot variable %s: %s is empty; leave --%s out when the variable does not exist", v.flag, v.path, v.flag)
		}
		*v.into = content
	}
	return s, nil
}

// checkVariables refuses variables that would do nothing.
func checkVariables(s measure.SecureBoot) error {
	if s.PK == nil && (s.DB != nil || s.DBX != nil || s.KEK != nil) {
		return usagef("Secure Boot variables were given without --PK, and without a platform key Secure Boot is off: give --PK too, or none")
	}
	return nil
}

// readBounded reads a file that must not be longer than limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(content)) > limit {
		err = fmt.Errorf("%s is longer than the %d bytes that are read", path, limit)
	}
	return content, err
}

func newMeasureCommand(a *app) *cobra.Command {
	var predict predictFlags
	var format, builder string
	var diskDigest bool
	cmd := &cobra.Command{
		Use:   "measure DISK | EFI...",
		Short: "Predict the PCRs that a boot of a disk will record",
		Long: `Predict from a raw disk, without mounting or booting it, the PCRs that a boot
will record: 2 (drivers that firmware loads, of which a disk alone has it load
none), 4 (the images that it starts), 7 (Secure Boot), 11 (the sections of the
unified kernel image), 12 and 13 (what came from outside it: command lines and
credentials, and system extensions).

Only the partition table and the EFI system partition are read; the number of
bytes read is printed to standard error. --format json also takes the SHA-256
of the whole disk. Instead of a disk, PE files can be given in the order in
which they are loaded; the last is the unified kernel image.

A PCR that cannot be predicted is never guessed: the command fails and names
the reason.`,
		Example: `  attestable-image measure image.raw
  attestable-image measure --format json image.raw > measurements.json
  attestable-image measure --PK PK.esl --KEK KEK.esl --db db.esl image.raw
  attestable-image measure --pcr 4,11 uki.efi`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("give the raw disk to measure, or EFI files in the order in which they are loaded")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if format != "table" && format != "json" {
				return usagef("--format: there is no format %q: give table or json", format)
			}
			o, err := predict.options()
			if err != nil {
				return err
			}
			// The table shows no digest of an image; the runner's outputs do.
			o.NeededDigests = format == "table" && !gha.Enabled()
			digest := format == "json"
			if cmd.Flags().Changed("disk-digest") {
				digest = diskDigest
			}
			tools, err := readBuilder(builder)
			if err != nil {
				return err
			}
			doc, err := a.measure(cmd.Context(), args, o, digest)
			if err != nil {
				return err
			}
			doc.Builder = tools
			if err := setMeasurementOutputs(doc); err != nil {
				return err
			}
			if format == "json" {
				out, err := doc.Marshal()
				if err != nil {
					return err
				}
				_, err = a.stdout.Write(out)
				return err
			}
			printMeasurements(a.stdout, doc)
			return nil
		},
	}
	predict.add(cmd)
	cmd.Flags().StringVar(&format, "format", "table", "table for people, or json for programs")
	cmd.Flags().StringVar(&builder, "builder", "", "builder.json `FILE` of the build, for the document: the tools, and what they built from")
	cmd.Flags().BoolVar(&diskDigest, "disk-digest", false, "take the SHA-256 of the whole disk, too (default with --format json)")
	return cmd
}

// readBuilder reads builder.json, nil when there is none to read.
func readBuilder(path string) (*measure.BuilderInfo, error) {
	if path == "" {
		return nil, nil //nolint:nilnil // documented
	}
	content, err := readBounded(path, maxMeasurements)
	if err != nil {
		return nil, usagef("read what built the disk: %w", err)
	}
	info, err := measure.ParseBuilder(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return info, nil
}

// measure makes the measurements document of a disk or of PE files.
func (a *app) measure(ctx context.Context, paths []string, o measure.Options, digest bool) (*measure.Document, error) {
	efi, err := isPE(paths[0])
	if err != nil {
		return nil, err
	}
	if efi {
		return a.measureFiles(ctx, paths, o)
	}
	if len(paths) > 1 {
		return nil, usagef("%s is no PE file, and only one disk can be measured at a time", paths[0])
	}
	d, err := disk.Open(paths[0])
	if err != nil {
		return nil, err
	}
	defer d.Close()
	p, err := measure.Disk(ctx, d, o)
	if err != nil {
		return nil, err
	}
	doc := p.Document()
	if !a.quiet {
		fmt.Fprintf(a.stderr, "read %s of %s to predict the PCRs\n", formatBytes(d.BytesRead()), formatBytes(d.Size()))
	}
	if digest {
		doc.Disk, err = a.diskInfo(ctx, d)
	}
	return doc, err
}

// isPE reports whether a file begins like a DOS or PE executable. So may a
// disk's boot sector, which then has its own signature at byte 510.
func isPE(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, fmt.Errorf("open what is to be measured: %w", err)
	}
	defer f.Close()
	head := make([]byte, 520)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("read %s: %w", path, err)
	}
	head = head[:n]
	isDisk := n == 520 && string(head[512:520]) == "EFI PART"
	return n >= 2 && string(head[:2]) == "MZ" && !isDisk, nil
}

func (a *app) measureFiles(ctx context.Context, paths []string, o measure.Options) (*measure.Document, error) {
	var files []measure.EFIFile
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("open PE file: %w", err)
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return nil, fmt.Errorf("open PE file: %w", err)
		}
		files = append(files, measure.EFIFile{Path: filepath.Base(path), R: f, Size: info.Size()})
	}
	p, err := measure.Files(ctx, files, o)
	if err != nil {
		return nil, err
	}
	return p.Document(), nil
}

// diskInfo takes the digest of the whole disk.
func (a *app) diskInfo(ctx context.Context, d *disk.Disk) (*measure.DiskInfo, error) {
	progress := a.newProgress("SHA-256 of "+filepath.Base(d.Name()), d.Size())
	defer progress.finish()
	h := sha256.New()
	r := d.Stream()
	buf := make([]byte, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := r.Read(buf)
		h.Write(buf[:n])
		progress.add(int64(n))
		if err == io.EOF {
			return &measure.DiskInfo{SHA256: hex.EncodeToString(h.Sum(nil)), Size: d.Size()}, nil
		}
		if err != nil {
			return nil, fmt.Errorf("take the SHA-256 of disk %s: %w", d.Name(), err)
		}
	}
}

// setMeasurementOutputs sets the action's outputs, on a runner.
func setMeasurementOutputs(doc *measure.Document) error {
	if !gha.Enabled() {
		return nil
	}
	out, err := doc.Marshal()
	if err != nil {
		return err
	}
	outputs := map[string]string{"measurements": strings.TrimSpace(string(out))}
	for n, value := range doc.Measurements.PCRs {
		outputs["pcr"+strconv.Itoa(n)] = value
	}
	if conditions, err := kmsConditions(doc); err == nil {
		outputs["kms-conditions"] = conditions
	}
	for name, value := range outputs {
		if err := gha.SetOutput(name, value); err != nil {
			return err
		}
	}
	return nil
}

// printMeasurements prints the PCRs, and below them what they come from.
func printMeasurements(w io.Writer, doc *measure.Document) {
	fmt.Fprintf(w, "%s, %s, Secure Boot %s\n\n", doc.Architecture, doc.Measurements.HashAlgorithm, onOff(doc.SecureBoot.Enabled))
	numbers := make([]int, 0, len(doc.Measurements.PCRs))
	for n := range doc.Measurements.PCRs {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	for _, n := range numbers {
		fmt.Fprintf(w, "PCR%-3d %s\n", n, doc.PCR(n))
	}
	fmt.Fprintln(w, "\nBoot chain")
	for _, image := range doc.BootChain {
		stub := ""
		if image.StubVersion > 0 {
			stub = fmt.Sprintf(", systemd-stub %d", image.StubVersion)
		}
		fmt.Fprintf(w, "  %s (%s%s)\n", printable(image.Path), formatBytes(image.Size), stub)
	}
	for _, authority := range doc.SecureBoot.Authorities {
		fmt.Fprintf(w, "  allowed by db: %s %s\n", authority.Type, printable(authority.Subject))
	}
	if doc.Disk != nil {
		fmt.Fprintf(w, "\nDisk   %d bytes\nSHA256 %s\n", doc.Disk.Size, doc.Disk.SHA256)
	}
}

// parsePCRs reads a list of PCRs, which a flag has, each of them once.
func parsePCRs(flag, list string) ([]int, error) {
	var pcrs []int
	for field := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(field))
		if err != nil || n < 0 || n > 23 {
			return nil, fmt.Errorf("%s: %q is not the number of a PCR (0 to 23)", flag, field)
		}
		if !slices.Contains(pcrs, n) {
			pcrs = append(pcrs, n)
		}
	}
	return pcrs, nil
}

// listOf writes PCRs as --pcr takes them.
func listOf(pcrs []int) string {
	fields := make([]string, len(pcrs))
	for i, n := range pcrs {
		fields[i] = strconv.Itoa(n)
	}
	return strings.Join(fields, ",")
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}
