package kiwi

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path"
	"strings"

	"github.com/org/attestable-image-action/internal/lazyregexp"
	"github.com/org/attestable-image-action/internal/untrusted"
)

var (
	validName     = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,126}$`)
	validVersion  = lazyregexp.New(`^[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}$`)
	validSuite    = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,126}$`)
	nameAttribute = lazyregexp.New(`(\sname\s*=\s*)("[^"]*"|'[^']*')`)
)

const (
	maxSources = 32
	// localRepository is where the container sees directories with packages.
	localRepository = "/run/attestable-image/repositories"
)

// ValidateName tells whether name can be an image's: KIWI makes file names of it.
func ValidateName(name string) error {
	if !validName().MatchString(name) {
		return fmt.Errorf("%q cannot be an image's name: use letters, digits, '.', '_' and '-', a letter or digit first", name)
	}
	return nil
}

// ValidateVersion tells whether version can be an image's: major.minor.patch.
func ValidateVersion(version string) error {
	if !validVersion().MatchString(version) {
		return fmt.Errorf("%q cannot be an image's version: write major.minor.patch, as in 1.2.3", version)
	}
	return nil
}

// PackageSource is a package repository that stands in for a description's. What it
// is a repository of, Debian's packages or rpm's, follows from the description.
type PackageSource struct {
	URI        string   // http, https or ftp; or file, for a directory of this machine
	Suite      string   // of Debian's; "" is that of the description's first remote repository
	Components []string // of Debian's; none are those of it
}

// local returns the directory of a source on this machine, "" for a remote one.
func (s PackageSource) local() string {
	if rest, ok := strings.CutPrefix(s.URI, "file://"); ok {
		return rest
	}
	return ""
}

// ParsePackageSources reads package sources, one a line: URI [SUITE [COMPONENT…]].
func ParsePackageSources(text string) ([]PackageSource, error) {
	var sources []PackageSource
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if len(sources) == maxSources {
			return nil, fmt.Errorf("there are more than %d package sources", maxSources)
		}
		source := PackageSource{URI: fields[0]}
		if strings.HasPrefix(source.URI, "/") {
			source.URI = "file://" + source.URI
		}
		u, err := url.Parse(source.URI)
		switch {
		case err != nil:
			return nil, fmt.Errorf("package source %q is no URI: %w", fields[0], err)
		case u.Scheme == "file" && path.IsAbs(u.Path) && u.Host == "":
			source.URI = "file://" + path.Clean(u.Path)
		case (u.Scheme == "http" || u.Scheme == "https" || u.Scheme == "ftp") && u.Host != "":
		default:
			return nil, fmt.Errorf("package source %q is neither an http, https or ftp URI nor an absolute path: write it as in http://deb.debian.org/debian", fields[0])
		}
		if len(fields) > 1 {
			source.Suite, source.Components = fields[1], fields[2:]
		}
		for _, word := range fields[1:] {
			if !validSuite().MatchString(word) {
				return nil, fmt.Errorf("package source %q: %q cannot be a suite or a component", fields[0], word)
			}
		}
		sources = append(sources, source)
	}
	return sources, nil
}

// element is where an XML element stands in a file: bytes [start, end).
type element struct{ start, end int64 }

// repository is a package repository of a description.
type repository struct {
	element
	XMLName    xml.Name   `xml:"repository"`
	Attributes []xml.Attr `xml:",any,attr"`
	Source     struct {
		Path string `xml:"path,attr"`
		Keys []struct {
			Key string `xml:"key,attr"`
		} `xml:"signing"`
	} `xml:"source"`
}

// attribute is the value of an attribute, "" when there is none.
func (r repository) attribute(name string) string {
	for _, a := range r.Attributes {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

// remote reports whether a repository lies on another machine.
func (r repository) remote() bool {
	for _, scheme := range []string{"http:", "https:", "ftp:", "obs:", "obsrepositories:"} {
		if strings.HasPrefix(r.Source.Path, scheme) {
			return true
		}
	}
	return false
}

// outline is what this package knows of a description.
type outline struct {
	imageTag       element // the start tag of <image>
	version        element // the text of the first <version> in <preferences>
	packageManager string  // the first in <preferences>, "" for none
	packages       int64   // where the first <packages> begins, 0 for none
	repositories   []repository
}

// outline reads what this package knows of the description.
func (o *Options) outline() (*outline, error) {
	name, err := configFile(o.Description)
	if err != nil {
		return nil, err
	}
	config, err := untrusted.ReadFile(o.Description, name, maxConfigBytes)
	if err != nil {
		return nil, err
	}
	return readOutline(config)
}

// model is the repository that package sources take after: the first remote one.
func (o *outline) model() *repository {
	for i, r := range o.repositories {
		if r.remote() {
			return &o.repositories[i]
		}
	}
	return nil
}

// debian reports whether a repository of the description has Debian's packages.
func (o *outline) debian(r *repository) bool {
	kind := r.attribute("type")
	return kind == "apt-deb" || kind == "" && o.packageManager == "apt"
}

// readOutline reads a description in KIWI's XML form.
func readOutline(config []byte) (*outline, error) {
	decoder := xml.NewDecoder(bytes.NewReader(config))
	var o outline
	var open []string
	for {
		start := decoder.InputOffset()
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("it is not XML: %w", err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			open = append(open, token.Name.Local)
			switch strings.Join(open, "/") {
			case "image":
				o.imageTag = element{start, decoder.InputOffset()}
			case "image/preferences/version":
				var text string
				begin := decoder.InputOffset()
				if err := decoder.DecodeElement(&text, &token); err != nil {
					return nil, fmt.Errorf("it is not XML: %w", err)
				}
				end := decoder.InputOffset() - int64(len("</version>"))
				if o.version.end == 0 && end >= begin && string(config[begin:end]) == text {
					o.version = element{begin, end}
				}
				open = open[:len(open)-1]
			case "image/preferences/packagemanager":
				var text string
				if err := decoder.DecodeElement(&text, &token); err != nil {
					return nil, fmt.Errorf("it is not XML: %w", err)
				}
				if o.packageManager == "" {
					o.packageManager = strings.TrimSpace(text)
				}
				open = open[:len(open)-1]
			case "image/packages":
				if o.packages == 0 {
					o.packages = start
				}
			case "image/repository":
				var r repository
				if err := decoder.DecodeElement(&r, &token); err != nil {
					return nil, fmt.Errorf("it is not XML: %w", err)
				}
				r.element = element{start, decoder.InputOffset()}
				o.repositories = append(o.repositories, r)
				open = open[:len(open)-1]
			}
			if len(open) > 64 {
				return nil, errors.New("its elements are nested deeper than 64")
			}
		case xml.EndElement:
			open = open[:len(open)-1]
		}
	}
	if o.imageTag.end == 0 {
		return nil, errors.New("it has no <image> element")
	}
	return &o, nil
}

// edit returns a description with the name and version that were asked for in place
// of its own, and with these package sources, if there are any.
func (o *Options) edit(config []byte, sources []PackageSource) ([]byte, error) {
	outline, err := readOutline(config)
	if err != nil {
		return nil, err
	}
	type edit struct {
		element
		text []byte
	}
	var edits []edit // in the order of the file
	if o.Name != "" {
		tag := config[outline.imageTag.start:outline.imageTag.end]
		if !nameAttribute().Match(tag) {
			return nil, errors.New("its <image> element has no name to replace")
		}
		edits = append(edits, edit{outline.imageTag, nameAttribute().ReplaceAll(tag, []byte(`${1}"`+o.Name+`"`))})
	}
	if o.Version != "" {
		if outline.version.end == 0 {
			return nil, errors.New("it has no <version> in <preferences> to replace")
		}
		edits = append(edits, edit{outline.version, []byte(o.Version)})
	}
	if len(sources) > 0 {
		text, place, err := outline.replaceRepositories(sources)
		if err != nil {
			return nil, err
		}
		edits = append(edits, edit{place, text})
		for _, r := range outline.repositories {
			if r.remote() && r.element != place {
				edits = append(edits, edit{element: r.element})
			}
		}
	}
	// An element's place in the file does not follow from its kind.
	for len(edits) > 0 {
		last := 0
		for i, e := range edits {
			if e.start > edits[last].start {
				last = i
			}
		}
		e := edits[last]
		edits = append(edits[:last], edits[last+1:]...)
		config = append(config[:e.start:e.start], append(bytes.Clone(e.text), config[e.end:]...)...)
	}
	return config, nil
}

// replaceRepositories returns the repositories that stand in for the remote ones
// of a description, and the place where they go.
func (o *outline) replaceRepositories(sources []PackageSource) ([]byte, element, error) {
	model := o.model()
	if model == nil {
		return nil, element{}, errors.New("it has no remote repository that a package source could stand in for: leave the package source out")
	}
	debian := o.debian(model)
	var text bytes.Buffer
	for i, source := range sources {
		attributes := map[string]string{}
		var order []string
		set := func(name, value string) {
			if _, ok := attributes[name]; !ok {
				order = append(order, name)
			}
			attributes[name] = value
		}
		if !debian && source.Suite != "" {
			return nil, element{}, fmt.Errorf("its repositories are of rpm packages, which have no suites: write the package source %s without %q", source.URI, source.Suite)
		}
		for _, a := range model.Attributes {
			switch a.Name.Local {
			case "arch": // a source that is named is for the image that is built
			case "sourcetype":
				// A list of mirrors stands in for one, and packages for themselves.
				if path.Base(source.URI) == path.Base(model.Source.Path) {
					set(a.Name.Local, a.Value)
				}
			default:
				set(a.Name.Local, a.Value)
			}
		}
		set("alias", fmt.Sprintf("package-source-%d", i+1))
		location := source.URI
		if source.local() != "" {
			// Whoever names a directory of the machine trusts what is in it.
			location = fmt.Sprintf("dir://%s/%d", localRepository, i)
			set("repository_gpgcheck", "false")
			if !debian {
				set("package_gpgcheck", "false")
			}
		}
		if source.Suite != "" {
			set("distribution", source.Suite)
		}
		if len(source.Components) > 0 {
			set("components", strings.Join(source.Components, " "))
		}
		text.WriteString("<repository")
		for _, name := range order {
			fmt.Fprintf(&text, " %s=%s", name, quote(attributes[name]))
		}
		fmt.Fprintf(&text, "><source path=%s>", quote(location))
		for _, key := range model.Source.Keys {
			fmt.Fprintf(&text, "<signing key=%s/>", quote(key.Key))
		}
		text.WriteString("</source></repository>\n    ")
	}
	return bytes.TrimRight(text.Bytes(), " \n"), model.element, nil
}

// quote writes an XML attribute's value.
func quote(value string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(value)) // a buffer takes everything
	return `"` + b.String() + `"`
}
