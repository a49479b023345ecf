package kiwi

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
)

const (
	sumA = "15c2030e0fb46580af4f1b4cc303f4bd26da781b004e99763bc9eff7cf8e19b8"
	sumB = "f5a0546098f38bad5843380521781fe7214e5a283d3bed63f79c505545f262af"
)

func TestLock(t *testing.T) {
	lock, err := ParseLock([]byte("# a comment\n\nx86_64 zstd 1.5.7+dfsg-1 amd64 " + sumA + "\r\n" +
		"x86_64  bash 5.2.37-2+b10 amd64 " + sumB + "\nx86_64 bash 5.2.37-2+b10 amd64 " + sumB + "\n" +
		"aarch64 bsdutils 1:2.41.5-0+deb13u1 arm64 " + sumA))
	if err != nil {
		t.Fatal(err)
	}
	want := "aarch64 bsdutils 1:2.41.5-0+deb13u1 arm64 " + sumA + "\n" +
		"x86_64 bash 5.2.37-2+b10 amd64 " + sumB + "\n" +
		"x86_64 zstd 1.5.7+dfsg-1 amd64 " + sumA + "\n"
	if got := string(lock.Format()); got != lockHeader+want {
		t.Errorf("written again it is\n%s, want\n%s", got, want)
	}
}

func TestLockRefuses(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"short", "x86_64 bash 5.2 amd64", "does not name a package"},
		{"long", "x86_64 bash 5.2 amd64 " + sumA + " more", "does not name a package"},
		{"sum", "x86_64 bash 5.2 amd64 15c2", "no SHA-256"},
		{"upper case", "x86_64 bash 5.2 amd64 " + strings.ToUpper(sumA), "no SHA-256"},
		{"option", "x86_64 --root 5.2 amd64 " + sumA, "no name of a package"},
		{"path", "x86_64 bash ../5.2 amd64 " + sumA, "no version of a package"},
		{"architecture", "x86_64 bash 5.2 AMD/64 " + sumA, "no architecture"},
		{"image", "x86.64 bash 5.2 amd64 " + sumA, "no architecture"},
		{"too many", strings.Repeat("a b c d "+sumA+"\n", maxLockPackages+1), "more than 100000 packages"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := ParseLock([]byte("# first\n" + tc.text))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want %q", err, tc.want)
			}
		})
	}
}

func TestComparePackages(t *testing.T) {
	p := func(line string) Package {
		fields := strings.Fields(line)
		return Package{fields[0], fields[1], fields[2], fields[3]}
	}
	locked := []Package{p("bash 5.2 amd64 " + sumA), p("dpkg 1.22 amd64 " + sumA), p("libc6 2.41 amd64 " + sumA), p("libc6 2.41 i386 " + sumB), p("zstd 1.5 amd64 " + sumA)}
	for _, tc := range []struct {
		name string
		used []Package
		part bool
		want []string
	}{
		{"same", locked, false, nil},
		{"part", locked[:2], true, nil},
		{"part of one name", locked[2:3], true, nil},
		{"version", append([]Package{p("bash 5.3 amd64 " + sumB)}, locked[1:]...), false, []string{"bash is 5.3 (amd64), locked 5.2 (amd64)"}},
		{"bytes", append([]Package{p("bash 5.2 amd64 " + sumB)}, locked[1:]...), false, []string{"bash 5.2 (amd64) has other bytes: SHA-256 " + sumB + ", locked " + sumA}},
		{"one more", append([]Package{p("adduser 3.1 all " + sumB)}, locked...), true, []string{"adduser 3.1 (all) is not in the lock"}},
		{"one less", locked[:4], false, []string{"zstd 1.5 (amd64) is not used"}},
		{"architecture", append(slices.Clone(locked[:3]), locked[4]), false, []string{"libc6 is 2.41 (amd64), locked 2.41 (amd64), 2.41 (i386)"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []string
			for _, c := range comparePackages(locked, tc.used, tc.part) {
				got = append(got, c.String())
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("changes are %q, want %q", got, tc.want)
			}
		})
	}
	e := &LockError{Lock: "packages.lock"}
	for i := range maxToldChanges + 3 {
		e.Changes = append(e.Changes, PackageChange{Name: fmt.Sprint("p", i), Used: locked[:1]})
	}
	if text := e.Error(); !strings.Contains(text, "p19 5.2 (amd64) is not in the lock; and 3 more: use package sources") || strings.Contains(text, "\n") {
		t.Errorf("the error is %q", text)
	}
}

func FuzzParseLock(f *testing.F) {
	f.Add([]byte(lockHeader + "x86_64 bash 5.2.37-2+b10 amd64 " + sumA + "\n"))
	f.Add([]byte("x86_64 bash 1:5.2~rc1^git amd64 " + sumA + "\nx86_64 bash"))
	f.Fuzz(func(t *testing.T, content []byte) {
		lock, err := ParseLock(content)
		if err != nil {
			return
		}
		again, err := ParseLock(lock.Format())
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if !bytes.Equal(again.Format(), lock.Format()) {
			t.Errorf("it is written in two ways:\n%s\n%s", lock.Format(), again.Format())
		}
	})
}
