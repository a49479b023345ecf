package measure

import (
	"context"
	"crypto"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/efi"
)

// predictable says what is known about the PCRs that firmware and systemd-stub
// extend but that cannot be told from a disk.
var predictable = map[int]string{
	0: "it records the firmware's own code",
	1: "it records the firmware's configuration",
	3: "it records the configuration of devices",
	2: "", 4: "", 5: "", 7: "", 9: "", 11: "", 12: "", 13: "",
	6:  "it records events of the computer's maker",
	8:  "nothing of this boot path extends it by a rule that is known",
	10: "the running system extends it (IMA)",
	14: "nothing of this boot path extends it by a rule that is known",
	15: "the running system extends it",
}

// Options say under which circumstances the disk will boot.
type Options struct {
	Bank       Bank  // empty means SHA384
	PCRs       []int // empty means DefaultPCRs
	SecureBoot SecureBoot
	// Arch chooses between boot paths when a disk has several: "x86_64" or
	// "aarch64"; empty means the one that there is.
	Arch string
	// NeededDigests leaves out of Prediction.Images the digests that no PCR that
	// was asked for and no decision of Secure Boot needs: they cost time.
	NeededDigests bool
}

func (o *Options) complete() error {
	if o.Bank == "" {
		o.Bank = SHA384
	}
	if o.Bank != SHA384 && o.Bank != SHA256 {
		return fmt.Errorf("there is no bank %q", o.Bank)
	}
	if len(o.PCRs) == 0 {
		o.PCRs = DefaultPCRs
	}
	o.PCRs = slices.Clone(o.PCRs)
	slices.Sort(o.PCRs)
	o.PCRs = slices.Compact(o.PCRs)
	for _, n := range o.PCRs {
		reason, known := predictable[n]
		if !known {
			reason = "the running system or the TPM itself sets it"
		}
		if reason != "" {
			return fmt.Errorf("PCR %d cannot be predicted from a disk: %s", n, reason)
		}
	}
	return nil
}

// bootPaths are the files that firmware starts from an EFI system partition
// when no boot entry is set (UEFI 2.10, section 3.5.1.1).
var bootPaths = []struct {
	path    string
	machine efi.Machine
}{
	{"EFI/BOOT/BOOTX64.EFI", efi.MachineX64},
	{"EFI/BOOT/BOOTAA64.EFI", efi.MachineAArch64},
}

// Disk predicts the events of a boot of d with the removable-media boot path
// of its one EFI system partition.
func Disk(ctx context.Context, d *disk.Disk, o Options) (*Prediction, error) {
	p, err := measureDisk(ctx, d, o)
	if err != nil {
		return nil, fmt.Errorf("measure %s: %w", d.Name(), err)
	}
	return p, nil
}

func measureDisk(ctx context.Context, d *disk.Disk, o Options) (*Prediction, error) {
	gpt, _, fat, err := openESP(d)
	if err != nil {
		return nil, err
	}
	bootPath, file, err := findBootPath(fat, o.Arch)
	if err != nil {
		return nil, err
	}
	p := &prediction{Options: o, gpt: gpt, fat: fat}
	return p.predict(ctx, []imageFile{{path: bootPath, r: file, size: file.Size()}})
}

// openESP opens the one EFI system partition of a disk.
func openESP(d *disk.Disk) (*disk.GPT, *disk.Partition, *disk.FAT, error) {
	gpt, err := d.GPT()
	if err != nil {
		return nil, nil, nil, err
	}
	esp, err := gpt.ESP()
	if err != nil {
		return nil, nil, nil, err
	}
	fat, err := disk.OpenFAT(io.NewSectionReader(d, esp.Offset, esp.Size), esp.Size)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("partition %d, the EFI system partition: %w", esp.Number, err)
	}
	return gpt, esp, fat, nil
}

// findBootPath opens the one boot path of the ESP.
func findBootPath(fat *disk.FAT, arch string) (string, *disk.File, error) {
	type candidate struct {
		path string
		file *disk.File
	}
	var found []candidate
	for _, b := range bootPaths {
		if arch != "" && b.machine.String() != arch {
			continue
		}
		file, err := fat.Open(b.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", nil, fmt.Errorf("EFI system partition: %w", err)
		}
		found = append(found, candidate{b.path, file})
	}
	switch len(found) {
	case 0:
		if arch != "" {
			return "", nil, fmt.Errorf("the EFI system partition has no boot path for %s", arch)
		}
		return "", nil, errors.New("the EFI system partition has neither EFI/BOOT/BOOTX64.EFI nor EFI/BOOT/BOOTAA64.EFI: firmware would start nothing from this disk")
	case 1:
		return found[0].path, found[0].file, nil
	}
	return "", nil, fmt.Errorf("the EFI system partition has both %s and %s: choose the architecture", found[0].path, found[1].path)
}

// imageFile is a PE image that firmware or a boot loader loads.
type imageFile struct {
	path string
	r    io.ReaderAt
	size int64
}

// EFIFile is a PE image given by itself.
type EFIFile struct {
	Path string
	R    io.ReaderAt
	Size int64 // bytes
}

// Files predicts the events of a boot that loads the images in the order
// given; the last is the unified kernel image. Nothing is known of the disk
// that they will lie on, so it must hold nothing else that systemd-stub reads.
func Files(ctx context.Context, files []EFIFile, o Options) (*Prediction, error) {
	if len(files) == 0 {
		return nil, errors.New("measure PE images: none was given")
	}
	images := make([]imageFile, 0, len(files))
	for _, f := range files {
		images = append(images, imageFile{f.Path, f.R, f.Size})
	}
	p := &prediction{Options: o}
	result, err := p.predict(ctx, images)
	if err != nil {
		return nil, fmt.Errorf("measure %s: %w", files[len(files)-1].Path, err)
	}
	return result, nil
}

// Prediction is what a boot will record.
type Prediction struct {
	Bank         Bank
	PCRs         []int // that were asked for, ascending
	Events       []Event
	Images       []Image
	Architecture string // "x86_64" or "aarch64"
	SecureBoot   SecureBoot
	Authorities  []Authority // db entries that let the images run
	// Companions are the files beside a unified kernel image that systemd-stub
	// measures as a whole, whichever PCRs were asked for.
	Companions []Companion
	// CommandLine is what the kernel gets; empty when it cannot be told.
	CommandLine string
	values      [pcrCount][]byte
}

// Value is the predicted value of one of the PCRs that were asked for.
func (p *Prediction) Value(pcr int) []byte { return p.values[pcr] }

// Image is a PE image of the boot chain.
type Image struct {
	Path   string // on the ESP; a part of it in the form "PATH#.section"
	Size   int64  // bytes
	SHA256 []byte // Authenticode digests; nil when they were not needed
	SHA384 []byte
	Stub   int  // version of systemd-stub, 0 when it has none
	Addon  bool // systemd-stub has it loaded for its sections
}

// Companion is a file that systemd-stub hands on and measures.
type Companion struct {
	Path string // on the ESP
	PCR  int
}

// prediction is one in the making.
type prediction struct {
	Options
	gpt    *disk.GPT // nil when there is no disk
	fat    *disk.FAT // of the EFI system partition, likewise
	loader int       // version of systemd-boot, 0 when there is none

	result    Prediction
	databases *databases
	hashing   *hashing
	later     []laterEvents
}

func (p *prediction) predict(ctx context.Context, files []imageFile) (*Prediction, error) {
	if err := p.complete(); err != nil {
		return nil, err
	}
	if p.gpt == nil && slices.Contains(p.PCRs, 5) {
		return nil, errors.New("PCR 5 cannot be predicted: it records the partition table, and no disk was given")
	}
	var err error
	if p.databases, err = p.SecureBoot.parse(); err != nil {
		return nil, err
	}
	p.result = Prediction{Bank: p.Bank, PCRs: p.PCRs, SecureBoot: p.SecureBoot}
	p.hashing = newHashing(ctx)
	defer p.hashing.close()
	err = p.bootEvents(files)
	// What was loaded before something failed decides first whether the boot gets
	// that far.
	if err := p.settle(); err != nil {
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	p.result.values = replay(p.Bank, p.result.Events)
	return &p.result, nil
}

// bootEvents adds the events from power-on to the kernel.
func (p *prediction) bootEvents(files []imageFile) error {
	p.firmwareEvents()
	for i, f := range files {
		image, err := efi.ParseImage(f.r, f.size)
		if err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
		if err := p.checkArchitecture(f.path, image); err != nil {
			return err
		}
		if version, ok := loaderVersion(image); ok && p.fat != nil {
			err = p.throughLoader(f.path, image, version)
		} else {
			err = p.load(f.path, image, i == len(files)-1, nil)
		}
		if err != nil {
			return err
		}
	}
	p.exitBootServices()
	return nil
}

func (p *prediction) add(events ...Event) { p.result.Events = append(p.result.Events, events...) }

// efiApplication is IMAGE_SUBSYSTEM_EFI_APPLICATION. Firmware records drivers,
// the other kind of EFI image, in PCR 2.
const efiApplication = 10

func (p *prediction) checkArchitecture(path string, image *efi.Image) error {
	if image.Subsystem != efiApplication {
		return fmt.Errorf("%s is of PE subsystem %d, not an EFI application (%d): firmware would not start it as one", path, image.Subsystem, efiApplication)
	}
	machine := image.Machine.String()
	if image.Machine != efi.MachineX64 && image.Machine != efi.MachineAArch64 {
		return fmt.Errorf("%s is for %s, not for x86_64 or aarch64", path, machine)
	}
	for _, b := range bootPaths {
		if strings.EqualFold(b.path, path) && b.machine != image.Machine {
			return fmt.Errorf("%s is for %s: firmware would not start it", path, machine)
		}
	}
	if p.result.Architecture != "" && p.result.Architecture != machine {
		return fmt.Errorf("%s is for %s, what loads it for %s", path, machine, p.result.Architecture)
	}
	p.result.Architecture = machine
	return nil
}

// firmwareEvents adds what firmware records before it loads anything: the
// variables of Secure Boot, the boot attempt, and the separators.
func (p *prediction) firmwareEvents() {
	for _, v := range p.SecureBoot.variables() {
		p.add(dataEvent(p.Bank, 7, EVEFIVariableDriverConfig, efi.VariableData(v.vendor, v.name, v.data), v.name))
	}
	p.add(separator(p.Bank, 2), separator(p.Bank, 7))
	p.add(dataEvent(p.Bank, 4, EVEFIAction, []byte("Calling EFI Application from Boot Option"), "Calling EFI Application from Boot Option"))
	p.add(separator(p.Bank, 4), separator(p.Bank, 5))
	if p.gpt != nil {
		p.add(dataEvent(p.Bank, 5, EVEFIGPTEvent, gptEvent(p.gpt), "GUID partition table"))
	}
}

// exitBootServices adds what firmware records when the kernel takes over.
func (p *prediction) exitBootServices() {
	for _, action := range []string{"Exit Boot Services Invocation", "Exit Boot Services Returned with Success"} {
		p.add(dataEvent(p.Bank, 5, EVEFIAction, []byte(action), action))
	}
}

// gptEvent encodes EFI_GPT_DATA: the header, the number of used entries, and
// those (TCG PC Client Platform Firmware Profile 1.06, section 10.4.5.3).
func gptEvent(g *disk.GPT) []byte {
	data := binary.LittleEndian.AppendUint64(slices.Clone(g.Header), uint64(len(g.Partitions)))
	for _, p := range g.Partitions {
		data = append(data, p.Entry...)
	}
	return data
}

// notUKI refuses an image that is no UKI at the end of the boot chain: what it
// loads, and what it records of that in any PCR, cannot be told.
func (p *prediction) notUKI(path string, image *efi.Image, hasKernel bool) error {
	what := "is not a unified kernel image (it has no .linux section)"
	if hasKernel {
		what = "has a .linux section, but was not made with a systemd-stub whose version can be told"
	}
	if magic, ok := image.BootLoader(); ok {
		what = "is the boot loader " + plain(magic)
	}
	return fmt.Errorf("PCR %d cannot be predicted: %s %s, and what it loads next cannot be told", p.first(), path, what)
}

// first is the PCR that is named when several cannot be predicted: that of the images
// that are started, before that of drivers.
func (p *prediction) first() int {
	if p.PCRs[0] == 2 && len(p.PCRs) > 1 {
		return p.PCRs[1]
	}
	return p.PCRs[0]
}

// plain makes a name from a disk fit to print: no control character of it
// reaches a terminal or a runner's log.
func plain(name string) string {
	if quoted := strconv.Quote(name); quoted != `"`+name+`"` {
		return quoted
	}
	return name
}

func countSections(image *efi.Image, name string) int {
	n := 0
	for _, s := range image.Sections {
		if s.Name == name {
			n++
		}
	}
	return n
}

// loadImage adds the event of one image, and of the db entry that lets it run.
// refused words the error when none does.
func (p *prediction) loadImage(path string, image *efi.Image, stub int, refused func(error) error) error {
	pending := map[crypto.Hash]*pendingDigest{}
	for _, algorithm := range []crypto.Hash{crypto.SHA384, crypto.SHA256} {
		forPCR := algorithm == p.Bank.Hash() && slices.Contains(p.PCRs, 4)
		if p.NeededDigests && !forPCR && !p.SecureBoot.Enabled() {
			continue
		}
		content, size, err := image.AuthenticodeContent()
		if err != nil {
			return fmt.Errorf("%s: take Authenticode digest: %w", path, err)
		}
		pending[algorithm] = p.hashing.start(algorithm, content, size)
	}
	at := len(p.result.Images)
	p.result.Images = append(p.result.Images, Image{Path: path, Size: image.Size(), Stub: stub})
	p.addLater(func() ([]Event, error) {
		digests := map[crypto.Hash][]byte{}
		for _, algorithm := range []crypto.Hash{crypto.SHA384, crypto.SHA256} {
			if d, ok := pending[algorithm]; ok {
				sum, err := d.wait()
				if err != nil {
					return nil, fmt.Errorf("%s: take Authenticode digest: %w", path, err)
				}
				digests[algorithm] = sum
			}
		}
		p.result.Images[at].SHA256, p.result.Images[at].SHA384 = digests[crypto.SHA256], digests[crypto.SHA384]
		events, err := p.loadedEvents(path, image, digests)
		if err != nil && refused != nil {
			err = refused(err)
		}
		return events, err
	})
	return nil
}

// loadedEvents are the events of an image whose Authenticode digests are there.
func (p *prediction) loadedEvents(path string, image *efi.Image, digests map[crypto.Hash][]byte) ([]Event, error) {
	var events []Event
	if p.SecureBoot.Enabled() {
		authority, err := p.databases.authorize(path, image, digests)
		if err != nil {
			return nil, err
		}
		known := slices.ContainsFunc(p.result.Authorities, func(a Authority) bool { return slices.Equal(a.bytes(), authority.bytes()) })
		if !known {
			p.result.Authorities = append(p.result.Authorities, *authority)
			events = append(events, dataEvent(p.Bank, 7, EVEFIVariableAuthority,
				efi.VariableData(efi.ImageSecurityDatabase, "db", authority.bytes()), "db: "+authority.String()))
		}
	}
	if digest, ok := digests[p.Bank.Hash()]; ok {
		events = append(events, Event{PCR: 4, Type: EVEFIBootServicesApplication, Description: path, Digest: digest})
	}
	return events, nil
}
