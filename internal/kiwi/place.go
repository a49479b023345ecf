package kiwi

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/org/attestable-image-action/internal/lazyregexp"
	"github.com/org/attestable-image-action/internal/untrusted"
)

// Place is where something stands in a description.
type Place struct {
	File string // relative to the description, with slashes
	Line int    // from 1; 0 when the file as a whole is meant
}

// Places knows where the elements of a description stand. It names a place only where
// there is exactly one: whoever follows it shall not look in vain.
type Places struct {
	description fs.FS
	file        string // that KIWI reads
	elements    []placedElement
}

// placedElement is an element of the description.
type placedElement struct {
	name       string
	path       string // of names, as "image/packages/package"
	attributes map[string]string
	line       int
	tag        []byte // its start tag as it stands there
}

// Bounds of the elements that are looked at, and of the names in a path: no element that
// this package asks for lies deeper.
const (
	maxElements = 100_000
	maxNamed    = 6
)

// ReadPlaces reads a description. What is no XML is an error, of which PlaceOfError may
// know the place.
func ReadPlaces(description fs.FS) (*Places, error) {
	name, err := configFile(description)
	if err != nil {
		return nil, err
	}
	config, err := untrusted.ReadFile(description, name, maxConfigBytes)
	if err != nil {
		return nil, err
	}
	p := &Places{description: description, file: name}
	decoder := xml.NewDecoder(bytes.NewReader(config))
	var open []string
	counted, line := int64(0), 1
	for {
		start := decoder.InputOffset()
		token, err := decoder.RawToken()
		if token == nil || err != nil {
			break // up to a mistake, as far as it goes
		}
		switch token := token.(type) {
		case xml.StartElement:
			if len(p.elements) == maxElements {
				return nil, fmt.Errorf("%s has more than %d elements", name, maxElements)
			}
			line += bytes.Count(config[counted:start], []byte("\n"))
			counted = start
			open = append(open, token.Name.Local)
			e := placedElement{
				name: token.Name.Local, path: strings.Join(open[:min(len(open), maxNamed)], "/"), attributes: map[string]string{}, line: line,
				tag: config[start:decoder.InputOffset()],
			}
			for _, a := range token.Attr {
				e.attributes[a.Name.Local] = a.Value
			}
			p.elements = append(p.elements, e)
		case xml.EndElement:
			if len(open) > 0 {
				open = open[:len(open)-1]
			}
		}
	}
	return p, nil
}

// only returns the place of the one element that fits.
func (p *Places) only(fits func(e *placedElement) bool) (Place, bool) {
	var found *placedElement
	for i := range p.elements {
		if e := &p.elements[i]; fits(e) {
			if found != nil {
				return Place{}, false
			}
			found = e
		}
	}
	if found == nil {
		return Place{}, false
	}
	return Place{p.file, found.line}, true
}

// Package is where a package is listed that is to be installed.
func (p *Places) Package(name string) (Place, bool) {
	return p.only(func(e *placedElement) bool {
		return e.path == "image/packages/package" && e.attributes["name"] == name && appliesHere(e.attributes["arch"])
	})
}

// appliesHere reports whether an attribute arch leaves out this machine's architecture.
func appliesHere(list string) bool {
	if list == "" {
		return true
	}
	for arch := range strings.SplitSeq(list, ",") {
		if strings.TrimSpace(arch) == Architecture() {
			return true
		}
	}
	return false
}

// User is where an account is made that is given a password.
func (p *Places) User(name string) (Place, bool) {
	return p.only(func(e *placedElement) bool {
		_, given := e.attributes["password"]
		return e.path == "image/users/user" && e.attributes["name"] == name && given
	})
}

var commandLineAttribute = lazyregexp.New(`\bkernelcmdline\s*=\s*("[^"]*"|'[^']*')`)

// KernelOption is where a word of the kernel command line stands, or where the command
// line begins that lacks it.
func (p *Places) KernelOption(word string) (Place, bool) {
	var found Place
	lines, attributes := 0, 0
	for i := range p.elements {
		e := &p.elements[i]
		at := commandLineAttribute().FindSubmatchIndex(e.tag)
		if e.path != "image/preferences/type" || at == nil {
			continue
		}
		attributes++
		if lines == 0 {
			found = Place{p.file, e.line + bytes.Count(e.tag[:at[0]], []byte("\n"))}
		}
		for n, text := range bytes.Split(e.tag[at[2]+1:at[3]-1], []byte("\n")) {
			for field := range bytes.FieldsSeq(text) {
				if string(field) == word {
					lines++
					found = Place{p.file, e.line + bytes.Count(e.tag[:at[2]], []byte("\n")) + n}
				}
			}
		}
	}
	return found, lines == 1 || lines == 0 && attributes == 1
}

// RootFile is the file of root/ that becomes a file of the image. name is relative to
// the image's root.
func (p *Places) RootFile(name string) (Place, bool) {
	file := path.Join(path.Dir(p.file), "root", name)
	if !fs.ValidPath(file) {
		return Place{}, false
	}
	info, err := fs.Stat(p.description, file)
	return Place{File: file}, err == nil && info.Mode().IsRegular()
}

// What a failed build is told with: apt and zypper, KIWI's schema in libxml2's words,
// and bash.
var (
	missingPackage = lazyregexp.New(`(?:Unable to locate package|No match for argument:|Package '?|Couldn't find any package by (?:glob|regex) ') ?([A-Za-z0-9][A-Za-z0-9.+_-]*)`)
	scriptFailed   = lazyregexp.New(`\b((?:config|images|disk|post_bootstrap|config-overlay|config-host-overlay|edit_boot_install|edit_boot_config)\.sh)\b`)
	scriptLine     = lazyregexp.New(`\b([a-z_-]+\.sh): line ([0-9]{1,6}): `)
	wrongAttribute = lazyregexp.New(`Invalid attribute ([A-Za-z_]+) for element ([A-Za-z_]+)`)
	wrongElement   = lazyregexp.New(`(?:Did not expect element ([A-Za-z_]+) there|has extra content: ([A-Za-z_]+)|Element ([A-Za-z_]+) failed to validate)`)
)

// Reason is where the cause of a failed build stands, by the reason that KIWI's log
// gives.
func (p *Places) Reason(reason string) (Place, bool) {
	for _, m := range missingPackage().FindAllStringSubmatch(reason, -1) {
		if at, ok := p.Package(m[1]); ok {
			return at, true
		}
	}
	if strings.Contains(reason, "does not follow KIWI's schema") {
		return p.schemaError(reason)
	}
	if m := scriptFailed().FindStringSubmatch(reason); m != nil {
		file := path.Join(path.Dir(p.file), m[1])
		if info, err := fs.Stat(p.description, file); err != nil || !info.Mode().IsRegular() {
			return Place{}, false
		}
		at := Place{File: file}
		if m := scriptLine().FindStringSubmatch(reason); m != nil && path.Base(file) == m[1] {
			at.Line, _ = strconv.Atoi(m[2])
		}
		return at, true
	}
	return Place{}, false
}

func (p *Places) schemaError(reason string) (Place, bool) {
	for _, m := range wrongAttribute().FindAllStringSubmatch(reason, -1) {
		at, ok := p.only(func(e *placedElement) bool {
			_, has := e.attributes[m[1]]
			return e.name == m[2] && has
		})
		if ok {
			return at, true
		}
	}
	for _, m := range wrongElement().FindAllStringSubmatch(reason, -1) {
		if at, ok := p.only(func(e *placedElement) bool { return e.name == m[1]+m[2]+m[3] }); ok {
			return at, true
		}
	}
	return Place{p.file, 0}, true
}

// PlaceOfError is where the cause of Build's error stands in the description.
func PlaceOfError(description fs.FS, err error) (Place, bool) {
	var log *LogError
	var syntax *xml.SyntaxError
	switch {
	case errors.As(err, &syntax):
		if name, err := configFile(description); err == nil {
			return Place{name, syntax.Line}, true
		}
	case errors.As(err, &log):
		if p, err := ReadPlaces(description); err == nil {
			return p.Reason(log.Reason)
		}
	}
	return Place{}, false
}
