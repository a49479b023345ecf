package audit

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/efi"
)

// Options say under which circumstances the image will run.
type Options struct {
	// SecureBoot says that the image will boot with Secure Boot on.
	SecureBoot bool
}

// Disk looks for weaknesses of the image on a raw disk: its boot chain, its
// initrd, its partitions, and its root file system. What it cannot read is a
// finding. The error is for a disk that cannot be read at all.
func Disk(ctx context.Context, d *disk.Disk, o Options) (*Report, error) {
	a := &auditor{ctx: ctx, disk: d, options: o, report: &Report{SchemaVersion: ReportVersion, SecureBoot: o.SecureBoot, Audited: []Audited{}, Findings: []Finding{}}}
	if err := a.audit(); err != nil {
		return nil, fmt.Errorf("audit %s: %w", d.Name(), err)
	}
	a.report.sort()
	return a.report, nil
}

// auditor is an audit in the making.
type auditor struct {
	ctx     context.Context
	disk    *disk.Disk
	options Options
	report  *Report
	gpt     *disk.GPT
	kernels []foundUKI   // in the order of the directory
	addons  []foundAddon // as systemd-stub takes them
	ukis    []*ukiAudit
}

// place is where a finding is.
type place struct {
	partition int
	path      string
	line      int
}

// add reports a finding. What detail says comes from the image in part, and is
// bounded.
func (a *auditor) add(id string, at place, format string, args ...any) {
	r, ok := rules[id]
	if !ok {
		panic("audit: there is no rule " + id)
	}
	detail := []rune(fmt.Sprintf(format, args...))
	if len(detail) > 500 {
		detail = append(detail[:500], '…')
	}
	a.report.Findings = append(a.report.Findings, Finding{
		ID: id, Severity: r.severity, Partition: at.partition, Path: at.path, Line: at.line,
		Detail: string(detail), Why: r.why, Fix: r.fix,
	})
}

func (a *auditor) audit() error {
	var err error
	if a.gpt, err = a.disk.GPT(); err != nil {
		return err
	}
	esp, err := a.gpt.ESP()
	if err != nil {
		return err
	}
	if err := a.esp(esp); err != nil {
		a.add("partition-not-read", place{partition: esp.Number}, "the EFI system partition: %v", err)
	}
	if !a.options.SecureBoot {
		a.add("command-line-override", place{}, "Secure Boot was taken to be off")
	}
	if err := a.ctx.Err(); err != nil {
		return err
	}
	return a.partitions(esp)
}

// partition is a partition besides the EFI system partition.
type partition struct {
	*disk.Partition
	fs   *disk.Filesystem // nil when there is none that is known
	kind string           // what else it holds
	root bool             // the file system looks like a root
}

func (a *auditor) partitions(esp *disk.Partition) error {
	var all []*partition
	for i := range a.gpt.Partitions {
		p := &partition{Partition: &a.gpt.Partitions[i]}
		if p.Number == esp.Number {
			continue
		}
		all = append(all, p)
		at := place{partition: p.Number}
		section := io.NewSectionReader(a.disk, p.Offset, p.Size)
		f, err := disk.OpenFilesystem(section, p.Size, a.rootTypes()...)
		ambiguous, isAmbiguous := errors.AsType[*disk.AmbiguousError](err)
		switch {
		case err == nil:
			p.fs, p.kind = f, f.Kind
			p.root = looksLikeRoot(f)
			if types := a.rootTypes(); p.root && len(types) > 0 && !slices.ContainsFunc(types, f.MountedAs) {
				a.add("root-ambiguous", at, "the command line says to mount %.100q, and this was read as %s", types, f.Kind)
			}
		case isAmbiguous:
			p.kind = "ambiguous"
			a.add("root-ambiguous", at, "%v", ambiguous)
		case errors.Is(err, disk.ErrNoFilesystem):
			if p.kind, err = identify(section, p.Size); err != nil {
				a.add("partition-not-read", at, "%v", err)
			}
		default:
			p.kind = "damaged"
			a.add("partition-not-read", at, "%v", err)
		}
	}
	a.verity(all)
	var roots []*rootAudit
	for _, p := range all {
		at := place{partition: p.Number}
		switch {
		case p.root:
			root, err := a.root(p)
			if err != nil {
				return err
			}
			roots = append(roots, root)
		case p.fs != nil:
			if nested := nestedImage(p.fs); nested != "" {
				a.add("nested-image", place{partition: p.Number, path: nested}, "it is a live image, whose root file system is in this file")
			}
			a.unverified(p)
		case p.kind == "swap":
			a.add("swap-enabled", at, "the partition is swap space")
		case p.kind == "FAT":
			a.unverified(p)
		case p.kind == "" && a.coveredByVerity(p):
		case p.kind == "":
			a.add("unknown-partition", at, "its content is not known (type %s, name %q)", p.Type, p.Name)
		case p.kind != "verity" && p.kind != "zeros" && p.kind != "damaged" && p.kind != "ambiguous":
			a.add("partition-not-read", at, "it holds %s, which this version does not read", p.kind)
		}
	}
	for _, u := range a.ukis {
		a.outside(u, roots)
	}
	if len(roots) == 0 {
		a.add("root-not-found", place{}, "no partition has an erofs, squashfs or ext4 file system with a /etc and an init")
	}
	return nil
}

// identify tells what a partition holds that is no file system for a root.
func identify(r io.ReaderAt, size int64) (string, error) {
	kinds, err := disk.Kinds(r, size)
	if err != nil {
		return "", err
	}
	if len(kinds) > 0 {
		return kinds[0], nil
	}
	if _, err := disk.OpenFAT(r, size); err == nil {
		return "FAT", nil
	}
	head := make([]byte, min(size, 1<<20))
	if _, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read it: %w", err)
	}
	if len(bytes.Trim(head, "\x00")) == 0 {
		return "zeros", nil
	}
	return "", nil
}

// unverified reports a file system that no PCR covers.
func (a *auditor) unverified(p *partition) {
	id := "unverified-partition"
	if p.kind == "ext4" && strings.HasPrefix(p.Name, "p.lxrw") {
		id = "writable-partition" // KIWI's partition for the overlay
	}
	a.add(id, place{partition: p.Number}, "it has a %s file system (name %q)", p.kind, p.Name)
}

// looksLikeRoot reports whether a file system has what a root has.
func looksLikeRoot(f *disk.Filesystem) bool {
	exists := func(names ...string) bool {
		for _, name := range names {
			if _, err := f.Lstat(name); err == nil {
				return true
			}
		}
		return false
	}
	return exists("etc") && exists("sbin/init", "usr/sbin/init", "usr/lib/systemd/systemd", "lib/systemd/systemd", "bin/sh", "usr/bin/sh", "init") &&
		exists("etc/passwd", "etc/os-release", "usr/lib/os-release", "usr")
}

// nestedImage returns the path of an image of a root in a file system, as live
// media have it.
func nestedImage(f *disk.Filesystem) string {
	for _, name := range []string{"LiveOS/squashfs.img", "LiveOS/rootfs.img", "live/filesystem.squashfs", "casper/filesystem.squashfs", "rootfs.squashfs"} {
		if _, err := f.Stat(name); err == nil {
			return name
		}
	}
	entries, err := f.ReadDir(".")
	if err != nil {
		return ""
	}
	for _, e := range entries {
		if lower := strings.ToLower(e.Name()); !e.IsDir() && (strings.HasSuffix(lower, ".squashfs") || strings.HasSuffix(lower, ".erofs")) {
			return e.Name()
		}
	}
	return ""
}

// esp looks at the EFI system partition, and at the unified kernel images on it.
func (a *auditor) esp(esp *disk.Partition) error {
	fat, err := disk.OpenFAT(io.NewSectionReader(a.disk, esp.Offset, esp.Size), esp.Size)
	if err != nil {
		return err
	}
	files := 0
	err = fat.Walk(func(name string, file *disk.File) error {
		files++
		a.espFile(esp, name, file)
		return a.ctx.Err()
	})
	a.report.Audited = append(a.report.Audited, Audited{Partition: esp.Number, Kind: "FAT", Files: files})
	a.sortAddons()
	for _, k := range a.kernels {
		a.uki(esp, k.name, k.image)
	}
	if len(a.ukis) == 0 {
		a.add("uki-not-found", place{partition: esp.Number}, "none of its %d files is one", files)
	}
	return err
}

func (a *auditor) espFile(esp *disk.Partition, name string, file *disk.File) {
	at := place{partition: esp.Number, path: name}
	lower := strings.ToLower(name)
	base := path.Base(lower)
	switch {
	case strings.HasPrefix(base, "nvpcr-anchor."):
		a.add("esp-nvpcr-anchor", at, "systemd-stub gives it to the next boot as a credential")
	case strings.HasSuffix(lower, ".cred"):
		a.add("esp-credential", at, "systemd-stub gives it to the system")
	case strings.HasSuffix(lower, ".addon.efi"):
		a.add("esp-addon", at, "systemd-stub or systemd-boot loads it")
		a.addon(at, file)
	case base == "random-seed":
		a.add("esp-random-seed", at, "systemd-boot made or uses it")
	case strings.HasSuffix(lower, ".efi"), strings.HasSuffix(strings.ToLower(file.Short), ".efi"):
		image, err := efi.ParseImage(file, file.Size())
		if err != nil {
			a.add("file-not-read", at, "%v", err)
			return
		}
		if _, ok := image.Section(".linux"); ok {
			a.kernels = append(a.kernels, foundUKI{name, image})
			return
		}
		what := "an EFI program without a kernel"
		if loader, ok := image.BootLoader(); ok {
			what = loader
		}
		a.add("esp-boot-loader", at, "it is %.80s", what)
	case strings.HasPrefix(lower, "loader/"):
		a.add("esp-boot-loader", at, "it belongs to systemd-boot")
	case strings.Contains(lower, ".extra.d/"):
		a.add("esp-addon", at, "systemd-stub gives it to the system")
	default:
		a.add("esp-stray-file", at, "it has %d bytes", file.Size())
	}
}

// rootTypes are the file systems that the command lines tell the kernel to mount.
func (a *auditor) rootTypes() []string {
	types := make([]string, 0, 2*len(a.ukis))
	for _, u := range a.ukis {
		types = append(types, RootTypes(u.line.words)...)
	}
	return types
}

// coveredByVerity reports whether a partition is the data or the tree that a
// command line speaks of.
func (a *auditor) coveredByVerity(p *partition) bool {
	return slices.ContainsFunc(a.ukis, func(u *ukiAudit) bool {
		return namesPartition(u.verityData, p) || namesPartition(u.verityHash, p)
	})
}

// namesPartition reports whether a device specification ("UUID=…",
// "/dev/disk/by-partuuid/…") means a partition.
func namesPartition(spec string, p *partition) bool {
	value := strings.ToLower(spec[strings.LastIndexAny(spec, "=/")+1:])
	return value != "" && (value == p.GUID.String() || p.fs != nil && (value == p.fs.UUID || value == strings.ToLower(p.fs.Label)) ||
		strings.Contains(strings.ToLower(spec), "partlabel") && value == strings.ToLower(p.Name))
}

// statOf returns what a FileInfo of a root file system knows besides.
func statOf(info fs.FileInfo) *disk.Stat { return info.Sys().(*disk.Stat) }

// capabilities decodes a security.capability attribute: the permitted ones (see
// struct vfs_cap_data in linux/capability.h).
func capabilities(b []byte) (permitted uint64, ok bool) {
	if len(b) < 12 {
		return 0, false
	}
	permitted = uint64(binary.LittleEndian.Uint32(b[4:]))
	if len(b) >= 20 {
		permitted |= uint64(binary.LittleEndian.Uint32(b[12:])) << 32
	}
	return permitted, true
}
