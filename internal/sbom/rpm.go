package sbom

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/lazyregexp"
)

// Where rpm keeps its database, and the files of its formats.
var (
	rpmDirs  = []string{"usr/lib/sysimage/rpm", "var/lib/rpm", "usr/share/rpm"}
	rpmFiles = []string{rpmSQLite, rpmNDB, rpmBerkeley}
)

const (
	rpmSQLite   = "rpmdb.sqlite"
	rpmNDB      = "Packages.db"
	rpmBerkeley = "Packages" // before rpm 4.16
)

// rpmWord is what a name, version, release or architecture of an rpm consists of.
var rpmWord = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9._+~^-]{0,254}$`)

// readRPM reads rpm's database, when there is one.
func (i *Inventory) readRPM(ctx context.Context, root fs.FS) error {
	file, err := findRPM(root)
	if err != nil || file == "" {
		return err
	}
	headers, err := i.rpmHeaders(root, file)
	if err == nil {
		err = i.addRPMs(ctx, headers)
	}
	if err != nil {
		return fmt.Errorf("read rpm's database /%s: %w", file, err)
	}
	return nil
}

// findRPM finds rpm's database. Directories may be links to each other.
func findRPM(root fs.FS) (string, error) {
	found := ""
	var at fs.FileInfo
	for _, dir := range rpmDirs {
		for _, name := range rpmFiles {
			file := path.Join(dir, name)
			info, err := fs.Stat(root, file)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return "", fmt.Errorf("look for rpm's database: %w", err)
			}
			if found != "" && !sameFile(at, info) {
				return "", fmt.Errorf("there are two databases of rpm, /%s and /%s, and which one rpm uses cannot be told", found, file)
			}
			if found == "" {
				found, at = file, info
			}
		}
	}
	return found, nil
}

func sameFile(a, b fs.FileInfo) bool {
	x, ok := a.Sys().(*disk.Stat)
	y, also := b.Sys().(*disk.Stat)
	return ok && also && x.Inode == y.Inode
}

// rpmHeaders reads the headers of all packages.
func (i *Inventory) rpmHeaders(root fs.FS, file string) ([][]byte, error) {
	content, info, err := readFile(root, file, maxDatabase)
	if err != nil {
		return nil, err
	}
	i.changed(info)
	switch path.Base(file) {
	case rpmSQLite:
		wal, walInfo, err := readFile(root, file+"-wal", maxDatabase)
		if err == nil {
			i.changed(walInfo)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		journal, err := fs.Stat(root, file+"-journal")
		if err == nil && journal.Size() > 0 {
			return nil, errors.New("a transaction was not ended: there is a -journal beside it; start rpm once while the image is built")
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		return sqliteBlobs(content, wal, "Packages", 1)
	case rpmNDB:
		return ndbBlobs(content)
	}
	return nil, errors.New("it is a Berkeley DB, which rpm gave up in version 4.16 and this version does not read: convert it with rpmdb --rebuilddb")
}

// Tags of a header (rpmtag.h).
const (
	tagName      = 1000
	tagVersion   = 1001
	tagRelease   = 1002
	tagEpoch     = 1003
	tagSummary   = 1004
	tagSize      = 1009
	tagVendor    = 1011
	tagLicense   = 1014
	tagURL       = 1020
	tagArch      = 1022
	tagSourceRPM = 1044
	tagLongSize  = 5009
)

func (i *Inventory) addRPMs(ctx context.Context, headers [][]byte) error {
	texts := newTextBudget()
	for n, blob := range headers {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := parseRPMHeader(blob)
		if err != nil {
			return fmt.Errorf("header %d of %d: %w", n+1, len(headers), err)
		}
		p, err := h.rpm(texts)
		if err != nil {
			return fmt.Errorf("header %d of %d: %w", n+1, len(headers), err)
		}
		if err := i.add(p); err != nil {
			return err
		}
	}
	return nil
}

// rpm is the package of a header. rpm keeps public keys as packages named
// gpg-pubkey, and lists them as such; so does this.
func (h rpmHeader) rpm(texts *textBudget) (Package, error) {
	p := Package{Kind: RPM}
	var version, release, license string
	for tag, into := range map[uint32]*string{
		tagName: &p.Name, tagVersion: &version, tagRelease: &release, tagArch: &p.Arch, tagVendor: &p.Vendor,
		tagURL: &p.Homepage, tagSummary: &p.Summary, tagSourceRPM: &p.Source, tagLicense: &license,
	} {
		var err error
		if *into, err = h.text(tag); err != nil {
			return p, err
		}
	}
	for _, w := range []struct {
		what, value string
		optional    bool
	}{{"name", p.Name, false}, {"version", version, false}, {"release", release, false}, {"architecture", p.Arch, true}, {"source package", p.Source, true}} {
		if (w.value != "" || !w.optional) && !rpmWord().MatchString(w.value) {
			return p, fmt.Errorf("the package %.100q has the %s %.100q, which is none", p.Name, w.what, w.value)
		}
	}
	p.Version = version + "-" + release
	epoch, has, err := h.number(tagEpoch)
	if err != nil {
		return p, err
	}
	if has {
		p.Epoch = fmt.Sprint(epoch)
	}
	for _, tag := range []uint32{tagLongSize, tagSize} {
		size, has, err := h.number(tag)
		if err != nil {
			return p, err
		}
		if has && p.Size == 0 && size < 1<<50 {
			p.Size = int64(size)
		}
	}
	if p.License, err = rpmLicense(license, texts); err != nil {
		return p, fmt.Errorf("the licence of package %s: %w", p.Name, err)
	}
	p.Vendor, p.Summary = oneLine(p.Vendor, 200), oneLine(p.Summary, 200)
	if strings.HasPrefix(p.Vendor, "(none)") {
		p.Vendor = ""
	}
	if slices.Contains([]string{"(none)", ""}, p.Source) {
		p.Source = ""
	}
	return p, nil
}
