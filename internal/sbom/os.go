package sbom

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/org/attestable-image-action/internal/lazyregexp"
)

// OS is the operating system, as os-release(5) names it.
type OS struct {
	ID      string // "debian"
	Version string // VERSION_ID, "13"; empty for a rolling release
	Name    string // PRETTY_NAME, "Debian GNU/Linux 13 (trixie)"
}

// osReleases are the places of os-release in the order in which they count.
var osReleases = []string{"etc/os-release", "usr/lib/os-release"}

var osIdentifier = lazyregexp.New(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// readOS reads os-release. Without it a package URL cannot say whose packages these
// are.
func readOS(root fs.FS) (OS, error) {
	for _, name := range osReleases {
		content, _, err := readFile(root, name, maxSmallFile)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var o OS
		if err == nil {
			o, err = parseOSRelease(string(content))
		}
		if err != nil {
			return OS{}, fmt.Errorf("read /%s: %w", name, err)
		}
		return o, nil
	}
	return OS{}, errors.New("there is no /etc/os-release: whose packages these are cannot be told")
}

func parseOSRelease(content string) (OS, error) {
	values := map[string]string{}
	for line := range strings.Lines(content) {
		line = strings.TrimSpace(line)
		name, value, ok := strings.Cut(line, "=")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		values[name] = unquote(value)
	}
	o := OS{ID: values["ID"], Version: values["VERSION_ID"], Name: oneLine(values["PRETTY_NAME"], 200)}
	if !osIdentifier().MatchString(o.ID) {
		return OS{}, fmt.Errorf("its ID %.100q is no name of an operating system (lower-case letters, digits, '.', '_' and '-')", o.ID)
	}
	if o.Version != "" && !osIdentifier().MatchString(o.Version) {
		return OS{}, fmt.Errorf("its VERSION_ID %.100q is no version of an operating system (lower-case letters, digits, '.', '_' and '-')", o.Version)
	}
	return o, nil
}

// unquote takes a value as a shell would.
func unquote(value string) string {
	if len(value) < 2 || value[0] != value[len(value)-1] || value[0] != '"' && value[0] != '\'' {
		return value
	}
	inside := value[1 : len(value)-1]
	if value[0] == '\'' {
		return inside
	}
	var b strings.Builder
	for i := 0; i < len(inside); i++ {
		if inside[i] == '\\' && i+1 < len(inside) {
			i++
		}
		b.WriteByte(inside[i])
	}
	return b.String()
}

// Label is the name for people.
func (o OS) Label() string {
	if o.Name == "" {
		return o.distro()
	}
	return o.Name
}
