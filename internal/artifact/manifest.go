package artifact

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/org/attestable-image-action/internal/lazyregexp"
	"github.com/org/attestable-image-action/internal/strictjson"
)

// namePattern is what an image may be called: a file's name that no shell and
// no file system takes for anything else.
var namePattern = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$`)

// CheckName tells whether an image may have this name, which becomes the name
// of the file that its disk is pulled to.
func CheckName(name string) error {
	if !namePattern().MatchString(name) {
		return fmt.Errorf("%q is no name for an image: use at most 128 letters, digits, dots, dashes, underscores and plus signs, and begin with a letter or a digit", name)
	}
	return nil
}

// digestOf is the SHA-256 of data.
func digestOf(data []byte) v1.Hash {
	sum := sha256.Sum256(data)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

// describe makes a descriptor of data.
func describe(data []byte, mediaType types.MediaType) v1.Descriptor {
	return v1.Descriptor{MediaType: mediaType, Digest: digestOf(data), Size: int64(len(data))}
}

// titled gives a layer the name of its file.
func titled(layer v1.Descriptor, title string) v1.Descriptor {
	layer.Annotations = map[string]string{annotationTitle: title}
	return layer
}

// marshalManifest encodes a manifest as every program would that keeps Go's
// order of members: the same manifest has the same digest.
func marshalManifest(m *v1.Manifest) ([]byte, error) {
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	if len(raw) > maxManifest {
		return nil, fmt.Errorf("the manifest would be %d bytes long, and registries take %d: shorten the annotations", len(raw), maxManifest)
	}
	return raw, nil
}

// layers are the layers of an artifact by their purpose.
type layers struct {
	disk         v1.Descriptor
	name         string // of the image
	measurements v1.Descriptor
	uefiData     *v1.Descriptor // nil when the image is not signed
}

// parseManifest parses and checks the manifest of an artifact. Layers of types
// that it does not know are for somebody else.
func parseManifest(raw []byte) (*v1.Manifest, layers, error) {
	var found layers
	m, err := parseImageManifest(raw)
	if err != nil {
		return nil, found, err
	}
	if m.ArtifactType != Type {
		return nil, found, fmt.Errorf("its artifact type is %s and not %s: it is no attestable image", quote(m.ArtifactType), Type)
	}
	// Programs that know no artifactType go by the config's type.
	if empty := emptyConfig(); m.Config.MediaType != empty.MediaType || m.Config.Digest != empty.Digest || m.Config.Size != empty.Size {
		return nil, found, fmt.Errorf("its config is a %s and not the empty one: other programs may take it for something else", quote(string(m.Config.MediaType)))
	}
	var disks, measurements int
	for _, layer := range m.Layers {
		switch layer.MediaType {
		case MediaTypeDisk:
			disks++
			title := layer.Annotations[annotationTitle]
			name, ok := strings.CutSuffix(title, diskSuffix)
			if !ok || CheckName(name) != nil {
				return nil, found, fmt.Errorf("the disk layer's title %s is no file name that ends in %s", quote(title), diskSuffix)
			}
			found.disk, found.name = layer, name
		case MediaTypeMeasurements:
			measurements++
			found.measurements = layer
		case MediaTypeUEFIData:
			if found.uefiData != nil {
				return nil, found, errors.New("it has more than one UEFI variable store")
			}
			found.uefiData = &layer
		}
	}
	switch {
	case disks != 1:
		return nil, found, fmt.Errorf("it has %d disk layers instead of one", disks)
	case measurements != 1:
		return nil, found, fmt.Errorf("it has %d measurements layers instead of one", measurements)
	case found.measurements.Size > maxMeasurements:
		return nil, found, fmt.Errorf("its measurements of %d bytes are longer than the %d that are allowed", found.measurements.Size, maxMeasurements)
	case found.uefiData != nil && found.uefiData.Size > maxUEFIData:
		return nil, found, fmt.Errorf("its UEFI variable store of %d bytes is longer than the %d that are allowed", found.uefiData.Size, maxUEFIData)
	}
	titles := map[string]bool{}
	for i, layer := range m.Layers {
		if err := checkUnmistakable(layer, titles); err != nil {
			return nil, found, fmt.Errorf("its layer %d: %w", i+1, err)
		}
	}
	return m, found, nil
}

// checkUnmistakable refuses a layer that other programs take for one of ours, or
// put into the file of another one, which they name after the title.
func checkUnmistakable(layer v1.Descriptor, titles map[string]bool) error {
	for _, ours := range []types.MediaType{MediaTypeDisk, MediaTypeMeasurements, MediaTypeUEFIData} {
		if layer.MediaType != ours && strings.EqualFold(bareMediaType(string(layer.MediaType)), string(ours)) {
			return fmt.Errorf("its media type %s is not spelt %s", quote(string(layer.MediaType)), ours)
		}
	}
	title, named := layer.Annotations[annotationTitle]
	if !named {
		return nil
	}
	file := strings.ToLower(path.Clean("/" + strings.ReplaceAll(title, `\`, "/")))
	if titles[file] {
		return fmt.Errorf("its title %s is that of another layer, too: both would be pulled to one file", quote(title))
	}
	titles[file] = true
	return nil
}

// checkNamedType refuses a manifest that says another media type than what names
// it does: some programs go by the one, and some by the other.
func checkNamedType(named string, raw []byte, by string) error {
	named = strings.ToLower(bareMediaType(named))
	manifest := types.MediaType(named).IsImage() || types.MediaType(named).IsIndex() || types.MediaType(named).IsSchema1()
	if !manifest {
		return nil // nobody learns from it what the bytes are
	}
	var m struct {
		MediaType string `json:"mediaType"`
	}
	if err := strictjson.Unmarshal(raw, &m); err != nil {
		return fmt.Errorf("it is no manifest: %w", err)
	}
	if m.MediaType != "" && m.MediaType != named {
		return fmt.Errorf("%s says that it is a %s, and it says of itself that it is a %s", by, quote(named), quote(m.MediaType))
	}
	return nil
}

// bareMediaType is a media type without parameters: RFC 9110, section 8.3.1.
func bareMediaType(mediaType string) string {
	bare, _, _ := strings.Cut(mediaType, ";")
	return strings.TrimSpace(bare)
}

// parseImageManifest parses any OCI image manifest and checks its descriptors.
func parseImageManifest(raw []byte) (*v1.Manifest, error) {
	if len(raw) > maxManifest {
		return nil, fmt.Errorf("it is longer than the %d bytes that are allowed", maxManifest)
	}
	var m struct {
		v1.Manifest

		Manifests json.RawMessage `json:"manifests"` // of an index
		FSLayers  json.RawMessage `json:"fsLayers"`  // of Docker's schema 1
	}
	if err := strictjson.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("it is no manifest: %w", err)
	}
	switch {
	case m.Manifests != nil:
		return nil, errors.New("it has the member manifests of an image index: some programs would take it for one")
	case m.FSLayers != nil:
		return nil, errors.New("it has the member fsLayers of Docker's old manifests: some programs would take it for one")
	case m.SchemaVersion != 2:
		return nil, fmt.Errorf("its schema version is %d and not 2", m.SchemaVersion)
	case m.MediaType != types.OCIManifestSchema1:
		return nil, fmt.Errorf("its media type is %s and not %s", quote(string(m.MediaType)), types.OCIManifestSchema1)
	case len(m.Layers) > maxLayers:
		return nil, fmt.Errorf("it has %d layers, more than the %d that are allowed", len(m.Layers), maxLayers)
	}
	if err := checkDescriptor(m.Config); err != nil {
		return nil, fmt.Errorf("its config: %w", err)
	}
	for i, layer := range m.Layers {
		if err := checkDescriptor(layer); err != nil {
			return nil, fmt.Errorf("its layer %d: %w", i+1, err)
		}
	}
	if m.Subject != nil {
		if err := checkDescriptor(*m.Subject); err != nil {
			return nil, fmt.Errorf("its subject: %w", err)
		}
	}
	return &m.Manifest, nil
}

// parseIndex parses an OCI image index and checks its descriptors.
func parseIndex(raw []byte) (*v1.IndexManifest, error) {
	var index struct {
		v1.IndexManifest

		Config json.RawMessage `json:"config"` // of a manifest
		Layers json.RawMessage `json:"layers"` // likewise
	}
	if err := strictjson.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("it is no image index: %w", err)
	}
	if index.Config != nil || index.Layers != nil {
		return nil, errors.New("it has the member config or layers of an image manifest: some programs would take it for one")
	}
	if index.SchemaVersion != 2 {
		return nil, fmt.Errorf("its schema version is %d and not 2", index.SchemaVersion)
	}
	// Docker's manifest list and an image manifest parse as an index, too.
	if index.MediaType != "" && index.MediaType != types.OCIImageIndex {
		return nil, fmt.Errorf("its media type is %s and not %s", quote(string(index.MediaType)), types.OCIImageIndex)
	}
	for i, manifest := range index.Manifests {
		if err := checkDescriptor(manifest); err != nil {
			return nil, fmt.Errorf("its manifest %d: %w", i+1, err)
		}
	}
	return &index.IndexManifest, nil
}

func checkDescriptor(d v1.Descriptor) error {
	if d.Digest.Algorithm != "sha256" {
		return fmt.Errorf("its digest is a %s, and only sha256 is supported", quote(d.Digest.Algorithm))
	}
	if d.Size < 0 {
		return fmt.Errorf("its size is %d", d.Size)
	}
	// Some programs read it in place of the blob: image-spec 1.1, "Embedded Content".
	if d.Data != nil && (int64(len(d.Data)) != d.Size || digestOf(d.Data) != d.Digest) {
		return errors.New("the data inside its descriptor is not what its digest says")
	}
	return nil
}

// quote shows hostile text: short, and without anything a terminal or a
// workflow log takes for a command.
func quote(s string) string {
	const limit = 200
	if len(s) > limit {
		return fmt.Sprintf("%q…", s[:limit])
	}
	return fmt.Sprintf("%q", s)
}
