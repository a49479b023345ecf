package kiwi_test

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/efi"
	"github.com/org/attestable-image-action/internal/testenv"
	"github.com/org/attestable-image-action/internal/vm"
)

// TestDebianDisk reads the disk that KIWI builds from the template debian: one
// unified kernel image, whose command line has the root hash of the root file
// system, which lets nobody in.
func TestDebianDisk(t *testing.T) {
	d, err := disk.Open(testenv.DebianDisk(t))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	gpt, err := d.GPT()
	if err != nil {
		t.Fatal(err)
	}
	if len(gpt.Partitions) != 2 {
		t.Fatalf("there are %d partitions, want the EFI system partition and the root", len(gpt.Partitions))
	}
	esp, err := gpt.ESP()
	if err != nil {
		t.Fatal(err)
	}
	fat, err := disk.OpenFAT(io.NewSectionReader(d, esp.Offset, esp.Size), esp.Size)
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	walk(t, fat, "", &files)
	if len(files) != 1 || !regexp.MustCompile(`^/EFI/BOOT/BOOT(X64|AA64)\.EFI$`).MatchString(files[0]) {
		t.Fatalf("the EFI system partition has %q, want the unified kernel image alone", files)
	}
	line := commandLine(t, fat, files[0])
	root := gpt.Partitions[1]
	checkVerity(t, d, root, line)
	checkRoot(t, io.NewSectionReader(d, root.Offset, root.Size), root.Size)
}

// walk lists the files of a FAT file system.
func walk(t *testing.T, fat *disk.FAT, dir string, files *[]string) {
	t.Helper()
	entries, err := fat.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		name := dir + "/" + entry.Name
		if entry.IsDir {
			walk(t, fat, name, files)
			continue
		}
		*files = append(*files, name)
	}
}

// commandLine returns the options in a unified kernel image's command line.
func commandLine(t *testing.T, fat *disk.FAT, name string) map[string]string {
	t.Helper()
	file, err := fat.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	image, err := efi.ParseImage(file, file.Size())
	if err != nil {
		t.Fatal(err)
	}
	section, ok := image.Section(".cmdline")
	if !ok {
		t.Fatal("the unified kernel image has no command line")
	}
	text, err := io.ReadAll(image.Content(section))
	if err != nil {
		t.Fatal(err)
	}
	options := map[string]string{}
	for word := range strings.FieldsSeq(strings.TrimRight(string(text), "\x00")) {
		key, value, _ := strings.Cut(word, "=")
		options[key] = value
	}
	for key, want := range map[string]string{
		"root": "overlay:MAPPER=root", "console": "ttyS0", "panic": "-1", "rd.shell": "0", "rd.emergency": "poweroff",
		"systemd.gpt_auto": "0", "systemd.import_credentials": "no", "lockdown": "integrity", "module.sig_enforce": "1",
	} {
		if options[key] != want {
			t.Errorf("the command line has %s=%s, want %s", key, options[key], want)
		}
	}
	return options
}

// checkVerity confirms each block of the root with the root hash on the command
// line.
func checkVerity(t *testing.T, d *disk.Disk, root disk.Partition, line map[string]string) {
	t.Helper()
	want, err := hex.DecodeString(line["roothash"])
	if err != nil || len(want) != 32 {
		t.Fatalf("roothash=%s (%v)", line["roothash"], err)
	}
	options := strings.Split(line["systemd.verity_root_options"], ",")
	if last := options[len(options)-1]; last != "panic-on-corruption" {
		t.Errorf("verity's last option is %s", last)
	}
	offset, err := strconv.ParseInt(strings.TrimPrefix(options[0], "hash-offset="), 10, 64)
	if err != nil {
		t.Fatalf("verity's options are %q", options)
	}
	verity, err := d.Verity(disk.Extent{Offset: root.Offset, Length: root.Size}, offset)
	if err != nil {
		t.Fatal(err)
	}
	report, err := verity.Verify(t.Context(), root.Offset)
	if err != nil {
		t.Fatal(err)
	}
	if !report.Holds(want) {
		t.Errorf("the root's hash is %x with %d bad blocks, want %x", report.RootHash, report.BadDataCount, want)
	}
}

// checkRoot looks for ways into the running image.
func checkRoot(t *testing.T, r io.ReaderAt, size int64) {
	t.Helper()
	root, err := disk.OpenFilesystem(r, size)
	if err != nil {
		t.Fatal(err)
	}
	if root.Kind != "erofs" {
		t.Errorf("the root is %s", root.Kind)
	}
	for _, name := range []string{"etc/passwd", "etc/shadow"} {
		content, err := fs.ReadFile(root, name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(content)) {
			fields := strings.Split(strings.TrimSpace(line), ":")
			password := fields[1]
			if password != "*" && password != "x" && !strings.HasPrefix(password, "!") {
				t.Errorf("%s: %s has a password", name, fields[0])
			}
		}
	}
	for _, unit := range []string{"getty@.service", "serial-getty@.service", "getty.target", "getty-static.service", "autovt@.service", "emergency.service", "rescue.service", "debug-shell.service", "systemd-firstboot.service"} {
		if target, err := root.ReadLink("etc/systemd/system/" + unit); err != nil || target != "/dev/null" {
			t.Errorf("%s is not masked: %q (%v)", unit, target, err)
		}
	}
	fstab, err := fs.ReadFile(root, "etc/fstab")
	if err != nil || strings.Contains(string(fstab), "/boot/efi") {
		t.Errorf("fstab is %q (%v)", fstab, err)
	}
	err = root.Walk(func(name string, info fs.FileInfo, err error) error {
		switch {
		case err != nil:
			return err
		case info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 && info.Mode().IsRegular():
			t.Errorf("/%s is setuid or setgid", name)
		case path.Base(name) == "sshd" || path.Base(name) == "dropbear":
			t.Errorf("/%s is in the image", name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	info, err := root.Stat("usr/libexec/attestable-image-demo")
	if err != nil || info.Mode() != 0o755 {
		t.Errorf("the demonstration's script: %v (%v)", info, err)
	}
}

// TestDebianDiskBoots boots the disk until its demonstration service speaks.
func TestDebianDiskBoots(t *testing.T) {
	image := testenv.DebianDisk(t)
	testenv.Tool(t, "qemu-system-x86_64")
	testenv.Tool(t, "swtpm")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	log := filepath.Join(t.TempDir(), "serial.log")
	result, err := vm.Boot(ctx, vm.Options{
		Disk: image, SerialLog: log, TimeLimit: 10 * time.Minute,
		Until: func(line string) bool { return strings.Contains(line, "attestable-image-demo: ready") },
	})
	if err != nil {
		t.Fatal(fmt.Errorf("%w\n%s", err, log))
	}
	if result.HandOver == 0 {
		t.Error("no hand-over was recorded")
	}
}
