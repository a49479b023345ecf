package sbom

import (
	"bytes"
	"strconv"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// Names of properties, in a namespace of ours.
const (
	propertyKernel = "attestable-image:kernel"
	propertySize   = "attestable-image:installed-size"
	propertySource = "attestable-image:source-package"
	propertyState  = "attestable-image:dpkg-state"
	propertyNoted  = "attestable-image:license-comment"
	propertyBytes  = "attestable-image:disk-size"
)

// cycloneDXImage is the reference of the disk.
const cycloneDXImage = "image"

// cycloneDX writes a CycloneDX 1.6 document about the disk. Its components are the
// operating system, each installed package, and the files that firmware loads.
func (i *Inventory) cycloneDX(h Heading, number string) ([]byte, error) {
	components := []cdx.Component{{
		BOMRef: "operating-system", Type: cdx.ComponentTypeOS, Name: i.OS.ID, Version: i.OS.Version, Description: i.OS.Name,
	}}
	for n := range i.Packages {
		c, err := i.Packages[n].cycloneDX(i.OS)
		if err != nil {
			return nil, err
		}
		components = append(components, c)
	}
	for n, b := range i.BootFiles {
		components = append(components, cdx.Component{
			BOMRef: "boot-file-" + strconv.Itoa(n+1), Type: cdx.ComponentTypeFile, Name: b.Path, Description: b.comment(),
			Hashes:     &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: b.SHA256}},
			Properties: properties(property{propertyKernel, b.Kernel}),
		})
	}
	refs := make([]string, 0, len(components))
	for _, c := range components {
		refs = append(refs, c.BOMRef)
	}
	bom := cdx.NewBOM()
	bom.SerialNumber = "urn:uuid:" + number
	bom.Metadata = &cdx.Metadata{
		Timestamp:  h.Created.Format(time.RFC3339),
		Lifecycles: &[]cdx.Lifecycle{{Phase: cdx.LifecyclePhasePostBuild}},
		Tools:      &cdx.ToolsChoice{Components: &[]cdx.Component{{Type: cdx.ComponentTypeApplication, Name: toolName, Version: h.Tool}}},
		Component: &cdx.Component{
			BOMRef: cycloneDXImage, Type: cdx.ComponentTypeOS, Name: h.Name, Version: h.Version,
			Hashes:     &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: i.Disk.SHA256}},
			Properties: properties(property{propertyBytes, strconv.FormatInt(i.Disk.Size, 10)}),
		},
	}
	bom.Components = &components
	bom.Dependencies = &[]cdx.Dependency{{Ref: cycloneDXImage, Dependencies: &refs}}
	var out bytes.Buffer
	if err := cdx.NewBOMEncoder(&out, cdx.BOMFileFormatJSON).SetPretty(true).SetEscapeHTML(false).EncodeVersion(bom, cdx.SpecVersion1_6); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func (p *Package) cycloneDX(o OS) (cdx.Component, error) {
	purl, err := p.purl(o)
	if err != nil {
		return cdx.Component{}, err
	}
	size := ""
	if p.Size > 0 {
		size = strconv.FormatInt(p.Size, 10)
	}
	c := cdx.Component{
		BOMRef: purl, Type: cdx.ComponentTypeLibrary, Name: p.Name, Version: p.FullVersion(), PackageURL: purl, Description: p.Summary,
		Publisher: p.Maintainer,
		Properties: properties(property{propertySource, p.sourceName()}, property{propertySize, size},
			property{propertyState, p.State}, property{propertyNoted, p.License.Comment}),
	}
	if p.Vendor != "" {
		c.Publisher, c.Supplier = p.Vendor, &cdx.OrganizationalEntity{Name: p.Vendor}
	}
	if page := p.homepage(); page != "" {
		c.ExternalReferences = &[]cdx.ExternalReference{{Type: cdx.ERTypeWebsite, URL: page}}
	}
	if p.License.Expression != "" {
		declared := cdx.LicenseAcknowledgementDeclared
		c.Licenses = &cdx.Licenses{{Expression: p.License.Expression, Acknowledgement: &declared}}
	}
	// An expression has no room for the names and texts of what SPDX does not list.
	if len(p.License.Refs) > 0 {
		var evidence cdx.Licenses
		for _, r := range p.License.Refs {
			evidence = append(evidence, cdx.LicenseChoice{License: &cdx.License{
				BOMRef: purl + "#" + r.ID, Name: r.Name, Text: &cdx.AttachedText{Content: r.Text, ContentType: "text/plain"},
			}})
		}
		c.Evidence = &cdx.Evidence{Licenses: &evidence}
	}
	return c, nil
}

// property is one of a component.
type property struct{ name, value string }

// properties are those that have a value.
func properties(all ...property) *[]cdx.Property {
	var list []cdx.Property
	for _, p := range all {
		if p.value != "" {
			list = append(list, cdx.Property{Name: p.name, Value: p.value})
		}
	}
	if len(list) == 0 {
		return nil
	}
	return &list
}
