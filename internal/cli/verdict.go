package cli

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/gha"
)

// width is how many columns a line of the result may have: those of the
// terminal, or of COLUMNS; 0 where lines may be of any length.
func (a *app) width() int {
	if gha.Enabled() {
		return 0 // and no word is broken, whatever COLUMNS says
	}
	if f, ok := a.stdout.(*os.File); ok {
		if columns, _, err := term.GetSize(int(f.Fd())); err == nil && columns > 0 {
			return columns
		}
	}
	columns, err := strconv.Atoi(os.Getenv("COLUMNS"))
	if err != nil || columns < 0 {
		return 0
	}
	return columns
}

// verdictTable prints the checks one below the other: what holds on a line of
// its own where it fits, what does not with what was expected and what was
// found. Values may be digests of 96 digits: there are no columns beside them.
func verdictTable(subject fmt.Stringer, verdict *attest.Verdict, width int) string {
	var out strings.Builder
	longest := 0
	for _, c := range verdict.Checks {
		longest = max(longest, utf8.RuneCountInString(c.Name))
	}
	for _, c := range verdict.Checks {
		expected, found := printable(c.Expected), printable(c.Found)
		status := "ok  "
		if !c.OK {
			status = "FAIL"
		}
		if c.OK && (expected == found || expected == "any") {
			line := fmt.Sprintf("%s  %-*s  %s", status, longest, c.Name, found)
			if width == 0 || utf8.RuneCountInString(line) <= width {
				out.WriteString(line + "\n")
				continue
			}
			fmt.Fprintf(&out, "%s  %s\n", status, c.Name)
			wrapped(&out, "      ", found, width)
			continue
		}
		fmt.Fprintf(&out, "%s  %s\n", status, c.Name)
		wrapped(&out, "      expected  ", expected, width)
		wrapped(&out, "      found     ", found, width)
	}
	for _, b := range verdict.Attestations {
		// What a check that failed says already needs no note.
		told := slices.ContainsFunc(verdict.Checks, func(c attest.Check) bool {
			return !c.OK && (strings.HasPrefix(c.Found, b.Source+": ") || strings.HasSuffix(b.Reason, ", found "+c.Found))
		})
		if !b.OK && !told {
			wrapped(&out, "note  not counted: ", printable(b.Source+": "+b.Reason), width)
		}
	}
	for _, note := range verdict.Notes {
		wrapped(&out, "note  ", printable(note), width)
	}
	holds := 0
	for _, c := range verdict.Checks {
		if c.OK {
			holds++
		}
	}
	conclusion := "verified"
	if holds < len(verdict.Checks) {
		conclusion = "NOT verified"
	}
	fmt.Fprintf(&out, "\n%s: %d of %d checks hold\n", conclusion, holds, len(verdict.Checks))
	wrapped(&out, "", subject.String(), width)
	return out.String()
}

// wrapped writes text after prefix, and goes on below it where the line is
// full: at any character, for a digest has no better place.
func wrapped(out *strings.Builder, prefix, text string, width int) {
	indent := utf8.RuneCountInString(prefix)
	room := width - indent
	if width == 0 || room < 16 {
		out.WriteString(prefix + text + "\n")
		return
	}
	runes := []rune(text)
	for first := true; first || len(runes) > 0; first = false {
		n := min(room, len(runes))
		if n < len(runes) {
			// Better at a space, where there is one in the second half.
			for i := n; i > n/2; i-- {
				if runes[i] == ' ' {
					n = i
					break
				}
			}
		}
		out.WriteString(prefix + string(runes[:n]) + "\n")
		runes = runes[n:]
		if len(runes) > 0 && runes[0] == ' ' {
			runes = runes[1:]
		}
		prefix = strings.Repeat(" ", indent)
	}
}

// printable shows text from outside on one line, without what would move a
// terminal's cursor or what the Actions runner takes for a command: it obeys
// "##[name]" anywhere in a line, and "::name::" at the beginning of one, which
// every word may become where lines are broken.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case !unicode.IsPrint(r):
			return '�'
		}
		return r
	}, text)
	text = strings.NewReplacer("##[", "## [", " ::", " : :").Replace(text)
	if rest, ok := strings.CutPrefix(text, "::"); ok {
		return ": :" + rest
	}
	return text
}
