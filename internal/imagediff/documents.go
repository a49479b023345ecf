package imagediff

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/org/attestable-image-action/internal/efi"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/sbom"
)

// Documents compares two measurements documents: what a boot will load and measure, and
// what the disks were built with and from. The images' names are the caller's to say.
// Documents that differ in a value never give an empty report.
func Documents(a, b *measure.Document) *Report {
	r := newReport("", "")
	r.Compared = comparedDocuments
	r.circumstances(a, b)
	r.commandLines(a, b)
	r.bootChain(a, b)
	r.measurements(a, b)
	if r.empty() && r.A.SHA256 == r.B.SHA256 && len(r.NotCompared) == 0 {
		x, errA := a.Marshal()
		y, errB := b.Marshal()
		if r.Identical = errA == nil && errB == nil && bytes.Equal(x, y); !r.Identical {
			r.Other = append(r.Other, Change{Name: "values of the documents differ that mean nothing by themselves"})
		}
	}
	return r
}

// AddPackages adds the packages of two bills of materials.
func (r *Report) AddPackages(a, b []sbom.Package) {
	changes, _ := comparePackages(a, b)
	r.Packages = append(r.Packages, changes...)
}

// NotComparable notes that something could not be compared, and why.
func (r *Report) NotComparable(what string, err error) { r.notCompared(what, err) }

// circumstances compares what documents say beside the boot chain and the PCRs.
func (r *Report) circumstances(a, b *measure.Document) {
	for _, side := range []struct {
		into *Image
		from *measure.Document
	}{{&r.A, a}, {&r.B, b}} {
		if d := side.from.Disk; d != nil {
			side.into.SHA256, side.into.Size = d.SHA256, d.Size
		}
	}
	r.secureBoot(a, b)
	switch {
	case a.Builder != nil && b.Builder != nil:
		r.builders(a.Builder, b.Builder)
	case a.Builder != nil:
		r.notCompared("builder (B)", errNotSaid)
	case b.Builder != nil:
		r.notCompared("builder (A)", errNotSaid)
	}
}

// maxListed bounds lists whose entries are looked for in one another: of images that are
// loaded, and of entries of a variable. Real ones have some dozens.
const maxListed = 1000

// Why documents are not compared in everything.
var (
	errNotSaid   = errors.New("the measurements do not say what it was built with")
	errTooLong   = fmt.Errorf("a list has more than %d entries", maxListed)
	errNotListed = errors.New("not both measurements list them")
)

// change appends a value that differs.
func change(list *[]Change, name, a, b string) {
	if a != b {
		*list = append(*list, Change{name, bounded(a), bounded(b)})
	}
}

// commandLines compares what the kernel gets: what concerns dm-verity by itself, since
// it follows from the root file system. Documents of older versions do not say it.
func (r *Report) commandLines(a, b *measure.Document) {
	if a.CommandLine == "" || b.CommandLine == "" {
		return
	}
	x, y := words(a.CommandLine), words(b.CommandLine)
	for _, w := range compareWords(x, y) {
		if key, _, _ := strings.Cut(w.A+w.B, "="); key == "roothash" || key == "usrhash" || strings.HasPrefix(key, "systemd.verity_") {
			r.Verity = append(r.Verity, w)
			continue
		}
		r.CommandLine = append(r.CommandLine, w)
	}
}

// bootChain compares the images that firmware loads. The sections of the unified kernel
// image are those that PCR 11 records.
func (r *Report) bootChain(a, b *measure.Document) {
	change(&r.Other, "architecture", a.Architecture, b.Architecture)
	if len(a.BootChain) > maxListed || len(b.BootChain) > maxListed {
		r.notCompared("boot chain", errTooLong)
		return
	}
	sections := r.sections(a, b)
	unifiedA, unifiedB := unifiedImage(a), unifiedImage(b)
	var taken []int
	for i, x := range a.BootChain {
		at := slices.IndexFunc(b.BootChain, func(y measure.ImageInfo) bool { return strings.EqualFold(x.Path, y.Path) })
		if at < 0 || slices.Contains(taken, at) {
			r.Boot = append(r.Boot, BootFile{Path: bounded(x.Path), How: Removed, SizeA: x.Size})
			continue
		}
		taken = append(taken, at)
		y := b.BootChain[at]
		file := BootFile{Path: bounded(y.Path), How: Changed, SizeA: x.Size, SizeB: y.Size}
		if i == unifiedA && at == unifiedB {
			file.Sections, sections = sections, nil
		}
		digestA, digestB := authenticode(x, y)
		change(&file.Changes, "Authenticode digest", digestA, digestB)
		change(&file.Changes, stubVersion, stub(x), stub(y))
		// An Authenticode digest leaves signatures out.
		file.Signatures = digestA == digestB && digestA != "" && x.Size != y.Size
		if len(file.Changes)+len(file.Sections) > 0 || x.Size != y.Size {
			r.Boot = append(r.Boot, file)
		}
	}
	for i, y := range b.BootChain {
		if !slices.Contains(taken, i) {
			r.Boot = append(r.Boot, BootFile{Path: bounded(y.Path), How: Added, SizeB: y.Size})
		}
	}
	if len(taken) > 1 && !slices.IsSorted(taken) {
		r.Other = append(r.Other, Change{Name: "the boot chain is loaded in another order"})
	}
}

// unifiedImage is the place of the unified kernel image in a boot chain, -1 when there
// is none: the last image with a systemd-stub, since images inside of it have none.
func unifiedImage(d *measure.Document) int {
	for i, image := range slices.Backward(d.BootChain) {
		if image.StubVersion > 0 {
			return i
		}
	}
	return -1
}

// authenticode are the digests of two images by the same algorithm.
func authenticode(a, b measure.ImageInfo) (x, y string) {
	for _, bank := range []measure.Bank{measure.SHA384, measure.SHA256} {
		if a.Authenticode[bank] != "" && b.Authenticode[bank] != "" {
			return a.Authenticode[bank], b.Authenticode[bank]
		}
	}
	return "", ""
}

// stubVersion is what the version of systemd-stub is called in a report.
const stubVersion = "version of systemd-stub"

func stub(image measure.ImageInfo) string {
	if image.StubVersion == 0 {
		return ""
	}
	return strconv.Itoa(image.StubVersion)
}

// sections compares the sections that PCR 11 records.
func (r *Report) sections(a, b *measure.Document) []Section {
	var sections []Section
	if a.PCR(11) == "" || b.PCR(11) == "" || a.Measurements.HashAlgorithm != b.Measurements.HashAlgorithm {
		return nil
	}
	for _, e := range compareEvents(eventsOf(a, 11), eventsOf(b, 11), func(measure.EventInfo) string { return "" }) {
		name, _, _ := strings.Cut(e.What, " (")
		if !strings.HasPrefix(name, ".") {
			continue // the name of a section is an event, too
		}
		if len(sections) == maxEvents {
			break // the PCR counts the rest
		}
		s := Section{Name: name, How: e.How, SizeA: sectionSize(a, name), SizeB: sectionSize(b, name)}
		if name == ".cmdline" && e.How == Changed {
			if s.Lines = slices.Clone(r.CommandLine); len(s.Lines) == 0 && len(r.Verity) > 0 {
				s.Lines = []Change{{Name: identifiersOnly}}
			}
		}
		sections = append(sections, s)
	}
	return sections
}

// sectionSize is the size of a section in bytes, as its event says it; 0 when it does
// not.
func sectionSize(d *measure.Document, name string) int64 {
	for _, e := range eventsOf(d, 11) {
		text, ok := strings.CutPrefix(e.Description, name+" (")
		if !ok {
			continue
		}
		if size, err := strconv.ParseInt(strings.TrimSuffix(text, " bytes)"), 10, 64); err == nil && size > 0 {
			return size
		}
	}
	return 0
}

// secureBoot compares the state that was assumed, the variables, entry by entry, and
// the entries that let the images run.
func (r *Report) secureBoot(a, b *measure.Document) {
	list := &r.SecureBoot
	change(list, "enforced", yes(a.SecureBoot.Enabled), yes(b.SecureBoot.Enabled))
	for _, s := range []*measure.SecureBootInfo{&a.SecureBoot, &b.SecureBoot} {
		if len(s.Variables) > maxEvents || len(s.Authorities) > maxListed {
			r.notCompared("Secure Boot", errTooLong)
			return
		}
	}
	names := []string{}
	digests := [2]map[string]string{{}, {}}
	for i, d := range []*measure.Document{a, b} {
		for _, v := range d.SecureBoot.Variables {
			digests[i][v.Name] = v.SHA256
			if !slices.Contains(names, v.Name) {
				names = append(names, v.Name)
			}
		}
	}
	for _, name := range names {
		if digests[0][name] == digests[1][name] {
			continue
		}
		x, errA := variableEntries(a, name)
		y, errB := variableEntries(b, name)
		before := len(*list)
		if errA == nil && errB == nil {
			signatureEntries(list, name, x, y)
		}
		if len(*list) == before {
			change(list, name, digests[0][name], digests[1][name])
		}
	}
	signatureEntries(list, "authority", authorities(a), authorities(b))
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// signatureEntries lists the entries that only one of two lists has. The value is the entry's
// own digest.
func signatureEntries(list *[]Change, what string, a, b [][2]string) {
	for _, e := range a {
		if !slices.Contains(b, e) {
			*list = append(*list, Change{Name: what + ", " + e[0], A: e[1]})
		}
	}
	for _, e := range b {
		if !slices.Contains(a, e) {
			*list = append(*list, Change{Name: what + ", " + e[0], B: e[1]})
		}
	}
}

// variableEntries are the names and digests of the entries of a variable, which the
// event in PCR 7 has.
func variableEntries(d *measure.Document, name string) ([][2]string, error) {
	for _, e := range eventsOf(d, 7) {
		if e.Type != measure.EVEFIVariableDriverConfig.String() || e.Description != name {
			continue
		}
		raw, err := hex.DecodeString(e.Data)
		if err != nil {
			return nil, err
		}
		_, _, content, err := efi.ParseVariableData(raw)
		if err != nil {
			return nil, err
		}
		lists, err := efi.ParseSignatureLists(content)
		if err != nil {
			return nil, err
		}
		var found [][2]string
		for _, l := range lists {
			for _, s := range l.Signatures {
				if len(found) == maxListed {
					return nil, errTooLong
				}
				found = append(found, signatureEntry(l.Type, s.Data))
			}
		}
		return found, nil
	}
	return nil, nil
}

// signatureEntry is the name of an entry of a signature list, and its digest.
func signatureEntry(kind efi.GUID, data []byte) [2]string {
	if kind == efi.CertX509 {
		name := "certificate"
		if c, err := x509.ParseCertificate(data); err == nil {
			name = "certificate " + bounded(c.Subject.String())
		}
		sum := sha256.Sum256(data)
		return [2]string{name, hex.EncodeToString(sum[:])}
	}
	return [2]string{"digest", bounded(hex.EncodeToString(data))}
}

func authorities(d *measure.Document) [][2]string {
	found := make([][2]string, 0, len(d.SecureBoot.Authorities))
	for _, a := range d.SecureBoot.Authorities {
		name := a.Type
		if a.Subject != "" {
			name = "certificate " + a.Subject
		}
		found = append(found, [2]string{bounded(name), a.SHA256})
	}
	return found
}

// builders compares what two disks were built with, and from.
func (r *Report) builders(a, b *measure.BuilderInfo) {
	change(&r.Builder, "image", a.Image, b.Image)
	change(&r.Builder, "digest of the image", a.Digest, b.Digest)
	change(&r.Builder, "base", a.Base, b.Base)
	change(&r.Builder, "KIWI", a.KIWI, b.KIWI)
	packages := func(info *measure.BuilderInfo) []sbom.Package {
		list := make([]sbom.Package, len(info.Packages))
		for i, p := range info.Packages {
			list[i] = sbom.Package{Name: p.Name, Version: p.Version, Arch: p.Architecture}
		}
		return list
	}
	changes, _ := comparePackages(packages(a), packages(b))
	r.BuilderPackages = append(r.BuilderPackages, changes...)
	if len(changes) == 0 {
		change(&r.Builder, "list of its packages", a.PackagesSHA256, b.PackagesSHA256)
	}

	x, y := &a.Inputs, &b.Inputs
	epoch := func(seconds int64) string { return time.Unix(seconds, 0).UTC().Format(time.RFC3339) }
	change(&r.Inputs, "time", epoch(x.SourceDateEpoch), epoch(y.SourceDateEpoch))
	change(&r.Inputs, "description", x.DescriptionSHA256, y.DescriptionSHA256)
	change(&r.Inputs, "bound to a lock", yes(x.PackagesLocked), yes(y.PackagesLocked))
	change(&r.Inputs, "packages of the image", x.PackagesSHA256, y.PackagesSHA256)
	recipes := [2]measure.BuildRecipe{}
	for i, recipe := range []*measure.BuildRecipe{x.Recipe, y.Recipe} {
		if recipe != nil {
			recipes[i] = *recipe
		}
	}
	p, q := recipes[0], recipes[1]
	change(&r.Inputs, "template", p.Template, q.Template)
	change(&r.Inputs, "path of the description", p.Description, q.Description)
	change(&r.Inputs, "path of the overlay", p.Overlay, q.Overlay)
	change(&r.Inputs, "path of the lock", p.Lock, q.Lock)
	change(&r.Inputs, "name", p.Name, q.Name)
	change(&r.Inputs, "version", p.Version, q.Version)
	change(&r.Inputs, "with the attestation service", yes(p.Serve), yes(q.Serve))
	if x.DescriptionSHA256 == y.DescriptionSHA256 {
		return
	}
	if len(x.Files) == 0 || len(y.Files) == 0 {
		r.notCompared("files of the description", errNotListed)
		return
	}
	r.source(x.Files, y.Files)
}

// source compares the files of two descriptions, in the order of their paths.
func (r *Report) source(a, b []measure.SourceFile) {
	files := map[string][2]*measure.SourceFile{}
	var order []string
	for i, list := range [][]measure.SourceFile{a, b} {
		for j := range list {
			f := &list[j]
			sides, known := files[f.Path]
			if !known {
				order = append(order, f.Path)
			}
			sides[i] = f
			files[f.Path] = sides
		}
	}
	slices.Sort(order)
	for _, path := range order {
		x, y := files[path][0], files[path][1]
		f := File{Path: bounded(path), How: Changed}
		switch {
		case y == nil:
			f.How = Removed
		case x == nil:
			f.How = Added
		default:
			change(&f.Changes, "type", x.Kind, y.Kind)
			change(&f.Changes, "mode", x.Mode, y.Mode)
			change(&f.Changes, "content", x.SHA256, y.SHA256)
			change(&f.Changes, "target", x.Target, y.Target)
			if len(f.Changes) == 0 {
				continue
			}
		}
		r.Source = append(r.Source, f)
	}
}
