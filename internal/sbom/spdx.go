package sbom

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/github/go-spdx/v2/spdxexp/spdxlicenses"
	"github.com/spdx/tools-golang/spdx/v2/common"
	"github.com/spdx/tools-golang/spdx/v2/v2_3"
)

const noAssertion = "NOASSERTION"

// Elements that every document has.
const (
	spdxDocument = "DOCUMENT"
	spdxImage    = "Image"
	spdxOS       = "OperatingSystem"

	spdxNamespace = "https://github.com/org/attestable-image-action/sbom/"
)

// spdx writes an SPDX 2.3 document: a package for the disk, which contains one for
// the operating system and one for each installed package, and beside it the files
// that firmware loads.
func (i *Inventory) spdx(h Heading, number string) ([]byte, error) {
	doc := &v2_3.Document{
		SPDXVersion: v2_3.Version, DataLicense: v2_3.DataLicense, SPDXIdentifier: spdxDocument,
		DocumentName:      h.Name,
		DocumentNamespace: spdxNamespace + number,
		CreationInfo: &v2_3.CreationInfo{
			LicenseListVersion: spdxListVersion(),
			Creators:           []common.Creator{{CreatorType: "Tool", Creator: h.tool()}},
			Created:            h.Created.Format(time.RFC3339),
		},
	}
	relate := func(from, kind, to string) {
		doc.Relationships = append(doc.Relationships, &v2_3.Relationship{
			RefA: common.MakeDocElementID("", from), RefB: common.MakeDocElementID("", to), Relationship: kind,
		})
	}
	relate(spdxDocument, common.TypeRelationshipDescribe, spdxImage)
	doc.Packages = append(doc.Packages, &v2_3.Package{
		PackageName: h.Name, PackageSPDXIdentifier: spdxImage, PackageVersion: h.Version,
		PackageDownloadLocation: noAssertion, PackageSupplier: &common.Supplier{Supplier: noAssertion},
		PackageLicenseConcluded: noAssertion, PackageLicenseDeclared: noAssertion, PackageCopyrightText: noAssertion,
		PackageChecksums:      []common.Checksum{{Algorithm: common.SHA256, Value: i.Disk.SHA256}},
		PackageComment:        fmt.Sprintf("A raw disk of %d bytes.", i.Disk.Size),
		PrimaryPackagePurpose: "OTHER",
	}, &v2_3.Package{
		PackageName: i.OS.ID, PackageSPDXIdentifier: spdxOS, PackageVersion: i.OS.Version,
		PackageDownloadLocation: noAssertion, PackageSupplier: &common.Supplier{Supplier: noAssertion},
		PackageLicenseConcluded: noAssertion, PackageLicenseDeclared: noAssertion, PackageCopyrightText: noAssertion,
		PackageComment: i.OS.Name,
		// With a hyphen in the specification's text, so in the schema of its JSON.
		PrimaryPackagePurpose: "OPERATING_SYSTEM",
	})
	relate(spdxImage, common.TypeRelationshipContains, spdxOS)
	refs := map[string]LicenseRef{}
	for n := range i.Packages {
		p := &i.Packages[n]
		made, err := p.spdx(i.OS)
		if err != nil {
			return nil, err
		}
		doc.Packages = append(doc.Packages, made)
		relate(spdxImage, common.TypeRelationshipContains, string(made.PackageSPDXIdentifier))
		for _, r := range p.License.Refs {
			refs[r.ID] = r
		}
	}
	for _, r := range sortedRefs(refs) {
		doc.OtherLicenses = append(doc.OtherLicenses, &v2_3.OtherLicense{LicenseIdentifier: r.ID, LicenseName: r.Name, ExtractedText: r.Text})
	}
	for n, b := range i.BootFiles {
		id := fmt.Sprintf("BootFile-%d", n+1)
		doc.Files = append(doc.Files, &v2_3.File{
			FileName: "./" + b.Path, FileSPDXIdentifier: common.ElementID(id), FileTypes: []string{b.spdxType()},
			Checksums:        []common.Checksum{{Algorithm: common.SHA1, Value: b.SHA1}, {Algorithm: common.SHA256, Value: b.SHA256}},
			LicenseConcluded: noAssertion, LicenseInfoInFiles: []string{noAssertion}, FileCopyrightText: noAssertion,
			FileComment: b.comment(),
		})
		// A package whose files are not all listed may not contain one of them (section
		// 7.8): the document speaks of both.
		relate(spdxDocument, common.TypeRelationshipDescribe, id)
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(doc); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// spdxListVersion is the version of SPDX's list of licences, as its field takes it.
func spdxListVersion() string {
	parts := strings.SplitN(strings.TrimPrefix(spdxlicenses.LicenseListVersion(), "v"), ".", 3)
	return strings.Join(parts[:min(2, len(parts))], ".")
}

func (p *Package) spdx(o OS) (*v2_3.Package, error) {
	purl, err := p.purl(o)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(purl))
	made := &v2_3.Package{
		PackageName:             p.Name,
		PackageSPDXIdentifier:   common.ElementID(fmt.Sprintf("Package-%s-%s-%s", p.Kind, spdxID(p.Name), hex.EncodeToString(sum[:6]))),
		PackageVersion:          p.FullVersion(),
		PackageSupplier:         &common.Supplier{Supplier: noAssertion},
		PackageDownloadLocation: noAssertion,
		PackageHomePage:         p.homepage(),
		PackageLicenseConcluded: noAssertion, // that would be our opinion
		PackageLicenseDeclared:  p.License.Expression,
		PackageLicenseComments:  p.License.Comment,
		PackageCopyrightText:    noAssertion,
		PackageSummary:          p.Summary,
		PackageComment:          p.comment(),
		PackageExternalReferences: []*v2_3.PackageExternalReference{{
			Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: purl,
		}},
		PrimaryPackagePurpose: "INSTALL",
	}
	if made.PackageLicenseDeclared == "" {
		made.PackageLicenseDeclared = noAssertion
	}
	if kind, name := p.supplier(); name != "" {
		made.PackageSupplier = &common.Supplier{SupplierType: kind, Supplier: name}
	}
	if source := p.sourceName(); source != "" {
		made.PackageSourceInfo = "built from the source package " + source
	}
	return made, nil
}

// comment is what neither format has a field for.
func (p *Package) comment() string {
	var said []string
	if p.Size > 0 {
		said = append(said, fmt.Sprintf("Its files have about %d bytes when installed.", p.Size))
	}
	if p.State != "" {
		said = append(said, fmt.Sprintf("It is not installed whole: dpkg says that it is %s.", p.State))
	}
	return strings.Join(said, " ")
}

func (b *BootFile) spdxType() string {
	if strings.HasSuffix(strings.ToLower(b.Path), ".efi") {
		return "BINARY"
	}
	return "OTHER"
}

func (b *BootFile) comment() string {
	switch {
	case b.UKI && b.Kernel != "":
		return fmt.Sprintf("On the EFI system partition: a unified kernel image with Linux %s.", b.Kernel)
	case b.UKI:
		return "On the EFI system partition: a unified kernel image."
	}
	return "On the EFI system partition."
}

// tool is the name of this program as a creator.
func (h Heading) tool() string {
	if h.Tool == "" {
		return toolName
	}
	return toolName + "-" + h.Tool
}

const toolName = "attestable-image"
