package strictjson

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
)

// accepted and refused are what Check says of JSON; the refused with a reason.
var accepted = Accepted

// Accepted is for the tests from outside.
var Accepted = map[string]string{
	"object":            `{"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}`,
	"no object":         ` "a" `,
	"space around":      "\t{}\r\n",
	"largest integer":   `[9007199254740991, -9007199254740991]`,
	"other numbers":     `[1.5, 1e3, -0, 0.1, 1E+2]`,
	"surrogate pair":    `"\ud83d\ude00"`,
	"escapes":           `{"\"\\\/\b\f\n\r\t\u00e9": "\\u0000"}`,
	"literals":          `[true, false, null, "", {}, []]`,
	"as deep as can be": strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth),
}

var refused = map[string]struct{ data, want string }{
	"twice":                      {`{"a": 1, "a": 1}`, `member "a" stands twice in one object`},
	"twice, far inside":          {`{"b": [[{"c": {"a": 1, "x": [], "a": 2}}]]}`, `member "a" stands twice in one object`},
	"twice, other case":          {`{"subject": 1, "Subject": 2}`, `member "Subject" stands twice in one object`},
	"twice, by an escape":        {`{"a": 1, "\u0061": 2}`, `member "a" stands twice in one object`},
	"twice, other fold":          {`{"Di\u017fk": 1, "Disk": 2}`, `member "Disk" stands twice in one object`},
	"twice, Kelvin":              {`{"PK": 1, "P\u212a": 2}`, "stands twice in one object"},
	"nothing":                    {``, "unexpected end of JSON input"},
	"something after it":         {`{} {}`, "after top-level value"},
	"a brace after it":           {`{}}`, "after top-level value"},
	"a NUL after it":             {"{}\x00", "after top-level value"},
	"a comma too much":           {`[1,]`, "invalid character"},
	"a comment":                  {`{} // {"a": 1}`, "after top-level value"},
	"NaN":                        {`{"a": NaN}`, "invalid character 'N'"},
	"Infinity":                   {`{"a": Infinity}`, "invalid character 'I'"},
	"hexadecimal":                {`{"a": 0x10}`, "invalid character 'x'"},
	"a leading zero":             {`{"a": 010}`, "invalid character"},
	"byte order mark":            {"\ufeff{}", "invalid character"},
	"UTF-16":                     {"{\x00}\x00", "invalid character"},
	"an integer that is rounded": {`{"Size": 9007199254740993}`, "the integer 9007199254740993 in it has more than the 53 bits"},
	"a negative one":             {`[-9007199254740992]`, "has more than the 53 bits"},
	"an integer of many digits":  {`[` + strings.Repeat("9", 1000) + `]`, "has more than the 53 bits"},
	"infinity in other words":    {`[1e400]`, "is larger than readers can tell"},
	"no UTF-8":                   {"\"\xff\"", "is not UTF-8"},
	"a name of no UTF-8":         {"{\"\xc0\x80\": 1}", "is not UTF-8"},
	"surrogates in UTF-8":        {"\"\xed\xa0\x80\"", "is not UTF-8"},
	"NUL":                        {`{"a": "b\u0000c"}`, "the character NUL"},
	"NUL in a name":              {`{"a\u0000": 1}`, "the character NUL"},
	"first half alone":           {`"\ud800"`, "the first half of a surrogate pair"},
	"first half before text":     {`"\ud800abcdef"`, "the first half of a surrogate pair"},
	"first half twice":           {`"\ud800\ud800"`, "the first half of a surrogate pair"},
	"second half alone":          {`"\udfff"`, "the second half of a surrogate pair"},
	"nested without measure":     {strings.Repeat("[", 1<<20), "exceeded max depth"},
	"nested too deep":            {strings.Repeat(`{"a":`, maxDepth+1) + "1" + strings.Repeat("}", maxDepth+1), "nests deeper than 128 levels"},
}

func TestCheck(t *testing.T) {
	for name, data := range accepted {
		if err := Check([]byte(data)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, tc := range refused {
		if err := Check([]byte(tc.data)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want %q", name, err, tc.want)
		}
	}
}

// sample has what the types that are read have.
type sample struct {
	embedded

	Layers      []layer           `json:"layers"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Plain       int
	Itself      *sample         `json:"itself"`
	Raw         json.RawMessage `json:"raw"`
	Later       Raw             `json:"later"`
	Omitted     string          `json:"-"`
}

type embedded struct {
	Subject string `json:"subject"`
}

type layer struct {
	Digest string           `json:"digest"`
	Below  map[string]layer `json:"below"`
}

func TestUnmarshal(t *testing.T) {
	for name, tc := range map[string]struct{ data, want string }{
		"every member":            {`{"subject":"s","layers":[{"digest":"d","below":{"x":{"digest":"e"}}}],"annotations":{"a":"b"},"Plain":1,"itself":{"Plain":2},"raw":{"x":1},"later":{"y":1}}`, ""},
		"others beside them":      {`{"more": {"Digest": 1}, "layers": [], "Omitted": 1, "-": 2}`, ""},
		"keys of a map":           {`{"annotations": {"name": "a", "Name": "b"}}`, ""},
		"its own name":            {`{"itself": {"itself": {"itself": null}}}`, ""},
		"other case":              {`{"Layers": []}`, `member "Layers" is not spelt "layers"`},
		"other case, beside it":   {`{"layers": [1], "Layers": []}`, `member "Layers" is not spelt "layers"`},
		"other case, in a list":   {`{"layers": [{"digest": "d"}, {"DIGEST": "d"}]}`, `member "DIGEST" is not spelt "digest"`},
		"other case, in a map":    {`{"layers": [{"below": {"x": {"Digest": "d"}}}]}`, `member "Digest" is not spelt "digest"`},
		"other case, itself":      {`{"itself": {"itself": {"plain": 1}}}`, `member "plain" is not spelt "Plain"`},
		"other case, embedded":    {`{"Subject": "s"}`, `member "Subject" is not spelt "subject"`},
		"other fold":              {`{"\u017fubject": "s"}`, `is not spelt "subject"`},
		"a key of a map twice":    {`{"annotations": {"a": "1", "\u0061": "2"}}`, `member "a" stands twice`},
		"case, in what is raw":    {`{"raw": {"a": 1, "A": 2}}`, `member "A" stands twice`},
		"anything, in what waits": {`{"later": {"a": 1, "a": [2]}, "Plain": 3}`, ""},
		"after what waits":        {`{"later": {"a": 1, "a": [2]}, "plain": 3}`, `member "plain" is not spelt`},
		"a fraction":              {`{"Plain": 1.0}`, "cannot unmarshal number 1.0"},
		"another type":            {`{"layers": {}}`, "cannot unmarshal object"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Unmarshal([]byte(tc.data), new(sample))
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
	if err := UnmarshalClosed([]byte(`{"Plain": 1, "more": 2}`), new(sample)); err == nil || !strings.Contains(err.Error(), `member "more" is not known`) {
		t.Errorf("closed: %v", err)
	}
	if err := UnmarshalClosed([]byte(`{"Plain": 1, "annotations": {"more": "2"}}`), new(sample)); err != nil {
		t.Errorf("closed, a map: %v", err)
	}
	if err := Decode(strings.NewReader(`{"Plain": 1}   `), 14, new(sample)); err == nil || !strings.Contains(err.Error(), "longer than the 14 bytes") {
		t.Errorf("long: %v", err)
	}
}

func TestCheckMessage(t *testing.T) {
	for data, want := range map[string]string{
		`{"mediaType":"m","dsseEnvelope":{"payload":"","signatures":[{"sig":""}]},"verificationMaterial":{"tlogEntries":[{"logIndex":"1"}]}}`: "",
		`{"dsse_envelope":{}}`:                                          `member "dsse_envelope" is not spelt "dsseEnvelope"`,
		`{"DsseEnvelope":{}}`:                                           `is not spelt "dsseEnvelope"`,
		`{"dsseEnvelope":{"signatures":[{"Sig":""}]}}`:                  `is not spelt "sig"`,
		`{"verificationMaterial":{"tlogEntries":[{"log_index":"1"}]}}`:  `is not spelt "logIndex"`,
		`{"mediaType":"m","mediaType":"n"}`:                             "stands twice",
		`{"verificationMaterial":{"tlogEntries":[{"logIndex":1e400}]}}`: "larger than readers can tell",
	} {
		err := CheckMessage([]byte(data), new(protobundle.Bundle))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", data, err, want)
		}
	}
}

// read is a reader that takes the first or the last of several members of one name,
// and tells names that differ in case from each other. It is an oracle: it knows
// nothing of the code above.
func read(d *json.Decoder, first bool) (any, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch token {
	case json.Delim('['):
		list := []any{}
		for d.More() {
			value, err := read(d, first)
			if err != nil {
				return nil, err
			}
			list = append(list, value)
		}
		_, err := d.Token()
		return list, err
	case json.Delim('{'):
		object := map[string]any{}
		for d.More() {
			name, err := d.Token()
			if err != nil {
				return nil, err
			}
			value, err := read(d, first)
			if err != nil {
				return nil, err
			}
			if _, known := object[name.(string)]; !known || !first { //nolint:forcetypeassert // the decoder sees to it
				object[name.(string)] = value //nolint:forcetypeassert // as above
			}
		}
		_, err := d.Token()
		return object, err
	}
	return token, nil
}

// FuzzUnmarshal holds that what is accepted is read alike by who takes the first and
// by who takes the last member of a name, and that Go's own reader finds the same
// under the names of a type.
func FuzzUnmarshal(f *testing.F) {
	for _, data := range accepted {
		f.Add([]byte(data))
	}
	for _, tc := range refused {
		if len(tc.data) < 1000 {
			f.Add([]byte(tc.data))
		}
	}
	f.Add([]byte(`{"subject":"s","Plain":1,"layers":[{"digest":"d"}],"Layers":[]}`))
	f.Add([]byte(`{"subject":"s","annotations":{"a":"b"},"later":{"a":1,"a":2}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var typed sample
		typedErr := Unmarshal(data, &typed)
		if Check(data) != nil {
			return
		}
		one, err := read(json.NewDecoder(bytes.NewReader(data)), true)
		if err != nil {
			t.Fatalf("accepted, and not to be read: %v", err)
		}
		other, err := read(json.NewDecoder(bytes.NewReader(data)), false)
		if err != nil || !reflect.DeepEqual(one, other) {
			t.Fatalf("the first members say %v, and the last %v (%v)", one, other, err)
		}
		object, ok := one.(map[string]any)
		if typedErr != nil || !ok {
			return
		}
		if subject, _ := object["subject"].(string); subject != typed.Subject {
			t.Errorf("subject is %q, and was read as %q", subject, typed.Subject)
		}
		if layers, _ := object["layers"].([]any); len(layers) != len(typed.Layers) {
			t.Errorf("there are %d layers, and %d were read", len(layers), len(typed.Layers))
		}
		if plain, _ := object["Plain"].(float64); int(plain) != typed.Plain {
			t.Errorf("Plain is %v, and was read as %d", plain, typed.Plain)
		}
		for name := range object {
			for _, known := range []string{"subject", "layers", "annotations", "Plain", "itself", "raw", "later"} {
				if name != known && strings.EqualFold(name, known) {
					t.Errorf("the member %q was let through beside %q", name, known)
				}
			}
		}
	})
}

// lenient are the packages that read JSON of their own making, or for tests: they
// may use encoding/json for it.
var lenient = []string{"internal/strictjson", "internal/testenv", "bench/", "examples/"}

// TestOneWayToReadJSON holds that the rest of the program reads JSON by this
// package.
func TestOneWayToReadJSON(t *testing.T) {
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if entry.IsDir() && (strings.HasPrefix(entry.Name(), ".") && name != "." || entry.Name() == "testdata" || entry.Name() == "node_modules") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") ||
			slices.ContainsFunc(lenient, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(file.Imports, func(i *ast.ImportSpec) bool { return i.Path.Value == `"encoding/json"` }) {
			return nil
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if selected, ok := n.(*ast.SelectorExpr); ok && fmt.Sprint(selected.X) == "json" && slices.Contains([]string{"Unmarshal", "NewDecoder"}, selected.Sel.Name) {
				t.Errorf("%s uses json.%s: what it reads may mean several things; use strictjson", name, selected.Sel.Name)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
