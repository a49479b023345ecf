package artifact

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/org/attestable-image-action/internal/lazyregexp"
)

// layoutPrefix marks a reference to an OCI layout directory.
const layoutPrefix = "oci:"

var (
	// tagPattern is the grammar of a tag: distribution-spec 1.1, "Pulling
	// manifests".
	tagPattern = lazyregexp.New(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	// pathPattern is the grammar of a repository's name, from the same section.
	pathPattern   = lazyregexp.New(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	hostPattern   = lazyregexp.New(`^(\[[0-9a-fA-F:.]+\]|[a-zA-Z0-9.-]+)(:[0-9]{1,5})?$`)
	digestPattern = lazyregexp.New(`^sha256:[0-9a-f]{64}$`)
)

// Reference names an artifact, or the place for one: HOST/REPOSITORY or
// oci:DIR, each with an optional :TAG or @DIGEST. When a digest is given the
// tag beside it does not count.
type Reference struct {
	Digest v1.Hash // zero when the reference has none
	Tag    string  // "" when the reference has none, or a digest

	repository name.Repository // of a registry; zero for a layout
	layout     string          // directory of an OCI layout; "" for a registry
}

// ParseReference parses a reference.
func ParseReference(s string) (Reference, error) {
	r, err := parseReference(s)
	if err != nil {
		return Reference{}, fmt.Errorf("parse reference %q: %w", s, err)
	}
	return r, nil
}

func parseReference(s string) (Reference, error) {
	var r Reference
	if i := strings.IndexFunc(s, func(c rune) bool { return c < ' ' || c == 0x7f }); i >= 0 {
		return r, errors.New("it has a control character in it")
	}
	if strings.Contains(s, "://") {
		return r, errors.New("a reference has no scheme: write HOST/REPOSITORY, or oci:DIR for a layout")
	}
	rest := s
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		if text := rest[i+1:]; digestPattern().MatchString(text) {
			r.Digest = v1.Hash{Algorithm: "sha256", Hex: strings.TrimPrefix(text, "sha256:")}
			rest = rest[:i]
		} else if !strings.HasPrefix(s, layoutPrefix) || strings.HasPrefix(text, "sha256:") {
			return r, fmt.Errorf("%q is no digest: it must be sha256: and 64 lower-case hexadecimal digits", text)
		}
	}
	dir, isLayout := strings.CutPrefix(rest, layoutPrefix)
	// What follows the last colon is a tag, unless a slash does: then the colon
	// belongs to a port, or to a directory's name.
	head, tag := dir, ""
	if i := strings.LastIndexByte(dir, ':'); i > strings.LastIndexByte(dir, '/') {
		head, tag = dir[:i], dir[i+1:]
		if !tagPattern().MatchString(tag) {
			return r, fmt.Errorf("%q is no tag: %s", tag, tagRule)
		}
	}
	if r.Digest == (v1.Hash{}) {
		r.Tag = tag
	}
	if isLayout {
		if head == "" {
			return r, errors.New("it names no directory: write oci:DIR")
		}
		r.layout = filepath.Clean(head)
		return r, nil
	}
	host, path, ok := strings.Cut(head, "/")
	if !ok || path == "" || host != "localhost" && !strings.ContainsAny(host, ".:") {
		return r, errors.New("it names no registry: write HOST/REPOSITORY, such as ghcr.io/owner/image, or oci:DIR for a layout")
	}
	if lower := strings.ToLower(path); lower != path {
		return r, fmt.Errorf("a repository has no capital letters: write %s/%s", host, lower)
	}
	if !pathPattern().MatchString(path) {
		return r, fmt.Errorf("%q is no name of a repository: it has lower-case letters and digits, with dots, dashes and underscores between them, and slashes", path)
	}
	if !hostPattern().MatchString(host) {
		return r, fmt.Errorf("%q is no host of a registry", host)
	}
	repository, err := name.NewRepository(head, name.StrictValidation)
	if err != nil {
		return r, fmt.Errorf("%s is no repository of a registry: %w", head, err)
	}
	r.repository = repository
	return r, nil
}

const tagRule = "a tag has at most 128 letters, digits, dots, dashes and underscores, and does not begin with a dot or a dash"

// ParseTags splits a list of tags at commas and white space, checks each, and
// leaves out repetitions.
func ParseTags(list string) ([]string, error) {
	var tags []string
	seen := map[string]bool{}
	for _, tag := range strings.FieldsFunc(list, func(c rune) bool { return c == ',' || c == '\n' || c == '\r' || c == ' ' || c == '\t' }) {
		if !tagPattern().MatchString(tag) {
			return nil, fmt.Errorf("%q is no tag: %s", tag, tagRule)
		}
		if !seen[tag] {
			seen[tag] = true
			tags = append(tags, tag)
		}
	}
	return tags, nil
}

// String is the reference as ParseReference takes it.
func (r Reference) String() string {
	switch {
	case r.HasDigest():
		return r.Place() + "@" + r.Digest.String()
	case r.Tag != "":
		return r.Place() + ":" + r.Tag
	}
	return r.Place()
}

// Place is the reference without tag and digest: HOST/REPOSITORY or oci:DIR.
func (r Reference) Place() string {
	if r.IsLayout() {
		if strings.Contains(filepath.Base(r.layout), ":") {
			return layoutPrefix + r.layout + "/" // or the colon would begin a tag
		}
		return layoutPrefix + r.layout
	}
	return r.repository.Name()
}

// IsLayout tells whether the reference names an OCI layout directory.
func (r Reference) IsLayout() bool { return r.layout != "" }

// HasDigest tells whether the reference names one artifact and no other.
func (r Reference) HasDigest() bool { return r.Digest != (v1.Hash{}) }

// Host is the registry's host, with its port; "" for a layout.
func (r Reference) Host() string {
	if r.IsLayout() {
		return ""
	}
	return r.repository.RegistryStr()
}

// WithDigest is the same place with a digest instead of what was there.
func (r Reference) WithDigest(digest v1.Hash) Reference {
	r.Digest, r.Tag = digest, ""
	return r
}

// withTag is the same place with a tag instead of what was there.
func (r Reference) withTag(tag string) Reference {
	r.Digest, r.Tag = v1.Hash{}, tag
	return r
}

// isLoopback tells whether a host, with or without a port, is this machine.
func isLoopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
