package hostile

import (
	"bytes"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/org/attestable-image-action/internal/audit"
	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
	"github.com/org/attestable-image-action/internal/vm"
	"github.com/org/attestable-image-action/nitrotpm"
)

// ready is what the template says when it has come up.
const ready = "attestable-image-demo: ready"

// first are the inputs that every run of the tests tries: what the one who registers an
// AMI, writes its snapshot or owns the instance reaches most with. They share a boot.
// (A driver of the firmware's and a boot option are measured: TestVariablesChangePCRs of internal/vm
// and TestAction of internal/e2e boot them.)
var first = []string{
	"efi-systemd-options", "efi-hibernate-location", "efi-db-certificate",
	"smbios-credential-tmpfiles", "smbios-credential-extra-unit",
	"boot-disk-home", "attached-swap-disk", "attached-nocloud", "serial-sysrq", "metadata-service",
}

func named(t *testing.T, ids ...string) []Input {
	t.Helper()
	var inputs []Input
	for _, id := range ids {
		i := slices.IndexFunc(All(), func(input Input) bool { return input.ID == id })
		if i < 0 {
			t.Fatalf("there is no input %s", id)
		}
		inputs = append(inputs, All()[i])
	}
	return inputs
}

func predicted(t *testing.T, path string) *measure.Prediction {
	t.Helper()
	d, err := disk.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	p, err := measure.Disk(t.Context(), d, measure.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// tools are the real parts of a hostile boot.
func tools(t *testing.T) {
	t.Helper()
	for _, name := range []string{"qemu-system-x86_64", "swtpm", "sgdisk", "mcopy", "mke2fs"} {
		testenv.Tool(t, name)
	}
}

// tried boots a disk under inputs, all at once. The prediction stands in for the boot
// without any, for one boot less.
func tried(t *testing.T, path string, until func(line string) bool, ids ...string) []audit.HostileInput {
	t.Helper()
	p := predicted(t, path)
	d, err := disk.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	table, err := d.GPT()
	if err != nil {
		t.Fatal(err)
	}
	pcrs, bound := nitrotpm.IdentityPCRs(false), map[int]string{}
	for _, pcr := range pcrs {
		bound[pcr] = hex.EncodeToString(p.Value(pcr))
	}
	b := &battery{
		booter: &machine{
			image:   &image{path, false, p, table, pcrs},
			options: vm.Options{Disk: path, TimeLimit: 10 * time.Minute, Until: until},
		},
		baseline: &Outcome{Bound: bound}, results: map[string]*audit.HostileInput{}, progress: func(text string) { t.Log(text) },
	}
	inputs := named(t, ids...)
	if _, err := b.try(t.Context(), inputs); err != nil {
		t.Fatal(err)
	}
	report, err := b.report(inputs)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// TestTemplateIsClosed boots the template debian under the first inputs: none has an
// effect, and the boot records what is predicted. scripts/hostile-boot tries all of them.
func TestTemplateIsClosed(t *testing.T) {
	path := testenv.DebianDisk(t)
	tools(t)
	for _, r := range tried(t, path, func(line string) bool { return strings.Contains(line, ready) }, first...) {
		if r.Result != audit.NoEffect {
			t.Errorf("%s: %s, want %s: PCRs %v, %s", r.ID, r.Result, audit.NoEffect, r.PCRs, r.Seen)
		}
	}
}

// TestOpenImageIsFound boots the template without the words of its command line that
// close it: what they close is open, and no bound PCR shows it.
func TestOpenImageIsFound(t *testing.T) {
	path := testenv.DebianDisk(t)
	tools(t)
	until := func(line string) bool {
		return strings.Contains(line, ready) || strings.Contains(line, "hostile-0-ran")
	}
	for _, r := range tried(t, opened(t, path), until, "efi-systemd-options", "smbios-credential-tmpfiles") {
		if r.Result != audit.Open {
			t.Errorf("%s: %s (PCRs %v, %s), want open", r.ID, r.Result, r.PCRs, r.Seen)
		}
	}
}

// opened is a copy of a disk whose command line lacks what closes it, with spaces in its
// place.
func opened(t *testing.T, from string) string {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	path := filepath.Join(t.TempDir(), "opened.raw")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	d, err := disk.OpenWritable(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	table, err := d.GPT()
	if err != nil {
		t.Fatal(err)
	}
	esp, err := table.ESP()
	if err != nil {
		t.Fatal(err)
	}
	fat, err := disk.OpenFAT(io.NewSectionReader(d, esp.Offset, esp.Size), esp.Size)
	if err != nil {
		t.Fatal(err)
	}
	const boot = "EFI/BOOT/BOOTX64.EFI"
	file, err := fat.Open(boot)
	if err != nil {
		t.Fatal(err)
	}
	uki, err := io.ReadAll(io.NewSectionReader(file, 0, file.Size()))
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{" systemd.import_credentials=no", " efi=noruntime"} {
		if !bytes.Contains(uki, []byte(word)) {
			t.Fatalf("the template's command line has no%s", word)
		}
		uki = bytes.ReplaceAll(uki, []byte(word+" "), []byte(strings.Repeat(" ", len(word)+1)))
	}
	if err := d.ReplaceFile(esp, boot, bytes.NewReader(uki), int64(len(uki))); err != nil {
		t.Fatal(err)
	}
	return path
}
