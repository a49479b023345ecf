package sbom

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/org/attestable-image-action/internal/strictjson"
)

// Format is a format of a bill of materials.
type Format string

// The formats that are written.
const (
	SPDX      Format = "spdx"      // SPDX 2.3, JSON
	CycloneDX Format = "cyclonedx" // CycloneDX 1.6, JSON
)

// ParseFormat reads the name of a format.
func ParseFormat(name string) (Format, error) {
	switch f := Format(name); f {
	case SPDX, CycloneDX:
		return f, nil
	}
	return "", fmt.Errorf("there is no format %q: give spdx or cyclonedx", name)
}

// Heading is what a document says of itself and of the image.
type Heading struct {
	Name    string // of the image
	Version string // of the image; empty for the digest of the disk
	Tool    string // version of attestable-image; may be empty
	// Created is when the document was made. When it is zero, it is when the package
	// database was last written, so that a disk has one document.
	Created time.Time
}

// Document writes what is on the disk as one document, which the same inventory and
// heading always give byte for byte. Its number follows from its content.
func (i *Inventory) Document(f Format, h Heading) ([]byte, error) {
	if h.Name = oneLine(h.Name, 200); h.Name == "" {
		return nil, errors.New("write the bill of materials: the image has no name")
	}
	if h.Version = oneLine(h.Version, 200); h.Version == "" {
		h.Version = "sha256:" + i.Disk.SHA256
	}
	if h.Created.IsZero() {
		h.Created = i.Changed
	}
	h.Created = h.Created.UTC().Truncate(time.Second)
	if year := h.Created.Year(); year < 1970 || year > 9999 {
		return nil, fmt.Errorf("write the bill of materials: it was created in the year %d, which no format takes", year)
	}
	write := i.spdx
	if f == CycloneDX {
		write = i.cycloneDX
	}
	content, err := write(h, uuidOf(nil))
	if err == nil {
		content, err = write(h, uuidOf(content))
	}
	if err != nil {
		return nil, fmt.Errorf("write the bill of materials: %w", err)
	}
	return content, nil
}

// uuidOf is a UUID made of a digest: version 8 (RFC 9562, section 5.8).
func uuidOf(content []byte) string {
	sum := sha256.Sum256(content)
	u := sum[:16]
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80
	h := hex.EncodeToString(u)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// DiskDigest is the SHA-256, in lower-case hex, of the disk that a document of ours
// says that it is about; it is empty for a document of anybody else. The document is
// JSON of one of the formats.
func DiskDigest(document []byte) (string, error) {
	var d struct {
		Namespace string `json:"documentNamespace"`
		Packages  []struct {
			ID        string `json:"SPDXID"`
			Checksums []struct {
				Algorithm string `json:"algorithm"`
				Value     string `json:"checksumValue"`
			} `json:"checksums"`
		} `json:"packages"`
		Metadata struct {
			Tools     json.RawMessage `json:"tools"` // a list before CycloneDX 1.5
			Component struct {
				Ref    string `json:"bom-ref"`
				Hashes []struct {
					Algorithm string `json:"alg"`
					Value     string `json:"content"`
				} `json:"hashes"`
			} `json:"component"`
		} `json:"metadata"`
	}
	if err := strictjson.Unmarshal(document, &d); err != nil {
		return "", fmt.Errorf("read the bill of materials: %w", err)
	}
	var tools struct {
		Components []struct {
			Name string `json:"name"`
		} `json:"components"`
	}
	ours := strictjson.Unmarshal(d.Metadata.Tools, &tools) == nil && len(tools.Components) == 1 && tools.Components[0].Name == toolName
	if c := d.Metadata.Component; ours && c.Ref == cycloneDXImage {
		for _, h := range c.Hashes {
			if h.Algorithm == "SHA-256" {
				return h.Value, nil
			}
		}
	}
	if strings.HasPrefix(d.Namespace, spdxNamespace) {
		for _, p := range d.Packages {
			for _, c := range p.Checksums {
				if p.ID == "SPDXRef-"+spdxImage && c.Algorithm == "SHA256" {
					return c.Value, nil
				}
			}
		}
	}
	return "", nil
}
