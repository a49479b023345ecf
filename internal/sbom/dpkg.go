package sbom

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/org/attestable-image-action/internal/lazyregexp"
)

// dpkg's database: every package in one file; or, in images that are put together
// without dpkg, a file for each.
const (
	dpkgStatus    = "var/lib/dpkg/status"
	dpkgStatusDir = "var/lib/dpkg/status.d"
	dpkgUpdates   = "var/lib/dpkg/updates" // dpkg's journal: newer paragraphs

	// maxStatus bounds a file of it, in bytes; that of a desktop has some 5 MiB.
	maxStatus = 64 << 20
)

// Names and versions as Debian's policy allows them (5.6.7, 5.6.8, 5.6.12). dpkg
// takes upper-case letters in a name, too.
var (
	debName    = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9+._-]{0,254}$`)
	debVersion = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9.+:~-]{0,254}$`)
	debArch    = lazyregexp.New(`^[a-z0-9][a-z0-9-]{0,63}$`)
	debSource  = lazyregexp.New(`^(\S+)(?: +\(([^() ]+)\))?$`)
)

// Debian packages that are not installed, and what dpkg calls one of which only
// configuration files are left.
const (
	dpkgNotInstalled = "not-installed"
	dpkgConfigFiles  = "config-files"
	dpkgInstalled    = "installed"
)

// dpkgStates are dpkg's states besides.
var dpkgStates = map[string]bool{
	dpkgNotInstalled: true, dpkgConfigFiles: true, dpkgInstalled: true, "half-installed": true, "unpacked": true,
	"half-configured": true, "triggers-awaited": true, "triggers-pending": true,
}

// readDpkg reads dpkg's database, when there is one.
func (i *Inventory) readDpkg(ctx context.Context, root fs.FS) error {
	packages, err := i.dpkgPackages(root)
	if err != nil {
		return err
	}
	texts := newTextBudget()
	for _, p := range packages {
		if err := ctx.Err(); err != nil {
			return err
		}
		switch p.State {
		case dpkgNotInstalled:
			continue
		case dpkgConfigFiles:
			if len(i.Removed) == maxPackages {
				return fmt.Errorf("read dpkg's database: it has more than %d packages that were removed", maxPackages)
			}
			i.Removed = append(i.Removed, p)
			continue
		case dpkgInstalled:
			p.State = ""
		}
		if p.License, err = debLicense(root, p.Name, texts); err != nil {
			return fmt.Errorf("read the licence of package %s: %w", p.Name, err)
		}
		if err := i.add(p); err != nil {
			return fmt.Errorf("read dpkg's database: %w", err)
		}
	}
	return nil
}

// dpkgPackages reads the paragraphs of the database, in the order in which they
// stand, the journal last.
func (i *Inventory) dpkgPackages(root fs.FS) ([]Package, error) {
	var packages []Package
	at := map[string]int{}
	for _, source := range []struct {
		path    string
		journal bool // its paragraphs replace others
		list    func(fs.FS, string) ([]string, error)
	}{
		{dpkgStatus, false, oneFile},
		{dpkgStatusDir, false, statusFiles},
		{dpkgUpdates, true, journalFiles},
	} {
		names, err := source.list(root, source.path)
		if err != nil {
			return nil, fmt.Errorf("read dpkg's database: %w", err)
		}
		for _, name := range names {
			content, info, err := readFile(root, name, maxStatus)
			if err != nil {
				return nil, fmt.Errorf("read dpkg's database: %w", err)
			}
			i.changed(info)
			found, err := parseDpkgStatus(string(content), source.path == dpkgStatusDir)
			if err != nil {
				return nil, fmt.Errorf("read dpkg's database /%s: %w", name, err)
			}
			for _, p := range found {
				id := p.Name + ":" + p.Arch
				old, known := at[id]
				switch {
				case known && source.journal:
					packages[old] = p
				case known:
					return nil, fmt.Errorf("read dpkg's database /%s: it has the package %s twice", name, id)
				default:
					at[id] = len(packages)
					packages = append(packages, p)
				}
			}
		}
	}
	return packages, nil
}

func oneFile(root fs.FS, name string) ([]string, error) {
	has, err := exists(root, name)
	if !has {
		return nil, err
	}
	return []string{name}, nil
}

// statusFiles lists the files of status.d: digests of a package's files lie beside
// them.
func statusFiles(root fs.FS, dir string) ([]string, error) {
	return filesIn(root, dir, func(name string) bool { return !strings.HasSuffix(name, ".md5sums") })
}

// journalFiles lists the files of dpkg's journal, which have numbers for names.
func journalFiles(root fs.FS, dir string) ([]string, error) {
	return filesIn(root, dir, func(name string) bool { return strings.Trim(name, "0123456789") == "" })
}

func filesIn(root fs.FS, dir string, want func(string) bool) ([]string, error) {
	entries, err := fs.ReadDir(root, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if len(entries) > maxPackages {
		err = fmt.Errorf("/%s has more than %d files", dir, maxPackages)
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if !e.IsDir() && want(e.Name()) {
			names = append(names, path.Join(dir, e.Name()))
		}
	}
	return names, nil
}

// parseDpkgStatus reads paragraphs of dpkg's database. Without state, there is no
// Status field, and each package is installed.
func parseDpkgStatus(content string, stateless bool) ([]Package, error) {
	if !utf8.ValidString(content) {
		return nil, errNotUTF8
	}
	var packages []Package
	for c, err := range control(content, false) {
		if err != nil {
			return nil, err
		}
		if len(packages) == maxPackages {
			return nil, fmt.Errorf("it has more than %d packages", maxPackages)
		}
		p, err := debPackage(c, stateless)
		if err != nil {
			return nil, err
		}
		packages = append(packages, p)
	}
	return packages, nil
}

// debPackage is the package of a paragraph.
func debPackage(c paragraph, stateless bool) (Package, error) {
	p := Package{
		Kind: Deb, Name: c["package"], Version: c["version"], Arch: c["architecture"],
		Maintainer: oneLine(c.first("maintainer"), 200), Homepage: c.first("homepage"),
		Summary: oneLine(c.first("description"), 200), State: dpkgInstalled,
	}
	if !debName().MatchString(p.Name) {
		return p, fmt.Errorf("%.100q is no name of a package", p.Name)
	}
	if status, has := c["status"]; has || !stateless {
		words := strings.Fields(status)
		if len(words) != 3 || !dpkgStates[words[2]] {
			return p, fmt.Errorf("the package %s has the status %.100q, which dpkg does not know", p.Name, status)
		}
		p.State = words[2]
	}
	if p.State == dpkgNotInstalled {
		return p, nil // it need not have a version
	}
	if !debVersion().MatchString(p.Version) {
		return p, fmt.Errorf("the package %s has the version %.100q, which is none", p.Name, p.Version)
	}
	if !debArch().MatchString(p.Arch) {
		return p, fmt.Errorf("the package %s has the architecture %.100q, which is none", p.Name, p.Arch)
	}
	p.Source, p.SourceVersion = p.Name, p.Version
	if source := c["source"]; source != "" {
		m := debSource().FindStringSubmatch(source)
		if m == nil || !debName().MatchString(m[1]) || m[2] != "" && !debVersion().MatchString(m[2]) {
			return p, fmt.Errorf("the package %s has the source %.100q, which names none", p.Name, source)
		}
		p.Source = m[1]
		if m[2] != "" {
			p.SourceVersion = m[2]
		}
	}
	if size := c["installed-size"]; size != "" {
		kib, err := strconv.ParseInt(size, 10, 64)
		if err != nil || kib < 0 || kib > 1<<40 {
			return p, fmt.Errorf("the package %s has the installed size %.100q, which is no number of KiB", p.Name, size)
		}
		p.Size = kib << 10
	}
	return p, nil
}
