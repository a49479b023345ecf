package source

import (
	"io/fs"
	"strings"
	"testing"
)

func FuzzParseTracked(f *testing.F) {
	f.Add([]byte("100644 " + strings.Repeat("0", 40) + " 0\troot/etc/motd\x00120000 " + strings.Repeat("1", 40) + " 0\tlink\x00"))
	f.Fuzz(func(t *testing.T, list []byte) {
		tracked, err := parseTracked(list, ".")
		if err != nil {
			return
		}
		for name, mode := range tracked {
			if mode&^fs.ModeDir != 0o644 && mode&^fs.ModeDir != 0o755 {
				t.Errorf("%q has %v", name, mode)
			}
		}
	})
}
