// Package strictjson reads JSON that all its readers understand alike, and
// refuses the rest. It is the one way in which this program reads JSON that was
// signed or hashed, or that decides something.
//
// RFC 8259 leaves open what an object means that has two members of one name:
// some readers take the first, some the last. encoding/json takes names that
// differ in case for one, replaces what is no Unicode, and keeps numbers that
// others round. What is signed must not say two things.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxDepth bounds how deep values may nest, as every reader does somewhere: jq
// at 256 levels, for one.
const maxDepth = 128

// maxInteger is the largest integer that readers with floating-point numbers
// alone have in common with the others: RFC 8259, section 6.
const maxInteger = 1<<53 - 1

// Check tells whether data is one JSON value that has one meaning, whatever it
// is read for:
//
//   - nothing comes before or after it, and it nests at most 128 levels;
//   - no object has two members whose names are the same, once their escapes are
//     resolved, or differ in case alone;
//   - text is Unicode: valid UTF-8, no half of a surrogate pair, and no NUL, at
//     which C's strings end;
//   - integers are of at most 53 bits, and other numbers fit into 64-bit floating
//     point (RFC 7493, section 2.2).
func Check(data []byte) error { return check(data, nil, false) }

// Unmarshal is json.Unmarshal for data that Check lets through and that spells
// the members of into's type, where it has them, as the type does. Names that
// differ in case alone may stand side by side where into has a map. Other
// members are passed over.
func Unmarshal(data []byte, into any) error { return unmarshal(data, into, false) }

// UnmarshalClosed is Unmarshal for data that has no other members than into's
// type.
func UnmarshalClosed(data []byte, into any) error { return unmarshal(data, into, true) }

func unmarshal(data []byte, into any, closed bool) error {
	if err := check(data, shapeOf(reflect.TypeOf(into)), closed); err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

// Value is what Check lets through, as encoding/json reads it into any, but with
// numbers as they stand there (json.Number).
func Value(data []byte) (any, error) {
	if err := Check(data); err != nil {
		return nil, err
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	var value any
	err := decoder.Decode(&value)
	return value, err
}

// Decode is Unmarshal for all that r yields, at most limit bytes.
func Decode(r io.Reader, limit int64, into any) error {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return err
	}
	if int64(len(data)) > limit {
		return fmt.Errorf("it is longer than the %d bytes that are allowed", limit)
	}
	return Unmarshal(data, into)
}

// Split splits values that follow each other, as in JSON Lines, and gives each of
// them to yield, which has to check it. It ends with the first error.
func Split(r io.Reader, yield func(value []byte) error) error {
	for decoder := json.NewDecoder(r); ; {
		var one json.RawMessage
		if err := decoder.Decode(&one); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := yield(one); err != nil {
			return err
		}
	}
}

func check(data []byte, s *shape, closed bool) error {
	var whole json.RawMessage
	if err := json.Unmarshal(data, &whole); err != nil {
		return err
	}
	return (&walker{data: data, closed: closed}).value(s, 0)
}

// walker walks over a JSON value that is known to be well-formed.
type walker struct {
	data   []byte
	at     int
	closed bool
}

// next skips white space and commas and colons, and returns what follows.
func (w *walker) next() byte {
	for strings.IndexByte(" \t\r\n,:", w.data[w.at]) >= 0 {
		w.at++
	}
	return w.data[w.at]
}

func (w *walker) value(s *shape, depth int) error {
	first := w.next()
	if s != nil && s.later {
		var skipped json.RawMessage
		decoder := json.NewDecoder(bytes.NewReader(w.data[w.at:]))
		err := decoder.Decode(&skipped)
		w.at += int(decoder.InputOffset())
		return err
	}
	if depth == maxDepth && (first == '{' || first == '[') {
		return fmt.Errorf("it nests deeper than %d levels", maxDepth)
	}
	switch first {
	case '{':
		return w.object(s, depth)
	case '[':
		w.at++
		for w.next() != ']' {
			if err := w.value(s.element(), depth+1); err != nil {
				return err
			}
		}
		w.at++
		return nil
	case '"':
		_, err := w.text()
		return err
	}
	start := w.at
	for w.at < len(w.data) && strings.IndexByte(" \t\r\n,:]}", w.data[w.at]) < 0 {
		w.at++
	}
	return checkNumber(string(w.data[start:w.at]))
}

func (w *walker) object(s *shape, depth int) error {
	seen := map[string]bool{}
	w.at++
	for w.next() != '}' {
		name, err := w.text()
		if err != nil {
			return err
		}
		below, err := s.member(name, w.closed)
		if err != nil {
			return err
		}
		same := name
		if !s.isMap() {
			same = fold(name)
		}
		if seen[same] {
			return fmt.Errorf("member %s stands twice in one object", quote(name))
		}
		seen[same] = true
		if err := w.value(below, depth+1); err != nil {
			return err
		}
	}
	w.at++
	return nil
}

// text reads a string and resolves its escapes.
func (w *walker) text() (string, error) {
	start := w.at
	escaped := false
	for w.at++; w.data[w.at] != '"'; w.at++ {
		if w.data[w.at] == '\\' {
			escaped = true
			w.at++
		}
	}
	w.at++
	raw := w.data[start:w.at]
	if !utf8.Valid(raw) {
		return "", errors.New("text in it is not UTF-8")
	}
	if !escaped {
		return string(raw[1 : len(raw)-1]), nil
	}
	if err := checkEscapes(string(raw)); err != nil {
		return "", err
	}
	var resolved string
	err := json.Unmarshal(raw, &resolved)
	return resolved, err
}

// checkEscapes refuses escapes that readers resolve differently.
func checkEscapes(raw string) error {
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		if i++; raw[i] != 'u' {
			continue
		}
		unit := codeUnit(raw[i+1:])
		i += 4
		switch {
		case unit == 0:
			return errors.New(`text in it holds the character NUL (\u0000)`)
		case unit >= 0xdc00 && unit < 0xe000:
			return fmt.Errorf(`text in it holds the second half of a surrogate pair (\u%04x) without the first`, unit)
		case unit >= 0xd800 && unit < 0xdc00:
			rest := raw[i+1:]
			if !strings.HasPrefix(rest, `\u`) || codeUnit(rest[2:])&0xfc00 != 0xdc00 {
				return fmt.Errorf(`text in it holds the first half of a surrogate pair (\u%04x) without the second`, unit)
			}
			i += 6
		}
	}
	return nil
}

// codeUnit reads four hex digits.
func codeUnit(text string) uint64 {
	unit, _ := strconv.ParseUint(text[:4], 16, 16) // it is well-formed
	return unit
}

// checkNumber refuses a number that readers round, or take for infinity.
func checkNumber(text string) error {
	if strings.ContainsAny(text[:1], "tfn") { // true, false, null
		return nil
	}
	if strings.ContainsAny(text, ".eE") {
		if _, err := strconv.ParseFloat(text, 64); err != nil {
			return fmt.Errorf("the number %s in it is larger than readers can tell", shorten(text))
		}
		return nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n > maxInteger || n < -maxInteger {
		return fmt.Errorf("the integer %s in it has more than the 53 bits that all readers can tell", shorten(text))
	}
	return nil
}

// fold maps names that differ in case alone to one, as encoding/json does: to
// the smallest letter of each orbit of Unicode's simple case folding.
func fold(name string) string {
	return strings.Map(func(r rune) rune {
		if r < utf8.RuneSelf {
			return unicode.ToUpper(r)
		}
		smallest := rune(math.MaxInt32)
		for next := unicode.SimpleFold(r); ; next = unicode.SimpleFold(next) {
			smallest = min(smallest, next)
			if next == r {
				return smallest
			}
		}
	}, name)
}

func shorten(text string) string {
	const limit = 80
	if len(text) > limit {
		return text[:limit] + "…"
	}
	return text
}

func quote(name string) string { return strconv.Quote(shorten(name)) }
