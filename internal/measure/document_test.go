package measure

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/testenv"
)

var update = flag.Bool("update", false, "renew the golden documents in testdata")

// schema compiles the published schema of the document.
func schema(t testing.TB) *jsonschema.Schema {
	t.Helper()
	s, err := jsonschema.NewCompiler().Compile(filepath.Join(testenv.Root(t), "schema/measurements.v1.json"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func validate(t testing.TB, s *jsonschema.Schema, document []byte) error {
	t.Helper()
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(document))
	if err != nil {
		t.Fatal(err)
	}
	return s.Validate(value)
}

// TestDocument compares documents with those that stand in testdata, and
// validates them by the published schema. "go test -update" renews them.
func TestDocument(t *testing.T) {
	s := schema(t)
	g := readGolden(t)
	diskInfo := func(t *testing.T, d *disk.Disk) *DiskInfo {
		h := sha256.New()
		if _, err := io.Copy(h, d.Stream()); err != nil {
			t.Fatal(err)
		}
		return &DiskInfo{SHA256: hexDigest(h.Sum(nil)), Size: d.Size()}
	}
	for name, make := range map[string]func(t *testing.T) *Document{
		"stub257": func(t *testing.T) *Document {
			d := openDisk(t, testenv.GoldenDisk(t, "stub257"))
			p, err := Disk(t.Context(), d, Options{PCRs: []int{2, 4, 5, 7, 9, 11, 12, 13}})
			if err != nil {
				t.Fatal(err)
			}
			document := p.Document()
			document.Disk = diskInfo(t, d)
			return document
		},
		"sbA252": func(t *testing.T) *Document {
			p, err := Disk(t.Context(), openDisk(t, testenv.GoldenDisk(t, "sbA252")), Options{Bank: SHA256, SecureBoot: g.secureBoot(t, "sbA252")})
			if err != nil {
				t.Fatal(err)
			}
			return p.Document()
		},
		"uki": func(t *testing.T) *Document {
			p, err := predictFile(t, testenv.UKI(0xaa64, "258.1"), Options{})
			if err != nil {
				t.Fatal(err)
			}
			return p.Document()
		},
	} {
		t.Run(name, func(t *testing.T) {
			document := make(t)
			got, err := document.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(path, got, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("the document is not that of %s (go test -update renews it):\n%s", path, got)
			}
			if err := validate(t, s, got); err != nil {
				t.Error(err)
			}
			parsed, err := ParseDocument(got)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(parsed, document) {
				t.Errorf("the document comes back as %+v", parsed)
			}
			if differences := Compare(parsed, document); len(differences) != 0 {
				t.Errorf("the document differs from itself: %v", differences)
			}
		})
	}
}

// TestSchema shows that the schema is strict where it should be.
func TestSchema(t *testing.T) {
	s := schema(t)
	good, err := os.ReadFile("testdata/stub257.json")
	if err != nil {
		t.Fatal(err)
	}
	edit := func(path ...any) []byte { // all but the last lead to what the last replaces
		var document map[string]any
		if err := json.Unmarshal(good, &document); err != nil {
			t.Fatal(err)
		}
		at := any(document)
		for _, step := range path[:len(path)-2] {
			if n, ok := step.(int); ok {
				at = at.([]any)[n]
			} else {
				at = at.(map[string]any)[step.(string)]
			}
		}
		name, value := path[len(path)-2].(string), path[len(path)-1]
		if value == nil {
			delete(at.(map[string]any), name)
		} else {
			at.(map[string]any)[name] = value
		}
		b, err := json.Marshal(document)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	hex64 := strings.Repeat("0", 64)
	for name, test := range map[string]struct {
		document []byte
		valid    bool
	}{
		"good":                      {good, true},
		"a member of the future":    {edit("Audit", "something"), true},
		"another PCR":               {edit("Measurements", "PCR14", strings.Repeat("a", 96)), true},
		"no Disk":                   {edit("Disk", nil), true},
		"no Measurements":           {edit("Measurements", nil), false},
		"no Events":                 {edit("Events", nil), false},
		"no HashAlgorithm":          {edit("Measurements", "HashAlgorithm", nil), false},
		"HashAlgorithm SHA1":        {edit("Measurements", "HashAlgorithm", "SHA1"), false},
		"HashAlgorithm of another":  {edit("Measurements", "HashAlgorithm", "SHA256"), false},
		"PCR of another bank":       {edit("Measurements", "PCR4", hex64), false},
		"PCR in upper case":         {edit("Measurements", "PCR4", strings.Repeat("A", 96)), false},
		"PCR 24":                    {edit("Measurements", "PCR24", strings.Repeat("a", 96)), false},
		"PCR 04":                    {edit("Measurements", "PCR04", strings.Repeat("a", 96)), false},
		"version 2":                 {edit("SchemaVersion", 2), false},
		"other architecture":        {edit("Architecture", "arm64"), false},
		"unknown member of Disk":    {edit("Disk", "Sha256", hex64), false},
		"negative size":             {edit("Disk", "Size", -1), false},
		"unknown member of image":   {edit("BootChain", 0, "Digest", hex64), false},
		"image without a digest":    {edit("BootChain", 0, "Authenticode", "SHA384", nil), false},
		"Secure Boot without state": {edit("SecureBoot", "Enabled", nil), false},
		"event without a digest":    {edit("Events", 0, "Digest", nil), false},
		"event of no type":          {edit("Events", 0, "Type", "separator"), false},
		"event of odd hex":          {edit("Events", 0, "Data", "abc"), false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := validate(t, s, test.document); (err == nil) != test.valid {
				t.Errorf("valid is %t: %v", err == nil, err)
			}
		})
	}
}

func TestParseDocument(t *testing.T) {
	h384, h256 := strings.Repeat("ab", 48), strings.Repeat("cd", 32)
	measurements := `{"HashAlgorithm": "SHA384", "PCR4": "` + h384 + `"}`
	for name, test := range map[string]struct {
		document string
		want     string // of the error, "" when it is good
	}{
		"AWS's own form":    {`{"Measurements": ` + measurements + `}`, ""},
		"upper case":        {`{"Measurements": {"HashAlgorithm": "SHA384", "PCR4": "` + strings.ToUpper(h384) + `"}}`, ""},
		"SHA-256":           {`{"Measurements": {"HashAlgorithm": "SHA256", "PCR4": "` + h256 + `"}}`, ""},
		"with a disk":       {`{"Measurements": ` + measurements + `, "Disk": {"SHA256": "` + h256 + `", "Size": 5}}`, ""},
		"of the future":     {`{"Measurements": ` + measurements + `, "Audit": {"x": [1, {}]}}`, ""},
		"empty":             {``, "read measurements: unexpected end of JSON input"},
		"no JSON":           {`PCR4: ` + h384, "read measurements: invalid character 'P'"},
		"cut off":           {`{"Measurements": ` + measurements, "unexpected end of JSON input"},
		"more behind it":    {`{"Measurements": ` + measurements + `}{}`, "invalid character '{' after top-level value"},
		"an array":          {`[]`, "read measurements: json: cannot unmarshal array"},
		"null":              {`null`, "the document has no Measurements"},
		"empty object":      {`{}`, "the document has no Measurements"},
		"null measurements": {`{"Measurements": null}`, "HashAlgorithm: there is no bank"},
		"no algorithm":      {`{"Measurements": {"PCR4": "` + h384 + `"}}`, "HashAlgorithm: there is no bank"},
		"other algorithm":   {`{"Measurements": {"HashAlgorithm": "SHA1"}}`, `HashAlgorithm: there is no bank "SHA1": give sha384 or sha256`},
		"no PCR":            {`{"Measurements": {"HashAlgorithm": "SHA384"}}`, "the document has no PCR"},
		"PCR too short":     {`{"Measurements": {"HashAlgorithm": "SHA384", "PCR4": "` + h256 + `"}}`, "the value of PCR4 is not a SHA384 digest in hex"},
		"PCR no hex":        {`{"Measurements": {"HashAlgorithm": "SHA384", "PCR4": "` + strings.Repeat("x", 96) + `"}}`, "the value of PCR4 is not a SHA384 digest in hex"},
		"PCR a number":      {`{"Measurements": {"HashAlgorithm": "SHA384", "PCR4": 4}}`, "cannot unmarshal number"},
		"PCR 24":            {`{"Measurements": {"HashAlgorithm": "SHA384", "PCR24": "` + h384 + `"}}`, `member "PCR24" is no PCR`},
		"PCR 04":            {`{"Measurements": {"HashAlgorithm": "SHA384", "PCR04": "` + h384 + `"}}`, `member "PCR04" is no PCR`},
		"PCR -1":            {`{"Measurements": {"HashAlgorithm": "SHA384", "PCR-1": "` + h384 + `"}}`, `member "PCR-1" is no PCR`},
		"pcr4":              {`{"Measurements": {"HashAlgorithm": "SHA384", "pcr4": "` + h384 + `"}}`, `member "pcr4" is no PCR`},
		"other member":      {`{"Measurements": {"HashAlgorithm": "SHA384", "\u001b[2J": ""}}`, `member "\x1b[2J" is no PCR`},
		"newer version":     {`{"Measurements": ` + measurements + `, "SchemaVersion": 2}`, "the document is of version 2, this program knows up to 1: use a newer one"},
		"negative version":  {`{"Measurements": ` + measurements + `, "SchemaVersion": -1}`, "the document is of version -1"},
		"disk digest":       {`{"Measurements": ` + measurements + `, "Disk": {"SHA256": "abc", "Size": 5}}`, "Disk is not a SHA-256 digest and a size"},
		"disk size":         {`{"Measurements": ` + measurements + `, "Disk": {"SHA256": "` + h256 + `", "Size": -5}}`, "Disk is not a SHA-256 digest and a size"},
		"twice":             {`{"Measurements": ` + measurements + `, "Measurements": ` + measurements + `}`, `member "Measurements" stands twice in one object`},
		"twice, other case": {`{"Measurements": ` + measurements + `, "measurements": ` + measurements + `}`, `member "measurements" is not spelt "Measurements"`},
		"PCR twice":         {`{"Measurements": {"HashAlgorithm": "SHA384", "PCR4": "` + h384 + `", "PCR4": "` + h384 + `"}}`, `member "PCR4" stands twice in one object`},
		"twice, other fold": {`{"Measurements": ` + measurements + `, "Di\u017fk": {}, "Disk": {"SHA256": "` + h256 + `"}}`, `is not spelt "Disk"`},
		"deep":              {strings.Repeat(`{"x":`, 20000) + `1` + strings.Repeat(`}`, 20000), "exceeded max depth"},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := ParseDocument([]byte(test.document))
			if test.want != "" {
				wantError(t, err, "read measurements: ", test.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if v := d.PCR(4); v != h384 && v != h256 || d.PCR(7) != "" {
				t.Errorf("PCR 4 is %q, PCR 7 %q", v, d.PCR(7))
			}
		})
	}
}

func TestCompare(t *testing.T) {
	document := func(change func(d *Document)) *Document {
		d := &Document{
			Measurements: Measurements{HashAlgorithm: SHA384, PCRs: map[int]string{4: "aa", 7: "bb", 11: "cc"}},
			Architecture: "x86_64",
			Disk:         &DiskInfo{SHA256: "dd", Size: 5},
		}
		change(d)
		return d
	}
	for name, test := range map[string]struct {
		attested, measured func(d *Document)
		want               []Difference
	}{
		"the same":                 {func(*Document) {}, func(*Document) {}, nil},
		"more measured":            {func(d *Document) { delete(d.Measurements.PCRs, 11); d.Disk = nil; d.Architecture = "" }, func(*Document) {}, nil},
		"a PCR":                    {func(*Document) {}, func(d *Document) { d.Measurements.PCRs[7] = "xx" }, []Difference{{"PCR7", "bb", "xx"}}},
		"a PCR is not measured":    {func(*Document) {}, func(d *Document) { delete(d.Measurements.PCRs, 7) }, []Difference{{"PCR7", "bb", ""}}},
		"PCRs in their order":      {func(*Document) {}, func(d *Document) { d.Measurements.PCRs = map[int]string{} }, []Difference{{"PCR4", "aa", ""}, {"PCR7", "bb", ""}, {"PCR11", "cc", ""}}},
		"another bank":             {func(*Document) {}, func(d *Document) { d.Measurements.HashAlgorithm = SHA256 }, []Difference{{"HashAlgorithm", "SHA384", "SHA256"}}},
		"another disk":             {func(*Document) {}, func(d *Document) { d.Disk = &DiskInfo{SHA256: "ee", Size: 6} }, []Difference{{"Disk.SHA256", "dd", "ee"}, {"Disk.Size", "5", "6"}}},
		"the disk is not measured": {func(*Document) {}, func(d *Document) { d.Disk = nil }, []Difference{{"Disk.SHA256", "dd", ""}, {"Disk.Size", "5", "0"}}},
		"another architecture":     {func(*Document) {}, func(d *Document) { d.Architecture = "aarch64" }, []Difference{{"Architecture", "x86_64", "aarch64"}}},
		"Secure Boot":              {func(d *Document) { d.SecureBoot.Enabled = true }, func(*Document) {}, []Difference{{"SecureBoot.Enabled", "true", "false"}}},
	} {
		t.Run(name, func(t *testing.T) {
			got := Compare(document(test.attested), document(test.measured))
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("differences %v, want %v", got, test.want)
			}
		})
	}
}

func TestParseBank(t *testing.T) {
	for s, want := range map[string]Bank{"sha384": SHA384, "SHA-256": SHA256, "Sha384": SHA384} {
		if got, err := ParseBank(s); err != nil || got != want {
			t.Errorf("%s is %s and %v, want %s", s, got, err, want)
		}
	}
	for _, s := range []string{"", "sha1", "sha512", "384"} {
		_, err := ParseBank(s)
		wantError(t, err, "there is no bank")
	}
}

func FuzzParseDocument(f *testing.F) {
	golden, err := filepath.Glob("testdata/*.json")
	if err != nil || len(golden) == 0 {
		f.Fatalf("no golden documents: %v", err)
	}
	for _, path := range golden {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"Measurements":{"HashAlgorithm":"sha-256","PCR23":"` + hex.EncodeToString(make([]byte, 32)) + `"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := ParseDocument(b)
		if err != nil {
			return
		}
		out, err := d.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseDocument(out)
		if err != nil {
			t.Fatalf("%v in what was written of a good document:\n%s", err, out)
		}
		if differences := Compare(d, again); len(differences) != 0 {
			t.Fatalf("the document comes back with %v", differences)
		}
		if twice, err := again.Marshal(); err != nil || !bytes.Equal(out, twice) {
			t.Fatalf("written twice, it differs: %v", err)
		}
	})
}
