package cli

import (
	"fmt"
	"iter"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/org/attestable-image-action/internal/lazyregexp"
)

// What a summary shows of an image, a repository or a reference was named by others.
// It is written as code, or with each mark of punctuation as a character reference, so
// that it is no Markdown, no HTML and no mention of anybody.

// code is text as inline code of Markdown, in a table cell, too.
func code(text string) string {
	text = strings.NewReplacer("`", "'", "|", "¦", "\n", " ", "\r", " ").Replace(text)
	if strings.TrimSpace(text) == "" {
		return "(none)"
	}
	return "`" + text + "`"
}

// breakable is text as inline code that may be broken behind its punctuation, as long
// names in a narrow table have to be.
func breakable(text string) string {
	var b strings.Builder
	b.WriteString("<code>")
	for r, next := range pairs(printable(text)) {
		b.WriteString(characterReference(r, next))
		if strings.ContainsRune("/.,:;=@#_-", r) && next != ' ' {
			b.WriteString("<wbr>")
		}
	}
	b.WriteString("</code>")
	return b.String()
}

// plain is text as nothing but text, which may be broken in a path.
func plain(text string) string {
	var b strings.Builder
	for r, next := range pairs(printable(text)) {
		b.WriteString(characterReference(r, next))
		if r == '/' && next != ' ' {
			b.WriteString("<wbr>")
		}
	}
	return b.String()
}

// pairs are the characters of a text, each with the next one, a space at the end.
func pairs(text string) iter.Seq2[rune, rune] {
	return func(yield func(rune, rune) bool) {
		runes := []rune(text + " ")
		for i, r := range runes[:len(runes)-1] {
			if !yield(r, runes[i+1]) {
				return
			}
		}
	}
}

// characterReference is a character, as a reference to it where it could be markup. A
// dot or a colon is part of an address unless a space follows.
func characterReference(r, next rune) string {
	switch {
	case r == ' ', r >= utf8.RuneSelf, unicode.IsLetter(r), unicode.IsDigit(r), strings.ContainsRune("/-()'", r), strings.ContainsRune(",.;:", r) && next == ' ':
		return string(r)
	}
	return fmt.Sprintf("&#%d;", r)
}

// shorten keeps at most limit characters of a text.
func shorten(text string, limit int) string {
	if runes := []rune(text); len(runes) > limit {
		return string(runes[:limit-1]) + "…"
	}
	return text
}

// digestStart is the start of a digest, enough to tell it from others by eye.
func digestStart(digest string) string {
	algorithm, hex, found := strings.Cut(digest, ":")
	if !found {
		algorithm, hex = "", digest
	} else {
		algorithm += ":"
	}
	return algorithm + shorten(hex, 13)
}

// linkTarget is what may stand in a link of Markdown as it is.
var linkTarget = lazyregexp.New(`^https?://[A-Za-z0-9._~:/?%=&@+-]+(#L[0-9]+)?$`)

// link is text that leads to a URL, or the text alone where the URL is none. The text
// is Markdown.
func link(text, target string) string {
	if u, err := url.Parse(target); err != nil || u.Host == "" || !linkTarget().MatchString(target) {
		return text
	}
	return "[" + text + "](" + target + ")"
}

// fence is a block of code, which GitHub gives a button to copy it. Lines are of this
// program, with what others named quoted.
func fence(language, content string) string {
	return "```" + language + "\n" + strings.TrimRight(content, "\n") + "\n```\n"
}

// alert is a paragraph that GitHub sets off: NOTE, WARNING or CAUTION.
func alert(kind, text string) string {
	return "> [!" + kind + "]\n> " + text + "\n"
}

// quote makes a value one word for a shell, and keeps it inside a code block.
func quote(s string) string {
	s = strings.NewReplacer("\n", " ", "\r", " ", "`", "'").Replace(s)
	safe := strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-_./:@=+,", r)
	}) < 0
	if safe && s != "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// chart is a flow chart in Mermaid's language.
//
// Every label is quoted, and has its punctuation as character codes: in Mermaid a
// quote, a bracket, "%%" or "style …:…#" mean something wherever they stand.
type chart struct{ b strings.Builder }

// maxLabel is how many characters of a value a node of a chart shows.
const maxLabel = 44

// node adds a node: a title in words of this program, and values below it.
func (c *chart) node(id, title string, values ...string) {
	if c.b.Len() == 0 {
		c.b.WriteString("flowchart TB\n")
	}
	fmt.Fprintf(&c.b, "  %s[\"<b>%s</b>", id, chartText(shorten(title, maxLabel)))
	for _, value := range values {
		if value != "" {
			c.b.WriteString("<br/>" + chartText(shorten(value, maxLabel)))
		}
	}
	c.b.WriteString("\"]\n")
}

// edge adds an arrow.
func (c *chart) edge(from, to string) { fmt.Fprintf(&c.b, "  %s --> %s\n", from, to) }

// around adds an arrow that begins two rows higher than it must, beside what lies between:
// three nodes in a row would be too wide for a narrow screen.
func (c *chart) around(from, to string) { fmt.Fprintf(&c.b, "  %s ----> %s\n", from, to) }

// later adds an arrow to what is not there, or not yet, and draws it so.
func (c *chart) later(from, to string) { fmt.Fprintf(&c.b, "  %s -.-> %s\n", from, to) }

// absent draws nodes as things that are not there, or not yet.
func (c *chart) absent(ids ...string) {
	c.b.WriteString("  classDef absent stroke-dasharray:5 5\n")
	fmt.Fprintf(&c.b, "  class %s absent\n", strings.Join(ids, ","))
}

// markdown is the chart as a block that GitHub draws.
func (c *chart) markdown() string { return fence("mermaid", c.b.String()) }

// chartText is text as part of a quoted label.
func chartText(text string) string {
	var b strings.Builder
	for _, r := range printable(text) {
		switch {
		case r == ' ', r == '.', r == '/', r == ',', r == '-', r == '…', r < utf8.RuneSelf && (unicode.IsLetter(r) || unicode.IsDigit(r)):
			b.WriteRune(r)
		default:
			fmt.Fprintf(&b, "#%d;", r)
		}
	}
	return b.String()
}
