package sbom

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/org/attestable-image-action/internal/audit"
	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/measure"
)

// Inventory is what is on a disk.
type Inventory struct {
	Disk      Digest
	OS        OS
	Packages  []Package  // by kind, name, version and architecture
	BootFiles []BootFile // of the EFI system partition, in the order of its directories
	// Removed are packages of which the database knows only that they were there:
	// dpkg keeps their configuration files.
	Removed []Package
	// Changed is when a package database was last written, as the file system says.
	Changed time.Time
}

// Digest is the digest of a whole disk.
type Digest struct {
	SHA256 string // lower-case hex
	Size   int64  // bytes
}

// Kind is a package manager's kind of package, by its name in package URLs.
type Kind string

// The kinds that are read.
const (
	Deb Kind = "deb"
	RPM Kind = "rpm"
)

// Package is a package that is installed.
type Package struct {
	Kind    Kind
	Name    string
	Epoch   string // of an rpm, decimal; empty when it has none, and for a deb
	Version string // of a deb with its epoch, of an rpm with its release
	Arch    string // as the package manager calls it; empty when there is none
	// Source is the source package: for a deb its name, for an rpm the file name.
	Source        string
	SourceVersion string // of a deb
	Maintainer    string // of a deb: "Name <address>"
	Vendor        string // of an rpm
	Homepage      string
	Summary       string
	Size          int64 // bytes when installed, 0 when it is not known
	License       License
	// State is dpkg's, when it is not "installed": such a package is broken.
	State string
}

// FullVersion is the version as the package manager compares it, with the epoch.
func (p *Package) FullVersion() string {
	if p.Epoch != "" {
		return p.Epoch + ":" + p.Version
	}
	return p.Version
}

// key tells installed packages apart.
func (p *Package) key() string {
	return string(p.Kind) + " " + p.Name + " " + p.FullVersion() + " " + p.Arch
}

const (
	// maxPackages bounds a database; the largest images have a tenth of it.
	maxPackages = 50_000
	// maxDatabase bounds a file of a package database, in bytes.
	maxDatabase = 256 << 20
	// maxSmallFile bounds os-release, in bytes.
	maxSmallFile = 1 << 20
)

// unread are the databases of package managers that are not read. A list without
// their packages would look whole.
var unread = []struct{ path, what string }{
	{"lib/apk/db/installed", "Alpine's apk"},
	{"usr/lib/apk/db/installed", "Alpine's apk"},
	{"var/lib/pacman/local", "pacman"},
	{"var/db/pkg", "Portage"},
	{"nix/var/nix/db/db.sqlite", "Nix"},
}

// Read lists what is on a disk, and takes the disk's digest.
func Read(ctx context.Context, d *disk.Disk, progress func(bytes int64)) (*Inventory, error) {
	i, err := read(ctx, d)
	if err == nil {
		i.Disk, err = digest(ctx, d, progress)
	}
	if err != nil {
		return nil, fmt.Errorf("list what is on disk %s: %w", d.Name(), err)
	}
	return i, nil
}

// List lists what is on a disk without taking the disk's digest, which Disk then
// lacks.
func List(ctx context.Context, d *disk.Disk) (*Inventory, error) {
	i, err := read(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("list what is on disk %s: %w", d.Name(), err)
	}
	return i, nil
}

func read(ctx context.Context, d *disk.Disk) (*Inventory, error) {
	gpt, err := d.GPT()
	if err != nil {
		return nil, err
	}
	esp, err := gpt.ESP()
	if err != nil {
		return nil, err
	}
	number, root, err := findRoot(ctx, d, gpt, esp)
	if err != nil {
		return nil, err
	}
	i, err := readRoot(ctx, root)
	if err != nil {
		return nil, fmt.Errorf("partition %d: %w", number, err)
	}
	if i.BootFiles, err = readBootFiles(ctx, d, esp); err != nil {
		return nil, fmt.Errorf("partition %d, the EFI system partition: %w", esp.Number, err)
	}
	return i, nil
}

// findRoot finds the partition with the root file system: the one that the root
// hash of the unified kernel image covers, or without one the only one with a
// package database.
func findRoot(ctx context.Context, d *disk.Disk, gpt *disk.GPT, esp *disk.Partition) (number int, root *disk.Filesystem, err error) {
	var types []string
	if chain, err := measure.FindBootChain(ctx, d, ""); err == nil {
		root, number, err := audit.OpenRoot(ctx, d, chain)
		if root != nil || err != nil {
			return number, root, err
		}
		types = audit.ChainRootTypes(chain)
	}
	var problems []error
	for i := range gpt.Partitions {
		p := &gpt.Partitions[i]
		if p.Number == esp.Number {
			continue
		}
		section := io.NewSectionReader(d, p.Offset, p.Size)
		f, err := disk.OpenFilesystem(section, p.Size, types...)
		if errors.Is(err, disk.ErrNoFilesystem) {
			if err = notRead(section, p.Size); err == nil {
				continue
			}
		}
		has := false
		if err == nil {
			has, err = hasDatabase(f)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("partition %d: %w", p.Number, err))
			continue
		}
		if !has {
			continue
		}
		if root != nil {
			return 0, nil, fmt.Errorf("partitions %d and %d both have a package database, and which one runs cannot be told", number, p.Number)
		}
		number, root = p.Number, f
	}
	// A partition that could not be read may have had another database.
	if err := errors.Join(problems...); err != nil {
		return 0, nil, err
	}
	if root == nil {
		return 0, nil, errors.New("no partition has an erofs, squashfs or ext4 file system with a package database of dpkg or rpm: what is installed cannot be told")
	}
	return number, root, nil
}

// notRead is the error for a partition with what may hold a root and is not read.
func notRead(r io.ReaderAt, size int64) error {
	kinds, err := disk.Kinds(r, size)
	if err != nil {
		return err
	}
	if kinds = slices.DeleteFunc(kinds, func(kind string) bool { return kind == "swap" || kind == "verity" }); len(kinds) > 0 {
		return fmt.Errorf("it holds %s, which this version does not read: the system that runs may be there", kinds[0])
	}
	return nil
}

// hasDatabase reports whether a file system has a package database that is read, or
// one that ought to be.
func hasDatabase(root fs.FS) (bool, error) {
	names := make([]string, 0, 32)
	names = append(names, dpkgStatus, dpkgStatusDir)
	for _, dir := range rpmDirs {
		for _, name := range rpmFiles {
			names = append(names, path.Join(dir, name))
		}
	}
	for _, u := range unread {
		names = append(names, u.path)
	}
	for _, name := range names {
		if has, err := exists(root, name); has || err != nil {
			return has, err
		}
	}
	return false, nil
}

// exists reports whether a file is there, following symbolic links.
func exists(root fs.FS, name string) (bool, error) {
	_, err := fs.Stat(root, name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	return err == nil, err
}

// readRoot lists what is installed in a root file system.
func readRoot(ctx context.Context, root fs.FS) (*Inventory, error) {
	for _, u := range unread {
		has, err := exists(root, u.path)
		if err != nil {
			return nil, err
		}
		if has {
			return nil, fmt.Errorf("/%s is a package database of %s, which this version does not read: the list would be short", u.path, u.what)
		}
	}
	i := new(Inventory)
	var err error
	if i.OS, err = readOS(root); err != nil {
		return nil, err
	}
	if err := i.readDpkg(ctx, root); err != nil {
		return nil, err
	}
	if err := i.readRPM(ctx, root); err != nil {
		return nil, err
	}
	if len(i.Packages) == 0 {
		return nil, errors.New("its package databases have no package")
	}
	for _, list := range [][]Package{i.Packages, i.Removed} {
		slices.SortFunc(list, func(a, b Package) int {
			return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.FullVersion(), b.FullVersion()), cmp.Compare(a.Arch, b.Arch))
		})
		for n := 1; n < len(list); n++ {
			if list[n].key() == list[n-1].key() {
				return nil, fmt.Errorf("the package database has %q twice", list[n].key())
			}
		}
	}
	return i, nil
}

// add adds a package that is installed.
func (i *Inventory) add(p Package) error {
	if len(i.Packages) == maxPackages {
		return fmt.Errorf("it has more than %d packages", maxPackages)
	}
	i.Packages = append(i.Packages, p)
	return nil
}

// changed notes when a file of a database was last written.
func (i *Inventory) changed(info fs.FileInfo) {
	if t := info.ModTime(); t.After(i.Changed) {
		i.Changed = t
	}
}

// readFile reads a file whole, which must not have more than limit bytes.
func readFile(root fs.FS, name string, limit int64) ([]byte, fs.FileInfo, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if info.Size() > limit {
		return nil, nil, fmt.Errorf("/%s has %d bytes, and at most %d are read", name, info.Size(), limit)
	}
	content, err := io.ReadAll(io.LimitReader(f, limit))
	return content, info, err
}

// digest takes the SHA-256 of a whole disk.
func digest(ctx context.Context, d *disk.Disk, progress func(int64)) (Digest, error) {
	h, r, buf := sha256.New(), d.Stream(), make([]byte, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return Digest{}, err
		}
		n, err := r.Read(buf)
		h.Write(buf[:n])
		progress(int64(n))
		if err == io.EOF {
			return Digest{hex.EncodeToString(h.Sum(nil)), d.Size()}, nil
		}
		if err != nil {
			return Digest{}, fmt.Errorf("take its SHA-256: %w", err)
		}
	}
}

// oneLine makes text of a package fit for a field of one line: valid UTF-8 without
// control characters, of at most limit characters.
func oneLine(text string, limit int) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "\uFFFD"))
	text = strings.TrimSpace(text)
	if runes := []rune(text); len(runes) > limit {
		text = string(runes[:limit]) + "…"
	}
	return text
}
