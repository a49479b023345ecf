package hostile

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/org/attestable-image-action/internal/disk"
)

// Partition types of the Discoverable Partitions Specification, which
// systemd-gpt-auto-generator(8) mounts by themselves.
var discoverable = []struct {
	id, what string
	arm, x86 string // type GUIDs
	content  string
}{
	{"home", "a home partition", "933ac7e1-2eb4-4f13-b844-0e14e2aef915", "", "ext4"},
	{"srv", "a server data partition", "3b8f8425-20e0-4f3b-907f-1a25a76f98e8", "", "ext4"},
	{"var", "a variable data partition", "4d21b016-b534-45c2-a9fb-5c16e091fd2d", "", "ext4"},
	{"tmp", "a temporary data partition", "7ec6f557-3bc5-4aca-b293-16ef5df639d1", "", "ext4"},
	{"swap", "a swap partition", "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", "", "swap"},
	{"root", "a root partition", "b921b045-1df0-41c3-af44-4c6f280d3fae", "4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "ext4"},
	{"usr", "a /usr partition", "b0e01050-ee5f-4390-949a-9101b17104e9", "8484680c-9521-48c6-9c11-b0720656f69e", "ext4"},
	{"xbootldr", "an extended boot loader partition", "bc13c2ff-59e6-4262-a352-b275fd6f7172", "", "ext4"},
	{"user-home", "a per-user home partition", "773f91ef-66d4-49b5-bd83-d683bf40ad16", "", "ext4"},
}

// partition is one to be added to a disk.
type partition struct {
	kind, label string
	content     string // path of its content
	input       int
}

// partitionSize is that of each hostile file system, in bytes.
const partitionSize = 8 << 20

// tool finds a program that makes a file system; without it an input is not tried.
func tool(name, of string) (string, error) {
	for _, dir := range []string{"", "/usr/sbin/", "/sbin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path, nil
		}
	}
	return "", notTried(fmt.Sprintf("%s is not installed here (Debian and Ubuntu: %s)", name, of))
}

func run(path string, args ...string) error {
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1", "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", path, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// uuid is one that belongs to the input that is being put in.
func (s *setup) uuid() string {
	s.devices++
	return fmt.Sprintf("05711e00-%04x-4000-8000-%012x", s.input, s.devices)
}

// fileSystem makes content of a kind, and tells how a guest shows that it uses it.
func (s *setup) fileSystem(kind, label string) (path string, err error) {
	if path, err = s.file(nil); err != nil {
		return "", err
	}
	if kind == "swap" {
		s.devices++
		return path, s.swap(path, label, 1024+s.devices, false)
	}
	if err := os.Truncate(path, partitionSize); err != nil {
		return "", err
	}
	switch kind {
	case "ext4":
		mke2fs, err := tool("mke2fs", "e2fsprogs")
		if err != nil {
			return "", err
		}
		uuid := s.uuid()
		s.shows("mounted filesystem "+uuid, "the kernel mounted it")
		return path, run(mke2fs, "-q", "-F", "-t", "ext4", "-L", label, "-U", uuid, path)
	case "vfat":
		mformat, err := tool("mformat", "mtools")
		if err != nil {
			return "", err
		}
		return path, run(mformat, "-i", path, "-v", label, "-T", fmt.Sprint(partitionSize/512), "-h", "16", "-s", "32", "::")
	}
	return "", fmt.Errorf("no file system is called %q", kind)
}

// pageSize is that of the guest's memory, in bytes.
const pageSize = 4096

// swap makes a swap area of so many pages (Linux, union swap_header in
// include/linux/swap.h), or one with a hibernated system in it
// (kernel/power/swap.c).
func (s *setup) swap(path, label string, pages int, hibernated bool) error {
	header := make([]byte, pageSize)
	le := binary.LittleEndian
	le.PutUint32(header[1024:], 1) // version
	le.PutUint32(header[1028:], uint32(pages-1))
	uuid := header[1036:1052]
	le.PutUint32(uuid, 0x05711e00)
	le.PutUint16(uuid[4:], uint16(s.input))
	le.PutUint32(uuid[12:], uint32(pages))
	copy(header[1052:1068], label)
	copy(header[pageSize-10:], "SWAPSPACE2")
	if hibernated {
		// The image's first page, and the signature that was there before.
		le.PutUint64(header[pageSize-36:], 1)
		copy(header[pageSize-20:], "SWAPSPACE2")
		copy(header[pageSize-10:], "S1SUSPEND\x00")
	} else {
		s.shows(fmt.Sprintf("Adding %dk swap on", (pages-1)*pageSize/1024), "the kernel swaps to it")
	}
	if err := os.WriteFile(path, header, 0o600); err != nil {
		return err
	}
	return os.Truncate(path, int64(pages)*pageSize)
}

// attach makes a whole disk of a file, on a bus that the guest sees, and watches it.
func (s *setup) attach(path, device, what string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	s.arguments("-device", fmt.Sprintf("%s,drive=%s", device, s.drive(path)))
	return s.watch(path, what, 0, info.Size())
}

// finish makes the disks that several inputs share.
func (s *setup) finish() error {
	if len(s.more) > 0 {
		path, err := s.file(nil)
		if err != nil {
			return err
		}
		if err := os.Truncate(path, 1<<20); err != nil {
			return err
		}
		if err := s.addPartitions(path, s.more, "--clear"); err != nil {
			return err
		}
		s.arguments("-device", "virtio-blk-pci,drive="+s.drive(path))
	}
	if len(s.own) == 0 && len(s.esp) == 0 && s.alter == nil {
		return nil
	}
	path, err := s.copyOfDisk()
	if err != nil {
		return err
	}
	if err := s.addPartitions(path, s.own); err != nil {
		return err
	}
	if len(s.esp) > 0 {
		esp, err := s.image.table.ESP()
		if err != nil {
			return err
		}
		at := fmt.Sprintf("%s@@%d", path, esp.Offset)
		for _, f := range s.esp {
			if err := s.addFile(at, f); err != nil {
				return err
			}
		}
	}
	for _, alter := range s.alter {
		if err := alter(path); err != nil {
			return err
		}
	}
	s.options.Disk, s.options.Scratch = path, true
	return nil
}

// copyOfDisk is a sparse copy of the disk, for this boot.
func (s *setup) copyOfDisk() (string, error) {
	from, err := disk.Open(s.image.path)
	if err != nil {
		return "", err
	}
	defer from.Close()
	to, err := os.CreateTemp(s.dir, "disk-")
	if err != nil {
		return "", err
	}
	defer to.Close()
	if err := to.Truncate(from.Size()); err != nil {
		return "", err
	}
	extents, err := from.Extents()
	if err != nil {
		return "", err
	}
	for _, e := range extents {
		if _, err := io.Copy(io.NewOffsetWriter(to, e.Offset), io.NewSectionReader(from, e.Offset, e.Length)); err != nil {
			return "", fmt.Errorf("copy %s: %w", s.image.path, err)
		}
	}
	return to.Name(), nil
}

// addPartitions makes a disk larger and adds partitions at its end.
func (s *setup) addPartitions(path string, partitions []partition, first ...string) error {
	if len(partitions) == 0 {
		return nil
	}
	sgdisk, err := tool("sgdisk", "gdisk")
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	const align = 1 << 20
	at := (info.Size() + align - 1) / align * align
	args := slices.Concat(first, []string{"--move-second-header", "--set-alignment=1"})
	var places []int64
	for _, p := range partitions {
		content, err := os.Stat(p.content)
		if err != nil {
			return err
		}
		places = append(places, at)
		args = append(args, fmt.Sprintf("--new=0:%d:%d", at/512, (at+content.Size())/512-1), "--typecode=0:"+p.kind, "--change-name=0:"+p.label)
		at += (content.Size() + align - 1) / align * align
	}
	if err := os.Truncate(path, at+align); err != nil {
		return err
	}
	if err := run(sgdisk, append(args, path)...); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for i, p := range partitions {
		content, err := os.ReadFile(p.content)
		if err != nil {
			return err
		}
		if _, err := f.WriteAt(content, places[i]); err != nil {
			return err
		}
		s.input = p.input
		if err := s.watch(path, "the partition", places[i], int64(len(content))); err != nil {
			return err
		}
	}
	return nil
}

// espFile is one to be added to the EFI system partition.
type espFile struct {
	path    string // with slashes, relative
	content []byte
}

func (s *setup) addFile(at string, f espFile) error {
	mcopy, err := tool("mcopy", "mtools")
	if err != nil {
		return err
	}
	mmd, err := tool("mmd", "mtools")
	if err != nil {
		return err
	}
	for i, c := range f.path {
		if c == '/' {
			_ = run(mmd, "-i", at, "-D", "s", "::"+f.path[:i]) // it may be there
		}
	}
	file, err := s.file(f.content)
	if err != nil {
		return err
	}
	return run(mcopy, "-o", "-i", at, file, "::"+f.path)
}

func (s *setup) x86() bool { return s.image.prediction.Architecture == "x86_64" }

// byPartitions are the partitions that systemd may find, on the disk that boots and on
// one that somebody attaches.
func byPartitions() []Input {
	inputs := make([]Input, 0, 2*len(discoverable))
	for _, onOwn := range []bool{true, false} {
		for _, d := range discoverable {
			input := Input{ID: "boot-disk-" + d.id, Name: d.what + " on the disk that boots", From: SnapshotWriter}
			if !onOwn {
				input = Input{ID: "attached-" + d.id, Name: d.what + " on an attached disk", From: Owner}
			}
			input.put = func(s *setup) error {
				kind := d.arm
				if s.x86() && d.x86 != "" {
					kind = d.x86
				}
				if _, err := tool("sgdisk", "gdisk"); err != nil {
					return err
				}
				content, err := s.fileSystem(d.content, d.id)
				if err != nil {
					return err
				}
				p := partition{kind, d.id, content, s.input}
				if onOwn {
					s.own = append(s.own, p)
				} else {
					s.more = append(s.more, p)
				}
				return nil
			}
			inputs = append(inputs, input)
		}
	}
	return inputs
}
