package sbom

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"

	"github.com/github/go-spdx/v2/spdxexp/spdxlicenses"

	"github.com/org/attestable-image-action/internal/lazyregexp"
)

// License is what a package says of its licence.
type License struct {
	// Expression is an SPDX licence expression (SPDX 2.3, annex D); empty when the
	// package says nothing that a program can read: NOASSERTION.
	Expression string
	// Refs are the licences in it that SPDX's list does not have, sorted by ID.
	Refs []LicenseRef
	// Comment says where that comes from, or why there is nothing.
	Comment string
}

// LicenseRef is a licence that SPDX's list does not have.
type LicenseRef struct {
	ID   string // "LicenseRef-…", which stands for this name and this text
	Name string // as the package has it
	Text string // as the image has it; never empty
}

const (
	// A name of a licence may have this many characters, and an expression this many
	// names. What is longer is text that nobody meant for a program.
	maxLicenseName  = 200
	maxLicenseNames = 500
	// maxTexts bounds all texts of licences together, in bytes; the same text of
	// several packages counts once.
	maxTexts = 8 << 20
	// maxCopyrights bounds all copyright files together, in bytes. Those of a desktop
	// have some 100 MiB.
	maxCopyrights = 1 << 30
)

// textBudget is how many bytes of licences may still be read and kept.
type textBudget struct {
	files int64             // to read
	texts int               // to keep
	known map[string]string // texts that are kept, by the IDs of their licences
}

func newTextBudget() *textBudget {
	return &textBudget{files: maxCopyrights, texts: maxTexts, known: map[string]string{}}
}

// newLicenseRef is a licence that SPDX's list does not have. Short names mean what
// the text beside them says, and in another package something else.
func newLicenseRef(name, text string, budget *textBudget) LicenseRef {
	if text == "" {
		text = "The image has no text of this licence where it names it."
	}
	sum := sha256.Sum256([]byte(name + "\x00" + text))
	id := strings.Trim(spdxID(name), "-.")
	if len(id) > 40 {
		id = strings.TrimRight(id[:40], "-.")
	}
	if id != "" {
		id += "-"
	}
	id = "LicenseRef-" + id + hex.EncodeToString(sum[:6])
	kept, known := budget.known[id]
	if !known {
		if kept = text; len(kept) > budget.texts {
			kept = "The text of this licence is left out: the texts of the image's licences are too long."
		}
		budget.texts -= len(kept)
		budget.known[id] = kept
	}
	return LicenseRef{ID: id, Name: name, Text: kept}
}

// spdxID replaces what may not stand in an SPDX identifier.
func spdxID(text string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '-'
	}, text)
}

// term is a part of an expression that is put together.
type term struct {
	parts    []string // licences, or expressions in parentheses
	operator string   // "AND" or "OR" between them
}

// one is a term of one licence.
func one(id string) term { return term{parts: []string{id}} }

func (t term) String() string { return strings.Join(t.parts, " "+t.operator+" ") }

// join joins terms by an operator, without those that come again.
func join(operator string, terms []term) term {
	joined := term{operator: operator}
	seen := map[string]bool{}
	for _, t := range terms {
		if len(t.parts) > 1 && t.operator != operator {
			t = one("(" + t.String() + ")")
		}
		for _, part := range t.parts {
			if !seen[part] {
				seen[part] = true
				joined.parts = append(joined.parts, part)
			}
		}
	}
	if len(joined.parts) == 1 && len(terms) > 0 && len(terms[0].parts) > 1 {
		return terms[0] // without the parentheses
	}
	return joined
}

// listed returns a licence of SPDX's list by its identifier, whose case does not
// matter. Identifiers that the list has given up are not taken, except for the
// licences of GNU, whose meaning it has kept.
func listed(name string) (id string, ok bool) {
	if ok, id := spdxlicenses.IsActiveLicense(name); ok {
		return id, true
	}
	if m := gnuDeprecated().FindStringSubmatch(name); m != nil {
		suffix := "-only"
		if m[2] != "" {
			suffix = "-or-later"
		}
		if ok, id := spdxlicenses.IsActiveLicense(m[1] + suffix); ok {
			return id, true
		}
	}
	return "", false
}

var gnuDeprecated = lazyregexp.New(`(?i)^((?:A|L)?GPL-[0-9]\.[0-9]|GFDL-1\.[0-9])(\+?)$`)

// sortedRefs are the licences by ID.
func sortedRefs(refs map[string]LicenseRef) []LicenseRef {
	return slices.SortedFunc(maps.Values(refs), func(a, b LicenseRef) int { return strings.Compare(a.ID, b.ID) })
}
