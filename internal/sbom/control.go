package sbom

import (
	"errors"
	"fmt"
	"iter"
	"strings"
)

// paragraph is a paragraph of a Debian control file (deb822(5)): fields by their
// names in lower case. A value has its first line without surrounding spaces, and
// its continuation lines as they are, without the newline at the end.
type paragraph map[string]string

var errNotUTF8 = errors.New("it is not UTF-8")

// control yields the paragraphs of a control file, and ends with the first error.
// Lines that begin with # are comments, where those are allowed.
func control(content string, comments bool) iter.Seq2[paragraph, error] {
	return func(yield func(paragraph, error) bool) {
		p, last, number := paragraph{}, "", 0
		var value []string
		end := func() {
			if last != "" {
				p[last] = strings.Join(value, "\n")
			}
			last = ""
		}
		for line := range strings.SplitSeq(content, "\n") {
			number++
			line = strings.TrimSuffix(line, "\r")
			switch {
			case strings.IndexByte(line, 0) >= 0:
				yield(nil, fmt.Errorf("line %d has a NUL in it", number))
				return
			case strings.Trim(line, " \t") == "":
				end()
				if len(p) > 0 && !yield(p, nil) {
					return
				}
				p = paragraph{}
			case comments && line[0] == '#':
			case line[0] == ' ' || line[0] == '\t':
				if last == "" {
					yield(nil, fmt.Errorf("line %d continues nothing: %.60q", number, line))
					return
				}
				value = append(value, line)
			default:
				end()
				name, first, ok := strings.Cut(line, ":")
				if !ok || name == "" || strings.ContainsAny(name, " \t") {
					yield(nil, fmt.Errorf("line %d is no field: %.60q", number, line))
					return
				}
				last, value = strings.ToLower(name), []string{strings.Trim(first, " \t")}
				if _, twice := p[last]; twice {
					yield(nil, fmt.Errorf("line %d: the paragraph has the field %.60s twice", number, name))
					return
				}
			}
		}
		end()
		if len(p) > 0 {
			yield(p, nil)
		}
	}
}

// first is the first line of a field.
func (p paragraph) first(name string) string {
	line, _, _ := strings.Cut(p[name], "\n")
	return line
}
