package sbom

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/github/go-spdx/v2/spdxexp/spdxlicenses"

	"github.com/org/attestable-image-action/internal/lazyregexp"
)

// rpmLicense turns the licence tag of an rpm into an expression. It is an SPDX
// expression today; before, distributions had names of their own, joined by "and"
// and "or" in lower case, where "MIT" or "BSD" are families of licences.
func rpmLicense(tag string, texts *textBudget) (License, error) {
	if tag == "" {
		return License{Comment: "The package's header has no licence."}, nil
	}
	if !utf8.ValidString(tag) {
		return License{}, errNotUTF8
	}
	p := rpmExpression{texts: texts, refs: map[string]LicenseRef{}}
	p.words = strings.Fields(strings.NewReplacer("(", " ( ", ")", " ) ").Replace(tag))
	p.families = slices.Contains(p.words, "and") || slices.Contains(p.words, "or")
	t, err := p.alternatives(0)
	if err == nil && len(p.words) > 0 {
		err = fmt.Errorf("there is %.60q behind its end", p.words[0])
	}
	if err != nil {
		return License{Comment: oneLine(fmt.Sprintf("The licence in the package's header is no expression (%v): %s", err, tag), 500)}, nil
	}
	return License{Expression: t.String(), Refs: sortedRefs(p.refs), Comment: oneLine("The licence in the package's header: "+tag, 500)}, nil
}

// rpmExpression reads an expression, word by word.
type rpmExpression struct {
	words    []string // that are left
	families bool     // short names are those of distributions
	texts    *textBudget
	refs     map[string]LicenseRef
	names    int
}

const maxNesting = 50

func (p *rpmExpression) next(words ...string) bool {
	if len(p.words) == 0 || !slices.Contains(words, p.words[0]) {
		return false
	}
	p.words = p.words[1:]
	return true
}

func (p *rpmExpression) alternatives(depth int) (term, error) {
	return p.list(depth, "OR", (*rpmExpression).together)
}

func (p *rpmExpression) together(depth int) (term, error) {
	return p.list(depth, "AND", (*rpmExpression).operand)
}

func (p *rpmExpression) list(depth int, operator string, item func(*rpmExpression, int) (term, error)) (term, error) {
	var terms []term
	for {
		t, err := item(p, depth)
		if err != nil {
			return term{}, err
		}
		if terms = append(terms, t); !p.next(operator, strings.ToLower(operator)) {
			return join(operator, terms), nil
		}
	}
}

func (p *rpmExpression) operand(depth int) (term, error) {
	if depth > maxNesting {
		return term{}, fmt.Errorf("it has more than %d parentheses in each other", maxNesting)
	}
	if p.next("(") {
		t, err := p.alternatives(depth + 1)
		if err == nil && !p.next(")") {
			err = errors.New("a parenthesis is not closed")
		}
		return t, err
	}
	var name []string
	for len(p.words) > 0 && !slices.Contains([]string{"(", ")", "and", "or", "AND", "OR"}, p.words[0]) {
		name = append(name, p.words[0])
		p.words = p.words[1:]
	}
	if len(name) == 0 {
		return term{}, errors.New("a licence is missing")
	}
	if p.names++; p.names > maxLicenseNames {
		return term{}, fmt.Errorf("it names more than %d licences", maxLicenseNames)
	}
	return p.name(strings.Join(name, " "))
}

func (p *rpmExpression) name(name string) (term, error) {
	if len(name) > maxLicenseName {
		return term{}, fmt.Errorf("it has a name of %d bytes", len(name))
	}
	if id, ok := p.id(name); ok {
		return one(id), nil
	}
	ref := newLicenseRef(name, "", p.texts)
	p.refs[ref.ID] = ref
	return one(ref.ID), nil
}

// rpmShortNames are names of distributions that say which licence of SPDX's list
// they are. Left out are families, such as MIT, BSD, and LGPLv2 (2 or 2.1).
var rpmShortNames = map[string]string{
	"ASL 2.0": "Apache-2.0", "ASL 1.1": "Apache-1.1", "Boost": "BSL-1.0", "CC0": "CC0-1.0", "ISC": "ISC", "zlib": "Zlib",
	"MPLv1.1": "MPL-1.1", "MPLv2.0": "MPL-2.0", "OpenLDAP": "OLDAP-2.8", "OpenSSL": "OpenSSL", "Sleepycat": "Sleepycat",
}

var rpmGNU = lazyregexp.New(`^(GPL|LGPL|AGPL)v([0-9](?:\.[0-9])?)(\+?)$`)

// id is SPDX's name of a licence.
func (p *rpmExpression) id(name string) (string, bool) {
	if m := rpmGNU().FindStringSubmatch(name); m != nil && (m[1] != "LGPL" || m[2] != "2") {
		return gnuID(m[1], m[2], m[3] != "")
	}
	if id, ok := rpmShortNames[name]; ok {
		return id, true
	}
	// Among the names of families none has a hyphen.
	if p.families && !strings.Contains(name, "-") {
		return "", false
	}
	license, exception, with := strings.Cut(name, " WITH ")
	id, ok := listed(license)
	if !ok || !with {
		return id, ok
	}
	known, exceptionID := spdxlicenses.IsException(exception)
	return id + " WITH " + exceptionID, known
}
