package sbom

import (
	"fmt"

	"github.com/package-url/packageurl-go"

	"github.com/org/attestable-image-action/internal/strictjson"
)

// maxRead bounds the packages of a document that is read; an image of a whole
// distribution has some tens of thousands.
const maxRead = 200_000

// Packages reads which packages a bill of materials lists: those in SPDX or CycloneDX,
// in JSON, that have a package URL of the type deb or rpm. Of each it tells kind, name,
// version (of an rpm with its epoch) and architecture.
func Packages(document []byte) ([]Package, error) {
	var d struct {
		Packages []struct { // SPDX
			Name    string `json:"name"`
			Version string `json:"versionInfo"`
			Refs    []struct {
				Type    string `json:"referenceType"`
				Locator string `json:"referenceLocator"`
			} `json:"externalRefs"`
		} `json:"packages"`
		Components []struct { // CycloneDX
			Name    string `json:"name"`
			Version string `json:"version"`
			PURL    string `json:"purl"`
		} `json:"components"`
	}
	if err := strictjson.Unmarshal(document, &d); err != nil {
		return nil, fmt.Errorf("read the bill of materials: %w", err)
	}
	if n := len(d.Packages) + len(d.Components); n > maxRead {
		return nil, fmt.Errorf("read the bill of materials: it lists %d packages, and %d are allowed", n, maxRead)
	}
	var found []Package
	add := func(name, version, purl string) {
		// What has no package URL, or another one, is none of the package manager's.
		u, err := packageurl.FromString(purl)
		if err != nil || u.Type != string(Deb) && u.Type != string(RPM) {
			return
		}
		found = append(found, Package{Kind: Kind(u.Type), Name: name, Version: version, Arch: u.Qualifiers.Map()["arch"]})
	}
	for _, p := range d.Packages {
		for _, r := range p.Refs {
			if r.Type == "purl" {
				add(p.Name, p.Version, r.Locator)
				break
			}
		}
	}
	for _, c := range d.Components {
		add(c.Name, c.Version, c.PURL)
	}
	return found, nil
}
