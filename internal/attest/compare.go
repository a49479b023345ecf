package attest

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// firstDifference finds the first member in which two decoded JSON values
// differ, in the order of their names. path leads to the values.
func firstDifference(path string, expected, found any) (difference, bool) {
	differ := func(expected, found any) (difference, bool) {
		if path == "" {
			path = "the document"
		}
		return difference{path, shown(expected), shown(found)}, true
	}
	switch e := expected.(type) {
	case map[string]any:
		f, ok := found.(map[string]any)
		if !ok {
			return differ(expected, found)
		}
		names := slices.Collect(maps.Keys(e))
		for name := range f {
			if _, known := e[name]; !known {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		for _, name := range names {
			below := name
			if path != "" {
				below = path + "." + name
			}
			ev, inExpected := e[name]
			fv, inFound := f[name]
			if !inExpected || !inFound {
				return difference{below, shownOr(ev, inExpected), shownOr(fv, inFound)}, true
			}
			if d, ok := firstDifference(below, ev, fv); ok {
				return d, true
			}
		}
		return difference{}, false
	case []any:
		f, ok := found.([]any)
		if !ok || len(e) != len(f) {
			return differ(expected, found)
		}
		for i := range e {
			if d, ok := firstDifference(fmt.Sprintf("%s[%d]", path, i), e[i], f[i]); ok {
				return d, true
			}
		}
		return difference{}, false
	}
	// What is left can be compared as it is: string, json.Number, bool, nil.
	switch found.(type) {
	case map[string]any, []any:
		return differ(expected, found)
	}
	if expected != found {
		return differ(expected, found)
	}
	return difference{}, false
}

// maxShown bounds a value in a sentence, in bytes: a digest in SHA-512 fits.
const maxShown = 160

func shown(value any) string {
	data, err := json.Marshal(value)
	if err != nil {
		return "a value that cannot be shown"
	}
	if len(data) > maxShown {
		return string(data[:maxShown]) + "…"
	}
	return string(data)
}

func shownOr(value any, present bool) string {
	if !present {
		return nothing
	}
	return shown(value)
}
