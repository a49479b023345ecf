package sbom

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/org/attestable-image-action/internal/lazyregexp"
)

const (
	docDir = "usr/share/doc"
	// maxCopyright bounds a copyright file, in bytes; the longest of Debian have 3 MiB.
	maxCopyright = 8 << 20
)

// copyrightFormat is what a machine-readable copyright file begins with.
var copyrightFormat = lazyregexp.New(`^https?://(www\.)?debian\.org/doc/packaging-manuals/copyright-format/1\.0/?$`)

// debLicense reads the licence of a Debian package. That it cannot be told is no
// error; that the disk cannot be read is one.
func debLicense(root fs.FS, name string, texts *textBudget) (License, error) {
	file := path.Join(docDir, name, "copyright")
	if texts.files <= 0 {
		return License{Comment: fmt.Sprintf("/%s was not read: the image's copyright files have more than %d bytes.", file, maxCopyrights)}, nil
	}
	content, _, err := readFile(root, file, maxCopyright)
	texts.files -= int64(len(content))
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR):
		return License{Comment: "The image has no /" + file + "."}, nil
	case err != nil:
		return License{}, err
	}
	l, err := parseCopyright(string(content), texts)
	if err != nil {
		return License{Comment: oneLine(fmt.Sprintf("/%s is no machine-readable copyright file (copyright format 1.0): %v.", file, err), 300)}, nil
	}
	l.Comment = "What /" + file + " says of the source package as a whole, or else of its files taken together."
	return l, nil
}

// parseCopyright reads a machine-readable copyright file (copyright format 1.0).
// Its licence is the header's, which speaks of the package as a whole; without that,
// those of all its files, each of which is to be kept.
func parseCopyright(content string, texts *textBudget) (License, error) {
	if !utf8.ValidString(content) {
		return License{}, errNotUTF8
	}
	var header paragraph
	var synopses []string // of the files, in their order
	licenses := map[string]string{}
	for p, err := range control(content, true) {
		if err != nil {
			return License{}, err
		}
		license, has := p["license"]
		if header == nil {
			if header = p; !copyrightFormat().MatchString(p.first("format")) {
				return License{}, errors.New("it does not begin with the Format of one")
			}
		}
		if !has {
			continue
		}
		synopsis, text, _ := strings.Cut(license, "\n")
		synopsis = strings.Join(strings.Fields(synopsis), " ")
		if text = licenseText(text); licenses[synopsis] == "" {
			licenses[synopsis] = text
		}
		if _, files := p["files"]; files {
			synopses = append(synopses, synopsis)
		}
	}
	if license, has := header["license"]; has {
		whole, _, _ := strings.Cut(license, "\n")
		synopses = []string{strings.Join(strings.Fields(whole), " ")}
	}
	e := debExpression{licenses: licenses, texts: texts, refs: map[string]LicenseRef{}, known: map[string]string{}}
	var terms []term
	seen := map[string]bool{}
	for _, s := range synopses {
		if seen[s] {
			continue
		}
		seen[s] = true
		t, err := e.synopsis(s)
		if err != nil {
			return License{}, err
		}
		terms = append(terms, t)
	}
	if len(terms) == 0 {
		return License{}, errors.New("it names no licence")
	}
	return License{Expression: join("AND", terms).String(), Refs: sortedRefs(e.refs)}, nil
}

// licenseText takes the marks of a control file from a text: the space before each
// line, and the dot on a blank one.
func licenseText(value string) string {
	var b strings.Builder
	for line := range strings.SplitSeq(value, "\n") {
		if len(line) > 0 {
			line = line[1:]
		}
		if strings.TrimSpace(line) == "." {
			line = ""
		}
		b.WriteString(strings.TrimRight(line, " \t") + "\n")
	}
	return strings.Trim(b.String(), "\n")
}

// debExpression turns the short names of a copyright file into an expression.
type debExpression struct {
	licenses map[string]string // texts by the synopses that they stand under
	texts    *textBudget
	refs     map[string]LicenseRef
	known    map[string]string // identifiers by short names
	names    int
}

// synopsis reads "A or B and C, and D": "and" binds before "or", and both before
// those with a comma (copyright format 1.0, "License synopsis").
func (e *debExpression) synopsis(text string) (term, error) {
	if text == "" {
		return term{}, errors.New("it has a licence without a name")
	}
	parts, operators := splitOperators(text, true)
	if len(operators) == 0 {
		return e.alternatives(text)
	}
	terms := make([]term, 0, len(parts))
	for _, part := range parts {
		t, err := e.alternatives(part)
		if err != nil {
			return term{}, err
		}
		terms = append(terms, t)
	}
	return precedence(terms, operators), nil
}

func (e *debExpression) alternatives(text string) (term, error) {
	parts, operators := splitOperators(text, false)
	terms := make([]term, 0, len(parts))
	for _, part := range parts {
		t, err := e.name(part)
		if err != nil {
			return term{}, err
		}
		terms = append(terms, t)
	}
	return precedence(terms, operators), nil
}

// precedence joins terms, "and" first. There is one operator less than terms.
func precedence(terms []term, operators []string) term {
	var alternatives []term
	first := 0
	for i, operator := range append(operators, "or") {
		if operator == "or" {
			alternatives = append(alternatives, join("AND", terms[first:i+1]))
			first = i + 1
		}
	}
	return join("OR", alternatives)
}

// splitOperators splits at the words "and" and "or": at those with a comma before
// them, or at the others.
func splitOperators(text string, comma bool) (parts, operators []string) {
	var part []string
	words := strings.Fields(text)
	for i, w := range words {
		operator := strings.ToLower(w)
		behindComma := i > 0 && strings.HasSuffix(words[i-1], ",")
		if (operator == "and" || operator == "or") && behindComma == comma && i > 0 && i < len(words)-1 {
			parts, operators = append(parts, strings.Join(part, " ")), append(operators, operator)
			part = nil
			continue
		}
		part = append(part, w)
	}
	parts = append(parts, strings.Join(part, " "))
	for i := range parts {
		if comma {
			parts[i] = strings.TrimSuffix(parts[i], ",")
		}
	}
	return parts, operators
}

// name is one licence, perhaps with an exception.
func (e *debExpression) name(name string) (term, error) {
	if e.names++; e.names > maxLicenseNames {
		return term{}, fmt.Errorf("it names more than %d licences", maxLicenseNames)
	}
	if name == "" {
		return term{}, errors.New("it has a licence without a name")
	}
	if len(name) > maxLicenseName {
		return term{}, fmt.Errorf("it has a name of a licence of %d bytes", len(name))
	}
	id, ok := e.known[name]
	if !ok {
		if id, ok = debLicenseID(name); !ok {
			ref := newLicenseRef(name, e.licenses[name], e.texts)
			id, e.refs[ref.ID] = ref.ID, ref
		}
		e.known[name] = id
	}
	return one(id), nil
}

// debShortNames are the short names of copyright format 1.0 that SPDX calls
// otherwise. Left out is what does not say which licence it is: "Artistic", "GPL"
// and the like without a version, "MIT-like", "public-domain".
var debShortNames = map[string]string{
	"expat": "MIT", "cc0": "CC0-1.0", "apache-2": "Apache-2.0", "artistic-2": "Artistic-2.0", "bsl-1": "BSL-1.0", "mpl-2": "MPL-2.0",
}

// debExceptions are exceptions whose names say which one SPDX has.
var debExceptions = map[string]string{
	"font": "Font-exception-2.0", "linux-syscall-note": "Linux-syscall-note", "bison-2.2": "Bison-exception-2.2",
	"classpath-2.0": "Classpath-exception-2.0", "gcc-3.1": "GCC-exception-3.1",
}

// gnuShortName is a licence of GNU with a version, with "+" for later ones.
var gnuShortName = lazyregexp.New(`(?i)^(GPL|LGPL|AGPL|GFDL|GFDL-NIV)-([0-9](?:\.[0-9])?)(\+?)$`)

// debLicenseID is SPDX's name of a licence by its short name, when there is one
// that is sure to be the same.
func debLicenseID(name string) (string, bool) {
	if license, exception, with := cutWith(name); with {
		id, ok := debLicenseID(license)
		if !ok {
			return "", false
		}
		known, ok := debExceptions[strings.ToLower(exception)]
		if !ok {
			return "", false
		}
		return id + " WITH " + known, true
	}
	if strings.Contains(name, " ") {
		return "", false
	}
	if id, ok := debShortNames[strings.ToLower(name)]; ok {
		return id, true
	}
	if m := gnuShortName().FindStringSubmatch(name); m != nil {
		return gnuID(strings.ToUpper(m[1]), m[2], m[3] != "")
	}
	return listed(name)
}

// cutWith cuts "GPL-2+ with Font exception".
func cutWith(name string) (license, exception string, ok bool) {
	words := strings.Fields(name)
	if len(words) < 3 || !strings.EqualFold(words[1], "with") {
		return "", "", false
	}
	rest := words[2:]
	if strings.EqualFold(rest[len(rest)-1], "exception") {
		rest = rest[:len(rest)-1]
	}
	return words[0], strings.Join(rest, " "), true
}

// gnuID is SPDX's name of a licence of GNU.
func gnuID(family, version string, later bool) (string, bool) {
	if !strings.Contains(version, ".") {
		version += ".0"
	}
	suffix := "-only"
	if later {
		suffix = "-or-later"
	}
	if base, ok := strings.CutSuffix(family, "-NIV"); ok {
		family, version = base, version+"-no-invariants"
	}
	return listed(family + "-" + version + suffix)
}
