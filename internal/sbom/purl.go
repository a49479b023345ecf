package sbom

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/package-url/packageurl-go"
)

// purl is the package URL of a package (purl-spec, types deb and rpm). Of a deb the
// version has the epoch; of an rpm that is a qualifier. "distro" and "upstream", the
// source package, are qualifiers that scanners of vulnerabilities read: advisories of
// a distribution speak of its releases and of source packages.
func (p *Package) purl(o OS) (string, error) {
	qualifiers := map[string]string{"arch": p.Arch, "distro": o.distro(), "epoch": p.Epoch, "upstream": p.upstream()}
	for key, value := range qualifiers {
		if value == "" {
			delete(qualifiers, key)
		}
	}
	u := packageurl.NewPackageURL(string(p.Kind), o.namespace(p.Kind), p.Name, p.Version, packageurl.QualifiersFromMap(qualifiers), "")
	if err := u.Normalize(); err != nil {
		return "", fmt.Errorf("make the package URL of %s: %w", p.Name, err)
	}
	return u.ToString(), nil
}

// upstream is the source package, where it is not called like the package.
func (p *Package) upstream() string {
	switch {
	case p.Kind == RPM:
		return p.Source
	case p.Source != p.Name && p.SourceVersion != p.Version:
		return p.Source + "@" + p.SourceVersion
	case p.Source != p.Name:
		return p.Source
	case p.SourceVersion != p.Version:
		return p.Source + "@" + p.SourceVersion
	}
	return ""
}

// sourceName is the source package for people.
func (p *Package) sourceName() string {
	return strings.TrimSpace(p.Source + " " + p.SourceVersion)
}

// distro is the release: "debian-13".
func (o OS) distro() string {
	if o.Version == "" {
		return o.ID
	}
	return o.ID + "-" + o.Version
}

// namespace is the vendor of the packages. For two vendors of rpms it is not the ID
// of their systems.
func (o OS) namespace(k Kind) string {
	switch {
	case k == RPM && o.ID == "rhel":
		return "redhat"
	case k == RPM && strings.HasPrefix(o.ID, "opensuse"):
		return "opensuse"
	}
	return o.ID
}

// homepage is a web address that both formats take, or "".
func (p *Package) homepage() string {
	u, err := url.Parse(p.Homepage)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || len(p.Homepage) > 1000 {
		return ""
	}
	for _, r := range p.Homepage {
		// RFC 3986, section 2: nothing else may stand in a URI as it is.
		if r > '~' || r <= ' ' || strings.ContainsRune(`"<>\^`+"`{|}", r) {
			return ""
		}
	}
	return p.Homepage
}

// supplier is who stands for a package: the vendor of an rpm, the maintainer of a
// deb. SPDX wants to know of what sort that is, which dpkg does not say: groups are
// told by the words that they call themselves by.
func (p *Package) supplier() (kind, name string) {
	switch {
	case p.Vendor != "":
		name, _, _ = strings.Cut(p.Vendor, "<")
		if name = strings.TrimSpace(strings.NewReplacer("(", "", ")", "").Replace(name)); name == "" {
			return "", ""
		}
		return "Organization", name
	case p.Maintainer == "":
		return "", ""
	}
	name, address, ok := strings.Cut(p.Maintainer, "<")
	name = strings.TrimSpace(name)
	for _, word := range strings.FieldsFunc(strings.ToLower(name), func(r rune) bool { return r < 'a' || r > 'z' }) {
		switch word {
		case "team", "group", "maintainers", "developers", "project", "packagers", "packaging", "maintenance", "task":
			kind = "Organization"
		}
	}
	if kind == "" {
		kind = "Person"
	}
	if name = strings.NewReplacer("(", "", ")", "").Replace(name); name == "" {
		return "", ""
	}
	if address = strings.TrimSuffix(strings.TrimSpace(address), ">"); ok && strings.Contains(address, "@") && !strings.ContainsAny(address, "() ") {
		name += " (" + address + ")"
	}
	return kind, name
}
