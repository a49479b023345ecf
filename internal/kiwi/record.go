package kiwi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/org/attestable-image-action/internal/lazyregexp"
	"github.com/org/attestable-image-action/internal/strictjson"
)

// Builder says which tools built an image, and what from. builder.json is its form.
type Builder struct {
	Image  string // container image, as it was named
	Digest string `json:",omitempty"` // the registry's, of the container image: "sha256:" and hex
	// ID is the engine's, of an image that was made on this machine, which has no digest
	// that anybody else could find it by. "sha256:" and hex.
	ID   string `json:",omitempty"`
	Base string `json:",omitempty"` // image that it was made on, when it was made on this machine
	KIWI string // version of KIWI NG

	PackagesSHA256 string           // of Packages, as lines "NAME VERSION ARCHITECTURE"
	Packages       []BuilderPackage // what is installed in the container image, sorted

	Inputs Inputs
}

// BuilderPackage is a package of the builder.
type BuilderPackage struct{ Name, Version, Architecture string }

// Inputs say what an image was built from.
type Inputs struct {
	SourceDateEpoch   int64  // time of the image, in seconds since 1970
	DescriptionSHA256 string // of the description: paths, permissions and contents
	PackagesLocked    bool   // whether there was a lock
	PackagesSHA256    string `json:",omitempty"` // of packages.lock in the output directory

	Recipe *Recipe `json:",omitempty"` // absent when it is not known
	Files  []File  `json:",omitempty"` // what the description is made of; absent when they are too many to list
}

// Recipe says what to build again, from a checkout of the source. Paths are relative to
// its top, with slashes.
type Recipe struct {
	Template    string `json:",omitempty"` // that comes with this program; or
	Description string `json:",omitempty"` // path of the description
	Overlay     string `json:",omitempty"` // path of the overlay
	Lock        string `json:",omitempty"` // path of the lock, where it is not the description's own
	Name        string `json:",omitempty"` // that was asked for
	Version     string `json:",omitempty"` // that was asked for
	Serve       bool   `json:",omitempty"` // the attestation service was put into the image
}

// Bounds of what the container says of itself, in bytes and packages.
const (
	maxBuilderBytes    = 4 << 20
	maxBuilderPackages = 20_000
	maxInspectBytes    = 1 << 20
)

// baseLabel is the label with the base of a container image, as the OCI image
// specification names it.
const baseLabel = "org.opencontainers.image.base.name"

// describe returns what the container was made of.
func (c *container) describe(ctx context.Context) (*Builder, error) {
	answer, err := c.engine.ask(ctx, "image", "inspect", c.image)
	if err != nil {
		return nil, fmt.Errorf("ask %s about the builder image %s: %w", c.engine.name, c.image, err)
	}
	b, err := identifyImage(answer, c.image)
	if err != nil {
		return nil, fmt.Errorf("ask %s about the builder image %s: %w", c.engine.name, c.image, err)
	}
	content, err := c.read("builder.kiwi", maxBuilderBytes)
	if err == nil {
		b.KIWI, err = kiwiVersion(string(content))
	}
	if err != nil {
		return nil, fmt.Errorf("read the builder's version of KIWI: %w", err)
	}
	list, err := c.read("builder.packages", maxBuilderBytes)
	if err != nil {
		return nil, fmt.Errorf("read the builder's packages: %w", err)
	}
	packages, err := parseBuilderPackages(list)
	if err != nil {
		return nil, fmt.Errorf("read the builder's packages: %w", err)
	}
	b.PackagesSHA256, b.Packages = sumOf(list), packages
	return b, nil
}

// identifyImage names an image by what the engine tells of it: by the registry's digest
// for the name that it was asked for, or else by the engine's ID.
func identifyImage(answer, name string) (*Builder, error) {
	if len(answer) > maxInspectBytes {
		return nil, fmt.Errorf("the answer is larger than %d bytes", maxInspectBytes)
	}
	var images []struct {
		ID          string `json:"Id"`
		RepoDigests []string
		Config      struct{ Labels map[string]string }
	}
	if err := strictjson.Unmarshal([]byte(answer), &images); err != nil {
		return nil, fmt.Errorf("the answer is not as expected: %w", err)
	}
	if len(images) != 1 || images[0].ID == "" {
		return nil, fmt.Errorf("the answer has %d images", len(images))
	}
	b := &Builder{Image: name, Base: images[0].Config.Labels[baseLabel]}
	if b.Base != "" && !imageName().MatchString(b.Base) {
		return nil, fmt.Errorf("the image's label %s names no image", baseLabel)
	}
	if _, digest, ok := strings.Cut(name, "@"); ok {
		b.Digest = digest
		return b, nil
	}
	// An image that was copied from one registry to another has a digest in each.
	// containerd's store gives one of its own to an image that was made here.
	made := b.Base != "" || strings.HasPrefix(name, builderRepository+":")
	if known := images[0].RepoDigests; len(known) == 1 && !made {
		if _, digest, ok := strings.Cut(known[0], "@"); ok {
			b.Digest = digest
			return b, nil
		}
	}
	// podman has no algorithm in front of it.
	b.ID = "sha256:" + strings.TrimPrefix(images[0].ID, "sha256:")
	return b, nil
}

var (
	// What names of images are made of, see the grammar of a reference in
	// github.com/distribution/reference.
	imageName = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,511}$`)
	// rpm has keys among its packages, whose architecture is "(none)".
	builderArchitecture = lazyregexp.New(`^(\(none\)|[A-Za-z0-9_-]{1,32})$`)
	versionOfKIWI       = lazyregexp.New(`^[0-9]{1,9}(\.[0-9A-Za-z]{1,32}){1,5}$`)
)

// parseBuilderPackages reads lines "NAME VERSION ARCHITECTURE". An error does not repeat
// them: they are no more than what the container says.
func parseBuilderPackages(list []byte) ([]BuilderPackage, error) {
	packages := []BuilderPackage{}
	number := 0
	for line := range bytes.Lines(list) {
		number++
		fields := strings.Fields(string(line))
		if len(fields) != 3 || !lockWord().MatchString(fields[0]) || !lockWord().MatchString(fields[1]) || !builderArchitecture().MatchString(fields[2]) {
			return nil, fmt.Errorf("line %d does not name a package, its version and its architecture", number)
		}
		if len(packages) == maxBuilderPackages {
			return nil, fmt.Errorf("there are more than %d", maxBuilderPackages)
		}
		packages = append(packages, BuilderPackage{fields[0], fields[1], fields[2]})
	}
	return packages, nil
}

// kiwiVersion takes the version out of what kiwi-ng --version prints, as in
// "KIWI (next generation) version 10.3.9".
func kiwiVersion(text string) (string, error) {
	fields := strings.Fields(text)
	if len(fields) == 0 || !versionOfKIWI().MatchString(fields[len(fields)-1]) {
		return "", errors.New("kiwi-ng --version does not end with one")
	}
	return fields[len(fields)-1], nil
}

// format writes builder.json.
func (b *Builder) format() []byte {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(b) // strings and numbers go into a buffer
	return out.Bytes()
}
