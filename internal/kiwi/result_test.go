package kiwi

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseResult(t *testing.T) {
	content, err := os.ReadFile(filepath.Join("testdata", "kiwi.result.json"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := parseResult(content)
	if err != nil {
		t.Fatal(err)
	}
	disk, err := diskFile(files)
	if err != nil || disk != "attestable-debian.x86_64-1.0.0.raw" || files["image_packages"] != "attestable-debian.x86_64-1.0.0.packages" {
		t.Errorf("disk %q, files %v, error %v", disk, files, err)
	}
}

func TestParseBadResult(t *testing.T) {
	for _, tc := range []struct{ name, content, want string }{
		{"empty", "", "unexpected end"},
		{"cut off", `{"disk_image": {"filename": "/output/build/x.r`, "unexpected end"},
		{"a list", `[]`, "cannot unmarshal"},
		{"outside", `{"disk_image": {"filename": "/etc/passwd"}}`, "the disk_image is not a file in /output/build"},
		{"climbing", `{"disk_image": {"filename": "/output/build/../../etc/passwd"}}`, "is not a file in /output/build"},
		{"deeper", `{"disk_image": {"filename": "/output/build/a/b.raw"}}`, "is not a file in /output/build"},
		{"the directory", `{"disk_image": {"filename": "/output/build/"}}`, "is not a file in /output/build"},
		{"a record of ours", `{"image_packages": {"filename": "/output/build/builder.json"}}`, "is not a file in /output/build that a result can be"},
		{"hidden", `{"disk_image": {"filename": "/output/build/.attestable-image-build"}}`, "is not a file in /output/build that a result can be"},
		{"two lines", `{"disk_image": {"filename": "/output/build/a\n.raw"}}`, "is not a file in /output/build that a result can be"},
		{"odd key", `{"a\nb": {"filename": "/output/build/a.raw"}}`, "has to be a word"},
		{"no disk", `{"root_archive": {"filename": "/output/build/x.tar.xz"}}`, `makes no disk (KIWI made root_archive): its type has to be image="oem"`},
		{"nothing", `{}`, "makes no disk (KIWI made nothing)"},
		{"not raw", `{"disk_image": {"filename": "/output/build/x.qcow2"}}`, "a raw disk is needed: remove format="},
	} {
		t.Run(tc.name, func(t *testing.T) {
			files, err := parseResult([]byte(tc.content))
			if err == nil {
				_, err = diskFile(files)
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want %q", err, tc.want)
			}
		})
	}
}

func FuzzParseResult(f *testing.F) {
	content, err := os.ReadFile(filepath.Join("testdata", "kiwi.result.json"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(content)
	f.Fuzz(func(t *testing.T, content []byte) {
		files, err := parseResult(content)
		if err != nil {
			return
		}
		for _, name := range files {
			if name == "" || strings.Contains(name, "/") {
				t.Errorf("file name %q", name)
			}
		}
	})
}
