package kiwi

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestReason reads logs of real builds that failed, cut to their ends.
func TestReason(t *testing.T) {
	for _, tc := range []struct{ log, want string }{
		{"schema.log", "the description does not follow KIWI's schema: Expecting an element preferences, got nothing; Invalid sequence in interleave; Element image failed to validate content"},
		{"repository.log", "apt-get: E: Failed to fetch http://deb.debian.org/nothing-here/dists/trixie/InRelease 400 Bad Request [IP: 203.0.113.80 80]; E: The repository 'http://deb.debian.org/nothing-here trixie InRelease' is not signed"},
		{"package.log", "System package installation failed: E: Unable to locate package no-such-package-here"},
		{"script.log", "config.sh failed with: cp: cannot stat '/no/such/file': No such file or directory"},
		{"dracut.log", "chroot: dracut[E]: Module 'no-such-module' cannot be found"},
	} {
		t.Run(tc.log, func(t *testing.T) {
			log, err := os.ReadFile(filepath.Join("testdata", tc.log))
			if err != nil {
				t.Fatal(err)
			}
			if got := Reason(string(log)); got != tc.want {
				t.Errorf("reason is\n%q, want\n%q", got, tc.want)
			}
		})
	}
}

func TestReasonOfOddLogs(t *testing.T) {
	for _, tc := range []struct{ name, log, want string }{
		{"empty", "", ""},
		{"no error", "[ INFO    ]: 20:48:14 | all well\n", ""},
		{"no record", "Traceback\nKeyError: 'x'\n", ""},
		{"an error without words", "[ ERROR   ]: 20:48:14 | \n", ""},
		{"nothing that reads as a reason", "[ ERROR   ]: 20:48:14 | KiwiCommandError: mkfs.erofs: stderr: (no output on stderr), stdout: one\ntwo\n", "mkfs.erofs: one; two"},
		{"the last of two", "[ ERROR   ]: 20:48:14 | KiwiXError: first\n[ ERROR   ]: 20:48:15 | KiwiYError: KiwiZError: second\n", "second"},
		{"many lines", "[ ERROR   ]: 20:48:14 | KiwiXError: E: 1\nE: 2\nE: 3\nE: 4\nE: 5\nE: 6\nE: 7\n", "E: 1; E: 2; E: 3; E: 4; E: 5; E: 6; …"},
		{"said twice", "[ ERROR   ]: 20:48:14 | KiwiXError: E: same\nE: same.\nE: same\n", "E: same; E: same"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := Reason(tc.log); got != tc.want {
				t.Errorf("reason is %q, want %q", got, tc.want)
			}
		})
	}
	long := Reason("[ ERROR   ]: 20:48:14 | KiwiXError: " + strings.Repeat("ä", 10_000))
	if len(long) > maxReasonLine+len("…") {
		t.Errorf("a long line makes a reason of %d bytes", len(long))
	}
}

func FuzzReason(f *testing.F) {
	for _, name := range []string{"schema.log", "repository.log", "package.log", "script.log", "dracut.log"} {
		log, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(log))
	}
	f.Fuzz(func(t *testing.T, log string) {
		if got := Reason(log); len(got) > (maxReasonLines+2)*(maxReasonLine+8)+1024 || strings.Contains(got, "\n") {
			t.Errorf("reason of %d bytes: %q", len(got), got)
		}
	})
}

func TestLiveLog(t *testing.T) {
	var shown bytes.Buffer
	live := &liveLog{w: &shown}
	for _, piece := range []string{
		"[ INFO    ]: 20:48:14 | first\n[ INF", "O    ]: Processing: [        ] 0%\r[ INFO    ]: Processing: [########] 100%\r\n",
		"Get:1 http://x \r Get:2\n\n", "\x1b[91mred\x1b[0m\n",
		"\x1b]52;c;cm0gLXJmIH4K\x07clip\x1b]0;title\x1b\\board \x1bP q#0\x1b\\\x1b[?25l\u009b31m\x9b31m\x1bc\a\u202eend\tä\n", "\x1b]0;", "last",
	} {
		if _, err := io.WriteString(live, piece); err != nil {
			t.Fatal(err)
		}
	}
	live.close()
	want := "[ INFO    ]: 20:48:14 | first\n Get:2\nred\nclipboard 31m\uFFFD31mend\tä\n"
	if shown.String() != want || string(live.tail) != want {
		t.Errorf("shown %q, kept %q, want %q", shown.String(), live.tail, want)
	}
	for range 100 {
		_, _ = io.WriteString(live, strings.Repeat("x", 999)+"\n")
	}
	if len(live.tail) != tailSize {
		t.Errorf("%d bytes are kept, want %d", len(live.tail), tailSize)
	}
}
