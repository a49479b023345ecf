package sbom

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/org/attestable-image-action/internal/testenv"
)

// TestRPM makes packages and a database with rpm itself, and compares with what rpm
// says of it.
func TestRPM(t *testing.T) {
	rpmbuild, rpm := testenv.Tool(t, "rpmbuild"), testenv.Tool(t, "rpm")
	dir := t.TempDir()
	run := func(program string, args ...string) string {
		t.Helper()
		cmd := exec.Command(program, args...)
		cmd.Env = append(os.Environ(), "HOME="+dir)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", filepath.Base(program), args, err, stderr.Bytes())
		}
		return string(out)
	}
	spec := filepath.Join(dir, "x.spec")
	// A long description makes headers that do not fit into a page.
	text := `Name: alpha
Epoch: 3
Version: 1.0~rc1
Release: 2%{?dist}
Summary: The first
License: GPLv2+ and (MIT or ASL 2.0)
URL: https://example.com/alpha
Vendor: Example <https://example.com>
%description
` + strings.Repeat("It is long. ", 2000) + "\n"
	for n := range 120 {
		text += fmt.Sprintf("%%package -n beta%d\nSummary: Number %d\nLicense: MIT OR (Apache-2.0 AND GPL-2.0-only WITH Linux-syscall-note)\nBuildArch: noarch\n%%description -n beta%d\n%s\n%%files -n beta%d\n",
			n, n, n, strings.Repeat("x", n*50), n)
	}
	if err := os.WriteFile(spec, []byte(text+"%files\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(rpmbuild, "--quiet", "-bb", "--define", "_topdir "+dir, spec)
	packages, err := filepath.Glob(filepath.Join(dir, "RPMS", "*", "*.rpm"))
	if err != nil {
		t.Fatal(err)
	}
	db := filepath.Join(dir, "db")
	run(rpm, append([]string{"--dbpath", db, "--define", "_db_backend sqlite", "--justdb", "--nodeps", "--ignorearch", "-i"}, packages...)...)
	// Some are removed again, so that there are free pages.
	run(rpm, "--dbpath", db, "--define", "_db_backend sqlite", "--justdb", "-e", "beta3", "beta50", "beta119")
	want := strings.Split(strings.TrimSpace(run(rpm, "--dbpath", db, "--define", "_db_backend sqlite", "-qa", "--qf",
		`%{NAME} %|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE} %{ARCH} %{SOURCERPM} %{VENDOR} %{SIZE}|%{SUMMARY}\n`)), "\n")

	root := rootFS(nil)
	for _, name := range []string{"rpmdb.sqlite", "rpmdb.sqlite-wal"} {
		if content, err := os.ReadFile(filepath.Join(db, name)); err == nil {
			root["usr/lib/sysimage/rpm/"+name] = &fstest.MapFile{Data: content, ModTime: time.Unix(1700000000, 0)}
		}
	}
	i, err := readRoot(context.Background(), root)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range i.Packages {
		vendor := p.Vendor
		if vendor == "" {
			vendor = "(none)"
		}
		got = append(got, fmt.Sprintf("%s %s %s %s %s %d|%s", p.Name, p.FullVersion(), p.Arch, p.Source, vendor, p.Size, p.Summary))
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) || len(got) != 118 {
		t.Fatalf("%d packages, rpm lists %d:\n%q\n%q", len(got), len(want), got[:3], want[:3])
	}
	alpha := i.Packages[slices.IndexFunc(i.Packages, func(p Package) bool { return p.Name == "alpha" })]
	if purl, err := alpha.purl(i.OS); err != nil || purl != "pkg:rpm/debian/alpha@1.0~rc1-2?arch="+alpha.Arch+"&distro=debian-13&epoch=3&upstream=alpha-1.0~rc1-2.src.rpm" {
		t.Errorf("%s %v", purl, err)
	}
	if got := starred(alpha.License); got != "GPL-2.0-or-later AND (LicenseRef-MIT-* OR Apache-2.0)" || alpha.FullVersion() != "3:1.0~rc1-2" {
		t.Errorf("%s %s", got, alpha.FullVersion())
	}

	i.Disk.SHA256 = strings.Repeat("0", 64)
	content, err := i.Document(SPDX, Heading{Name: "rpm"})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "rpm.spdx.json")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	testenv.ValidateSPDX(t, file)

	// The same headers in SUSE's format.
	headers, err := sqliteBlobs(root["usr/lib/sysimage/rpm/rpmdb.sqlite"].Data, nil, "Packages", 1)
	if err != nil {
		t.Fatal(err)
	}
	ndb, err := readRoot(context.Background(), rootFS(map[string]string{"var/lib/rpm/Packages.db": string(makeNDB(headers))}))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.EqualFunc(ndb.Packages, i.Packages, func(a, b Package) bool { return a.key() == b.key() }) {
		t.Error("ndb gives other packages than SQLite")
	}
}

// makeNDB makes a database of rpm's ndb format.
func makeNDB(blobs [][]byte) []byte {
	pages := (len(blobs)+2)*ndbUnit/ndbPage + 1
	db := make([]byte, pages*ndbPage)
	copy(db, ndbMagic)
	binary.LittleEndian.PutUint32(db[12:], uint32(pages))
	for off := 2 * ndbUnit; off < len(db); off += ndbUnit {
		copy(db[off:], ndbSlotMagic)
	}
	for n, blob := range blobs {
		slot := db[(n+2)*ndbUnit:]
		binary.LittleEndian.PutUint32(slot[4:], uint32(n+1))
		binary.LittleEndian.PutUint32(slot[8:], uint32(len(db)/ndbUnit))
		head := make([]byte, ndbUnit)
		copy(head, ndbBlobMagic)
		binary.LittleEndian.PutUint32(head[4:], uint32(n+1))
		binary.LittleEndian.PutUint32(head[12:], uint32(len(blob)))
		db = append(append(db, head...), blob...)
		db = append(db, make([]byte, ndbUnit-len(db)%ndbUnit)...)
	}
	return db
}

// makeHeader makes the header of an rpm: texts by tag, and numbers.
func makeHeader(values map[uint32]any) []byte {
	var entries, data []byte
	tags := make([]uint32, 0, len(values))
	for tag := range values {
		tags = append(tags, tag)
	}
	slices.Sort(tags)
	for _, tag := range tags {
		kind, value := uint32(rpmString), []byte(nil)
		switch v := values[tag].(type) {
		case string:
			value = append([]byte(v), 0)
		case uint32:
			for len(data)%4 != 0 {
				data = append(data, 0)
			}
			kind, value = rpmInt32, binary.BigEndian.AppendUint32(nil, v)
		}
		for _, n := range []uint32{tag, kind, uint32(len(data)), 1} {
			entries = binary.BigEndian.AppendUint32(entries, n)
		}
		data = append(data, value...)
	}
	head := binary.BigEndian.AppendUint32(nil, uint32(len(tags)))
	head = binary.BigEndian.AppendUint32(head, uint32(len(data)))
	return slices.Concat(head, entries, data)
}

func TestRPMHeader(t *testing.T) {
	whole := map[uint32]any{tagName: "bash", tagVersion: "5.2", tagRelease: "1", tagArch: "x86_64", tagEpoch: uint32(7), tagSize: uint32(100), tagLicense: "GPLv3+", tagSourceRPM: "bash-5.2-1.src.rpm"}
	h, err := parseRPMHeader(makeHeader(whole))
	if err != nil {
		t.Fatal(err)
	}
	p, err := h.rpm(newTextBudget())
	if err != nil || p.Name != "bash" || p.Version != "5.2-1" || p.Epoch != "7" || p.Size != 100 || p.License.Expression != "GPL-3.0-or-later" {
		t.Fatalf("%+v, %v", p, err)
	}
	with := func(tag uint32, value any) []byte {
		changed := maps.Clone(whole)
		if changed[tag] = value; value == nil {
			delete(changed, tag)
		}
		return makeHeader(changed)
	}
	patched := func(at int, n uint32) []byte {
		b := makeHeader(whole)
		binary.BigEndian.PutUint32(b[at:], n)
		return b
	}
	for name, c := range map[string]struct {
		blob []byte
		want string
	}{
		"nothing":                 {nil, "a header begins with 8"},
		"no entries":              {make([]byte, 8), "speaks of 0 entries"},
		"too many entries":        {patched(0, 1<<31), "entries"},
		"too much data":           {patched(4, 1<<31), "bytes of data"},
		"cut off":                 {makeHeader(whole)[:100], "make"},
		"longer":                  {append(makeHeader(whole), 0), "make"},
		"no name":                 {with(tagName, nil), "has the name \"\""},
		"a name with a slash":     {with(tagName, "a/b"), "which is none"},
		"a name that is a number": {with(tagName, uint32(1)), "where a text is expected"},
		"no release":              {with(tagRelease, nil), "release"},
		"an arch with a space":    {with(tagArch, "x 86"), "architecture"},
		"a source with a path":    {with(tagSourceRPM, "../x.src.rpm"), "source package"},
		"an epoch that is text":   {with(tagEpoch, "1"), "where a number is expected"},
		"a tag twice":             {patched(8+16, tagName), "twice"},
		"text behind the end":     {patched(8+8, 1<<20), "behind the end"},
		"text without an end":     {patched(8+8, uint32(len(makeHeader(whole))-8-16*len(whole)-1)), ""},
		"a long text":             {with(tagName, strings.Repeat("x", maxRPMText+10)), "longer than"},
		"a long name":             {with(tagName, strings.Repeat("x", 300)), "which is none"},
	} {
		t.Run(name, func(t *testing.T) {
			h, err := parseRPMHeader(c.blob)
			if err == nil {
				_, err = h.rpm(newTextBudget())
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

func TestRPMLicense(t *testing.T) {
	for tag, want := range map[string]string{
		"MIT": "MIT", "GPLv2+": "GPL-2.0-or-later", "ASL 2.0": "Apache-2.0", "Public Domain": "LicenseRef-Public-Domain-*",
		"MIT AND BSD-3-Clause": "MIT AND BSD-3-Clause", "MIT and BSD": "LicenseRef-MIT-* AND LicenseRef-BSD-*",
		"GPLv2 or (MIT and LGPLv2)":               "GPL-2.0-only OR (LicenseRef-MIT-* AND LicenseRef-LGPLv2-*)",
		"BSD-3-Clause or GPL-2.0":                 "BSD-3-Clause OR GPL-2.0-only",
		"GPL-3.0-or-later WITH GCC-exception-3.1": "GPL-3.0-or-later WITH GCC-exception-3.1",
		"GPL-3.0-or-later WITH nothing":           "LicenseRef-GPL-3.0-or-later-WITH-nothing-*",
		"mit":                                     "MIT", "(((MIT)))": "MIT", "BSD with advertising": "LicenseRef-BSD-with-advertising-*",
		"": "", "MIT AND": "", "(MIT": "", "MIT)": "", "and": "", "MIT AND OR MIT": "",
		strings.Repeat("(", 100) + "MIT" + strings.Repeat(")", 100): "", strings.Repeat("x", 300): "",
	} {
		l, err := rpmLicense(tag, newTextBudget())
		if err != nil || starred(l) != want || l.Comment == "" {
			t.Errorf("%.40q: %q, want %q (%s; %v)", tag, starred(l), want, l.Comment, err)
		}
	}
}

func TestRPMDatabaseRefuses(t *testing.T) {
	header := makeHeader(map[uint32]any{tagName: "a", tagVersion: "1", tagRelease: "1"})
	good := makeNDB([][]byte{header})
	patch := func(at int, n uint32) string {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint32(b[at:], n)
		return string(b)
	}
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"Berkeley DB":         {map[string]string{"var/lib/rpm/Packages": "x"}, "Berkeley DB"},
		"two databases":       {map[string]string{"var/lib/rpm/Packages.db": string(good), "usr/lib/sysimage/rpm/rpmdb.sqlite": "x"}, "two databases of rpm"},
		"a journal":           {map[string]string{"var/lib/rpm/rpmdb.sqlite": "x", "var/lib/rpm/rpmdb.sqlite-journal": "x"}, "a transaction was not ended"},
		"not SQLite":          {map[string]string{"var/lib/rpm/rpmdb.sqlite": strings.Repeat("x", 4096)}, "does not begin as a SQLite database does"},
		"not ndb":             {map[string]string{"var/lib/rpm/Packages.db": strings.Repeat("x", 4096)}, "does not begin as an ndb database does"},
		"another version":     {map[string]string{"var/lib/rpm/Packages.db": patch(4, 1)}, "of version 1"},
		"no pages":            {map[string]string{"var/lib/rpm/Packages.db": patch(12, 0)}, "speaks of 0 pages"},
		"many pages":          {map[string]string{"var/lib/rpm/Packages.db": patch(12, 1<<31)}, "pages of slots"},
		"no slot":             {map[string]string{"var/lib/rpm/Packages.db": patch(32, 0)}, "byte 32 is no slot"},
		"a blob in the slots": {map[string]string{"var/lib/rpm/Packages.db": patch(40, 1)}, "outside of the blobs"},
		"a blob behind":       {map[string]string{"var/lib/rpm/Packages.db": patch(40, 1<<31)}, "outside of the blobs"},
		"another blob":        {map[string]string{"var/lib/rpm/Packages.db": patch(ndbPage+4, 2)}, "not the blob of package 1"},
		"a long blob":         {map[string]string{"var/lib/rpm/Packages.db": patch(ndbPage+12, 1<<31)}, "more than are left"},
		"a slot twice":        {map[string]string{"var/lib/rpm/Packages.db": string(twice(good))}, "two slots for package 1"},
		"the package twice":   {map[string]string{"var/lib/rpm/Packages.db": string(makeNDB([][]byte{header, header}))}, "twice"},
		"one of them unsound": {map[string]string{"var/lib/rpm/Packages.db": string(makeNDB([][]byte{header, header[:20]}))}, "header 2 of 2"},
		"no package":          {map[string]string{"var/lib/rpm/Packages.db": string(makeNDB(nil))}, "have no package"},
		"pacman's and none":   {map[string]string{"var/lib/pacman/local/ALPM_DB_VERSION": "9"}, "pacman"},
	} {
		t.Run(name, func(t *testing.T) {
			if i, err := readRoot(context.Background(), rootFS(c.files)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q (%+v)", err, c.want, i)
			}
		})
	}
}

// twice is an ndb database whose first slot comes again.
func twice(db []byte) []byte {
	db = bytes.Clone(db)
	copy(db[3*ndbUnit:], db[2*ndbUnit:3*ndbUnit])
	return db
}

// TestSQLite makes databases with SQLite itself, of every size of page, with rows that
// fit into a page and such that do not, and with changes in the write-ahead log only.
func TestSQLite(t *testing.T) {
	program := testenv.Tool(t, "sqlite3")
	query := func(t *testing.T, path, text string) string {
		t.Helper()
		cmd := exec.Command(program, "-batch", path)
		cmd.Stdin = strings.NewReader(text)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	const fill = `CREATE TABLE other (x); INSERT INTO other VALUES (1), ('two'), (x'03'), (4.0), (NULL);
CREATE TABLE 'Packages' (hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 300) INSERT INTO Packages(blob) SELECT randomblob(i*i/3) FROM n;
INSERT INTO Packages(blob) VALUES (zeroblob(200000)), (x'');
DELETE FROM Packages WHERE hnum % 7 = 3;
`
	for _, size := range []int{512, 1024, 4096, 32768, 65536} {
		for _, wal := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d, write-ahead log %v", size, wal), func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "x.sqlite")
				text := fmt.Sprintf("PRAGMA page_size=%d;\n", size)
				if wal {
					text += ".dbconfig no_ckpt_on_close on\nPRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;\n"
				}
				query(t, path, text+fill)
				content, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				log, err := os.ReadFile(path + "-wal")
				if wal != (err == nil && len(log) > 0) {
					t.Fatalf("there is a log of %d bytes: %v", len(log), err)
				}
				got, err := sqliteBlobs(content, log, "Packages", 1)
				if err != nil {
					t.Fatal(err)
				}
				// The log's end is lost, as after a crash: an earlier state, or none.
				if wal {
					if _, err := sqliteBlobs(content, log[:len(log)-1], "Packages", 1); err != nil && !strings.Contains(err.Error(), "no table Packages") {
						t.Error(err)
					}
				}
				want := strings.Split(strings.TrimSuffix(query(t, path, "SELECT lower(hex(blob)) FROM Packages ORDER BY hnum;\n"), "\n"), "\n")
				if len(got) != len(want) {
					t.Fatalf("%d rows, SQLite has %d", len(got), len(want))
				}
				for n := range got {
					if hex.EncodeToString(got[n]) != want[n] {
						t.Fatalf("row %d differs", n)
					}
				}
				if _, err := sqliteBlobs(content, log, "Nothing", 1); err == nil || !strings.Contains(err.Error(), "no table Nothing") {
					t.Error(err)
				}
				if _, err := sqliteBlobs(content, log, "other", 0); err == nil || !strings.Contains(err.Error(), "is no blob") {
					t.Error(err)
				}
			})
		}
	}
}

func FuzzRPMHeader(f *testing.F) {
	f.Add(makeHeader(map[uint32]any{tagName: "bash", tagVersion: "5", tagRelease: "1", tagEpoch: uint32(1), tagLicense: "MIT and (BSD or GPLv2+)"}))
	f.Fuzz(func(t *testing.T, blob []byte) {
		h, err := parseRPMHeader(blob)
		if err != nil {
			return
		}
		p, err := h.rpm(&textBudget{texts: 1000, known: map[string]string{}})
		if err != nil {
			return
		}
		if _, err := p.purl(OS{ID: "fedora", Version: "40"}); err != nil {
			t.Errorf("%+v: %v", p, err)
		}
		if p.License.Expression != "" {
			checkExpression(t, p.License)
		}
	})
}

func FuzzRPMLicense(f *testing.F) {
	f.Add("MIT and (BSD or GPLv2+) AND GPL-2.0-only WITH Linux-syscall-note")
	f.Fuzz(func(t *testing.T, tag string) {
		if l, err := rpmLicense(tag, &textBudget{texts: 1000, known: map[string]string{}}); err == nil && l.Expression != "" {
			checkExpression(t, l)
		}
	})
}

func FuzzNDB(f *testing.F) {
	f.Add(makeNDB([][]byte{{1, 2, 3}, nil, bytes.Repeat([]byte{4}, 100)}))
	f.Fuzz(func(t *testing.T, db []byte) {
		blobs, err := ndbBlobs(db)
		total := 0
		for _, b := range blobs {
			total += len(b)
		}
		if err == nil && total > len(db) {
			t.Errorf("%d bytes from %d", total, len(db))
		}
	})
}

func FuzzSQLite(f *testing.F) {
	for _, size := range []int{512, 1024} {
		f.Add(smallSQLite(size), []byte(nil))
	}
	f.Fuzz(func(t *testing.T, content, wal []byte) {
		blobs, err := sqliteBlobs(content, wal, "Packages", 1)
		total := 0
		for _, b := range blobs {
			total += len(b)
		}
		// Rows may share bytes of a page, not pages.
		if err == nil && total > 256*(len(content)+len(wal)) {
			t.Errorf("%d bytes from %d", total, len(content)+len(wal))
		}
	})
}

// smallSQLite is a database with one table of one row, whose blob goes on in another
// page.
func smallSQLite(size int) []byte {
	page := func(number int, cells ...[]byte) []byte {
		p, start := make([]byte, size), 0
		if number == 1 {
			start = 100
		}
		p[start] = sqliteLeaf
		binary.BigEndian.PutUint16(p[start+3:], uint16(len(cells)))
		end := size
		for i, c := range cells {
			end -= len(c)
			copy(p[end:], c)
			binary.BigEndian.PutUint16(p[start+8+2*i:], uint16(end))
		}
		return p
	}
	schema := []byte{6, 23, 29, 29, 1, 0} // types of the columns; the last is NULL
	schema = append(schema, "tablePackagesPackages\x02"...)
	one := page(1, slices.Concat([]byte{byte(len(schema)), 1}, schema))
	copy(one, sqliteMagic)
	binary.BigEndian.PutUint16(one[16:], uint16(size))
	one[18], one[19] = 1, 1
	binary.BigEndian.PutUint32(one[56:], 1)
	// A record of a header of 4 bytes and a blob of one page: serial type 12+2*size.
	kind := 12 + 2*size
	record := []byte{4, 0, byte(kind>>7) | 0x80, byte(kind & 0x7f)}
	record = append(record, bytes.Repeat([]byte{7}, size)...)
	usable := size
	least := (usable-12)*32/255 - 23
	local := least + (len(record)-least)%(usable-4)
	if local > usable-35 {
		local = least
	}
	cell := []byte{byte(len(record)>>7) | 0x80, byte(len(record) & 0x7f), 1}
	cell = append(cell, record[:local]...)
	cell = binary.BigEndian.AppendUint32(cell, 3)
	three := make([]byte, size)
	copy(three[4:], record[local:])
	return slices.Concat(one, page(2, cell), three)
}

func TestSmallSQLite(t *testing.T) {
	for _, size := range []int{512, 1024} {
		blobs, err := sqliteBlobs(smallSQLite(size), nil, "Packages", 1)
		if err != nil || len(blobs) != 1 || !bytes.Equal(blobs[0], bytes.Repeat([]byte{7}, size)) {
			t.Fatalf("%d: %d blobs, %v", size, len(blobs), err)
		}
	}
	const size = 512
	patch := func(pairs ...int) []byte {
		db := smallSQLite(size)
		for n := 0; n < len(pairs); n += 2 {
			db[pairs[n]] = byte(pairs[n+1])
		}
		return db
	}
	next := bytes.LastIndex(smallSQLite(size)[:2*size], []byte{0, 0, 0, 3})
	for name, c := range map[string]struct {
		db   []byte
		want string
	}{
		"a size of page":        {patch(16, 3), "which SQLite does not have"},
		"reserved bytes":        {patch(20, 0xff), "are reserved"},
		"a newer format":        {patch(19, 3), "of the format 3"},
		"UTF-16":                {patch(59, 2), "only UTF-8"},
		"an index":              {patch(size, 10), "belongs to no table"},
		"many cells":            {patch(size+3, 0xff), "have no room"},
		"a cell in the header":  {patch(size+8, 0, size+9, 1), "lies outside"},
		"a page in itself":      {patch(size, sqliteInterior, size+4, 0, size+8, 0, size+9, 0, size+11, 2), "is in two places"},
		"the schema as a table": {patch(size, sqliteInterior, size+4, 0, size+8, 0, size+9, 0, size+11, 1), "is in two places"},
		"an overflow nowhere":   {patch(next+3, 0), "no page 0"},
		"an overflow behind":    {patch(next, 1), "no page"},
		"an overflow into use":  {patch(next+3, 2), "is in two places"},
		"a page less":           {smallSQLite(size)[:2*size], "no page 3"},
		"half a header":         {smallSQLite(size)[:50], "does not begin"},
	} {
		if _, err := sqliteBlobs(c.db, nil, "Packages", 1); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	// Whatever byte is changed, it ends.
	for at := range smallSQLite(size) {
		_, _ = sqliteBlobs(patch(at, 0xff), nil, "Packages", 1)
	}
}
