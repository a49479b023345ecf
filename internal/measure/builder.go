package measure

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/org/attestable-image-action/internal/lazyregexp"
	"github.com/org/attestable-image-action/internal/strictjson"
)

// BuilderInfo says which tools built the disk, and what from, so that somebody can
// build it again. The PCRs do not depend on it: it is the word of who built.
type BuilderInfo struct {
	Image  string // container image, as it was named
	Digest string `json:",omitempty"` // of the container image, in a registry: "sha256:" and lower-case hex
	Base   string `json:",omitempty"` // container image that it was made on, where that is known
	KIWI   string // version of KIWI NG

	PackagesSHA256 string           // of Packages, as lines "NAME VERSION ARCHITECTURE"
	Packages       []BuilderPackage // installed in the container image

	Inputs BuildInputs
}

// BuilderPackage is a package of the builder.
type BuilderPackage struct{ Name, Version, Architecture string }

// BuildInputs are what a disk was built from.
type BuildInputs struct {
	SourceDateEpoch   int64  // time of the image, in seconds since 1970
	DescriptionSHA256 string // of the KIWI description with everything that was put into it
	PackagesLocked    bool   // whether the build was bound to a lock
	PackagesSHA256    string `json:",omitempty"` // of packages.lock, the image's packages

	Recipe *BuildRecipe `json:",omitempty"` // absent when it is not known
	Files  []SourceFile `json:",omitempty"` // of the description; absent when it has too many to list
}

// BuildRecipe says what to build again, from a checkout of the source. Paths are
// relative to its top, with slashes, and never lead out of it.
type BuildRecipe struct {
	Template    string `json:",omitempty"` // that comes with attestable-image; or
	Description string `json:",omitempty"` // path of the description
	Overlay     string `json:",omitempty"` // path of the overlay
	Lock        string `json:",omitempty"` // path of the lock, where it is not the description's own
	Name        string `json:",omitempty"` // that was asked for
	Version     string `json:",omitempty"` // that was asked for
	Serve       bool   `json:",omitempty"` // the attestation service was put into the image
}

// SourceFile is an entry of the description as KIWI read it.
type SourceFile struct {
	Path   string // relative to the description, with slashes
	Kind   string // file, directory or link
	Mode   string `json:",omitempty"` // permissions in octal; a link has none
	SHA256 string `json:",omitempty"` // of a file
	Target string `json:",omitempty"` // of a link
}

// maxSourceFiles bounds the files that are listed.
const maxSourceFiles = 2000

// year9999 is the last second that RFC 3339 can say, since 1970.
const year9999 = 253402300799

// maxBuilderBytes bounds builder.json.
const maxBuilderBytes = 8 << 20

var (
	imageDigest = lazyregexp.New(`^sha256:[0-9a-f]{64}$`)
	sha256Hex   = lazyregexp.New(`^[0-9a-f]{64}$`)
	octal       = lazyregexp.New(`^[0-7]{1,4}$`)
)

// ParseBuilder reads builder.json, which a build leaves beside the disk.
func ParseBuilder(b []byte) (*BuilderInfo, error) {
	if len(b) > maxBuilderBytes {
		return nil, fmt.Errorf("read builder.json: it is larger than %d bytes", maxBuilderBytes)
	}
	var info BuilderInfo
	if err := strictjson.Unmarshal(b, &info); err != nil {
		return nil, fmt.Errorf("read builder.json: %w", err)
	}
	if err := info.check(); err != nil {
		return nil, fmt.Errorf("read builder.json: %w", err)
	}
	return &info, nil
}

func (b *BuilderInfo) check() error {
	switch {
	case b.Image == "":
		return errors.New("it names no builder image")
	case b.Digest != "" && !imageDigest().MatchString(b.Digest):
		return fmt.Errorf("the builder image's digest %q is not sha256: and hex", b.Digest)
	case !sha256Hex().MatchString(b.PackagesSHA256) || !sha256Hex().MatchString(b.Inputs.DescriptionSHA256) ||
		b.Inputs.PackagesSHA256 != "" && !sha256Hex().MatchString(b.Inputs.PackagesSHA256):
		return errors.New("a SHA-256 in it is no digest in lower-case hex")
	case b.Inputs.SourceDateEpoch < 0 || b.Inputs.SourceDateEpoch > year9999:
		return fmt.Errorf("its time of %d seconds since 1970 is none that RFC 3339 can say", b.Inputs.SourceDateEpoch)
	case len(b.Inputs.Files) > maxSourceFiles:
		return fmt.Errorf("it lists more than %d files", maxSourceFiles)
	}
	for _, f := range b.Inputs.Files {
		if err := f.check(); err != nil {
			return err
		}
	}
	if r := b.Inputs.Recipe; r != nil {
		if (r.Template == "") == (r.Description == "") {
			return errors.New("its recipe names not one of a template and a description")
		}
		for _, path := range []string{r.Description, r.Overlay, r.Lock} {
			if path != "" && !fs.ValidPath(path) {
				return fmt.Errorf("the path %q in its recipe leads out of the source", path)
			}
		}
	}
	return nil
}

func (f *SourceFile) check() error {
	known := false
	switch f.Kind {
	case "file":
		known = octal().MatchString(f.Mode) && sha256Hex().MatchString(f.SHA256)
	case "directory":
		known = octal().MatchString(f.Mode) && f.SHA256 == ""
	case "link":
		known = f.Mode == "" && f.SHA256 == ""
	}
	if !known || !fs.ValidPath(f.Path) {
		return fmt.Errorf("its file %q is not described as a file, a directory or a link is", f.Path)
	}
	return nil
}
