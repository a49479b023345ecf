package vm

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/org/attestable-image-action/internal/efi"
	"github.com/org/attestable-image-action/internal/measure"
)

// Options say what to boot and when to end.
type Options struct {
	// Disk is the path of a raw disk image. It is opened for reading only, unless it
	// is Scratch: a copy that the guest may write to.
	Disk    string
	Scratch bool
	// Arch is the guest's architecture, "x86_64" or "aarch64"; empty means
	// x86_64.
	Arch string
	// Memory is the guest's memory in MiB; 0 means 1024.
	Memory int
	// CPUs is the number of the guest's processors; 0 means 2.
	CPUs int
	// Accel is TCG or KVM; empty means TCG. KVM is never chosen unasked: a
	// machine may have a /dev/kvm that makes its user hang, and the recorded
	// values do not depend on it.
	Accel string
	// CPU is QEMU's name of the guest's processor; empty means one that suits
	// QEMU's version.
	CPU string
	// Firmware is found by itself when its paths are empty.
	Firmware Firmware
	// SecureBoot are the variables to start with; the zero value means that no
	// key is enrolled, so that Secure Boot is off.
	SecureBoot measure.SecureBoot
	// Variables are more UEFI variables to start with, such as Driver0000 and
	// DriverOrder: what whoever registers an AMI can set in its UefiData.
	Variables []efi.Variable
	// Until ends the boot at the first line on the serial line, without its
	// line end, that it accepts; a line is offered again as it grows.
	Until func(line string) bool
	// UntilPowerOff ends the boot when the guest powers itself off. With
	// neither, it ends when the firmware has handed over.
	UntilPowerOff bool
	// TimeLimit bounds the boot; 0 means five minutes.
	TimeLimit time.Duration
	// SerialLog is where the serial line is written; empty means a new
	// temporary file, which is the caller's to remove.
	SerialLog string
	// Console also receives the serial line, when not nil.
	Console io.Writer
	// UntilDone lets the guest run until ctx is done, which then is no error. The
	// time limit is for the hand-over only.
	UntilDone bool
	// Forwards are ports of the loopback interface that lead to the guest. Without
	// any the guest has no network; with one it has an address and reaches nobody.
	Forwards []Forward
	// Outbound lets the guest open connections, too: to this machine's loopback
	// interface at 10.0.2.2, and to whatever this machine reaches.
	Outbound bool
	// Layers stand between the guest and its TPM; the first is next to the TPM.
	Layers []Layer
	// Arguments are given to QEMU behind this package's own.
	Arguments []string
	// UntilIdle lets the boot end when the guest has handed over and nothing happens
	// in it any more; Until then ends nothing, and Result.Reached says whether it
	// accepted a line. A kernel that panics or powers off is an end like any other.
	UntilIdle bool
	// Signs are looked for on the serial line and, at the end, in the guest's memory.
	Signs []string
	// Operate, when not nil, runs beside the guest and may do to it what its operator
	// can. Its context is done when the boot ends.
	Operate func(ctx context.Context, o *Operator) error
}

// Forward leads a TCP port of 127.0.0.1 to one of the guest.
type Forward struct{ Host, Guest uint16 }

// Result is what a boot recorded.
type Result struct {
	// Extends are all extensions of PCRs, in order; the first HandOver of them
	// are the firmware's and the boot loader's, those behind it the operating
	// system's. HandOver is 0 when the firmware never handed over.
	Extends  []Extend
	HandOver int
	// EventLog is the event log up to the hand-over as the firmware keeps it
	// (TCG crypto-agile format), and Events its entries. It explains the first
	// Explained of Extends.
	EventLog  []byte
	Events    []Event
	Explained int
	// AtHandOver and AtEnd are the PCRs, as read from the TPM. AtHandOver is nil
	// when the firmware never handed over.
	AtHandOver PCRs
	AtEnd      PCRs
	// SerialLog is the path of the log of the serial line.
	SerialLog string
	// Reached says that Options.Until accepted a line.
	Reached bool
	// Ended says why a boot with UntilIdle came to another end: the kernel's last
	// words when it Panicked, or that the guest powered itself off; empty when it was
	// idle.
	Ended    string
	Panicked bool
	// Signs are those of Options.Signs that were found, and where: OnSerialLine or
	// InMemory.
	Signs map[string]string
	// Firmware and Accel are what was used.
	Firmware Firmware
	Accel    string
	// HandOverAfter is the time from power-on to the hand-over, Duration that
	// to the end.
	HandOverAfter time.Duration
	Duration      time.Duration
}

// complete fills in what Options leave open.
func (o *Options) complete() error {
	if o.Arch == "" {
		o.Arch = "x86_64"
	}
	if o.Arch != "x86_64" && o.Arch != "aarch64" {
		return fmt.Errorf("boot for architecture %q: only x86_64 and aarch64 are supported", o.Arch)
	}
	if o.Memory == 0 {
		o.Memory = 1024
	}
	if o.Memory < 256 || o.Memory > 1<<20 {
		return fmt.Errorf("boot with %d MiB of memory: give between 256 and %d", o.Memory, 1<<20)
	}
	if o.CPUs == 0 {
		o.CPUs = 2
	}
	if o.CPUs < 1 || o.CPUs > 64 {
		return fmt.Errorf("boot with %d processors: give between 1 and 64", o.CPUs)
	}
	if o.Accel == "" {
		o.Accel = TCG
	}
	if o.Accel != TCG && o.Accel != KVM {
		return fmt.Errorf("boot with accelerator %q: only %s and %s are supported", o.Accel, TCG, KVM)
	}
	if o.TimeLimit == 0 {
		o.TimeLimit = 5 * time.Minute
	}
	var err error
	if o.Firmware.Code == "" && o.Firmware.Vars == "" {
		o.Firmware, err = findFirmware(o.Arch)
	} else {
		o.Firmware, err = o.Firmware.check()
	}
	return err
}

// Reasons to end a boot early, for callers that decide by them.
var (
	// ErrTimeLimit means that the boot took longer than it may.
	ErrTimeLimit = errors.New("the time limit was reached")
	// ErrNotBootable means that the firmware would not start the disk.
	ErrNotBootable = errors.New("the firmware started nothing from this disk")
)

// Grace periods of a boot's end.
const (
	// logWait bounds the wait for the last entry of the event log, which the
	// firmware writes after it has told the TPM.
	logWait = 2 * time.Second
	// panicWait lets a panicking kernel finish what it has to say.
	panicWait = 2 * time.Second
)

// Boot boots a disk and reports what was recorded. When the boot fails after it
// began, the result so far comes with the error, and its SerialLog remains.
func Boot(ctx context.Context, o Options) (*Result, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	m, err := newMachine(ctx, &o)
	if m != nil {
		defer m.close()
	}
	if err != nil {
		return nil, err
	}
	return m.run(ctx)
}

// machine is one virtual machine and its TPM.
type machine struct {
	o       *Options
	dir     string // temporary
	memory  *os.File
	log     *os.File
	serial  *serial
	swtpm   *process
	qemu    *process
	proxy   *proxy
	rec     *recorder
	proxied chan error
	began   time.Time
	reached bool
	ending  string // Result.Ended
	// panicked is Result.Panicked.
	panicked bool
	// operator is what Options.Operate is given, nil without it.
	operator *Operator

	// What the recorder found while the guest waited at the hand-over.
	handedOver chan struct{}
	atHandOver PCRs
	eventLog   *foundLog
	after      time.Duration
	errHanding error
}

// newMachine starts the TPM and the virtual machine. The caller closes the
// machine whenever one is returned.
func newMachine(ctx context.Context, o *Options) (_ *machine, err error) {
	qemu, err := exec.LookPath("qemu-system-" + o.Arch)
	if err != nil {
		return nil, fmt.Errorf("find QEMU: %w; install it (Debian and Ubuntu: %s; Fedora: qemu-kvm)", err,
			map[string]string{"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}[o.Arch])
	}
	swtpm, err := exec.LookPath("swtpm")
	if err != nil {
		return nil, fmt.Errorf("find the software TPM: %w; install swtpm", err)
	}
	disk, err := filepath.Abs(o.Disk)
	if err != nil {
		return nil, fmt.Errorf("find disk %s: %w", o.Disk, err)
	}
	if info, err := os.Stat(disk); err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	} else if info.IsDir() {
		return nil, fmt.Errorf("open disk %s: it is a directory", o.Disk)
	}
	cpu := o.CPU
	if cpu == "" {
		major, err := qemuMajor(ctx, qemu)
		if err != nil {
			return nil, err
		}
		cpu = cpuModel(o.Arch, o.Accel, major)
	}

	m := &machine{o: o, rec: newRecorder(), proxied: make(chan error, 1), handedOver: make(chan struct{})}
	if m.dir, err = os.MkdirTemp("", "attestable-image-boot-"); err != nil {
		return m, fmt.Errorf("make a temporary directory: %w", err)
	}
	if m.memory, err = newMemory("guest-memory", int64(o.Memory)<<20); err != nil {
		return m, err
	}
	vars, err := newVars(o)
	if err != nil {
		return m, err
	}
	defer vars.Close()
	if err := m.openSerial(); err != nil {
		return m, err
	}

	swtpmControl, swtpmEnd, err := socketPair()
	if err != nil {
		return m, err
	}
	defer swtpmEnd.Close()
	qemuControl, qemuEnd, err := socketPair()
	if err != nil {
		_ = swtpmControl.Close() // the first error says more
		return m, err
	}
	defer qemuEnd.Close()

	cmd := exec.Command(swtpm, "socket", "--tpm2", "--tpmstate", "dir="+m.dir+",mode=0600",
		"--ctrl", "type=unixio,clientfd=3", "--terminate")
	cmd.ExtraFiles = []*os.File{swtpmEnd}
	if m.swtpm, err = start(cmd); err != nil {
		_ = swtpmControl.Close() // the first error says more
		_ = qemuControl.Close()
		return m, err
	}
	_ = swtpmEnd.Close() // so that the end of swtpm is the end of the channel
	m.rec.atHandOver = m.handOver
	if m.proxy, err = newProxy(swtpmControl, qemuControl, o.Layers, m.rec); err != nil {
		_ = swtpmControl.Close()
		_ = qemuControl.Close()
		_ = m.swtpm.kill() // the first error says more
		return m, fmt.Errorf("prepare the software TPM: %w (%s)", err, m.swtpm.stderr)
	}
	go func() { m.proxied <- m.proxy.serve() }()

	cmd = exec.Command(qemu, arguments(o, disk, cpu)...)
	cmd.Stdout = m.serial
	cmd.ExtraFiles = []*os.File{m.memory, vars, qemuEnd} // in the order of memoryFD, varsFD, tpmFD, monitorFD
	if o.Operate != nil {
		monitorEnd, err := m.newOperator(cmd)
		if err != nil {
			return m, err
		}
		defer monitorEnd.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, monitorEnd)
	}
	cmd.Env = append(os.Environ(), "TMPDIR="+m.dir) // where QEMU puts what is written to the disk
	m.began = time.Now()
	m.qemu, err = start(cmd)
	return m, err
}

// newVars makes the variable store of one boot from the firmware's template.
func newVars(o *Options) (*os.File, error) {
	content, err := os.ReadFile(o.Firmware.Vars)
	if err != nil {
		return nil, fmt.Errorf("read the firmware's variable store: %w", err)
	}
	if content, err = enroll(o.SecureBoot, o.Variables, content); err != nil {
		return nil, fmt.Errorf("write UEFI variables into a copy of %s: %w", o.Firmware.Vars, err)
	}
	file, err := newMemory("uefi-variables", int64(len(content)))
	if err != nil {
		return nil, err
	}
	if _, err := file.WriteAt(content, 0); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("copy the firmware's variable store: %w", err)
	}
	return file, nil
}

// openSerial opens the log of the serial line.
func (m *machine) openSerial() (err error) {
	if m.o.SerialLog == "" {
		m.log, err = os.CreateTemp("", "attestable-image-serial-*.log")
	} else {
		m.log, err = os.Create(m.o.SerialLog)
	}
	if err != nil {
		return fmt.Errorf("create the log of the serial line: %w", err)
	}
	m.serial = newSerial(m.log, m.o.Console, m.o.Until)
	return nil
}

// handOver runs while the guest waits for the TPM: nothing in its memory
// changes, and no PCR.
func (m *machine) handOver() {
	m.after = time.Since(m.began)
	extends, _, _ := m.rec.snapshot()
	m.atHandOver, m.errHanding = readPCRs(m.proxy.tpm)
	if m.errHanding == nil {
		m.errHanding = checkReplay(extends, m.atHandOver)
	}
	log, err := findLog(m.memory, extends)
	m.eventLog, m.errHanding = log, errors.Join(m.errHanding, err)
	close(m.handedOver)
}

// checkReplay says whether the PCRs that the TPM reports are those that its
// recorded extensions lead to. PCR 16 and 23 can be reset by software and are
// left out, and so are 17 to 22.
func checkReplay(extends []Extend, read PCRs) error {
	expected := replay(extends)
	for _, bank := range banks {
		for i := range 16 {
			if !bytes.Equal(expected[bank][i], read[bank][i]) {
				return fmt.Errorf("PCR %d in bank %s reads %x from the TPM, but its recorded extensions lead to %x", i, bank, read[bank][i], expected[bank][i])
			}
		}
	}
	return nil
}

// run waits for the end of the boot and collects what it recorded.
func (m *machine) run(ctx context.Context) (*Result, error) {
	operated := m.operate(ctx)
	why := errors.Join(m.wait(ctx), operated())
	result := &Result{
		SerialLog: m.log.Name(), Firmware: m.o.Firmware, Accel: m.o.Accel, Duration: time.Since(m.began),
		Reached: m.reached, Ended: m.ending, Panicked: m.panicked,
	}
	var err error
	if result.AtEnd, err = m.proxy.readPCRs(); err != nil {
		return result, errors.Join(why, err)
	}
	result.Extends, result.HandOver, err = m.rec.snapshot()
	why = errors.Join(why, err)
	log := m.eventLog
	if result.HandOver > 0 {
		result.AtHandOver, result.HandOverAfter = m.atHandOver, m.after
		why = errors.Join(why, m.errHanding)
	} else {
		log, err = findLog(m.memory, result.Extends)
		why = errors.Join(why, err)
	}
	if log != nil {
		result.EventLog, result.Events, result.Explained = log.bytes, log.events, log.matched
	}
	if len(m.o.Signs) > 0 {
		_ = m.qemu.kill() // so that its memory stays as it is
		result.Signs, err = findSigns(m.o.Signs, m.log.Name(), m.memory)
		why = errors.Join(why, err)
	}
	return result, why
}

// wait returns when the boot has come to the end that the options ask for, or
// with the reason why it did not.
func (m *machine) wait(ctx context.Context) error {
	limit := time.NewTimer(m.o.TimeLimit)
	defer limit.Stop()
	handedOver := m.handedOver
	var panicked <-chan time.Time
	var panicText string
	idle := newIdleness(m)
	defer idle.stop()
	found := m.serial.found
	for {
		select {
		case <-idle.tick:
			if handedOver == nil && idle.now() {
				return nil
			}
		case <-handedOver:
			handedOver = nil
			m.completeLog()
			if m.o.UntilDone {
				limit.Stop()
			} else if m.o.Until == nil && !m.o.UntilPowerOff && !m.o.UntilIdle {
				return nil
			}
		case <-found:
			m.reached = true
			if !m.o.UntilIdle {
				return nil
			}
			found = nil
		case <-m.serial.noBoot:
			return m.notBootable()
		case panicText = <-m.serial.panics:
			if panicked == nil {
				panicked = time.After(panicWait)
			}
		case <-panicked:
			if m.o.UntilIdle {
				m.ending, m.panicked = panicText, true
				return nil
			}
			return fmt.Errorf("boot %s: the kernel panicked: %s", m.o.Disk, panicText)
		case <-m.qemu.done:
			if m.o.UntilIdle && handedOver == nil && m.qemu.err == nil {
				m.drainSerial(&panicText)
				m.ending, m.panicked = cmp.Or(panicText, "the guest powered off or restarted"), panicText != ""
				return nil
			}
			return m.ended(panicText)
		case <-m.rec.failed:
			_, _, err := m.rec.snapshot()
			return fmt.Errorf("boot %s: the software TPM failed: %w", m.o.Disk, err)
		case err := <-m.proxied:
			if err != nil {
				return fmt.Errorf("boot %s: the channel to the software TPM failed: %w", m.o.Disk, err)
			}
			m.proxied = nil // QEMU is ending
		case <-limit.C:
			what := "the firmware had not handed over to an operating system"
			if handedOver == nil {
				what = "the awaited text had not appeared on the serial line"
				if m.o.UntilPowerOff {
					what = "the guest had not powered off"
				}
			}
			return fmt.Errorf("boot %s: %w: after %s %s", m.o.Disk, ErrTimeLimit, m.o.TimeLimit, what)
		case <-ctx.Done():
			if m.o.UntilDone && handedOver == nil {
				return nil
			}
			return ctx.Err()
		}
	}
}

// notBootable says why the firmware started nothing.
func (m *machine) notBootable() error {
	switch reason := m.serial.refusal(); reason {
	case "":
		return fmt.Errorf("boot %s: %w: it has no boot path that the firmware knows", m.o.Disk, ErrNotBootable)
	case "Access Denied":
		return fmt.Errorf("boot %s: %w: Secure Boot refused the image (Access Denied): neither its certificate nor its digest is in db, or it is in dbx", m.o.Disk, ErrNotBootable)
	default:
		return fmt.Errorf("boot %s: %w: %s", m.o.Disk, ErrNotBootable, reason)
	}
}

// drainSerial takes what the serial line said last and may still be waiting.
func (m *machine) drainSerial(panicText *string) {
	select {
	case <-m.serial.found:
		m.reached = true
	default:
	}
	select {
	case *panicText = <-m.serial.panics:
	default:
	}
}

// ended judges the end of QEMU by itself.
func (m *machine) ended(panicText string) error {
	if m.drainSerial(&panicText); m.reached {
		return nil
	}
	switch {
	case m.qemu.err != nil:
		return fmt.Errorf("boot %s: %w", m.o.Disk, m.qemu.failure())
	case panicText != "":
		return fmt.Errorf("boot %s: the kernel panicked: %s", m.o.Disk, panicText)
	case m.o.Until != nil:
		return fmt.Errorf("boot %s: the guest powered off or restarted before the awaited text appeared on the serial line", m.o.Disk)
	}
	_, handOver, _ := m.rec.snapshot()
	if handOver == 0 {
		return fmt.Errorf("boot %s: the guest powered off or restarted before the firmware handed over", m.o.Disk)
	}
	return nil
}

// completeLog waits for the entry of the hand-over itself: the firmware writes
// each entry after its extension, and the guest was stopped between the two.
func (m *machine) completeLog() {
	if m.eventLog == nil {
		return
	}
	extends, handOver, _ := m.rec.snapshot()
	extends = extends[:handOver]
	for deadline := time.Now().Add(logWait); ; time.Sleep(10 * time.Millisecond) {
		if log := readLog(m.memory, m.eventLog.offset, extends); log != nil && log.matched > m.eventLog.matched {
			m.eventLog = log
		}
		if m.eventLog.matched == handOver || time.Now().After(deadline) {
			return
		}
	}
}

// close ends what the machine consists of and removes what it needed.
func (m *machine) close() {
	// Errors here leave at worst a process that hangs in the kernel, which
	// nobody can end.
	_ = m.qemu.kill()
	if m.operator != nil {
		_ = m.operator.monitor.Close() // closed already, unless QEMU never started
	}
	if m.proxy != nil {
		m.proxy.close()
	}
	_ = m.swtpm.kill()
	for _, file := range []*os.File{m.memory, m.log} {
		if file != nil {
			file.Close()
		}
	}
	if m.dir != "" {
		_ = os.RemoveAll(m.dir) // nothing is done with what remains
	}
}
