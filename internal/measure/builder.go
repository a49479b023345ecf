package measure

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/org/attestable-image-action/internal/lazyregexp"
	"github.com/org/attestable-image-action/internal/strictjson"
)

// BuilderInfo says which tools built the disk, and what from, so that somebody can
// build it again. The PCRs do not depend on it: it is the word of who built.
type BuilderInfo struct {
	Image  string // container image, as it was named
	Digest string // of the container image: "sha256:" and lower-case hex
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
}

// maxBuilderBytes bounds builder.json.
const maxBuilderBytes = 8 << 20

var (
	imageDigest = lazyregexp.New(`^sha256:[0-9a-f]{64}$`)
	sha256Hex   = lazyregexp.New(`^[0-9a-f]{64}$`)
)

// ParseBuilder reads builder.json, which a build leaves beside the disk.
func ParseBuilder(b []byte) (*BuilderInfo, error) {
	if len(b) > maxBuilderBytes {
		return nil, fmt.Errorf("read builder.json: it is larger than %d bytes", maxBuilderBytes)
	}
	var info BuilderInfo
	if err := json.Unmarshal(b, &info); err != nil {
		return nil, fmt.Errorf("read builder.json: %w", err)
	}
	if err := strictjson.Check(b); err != nil {
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
	case !imageDigest().MatchString(b.Digest):
		return fmt.Errorf("the builder image's digest %q is not sha256: and hex", b.Digest)
	case !sha256Hex().MatchString(b.PackagesSHA256) || !sha256Hex().MatchString(b.Inputs.DescriptionSHA256) ||
		b.Inputs.PackagesSHA256 != "" && !sha256Hex().MatchString(b.Inputs.PackagesSHA256):
		return errors.New("a SHA-256 in it is no digest in lower-case hex")
	}
	return nil
}
