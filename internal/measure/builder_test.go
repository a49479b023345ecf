package measure

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

const testBuilder = `{
  "Image": "attestable-image-builder:1",
  "Digest": "sha256:15c2030e0fb46580af4f1b4cc303f4bd26da781b004e99763bc9eff7cf8e19b8",
  "Base": "docker.io/library/debian:trixie-slim",
  "KIWI": "10.3.9",
  "PackagesSHA256": "f5a0546098f38bad5843380521781fe7214e5a283d3bed63f79c505545f262af",
  "Packages": [
    {"Name": "apt", "Version": "3.0.4", "Architecture": "amd64"}
  ],
  "Inputs": {
    "SourceDateEpoch": 1764000000,
    "DescriptionSHA256": "fbaf1268c9a4b71d49d89594068123672ad7a4c8de72a71a88fb4e65224a392a",
    "PackagesLocked": true,
    "PackagesSHA256": "f29fee3156c91a86cfbae436336d90324c54b805558070e93d70e3ffef10bc86",
    "Recipe": {"Description": "image", "Overlay": "files", "Lock": "locks/image.lock", "Name": "app", "Version": "1.2.3", "Serve": true},
    "Files": [
      {"Path": ".", "Kind": "directory", "Mode": "755"},
      {"Path": "config.xml", "Kind": "file", "Mode": "644", "SHA256": "f29fee3156c91a86cfbae436336d90324c54b805558070e93d70e3ffef10bc86"},
      {"Path": "root/etc/localtime", "Kind": "link", "Target": "/usr/share/zoneinfo/UTC"}
    ]
  }
}`

// TestBuilder puts a builder into a document, and asks the published schema.
func TestBuilder(t *testing.T) {
	info, err := ParseBuilder([]byte(testBuilder))
	if err != nil {
		t.Fatal(err)
	}
	var want, got any
	written, err := json.Marshal(info)
	if err != nil {
		t.Fatal(err)
	}
	if json.Unmarshal([]byte(testBuilder), &want) != nil || json.Unmarshal(written, &got) != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("written again it is\n%s", written)
	}
	document := &Document{
		Measurements:  Measurements{HashAlgorithm: SHA384, PCRs: map[int]string{4: strings.Repeat("0", 96)}},
		SchemaVersion: SchemaVersion, BootChain: []ImageInfo{}, Events: []EventInfo{}, Builder: info,
	}
	b, err := document.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := validate(t, schema(t), b); err != nil {
		t.Error(err)
	}
	again, err := ParseDocument(b)
	if err != nil || !reflect.DeepEqual(again.Builder, info) {
		t.Errorf("read again it is %+v (%v)", again, err)
	}
	if _, err := ParseDocument(bytes.Replace(b, []byte("sha256:15c2"), []byte("sha512:15c2"), 1)); err == nil || !strings.Contains(err.Error(), "Builder") {
		t.Errorf("a document with another digest of the builder: %v", err)
	}
}

func TestBuilderRefuses(t *testing.T) {
	for _, tc := range []struct{ name, from, to, want string }{
		{"no JSON", testBuilder, "x", "invalid character"},
		{"no image", `"attestable-image-builder:1"`, `""`, "names no builder image"},
		{"digest", "sha256:15c2", "15c2", "digest"},
		{"packages", `"f5a0`, `"F5A0`, "no digest"},
		{"description", `"fbaf`, `"f`, "no digest"},
		{"twice", `"KIWI"`, `"KIWI": "1", "KIWI"`, "KIWI"},
		{"type", `1764000000`, `"now"`, "cannot unmarshal"},
		{"time before 1970", `1764000000`, `-1`, "is none that RFC 3339 can say"},
		{"time after 9999", `1764000000`, `253402300800`, "is none that RFC 3339 can say"},
		{"path that climbs", `"image"`, `"../image"`, "leads out of the source"},
		{"absolute path", `"files"`, `"/files"`, "leads out of the source"},
		{"template and description", `"Description": "image"`, `"Template": "debian", "Description": "image"`, "not one of"},
		{"nothing to build", `"Description": "image", `, ``, "not one of"},
		{"kind", `"Kind": "link"`, `"Kind": "socket"`, "not described"},
		{"mode", `"Mode": "644"`, `"Mode": "rw"`, "not described"},
		{"file that climbs", `"config.xml"`, `"../config.xml"`, "not described"},
		{"size", "  ", strings.Repeat(" ", maxBuilderBytes), "larger than"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := ParseBuilder([]byte(strings.Replace(testBuilder, tc.from, tc.to, 1))); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want %q", err, tc.want)
			}
		})
	}
}
