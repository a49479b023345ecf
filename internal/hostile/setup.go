package hostile

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/efi"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/vm"
)

// setup is one boot in the making: the inputs that were put into it so far.
type setup struct {
	image   *image
	dir     string // temporary, for this boot alone
	options vm.Options
	input   int // the place of the input that is being put in
	// signs tell by a text whose input it is, and what the text means.
	signs map[string]sign
	// attached are files that the guest may write to, and must not.
	attached []attachedFile
	operate  []func(ctx context.Context, o *vm.Operator) error
	devices  int

	// What finish makes, once every input is known.
	own   []partition // to be added to the disk that boots
	more  []partition // of a further disk
	esp   []espFile   // to be added to the EFI system partition of the disk that boots
	alter []func(path string) error
}

type sign struct {
	input   int
	meaning string
	serial  bool // only on the serial line: the guest's memory has the text anyway
}

type attachedFile struct {
	input  int
	what   string
	path   string
	offset int64 // of the part that is the input's
	length int64
	sum    [sha256.Size]byte
}

// notTried is why an input cannot be put into a boot.
type notTried string

func (n notTried) Error() string { return string(n) }

// mark is a text that stands in no input as it is: an input holds encoded or
// quoted, and it appears when something decodes or runs it.
func (s *setup) mark(verb string) string { return fmt.Sprintf("hostile-%d-%s", s.input, verb) }

// shows says that a text, when the guest has it, is an effect of the input.
func (s *setup) shows(text, meaning string) string {
	s.signs[text] = sign{s.input, meaning, false}
	return text
}

// showsOnSerial is shows for a text that the guest's memory holds in any case.
func (s *setup) showsOnSerial(text, meaning string) string {
	s.signs[text] = sign{s.input, meaning, true}
	return text
}

// quoted is a text with its last hyphen as a C escape, which systemd undoes in unit
// files, on command lines and in tmpfiles.d(5).
func quoted(text string) string {
	i := strings.LastIndexByte(text, '-')
	return text[:i] + `\x2d` + text[i+1:]
}

// variable sets an EFI variable with the attributes that the operating system sees.
func (s *setup) variable(vendor efi.GUID, name string, data []byte) {
	s.options.Variables = append(s.options.Variables, efi.Variable{
		Name: name, Vendor: vendor, Attributes: efi.NonVolatile | efi.BootServiceAccess | efi.RuntimeAccess, Data: data,
	})
}

func (s *setup) arguments(args ...string) { s.options.Arguments = append(s.options.Arguments, args...) }

// smbios gives a string of type 11 (DMTF DSP0134, OEM Strings).
func (s *setup) smbios(value string) {
	s.arguments("-smbios", "type=11,value="+strings.ReplaceAll(value, ",", ",,"))
}

// file makes a file for this boot.
func (s *setup) file(content []byte) (string, error) {
	f, err := os.CreateTemp(s.dir, "input-")
	if err != nil {
		return "", err
	}
	_, err = f.Write(content)
	return f.Name(), errors.Join(err, f.Close())
}

// drive makes QEMU know a raw disk, to be used by a device.
func (s *setup) drive(path string) (id string) {
	s.devices++
	id = fmt.Sprintf("hostile%d", s.devices)
	s.arguments("-drive", "if=none,id="+id+",format=raw,cache=unsafe,file="+strings.ReplaceAll(path, ",", ",,"))
	return id
}

// watch notices when the guest writes to a part of a file.
func (s *setup) watch(path, what string, offset, length int64) error {
	sum, err := sumOf(path, offset, length)
	s.attached = append(s.attached, attachedFile{s.input, what, path, offset, length, sum})
	return err
}

func sumOf(path string, offset, length int64) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path) //nolint:gosec // a file of this package's
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, io.NewSectionReader(f, offset, length))
	return [sha256.Size]byte(h.Sum(nil)), err
}

// image is what is booted, and what inputs need to know of it.
type image struct {
	path       string
	secureBoot bool
	prediction *measure.Prediction
	table      *disk.GPT
	bound      []int
}

// machine boots an image for the battery.
type machine struct {
	image   *image
	options vm.Options // of every boot
	// handOver is the time to the hand-over without any input, 0 until it is known.
	handOver time.Duration
}

// boot implements booter.
func (m *machine) boot(ctx context.Context, inputs []Input, toHandOver bool) (_ *Outcome, err error) {
	dir, err := os.MkdirTemp("", "attestable-image-hostile-")
	if err != nil {
		return nil, fmt.Errorf("make a temporary directory: %w", err)
	}
	defer os.RemoveAll(dir)
	s := &setup{image: m.image, dir: dir, options: m.options, signs: map[string]sign{}}
	outcome := &Outcome{Signs: map[int]string{}, NotTried: map[int]string{}}
	for i, input := range inputs {
		s.input = i
		var why notTried
		switch err := input.put(s); {
		case errors.As(err, &why):
			outcome.NotTried[i] = string(why)
		case err != nil:
			return nil, fmt.Errorf("prepare a boot with %s: %w", input.Name, err)
		}
	}
	if len(outcome.NotTried) == len(inputs) && len(inputs) > 0 {
		return outcome, nil
	}
	if err := s.finish(); err != nil {
		return nil, fmt.Errorf("prepare a boot: %w", err)
	}
	o := s.options
	o.UntilIdle = !toHandOver
	if toHandOver {
		o.Until = nil
		if m.handOver > 0 {
			// What keeps the firmware that long keeps it for ever.
			o.TimeLimit = min(o.TimeLimit, time.Minute+5*m.handOver)
		}
	}
	for text := range s.signs {
		o.Signs = append(o.Signs, text)
	}
	if len(s.operate) > 0 {
		o.Operate = s.operator()
	}
	o.SerialLog = filepath.Join(dir, "serial.log")
	result, err := vm.Boot(ctx, o)
	if result == nil || ctx.Err() != nil {
		return nil, errors.Join(err, ctx.Err())
	}
	if err != nil {
		if len(inputs) == 0 {
			return nil, err
		}
		outcome.Ended, outcome.Failed = err.Error(), true
	}
	switch {
	case result.Ended != "":
		outcome.Ended, outcome.Failed = result.Ended, result.Panicked
	case outcome.Ended != "":
	case o.UntilIdle && o.Until != nil && !result.Reached:
		outcome.Ended, outcome.Failed = "the awaited text did not appear on the serial line", true
	}
	if len(inputs) == 0 {
		m.handOver = result.HandOverAfter
	}
	if result.AtHandOver != nil {
		values := result.AtEnd
		if toHandOver {
			values = result.AtHandOver
		}
		outcome.Bound = map[int]string{}
		for _, pcr := range m.image.bound {
			outcome.Bound[pcr] = hex.EncodeToString(values[m.image.prediction.Bank][pcr])
		}
	}
	for text, where := range result.Signs {
		found := s.signs[text]
		if found.serial && where != vm.OnSerialLine {
			continue
		}
		outcome.Signs[found.input] = joined(outcome.Signs[found.input], found.meaning+" ("+where+")")
	}
	for _, a := range s.attached {
		sum, err := sumOf(a.path, a.offset, a.length)
		if err != nil {
			return nil, err
		}
		if sum != a.sum {
			outcome.Signs[a.input] = joined(outcome.Signs[a.input], "the guest wrote to "+a.what)
		}
	}
	return outcome, nil
}

func joined(a, b string) string {
	switch {
	case a == "" || a == b:
		return b
	case a > b:
		a, b = b, a
	}
	return a + "; " + b
}

// operator does what the inputs want done, all at once.
func (s *setup) operator() func(ctx context.Context, o *vm.Operator) error {
	acts := s.operate
	return func(ctx context.Context, o *vm.Operator) error {
		errs := make(chan error, len(acts))
		for _, act := range acts {
			go func() { errs <- act(ctx, o) }()
		}
		var all error
		for range acts {
			all = errors.Join(all, <-errs)
		}
		return all
	}
}
