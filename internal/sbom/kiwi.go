package sbom

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// MaxKiwiList bounds KIWI's list of packages, in bytes.
const MaxKiwiList = 64 << 20

// CheckKiwiList compares what the image's databases say with the list of packages
// that KIWI wrote when it built the image (NAME.ARCH-VERSION.packages). Two sources
// that disagree mean that one of them is not about this disk, or was changed.
func (i *Inventory) CheckKiwiList(list []byte) error {
	theirs, err := parseKiwiList(string(list))
	if err != nil {
		return err
	}
	ours := map[string]bool{}
	// KIWI also lists what is removed but for its configuration.
	for _, p := range slices.Concat(i.Packages, i.Removed) {
		ours[kiwiName(p.Name, p.FullVersion(), p.Arch)] = true
	}
	var problems []string
	for _, side := range []struct {
		what      string
		has, lack map[string]bool
	}{{"only in the image", ours, theirs}, {"only in KIWI's list", theirs, ours}} {
		var only []string
		for _, name := range slices.Sorted(maps.Keys(side.has)) {
			if !side.lack[name] {
				only = append(only, name)
			}
		}
		if len(only) == 0 {
			continue
		}
		const shown = 10
		more := ""
		if len(only) > shown {
			more = fmt.Sprintf(" and %d more", len(only)-shown)
		}
		problems = append(problems, fmt.Sprintf("%s: %s%s", side.what, strings.Join(only[:min(len(only), shown)], ", "), more))
	}
	if len(problems) > 0 {
		return fmt.Errorf("the image has not the packages that KIWI lists: %s", strings.Join(problems, "; "))
	}
	return nil
}

// kiwiName is a package as it is compared and shown.
func kiwiName(name, version, arch string) string {
	if arch == "" {
		return name + " " + version
	}
	return name + " " + version + " " + arch
}

// parseKiwiList reads lines of name|epoch|version|release|architecture|…|…, where
// "None" and "(none)" stand for nothing.
func parseKiwiList(text string) (map[string]bool, error) {
	if !utf8.ValidString(text) {
		return nil, errors.New("KIWI's list of packages is not UTF-8")
	}
	found := map[string]bool{}
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimRight(line, "\r\n")
		if line == "" {
			continue
		}
		fields := strings.SplitN(line, "|", 7)
		if len(fields) != 7 || fields[0] == "" || len(found) == maxPackages {
			return nil, fmt.Errorf("line %d of KIWI's list of packages is none of name|epoch|version|release|architecture|url|licence: %.100q", number, line)
		}
		for i, f := range fields {
			if f == "None" || f == "(none)" {
				fields[i] = ""
			}
		}
		version := fields[2]
		if fields[1] != "" {
			version = fields[1] + ":" + version
		}
		if fields[3] != "" {
			version += "-" + fields[3]
		}
		name := kiwiName(fields[0], version, fields[4])
		if found[name] {
			return nil, fmt.Errorf("line %d of KIWI's list of packages has %s again", number, name)
		}
		found[name] = true
	}
	return found, nil
}
