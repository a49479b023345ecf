// Package artifact stores an attestable image as an OCI artifact and reads it
// back: an image manifest (OCI image-spec 1.1) whose layers are the compressed
// disk, the measurements document and, for a signed image, the UEFI variable
// store. Attestations hang on it as referrers (OCI distribution-spec 1.1,
// "Listing Referrers").
//
// It speaks to registries and to OCI image layouts on disk. It knows nothing
// of what the measurements say, nor of what an attestation proves.
//
// Everything a registry or a layout answers is treated as hostile: sizes are
// bounded before anything is read, digests are recomputed, and names are
// checked before they become paths.
package artifact

import (
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Types of the artifact and of its layers.
const (
	Type                  = "application/vnd.attestable-image.v1"
	MediaTypeDisk         = types.MediaType("application/vnd.attestable-image.disk.raw.v1+zstd")
	MediaTypeMeasurements = types.MediaType("application/vnd.attestable-image.measurements.v1+json")
	MediaTypeUEFIData     = types.MediaType("application/vnd.attestable-image.uefi-data.v1")

	mediaTypeEmpty = types.MediaType("application/vnd.oci.empty.v1+json")
)

// Titles of the layers, which are the names of the files they are pulled to.
// The disk's is the image's name and diskSuffix.
const (
	titleMeasurements = "measurements.json"
	titleUEFIData     = "uefi-data.aws"
	diskSuffix        = ".raw.zst"
)

// Annotations of OCI image-spec 1.1, "Pre-Defined Annotation Keys".
const (
	AnnotationCreated  = "org.opencontainers.image.created" // RFC 3339
	AnnotationRevision = "org.opencontainers.image.revision"
	AnnotationSource   = "org.opencontainers.image.source"
	AnnotationVersion  = "org.opencontainers.image.version"

	annotationTitle   = "org.opencontainers.image.title"
	annotationRefName = "org.opencontainers.image.ref.name"
)

// Bounds, in bytes, of what is read from a registry or a layout.
const (
	maxManifest     = 4 << 20 // what registries accept: distribution-spec 1.1, "Pushing Manifests"
	maxIndex        = 4 << 20
	maxMeasurements = 16 << 20
	maxUEFIData     = 1 << 20
	maxReferrer     = 32 << 20 // a bundle around a predicate of at most 16 MiB
	maxLayers       = 64
	maxReferrers    = 1000
)

// emptyJSON is the content of every empty config: image-spec 1.1, "Guidance
// for an Empty Descriptor".
var emptyJSON = []byte("{}")

// emptyConfig describes emptyJSON.
func emptyConfig() v1.Descriptor {
	return v1.Descriptor{MediaType: mediaTypeEmpty, Digest: digestOf(emptyJSON), Size: int64(len(emptyJSON)), Data: emptyJSON}
}
