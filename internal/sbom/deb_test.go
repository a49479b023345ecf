package sbom

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

const debian = "ID=debian\nVERSION_ID=\"13\"\nPRETTY_NAME='Debian'\n"

// rootFS is a root file system with these files.
func rootFS(files map[string]string) fstest.MapFS {
	root := fstest.MapFS{"etc/os-release": {Data: []byte(debian)}}
	for name, content := range files {
		root[name] = &fstest.MapFile{Data: []byte(content), ModTime: time.Unix(1700000000, 0)}
	}
	return root
}

const bash = `Package: bash
Status: install ok installed
Maintainer: Matthias Klose <doko@debian.org>
Installed-Size: 7164
Architecture: amd64
Source: bash (5.2.37-2)
Version: 5.2.37-2+b10
Homepage: http://tiswww.case.edu/php/chet/bash/bashtop.html
Description: GNU Bourne Again SHell
 Bash is an sh-compatible command language interpreter.
 .
 More.
`

func TestDpkg(t *testing.T) {
	removed := strings.NewReplacer("Package: bash", "Package: gone", "ok installed", "ok config-files").Replace(bash)
	never := "Package: never\nStatus: unknown ok not-installed\nPriority: optional\n"
	broken := strings.NewReplacer("Package: bash", "Package: broken", "ok installed", "reinstreq half-installed").Replace(bash)
	all := bash + "\n" + removed + "\n" + never + "\n" + broken
	i, err := readRoot(context.Background(), rootFS(map[string]string{
		dpkgStatus:                all,
		dpkgStatusDir + "/static": "Package: tzdata\nArchitecture: all\nVersion: 2:1.0\n",
		// digests of files, as distroless images have them
		dpkgStatusDir + "/static.md5sums": "0123  usr/share/zoneinfo/UTC\n",
		// the journal replaces
		dpkgUpdates + "/0001":  strings.Replace(bash, "5.2.37-2+b10", "5.2.37-3", 1),
		dpkgUpdates + "/tmp.i": "not yet",
	}))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range i.Packages {
		purl, err := p.purl(i.OS)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %d %q", purl, p.Size, p.State))
	}
	want := []string{
		`pkg:deb/debian/bash@5.2.37-3?arch=amd64&distro=debian-13&upstream=bash%405.2.37-2 7335936 ""`,
		`pkg:deb/debian/broken@5.2.37-2%2Bb10?arch=amd64&distro=debian-13&upstream=bash%405.2.37-2 7335936 "half-installed"`,
		`pkg:deb/debian/tzdata@2:1.0?arch=all&distro=debian-13 0 ""`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("packages\n%q\nwant\n%q", got, want)
	}
	if len(i.Removed) != 1 || i.Removed[0].Name != "gone" {
		t.Errorf("removed: %+v", i.Removed)
	}
	if !i.Changed.Equal(time.Unix(1700000000, 0)) {
		t.Errorf("changed at %v", i.Changed)
	}
	if p := i.Packages[0]; p.Summary != "GNU Bourne Again SHell" || p.License.Expression != "" || p.License.Comment != "The image has no /usr/share/doc/bash/copyright." {
		t.Errorf("%+v", p)
	}
	if err := i.CheckKiwiList([]byte("bash|None|5.2.37-3|None|amd64|None|None\nbroken|None|5.2.37-2+b10|None|amd64|None|None\ngone|None|5.2.37-2+b10|None|amd64|None|None\ntzdata|None|2:1.0|None|all|None|None\n")); err != nil {
		t.Error(err)
	}
}

func TestDpkgRefuses(t *testing.T) {
	replace := func(pairs ...string) string { return strings.NewReplacer(pairs...).Replace(bash) }
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"no database":          {map[string]string{"etc/passwd": ""}, "have no package"},
		"an empty database":    {map[string]string{dpkgStatus: ""}, "have no package"},
		"no name":              {map[string]string{dpkgStatus: replace("Package: bash\n", "")}, `"" is no name of a package`},
		"a name with a slash":  {map[string]string{dpkgStatus: replace("Package: bash", "Package: ../etc")}, "is no name of a package"},
		"a name of two lines":  {map[string]string{dpkgStatus: replace("Package: bash", "Package: bash\n curl")}, "is no name of a package"},
		"no version":           {map[string]string{dpkgStatus: replace("Version: 5.2.37-2+b10\n", "")}, "which is none"},
		"a version with space": {map[string]string{dpkgStatus: replace("Version: 5", "Version: 5 ")}, "which is none"},
		"no architecture":      {map[string]string{dpkgStatus: replace("Architecture: amd64\n", "")}, "which is none"},
		"no status":            {map[string]string{dpkgStatus: replace("Status: install ok installed\n", "")}, "which dpkg does not know"},
		"another status":       {map[string]string{dpkgStatus: replace("ok installed", "ok invisible")}, "which dpkg does not know"},
		"a field twice":        {map[string]string{dpkgStatus: bash + "version: 1\n"}, "the field version twice"},
		"a package twice":      {map[string]string{dpkgStatus: bash + "\n" + bash}, "the package bash:amd64 twice"},
		"in both databases":    {map[string]string{dpkgStatus: bash, dpkgStatusDir + "/bash": bash}, "the package bash:amd64 twice"},
		"a NUL":                {map[string]string{dpkgStatus: replace("GNU", "G\x00U")}, "has a NUL"},
		"no UTF-8":             {map[string]string{dpkgStatus: replace("GNU", "G\xffU")}, "not UTF-8"},
		"no field":             {map[string]string{dpkgStatus: bash + "hello\n"}, "is no field"},
		"a lost continuation":  {map[string]string{dpkgStatus: " x\n" + bash}, "continues nothing"},
		"a strange source":     {map[string]string{dpkgStatus: replace("bash (5.2.37-2)", "bash (5")}, "which names none"},
		"a negative size":      {map[string]string{dpkgStatus: replace("7164", "-1")}, "no number of KiB"},
		"another manager":      {map[string]string{dpkgStatus: bash, "lib/apk/db/installed": ""}, "Alpine's apk"},
		"a system without ID":  {map[string]string{dpkgStatus: bash, "etc/os-release": "NAME=x\n"}, "no name of an operating system"},
		"a system with a path": {map[string]string{dpkgStatus: bash, "etc/os-release": "ID=../x\n"}, "no name of an operating system"},
		"a strange version":    {map[string]string{dpkgStatus: bash, "etc/os-release": "ID=x\nVERSION_ID='1 2'\n"}, "no version of an operating system"},
	} {
		t.Run(name, func(t *testing.T) {
			if i, err := readRoot(context.Background(), rootFS(c.files)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q (%+v)", err, c.want, i)
			}
		})
	}
	root := rootFS(map[string]string{dpkgStatus: bash})
	delete(root, "etc/os-release")
	if _, err := readRoot(context.Background(), root); err == nil || !strings.Contains(err.Error(), "no /etc/os-release") {
		t.Errorf("without os-release: %v", err)
	}
	root["usr/lib/os-release"] = &fstest.MapFile{Data: []byte(debian)}
	if _, err := readRoot(context.Background(), root); err != nil {
		t.Error(err)
	}
	// A file that cannot be read is no package less.
	if _, err := readRoot(context.Background(), unreadable{rootFS(map[string]string{dpkgStatus: bash, "usr/share/doc/bash/copyright": ""})}); err == nil || !strings.Contains(err.Error(), "licence of package bash") {
		t.Errorf("with a copyright file that cannot be read: %v", err)
	}
}

// unreadable is a file system with a bad block in each copyright file.
type unreadable struct{ fstest.MapFS }

func (u unreadable) Open(name string) (fs.File, error) {
	if strings.HasSuffix(name, "/copyright") {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("bad block")}
	}
	return u.MapFS.Open(name)
}

// format begins a machine-readable copyright file.
const format = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"

func TestCopyright(t *testing.T) {
	files := func(synopses ...string) string {
		text := format
		for i, s := range synopses {
			text += fmt.Sprintf("\nFiles: %d\nCopyright: x\nLicense: %s\n", i, s)
		}
		return text
	}
	for name, c := range map[string]struct{ content, want string }{
		"one":                        {files("Expat"), "MIT"},
		"several":                    {files("GPL-2+", "LGPL-2.1", "GPL-2+"), "GPL-2.0-or-later AND LGPL-2.1-only"},
		"one of two":                 {files("GPL-2 or BSD-3-clause"), "GPL-2.0-only OR BSD-3-Clause"},
		"one of two, and another":    {files("GPL-2 or BSD-3-clause", "ISC"), "(GPL-2.0-only OR BSD-3-Clause) AND ISC"},
		"and before or":              {files("GPL-2 or MIT and ISC"), "GPL-2.0-only OR (MIT AND ISC)"},
		"a comma last":               {files("GPL-2 or MIT, and ISC"), "(GPL-2.0-only OR MIT) AND ISC"},
		"the same twice":             {files("GPL-2+ or GPL-2+"), "GPL-2.0-or-later"},
		"the same at both ends":      {files("MIT and ISC", "ISC"), "MIT AND ISC"},
		"several the same":           {files("GPL-2 or MIT", "GPL-2  or\tMIT"), "GPL-2.0-only OR MIT"},
		"exceptions that SPDX has":   {files("GPL-2 with Linux-syscall-note exception", "GPL-2+ with Font exception"), "GPL-2.0-only WITH Linux-syscall-note AND GPL-2.0-or-later WITH Font-exception-2.0"},
		"free documentation":         {files("GFDL-NIV-1.3+", "GFDL-1.2"), "GFDL-1.3-no-invariants-or-later AND GFDL-1.2-only"},
		"SPDX's own names":           {files("apache-2.0", "GPL-3.0-or-later", "CC0-1.0", "BSD-4-Clause-UC"), "Apache-2.0 AND GPL-3.0-or-later AND CC0-1.0 AND BSD-4-Clause-UC"},
		"SPDX's old names of GNU":    {files("GPL-2.0", "LGPL-2.0+"), "GPL-2.0-only AND LGPL-2.0-or-later"},
		"without a minor version":    {files("Apache-2", "CC0", "Artistic-2"), "Apache-2.0 AND CC0-1.0 AND Artistic-2.0"},
		"the header's":               {strings.Replace(files("GPL-2+", "Expat"), format, format+"License: GPL-2+\n", 1), "GPL-2.0-or-later"},
		"the old address":            {strings.Replace(files("Expat"), "https://www.", "http://www.", 1), "MIT"},
		"a comment, and Windows":     {strings.ReplaceAll(files("Expat")+"# end\n", "\n", "\r\n"), "MIT"},
		"not SPDX's":                 {files("Artistic"), "LicenseRef-Artistic-*"},
		"without a version":          {files("GPL"), "LicenseRef-GPL-*"},
		"an exception SPDX lacks":    {files("GPL-2+ with OpenSSL exception"), "LicenseRef-GPL-2--with-OpenSSL-exception-*"},
		"GNU without such a version": {files("GPL-9"), "LicenseRef-GPL-9-*"},
		"given up by SPDX":           {files("eCos-2.0"), "LicenseRef-eCos-2.0-*"},
		"a strange name":             {files("§ (ü)"), "LicenseRef-*"},
		"a reference of its own":     {files("LicenseRef-x OR DocumentRef-y"), "LicenseRef-LicenseRef-x-* OR LicenseRef-DocumentRef-y-*"},
		"a long name":                {files(strings.Repeat("x", 60)), "LicenseRef-" + strings.Repeat("x", 40) + "-*"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := parseCopyright(c.content, newTextBudget())
			if err != nil {
				t.Fatal(err)
			}
			if got := starred(l); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
	for name, c := range map[string]struct{ content, want string }{
		"prose":             {"This package was debianized by x.\n", "is no field"},
		"another format":    {"Format: https://example.com/\n\nFiles: *\nLicense: MIT\n", "does not begin with the Format"},
		"no format":         {"Files: *\nLicense: MIT\n", "does not begin with the Format"},
		"no licence":        {format + "\nFiles: *\nCopyright: x\n", "names no licence"},
		"only texts":        {format + "\nLicense: GPL-2\n text\n", "names no licence"},
		"an empty licence":  {format + "\nFiles: *\nLicense:\n text\n", "without a name"},
		"only a comma":      {files("MIT,, and ,"), ""},
		"a field twice":     {format + "\nFiles: *\nLicense: MIT\nLicense: GPL-2\n", "twice"},
		"a very long name":  {files(strings.Repeat("x", 201)), "name of a licence of 201 bytes"},
		"very many":         {files(strings.Repeat("x and ", 600) + "x"), "more than 500"},
		"not UTF-8":         {format + "\nFiles: *\nLicense: M\xffT\n", "not UTF-8"},
		"an empty file":     {"", "names no licence"},
		"nothing but lines": {"\n\n", "names no licence"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := parseCopyright(c.content, newTextBudget())
			if c.want == "" {
				return // it has only to come back
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q (%+v)", err, c.want, l)
			}
		})
	}
}

// starred is an expression with stars for digests.
func starred(l License) string {
	text := l.Expression
	for _, r := range l.Refs {
		text = strings.ReplaceAll(text, r.ID[len(r.ID)-12:], "*")
	}
	return text
}

func TestLicenseTexts(t *testing.T) {
	content := format + "\nFiles: a\nLicense: own\n One.\n .\n  Two.\n\nFiles: b\nLicense: other\n\nLicense: other\n Three.\n\nFiles: c\nLicense: none\n"
	l, err := parseCopyright(content, newTextBudget())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, r := range l.Refs {
		got[r.Name] = r.Text
	}
	if got["own"] != "One.\n\n Two." || got["other"] != "Three." || !strings.HasPrefix(got["none"], "The image has no text") {
		t.Errorf("%q", got)
	}
	// The same name with another text is another licence.
	second, err := parseCopyright(strings.Replace(content, "Three.", "Four.", 1), newTextBudget())
	if err != nil || second.Expression == l.Expression {
		t.Errorf("%s, %v", second.Expression, err)
	}
	// Texts have an end; which licence it is does not change by that.
	short, err := parseCopyright(content, &textBudget{texts: 8, known: map[string]string{}})
	if err != nil || short.Expression != l.Expression || !slices.ContainsFunc(short.Refs, func(r LicenseRef) bool { return strings.Contains(r.Text, "left out") }) {
		t.Errorf("%+v, %v", short, err)
	}
}

func TestKiwiList(t *testing.T) {
	i := &Inventory{Packages: []Package{
		{Kind: RPM, Name: "bash", Version: "5.2-1", Arch: "x86_64"},
		{Kind: RPM, Name: "bind", Epoch: "32", Version: "9-1", Arch: "noarch"},
		{Kind: RPM, Name: "gpg-pubkey", Version: "1-2"},
	}}
	const list = "bash|(none)|5.2|1|x86_64|(none)|GPLv3+\nbind|32|9|1|noarch|(none)|MPLv2.0 | x\ngpg-pubkey|(none)|1|2|(none)|(none)|pubkey\n"
	if err := i.CheckKiwiList([]byte(list)); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]struct{ list, want string }{
		"one more":        {list + "zlib|None|1|None|amd64|None|None\n", "only in KIWI's list: zlib 1 amd64"},
		"one less":        {strings.Replace(list, "bash", "dash", 1), "only in the image: bash 5.2-1 x86_64; only in KIWI's list: dash"},
		"another epoch":   {strings.Replace(list, "|32|", "|33|", 1), "only in the image: bind 32:9-1 noarch"},
		"none":            {"", "only in the image: bash"},
		"one twice":       {list + list, "line 4 of KIWI's list of packages has bash 5.2-1 x86_64 again"},
		"another format":  {"bash 5.2\n", "line 1 of KIWI's list"},
		"no UTF-8":        {"\xff", "not UTF-8"},
		"a very long one": {strings.Repeat("x", 1000), "line 1 of KIWI's list"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := i.CheckKiwiList([]byte(c.list)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

func TestSupplier(t *testing.T) {
	for name, c := range map[string]struct{ p, kind, want string }{
		"person":       {"Jane Doe <jane@example.com>", "Person", "Jane Doe (jane@example.com)"},
		"group":        {"Debian systemd Maintainers <x@lists.debian.org>", "Organization", "Debian systemd Maintainers (x@lists.debian.org)"},
		"no address":   {"Jane Doe", "Person", "Jane Doe"},
		"parentheses":  {"Jane (work) Doe <jane@example.com>", "Person", "Jane work Doe (jane@example.com)"},
		"bad address":  {"Jane <no address>", "Person", "Jane"},
		"only address": {"<jane@example.com>", "", ""},
		"nothing":      {"", "", ""},
	} {
		if kind, got := (&Package{Maintainer: c.p}).supplier(); kind != c.kind || got != c.want {
			t.Errorf("%s: %s %q", name, kind, got)
		}
	}
	if kind, got := (&Package{Vendor: "SUSE LLC <https://www.suse.com/>"}).supplier(); kind != "Organization" || got != "SUSE LLC" {
		t.Errorf("vendor: %s %q", kind, got)
	}
}

func TestHomepage(t *testing.T) {
	for page, want := range map[string]bool{
		"https://example.com/a?b#c": true, "http://example.com": true, "": false, "example.com": false, "ftp://example.com": false,
		"https://": false, "https://example.com/a b": false, "https://example.com/ü": false, "javascript:alert(1)": false, "https://example.com/<x>": false,
	} {
		if got := (&Package{Homepage: page}).homepage() != ""; got != want {
			t.Errorf("%q: %v", page, got)
		}
	}
}

func FuzzDpkgStatus(f *testing.F) {
	f.Add(bash, false)
	f.Add(bash+"\n"+strings.Replace(bash, "Status: install ok installed\n", "", 1), true)
	f.Add("Package: a\nVersion: 1\n continued\n\t.\n", true)
	f.Fuzz(func(t *testing.T, content string, stateless bool) {
		packages, err := parseDpkgStatus(content, stateless)
		if err != nil {
			return
		}
		for _, p := range packages {
			if p.State == dpkgNotInstalled {
				continue
			}
			if _, err := p.purl(OS{ID: "debian", Version: "13"}); err != nil {
				t.Errorf("%+v: %v", p, err)
			}
		}
	})
}

func FuzzCopyright(f *testing.F) {
	f.Add(format + "\nFiles: *\nLicense: GPL-2+ or Expat, and ISC\n text\n .\n\nLicense: Expat\n more\n")
	f.Add(format + "License: GPL-2 with OpenSSL exception\n")
	f.Fuzz(func(t *testing.T, content string) {
		l, err := parseCopyright(content, &textBudget{texts: 1000, known: map[string]string{}})
		if err != nil {
			return
		}
		checkExpression(t, l)
	})
}

// checkExpression demands that an expression has only listed licences and its own
// references, and each of those.
func checkExpression(t *testing.T, l License) {
	t.Helper()
	ids := map[string]bool{}
	for _, r := range l.Refs {
		ids[r.ID] = false
		if r.Text == "" {
			t.Errorf("%s has no text", r.ID)
		}
	}
	depth := 0
	for word := range strings.FieldsSeq(strings.NewReplacer("(", " ( ", ")", " ) ").Replace(l.Expression)) {
		switch word {
		case "(":
			depth++
		case ")":
			depth--
		case "AND", "OR", "WITH":
		default:
			if _, ours := ids[word]; ours {
				ids[word] = true
			} else if _, ok := listed(word); !ok && !strings.Contains(l.Expression, "WITH "+word) {
				t.Errorf("%q has %q", l.Expression, word)
			}
		}
	}
	for id, used := range ids {
		if !used {
			t.Errorf("%q lacks %s", l.Expression, id)
		}
	}
	if depth != 0 || l.Expression == "" {
		t.Errorf("%q", l.Expression)
	}
}

// TestManyCopyrights has very many packages share one long copyright file: it is read
// only so often.
func TestManyCopyrights(t *testing.T) {
	texts := newTextBudget()
	texts.files = 150
	root := rootFS(map[string]string{"usr/share/doc/a/copyright": format + "\nFiles: *\nLicense: own\n text\n"})
	for n, want := range []bool{true, true, false, false} {
		l, err := debLicense(root, "a", texts)
		if err != nil || (l.Expression != "") != want || !want && !strings.Contains(l.Comment, "was not read") {
			t.Errorf("%d: %+v, %v", n, l, err)
		}
	}
	if used := maxTexts - texts.texts; used != len("text") {
		t.Errorf("the same text took %d bytes", used)
	}
}
