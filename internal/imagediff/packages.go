package imagediff

import (
	"errors"
	"io/fs"
	"slices"
	"strings"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/sbom"
)

// packages compares what is installed.
func (c *comparison) packages() {
	if c.either("packages", c.a.noList, c.b.noList) {
		return
	}
	a, b := c.a.inventory, c.b.inventory
	c.report.A.OS, c.report.B.OS = bounded(a.OS.Label()), bounded(b.OS.Label())
	changes, changed := comparePackages(a.Packages, b.Packages)
	c.report.Packages = append(c.report.Packages, changes...)
	c.owners.packages = append(c.owners.packages, changed...)
}

// comparePackages lists what came, went or has another version, by name, and the
// packages that are named there.
func comparePackages(a, b []sbom.Package) (changes []Package, changed []sbom.Package) {
	type identity struct {
		kind       sbom.Kind
		name, arch string
	}
	of := func(p sbom.Package) identity { return identity{p.Kind, p.Name, p.Arch} }
	// Some packages, such as kernels, are there in several versions.
	versions := map[identity][2][]string{}
	packages := map[identity]sbom.Package{}
	var order []identity
	for i, list := range [][]sbom.Package{a, b} {
		for _, p := range list {
			v, known := versions[of(p)]
			if !known {
				order = append(order, of(p))
			}
			version := p.FullVersion()
			if p.State != "" {
				version += " (" + p.State + ")"
			}
			v[i] = append(v[i], version)
			versions[of(p)], packages[of(p)] = v, p
		}
	}
	slices.SortStableFunc(order, func(a, b identity) int { return strings.Compare(a.name, b.name) })
	for _, id := range order {
		v := versions[id]
		onlyA, onlyB := without(v[0], v[1]), without(v[1], v[0])
		for i := range max(len(onlyA), len(onlyB)) {
			p := Package{Kind: string(id.kind), Name: id.name, Arch: id.arch}
			if i < len(onlyA) {
				p.A = onlyA[i]
			}
			if i < len(onlyB) {
				p.B = onlyB[i]
			}
			changes = append(changes, p)
		}
		if len(onlyA)+len(onlyB) > 0 {
			changed = append(changed, packages[id])
		}
	}
	return changes, changed
}

// without are the texts of a list that another one lacks.
func without(list, other []string) []string {
	known := make(map[string]bool, len(other))
	for _, s := range other {
		known[s] = true
	}
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return known[s] })
}

// owners are the packages that changed, and their files.
type owners struct {
	packages []sbom.Package
	files    map[string]string // name of the package by canonical path
	// initrd is files of the root file system, whose files an initrd has copies of.
	initrd map[string]string
}

// maxOwned bounds the paths that are kept. Files beyond it are shown.
const maxOwned = 1 << 20

// read reads which files the packages have in two root file systems, of which
// either may be nil.
func (o *owners) read(a, b *disk.Filesystem) error {
	o.files = map[string]string{}
	for _, root := range []*disk.Filesystem{a, b} {
		if root == nil {
			continue
		}
		for _, p := range o.packages {
			files, err := sbom.Files(root, p)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			for _, name := range files {
				if len(o.files) == maxOwned {
					return nil
				}
				o.files[canonical(name)] = p.Name
			}
			o.initrd = o.files
		}
	}
	return nil
}

// of returns the package that changed and has a file; empty when there is none.
func (o *owners) of(name string) string {
	if owner := o.files[canonical(name)]; owner != "" {
		return owner
	}
	if len(o.packages) > 0 && sbom.IsDatabase(name) {
		return "the package database"
	}
	return ""
}

// ofInitrd is of for a file of an initrd.
func (o *owners) ofInitrd(name string) string { return o.initrd[canonical(name)] }

// canonical gives a path by which a package may have shipped a file the name that
// it has where /bin, /sbin and /lib are links into /usr.
func canonical(name string) string {
	for _, dir := range []string{"bin/", "sbin/", "lib/", "lib32/", "lib64/", "libx32/"} {
		if strings.HasPrefix(name, dir) {
			return "usr/" + name
		}
	}
	return name
}
