package source

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
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

func FuzzParseRef(f *testing.F) {
	f.Add([]byte("ref: refs/heads/main\n"))
	f.Add([]byte(strings.Repeat("0a", 20) + "\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		id, name, err := parseRef(content)
		if err == nil && (id == "") == (name == "") || name != "" && (!fs.ValidPath(name) || !strings.HasPrefix(name, "refs/")) {
			t.Errorf("the ref is %q or %q (%v)", id, name, err)
		}
	})
}

func FuzzCommitTime(f *testing.F) {
	f.Add([]byte("tree 0\ncommitter A <a@localhost> 1764000000 +1300\n\nx\n"))
	f.Fuzz(func(t *testing.T, object []byte) {
		sum := sha1.Sum(append(fmt.Appendf(nil, "commit %d\x00", len(object)), object...))
		if epoch, err := commitTime(hex.EncodeToString(sum[:]), object); err != nil && epoch != 0 {
			t.Errorf("%d and %v", epoch, err)
		}
		if _, err := commitTime(strings.Repeat("0", 40), object); err == nil {
			t.Error("another object is taken")
		}
	})
}
