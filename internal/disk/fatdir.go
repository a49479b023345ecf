package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
)

// Directories are read as EDK II's FAT driver reads them (FatPkg/EnhancedFatDxe:
// DirectoryManage.c, FileName.c, Hash.c), since its view decides what is booted
// and measured: which entries there are, which name each has, and which entry a
// name leads to.

// DirEntry is a file or directory in a FAT directory.
type DirEntry struct {
	Name     string // as firmware lists it: the long name where that is whole; it may be empty
	IsDir    bool
	ReadOnly bool
	Size     int64 // bytes; 0 for a directory
	short    [fatShortName]byte
	cluster  uint32 // first cluster, 0 when empty
	offset   int64  // of the short entry, bytes from the start of the file system
	root     bool
}

const (
	fatEntrySize = 32 // bytes
	fatShortName = 11 // bytes: eight, and three behind the dot
	// fatEndRead is how much of the entry that ends a directory is read, in
	// bytes: up to the attributes, which decide whether it is the end.
	fatEndRead = fatShortName + 1

	fatAttrReadOnly = 0x01
	fatAttrVolume   = 0x08
	fatAttrDir      = 0x10
	fatAttrLong     = 0x0f

	fatLongEntries = 20  // of a long name
	fatLongUnits   = 13  // UTF-16 code units in each of them
	fatMaxName     = 255 // UTF-16 code units of a name that is looked up
	fatMaxPath     = 260 // likewise of a path with a drive in front and a NUL behind
)

// root is the root directory, as an entry without a name.
func (f *FAT) root() DirEntry { return DirEntry{IsDir: true, root: true, cluster: f.rootCluster} }

// dirRuns returns where a directory's entries lie.
func (f *FAT) dirRuns(dir DirEntry) ([]run, error) {
	switch {
	case dir.root && f.bits != 32:
		return []run{{0, f.rootOffset, f.rootEntries * fatEntrySize}}, nil
	case dir.cluster == 0:
		// Empty at first; but firmware keeps directories by their first cluster,
		// and may then take one such for another.
		return nil, errors.New("it has no cluster, and what firmware reads from such a directory cannot be told")
	}
	return f.chain(dir.cluster, -1)
}

// scanDir calls visit for every entry that is a file or directory: with all of
// the directory up to that entry, and where the entry lies. It returns where the
// entry lies that ends the directory; -1 when the directory ends without one.
//
// A deleted entry, and one with the volume attribute, which those of long names
// have, is passed over before the end is looked for. So neither can end a
// directory, whatever its name begins with.
func (f *FAT) scanDir(runs []run, visit func(upTo []byte, offset int64)) (end int64, err error) {
	var all []byte
	for _, r := range runs {
		for off := int64(0); off < r.length; {
			at, n := len(all), min(4096, r.length-off)
			all = append(all, make([]byte, n)...)
			if n, err := f.r.ReadAt(all[at:], r.offset+off); n < len(all)-at {
				return 0, fmt.Errorf("read %d bytes of it at byte %d: %w", len(all)-at, r.offset+off, err)
			}
			for ; at+fatEntrySize <= len(all); at += fatEntrySize {
				offset := r.offset + off + n - int64(len(all)-at)
				switch raw := all[at:]; {
				case raw[0] == 0xe5 || raw[11]&fatAttrVolume != 0:
				case raw[0] == 0:
					return offset, nil
				default:
					visit(all[:at+fatEntrySize], offset)
				}
			}
			off += n
		}
	}
	return -1, nil
}

// ReadDir lists the directory at a slash-separated path ("" is the root), in
// the order of the disk, without the volume label, "." and "..". A path that does
// not exist gives an error that is fs.ErrNotExist.
func (f *FAT) ReadDir(path string) ([]DirEntry, error) {
	entry, _, err := f.lookup(path)
	if err != nil {
		return nil, err
	}
	if !entry.IsDir {
		return nil, fmt.Errorf("list %s: it is a file", path)
	}
	entries, err := f.readDir(entry)
	if err != nil {
		return nil, fmt.Errorf("list directory /%s: %w", path, err)
	}
	return entries, nil
}

func (f *FAT) readDir(dir DirEntry) ([]DirEntry, error) {
	runs, err := f.dirRuns(dir)
	if err != nil {
		return nil, err
	}
	var entries []DirEntry
	_, err = f.scanDir(runs, func(upTo []byte, offset int64) {
		e := f.decodeDirEntry(upTo)
		e.offset = offset
		// No path leads to a directory of these names, whatever its cluster.
		if !e.IsDir || e.Name != "." && e.Name != ".." {
			entries = append(entries, e)
		}
	})
	return entries, err
}

// decodeDirEntry reads the last entry of a part of a directory.
func (f *FAT) decodeDirEntry(upTo []byte) DirEntry {
	le := binary.LittleEndian
	raw := upTo[len(upTo)-fatEntrySize:]
	e := DirEntry{
		Name:     shortName(raw),
		IsDir:    raw[11]&fatAttrDir != 0,
		ReadOnly: raw[11]&fatAttrReadOnly != 0,
		short:    [fatShortName]byte(raw),
		cluster:  uint32(le.Uint16(raw[26:])),
	}
	if f.bits == 32 {
		e.cluster |= uint32(le.Uint16(raw[20:])) << 16
	}
	if !e.IsDir {
		e.Size = int64(le.Uint32(raw[28:]))
	}
	if long, ok := longName(upTo[:len(upTo)-fatEntrySize], raw); ok {
		e.Name = long
	}
	return e
}

// shown is the name by which Walk knows an entry.
func (e DirEntry) shown() string {
	if e.Name == "" {
		return e.Short()
	}
	return e.Name
}

// Short is the 8.3 name of an entry, which leads to it, too.
func (e DirEntry) Short() string { return shortName(append(e.short[:], 0, 0)) }

// sameDirectory finds two entries to which one name leads.
func sameDirectory(entries []DirEntry) error {
	long, short := map[string]bool{}, map[[fatShortName]byte]bool{}
	for _, e := range entries {
		name := strings.Map(fatUpper, e.Name)
		own, isShort := shortOf(e.Name)
		if long[name] || short[e.short] || isShort && short[own] {
			return fmt.Errorf("there are two entries named %q, and which one firmware opens cannot be told", e.shown())
		}
		long[name], short[e.short] = true, true
		if isShort {
			short[own] = true
		}
	}
	return nil
}

// shortName is the name in an entry itself, which bits may say is in lower case.
func shortName(raw []byte) string {
	name := decodeShort(raw[:8], raw[12]&0x08 != 0)
	if extension := decodeShort(raw[8:fatShortName], raw[12]&0x10 != 0); extension != "" {
		name += "." + extension
	}
	return name
}

// decodeShort decodes one part of an 8.3 name; bytes above ASCII are kept as
// Latin-1, which is enough to compare and to show them.
func decodeShort(b []byte, lower bool) string {
	text, _, _ := strings.Cut(strings.TrimRight(string(b), " "), "\x00")
	var s strings.Builder
	for _, c := range []byte(text) {
		if up := fatUpper(rune(c) | 0x20); lower && rune(c) == up {
			c |= 0x20
		}
		s.WriteRune(rune(c))
	}
	return s.String()
}

// longName reads a long name from the entries in front of the short one: the
// nearest has the first thirteen characters. One that does not belong there makes
// firmware forget them all. A long name may be empty.
func longName(before, short []byte) (string, bool) {
	var sum byte
	for _, c := range short[:fatShortName] {
		sum = sum>>1 | sum<<7
		sum += c
	}
	var units []uint16
	for ordinal := 1; ; ordinal++ {
		if len(before) < fatEntrySize || ordinal > fatLongEntries {
			return "", false
		}
		raw := before[len(before)-fatEntrySize:]
		before = before[:len(before)-fatEntrySize]
		if raw[11] != fatAttrLong || raw[26] != 0 || raw[27] != 0 || raw[13] != sum || int(raw[0]&^0x40) != ordinal {
			return "", false
		}
		for _, part := range [][]byte{raw[1:11], raw[14:26], raw[28:32]} {
			for ; len(part) > 0; part = part[2:] {
				units = append(units, binary.LittleEndian.Uint16(part))
			}
		}
		if raw[0]&0x40 != 0 {
			break
		}
	}
	for i, u := range units {
		if u == 0 {
			units = units[:i]
			break
		}
	}
	return string(utf16.Decode(units)), true
}

// Open opens the file at a slash-separated path, as firmware does: names are
// compared without regard to case in Latin-1, space before a name, and space and
// dots behind it, do not count, and an 8.3 name leads to its entry, too. A path
// that does not exist gives an error that is fs.ErrNotExist; one to which two
// entries answer gives another.
func (f *FAT) Open(path string) (*File, error) {
	entry, names, err := f.lookup(path)
	if err != nil {
		return nil, err
	}
	if entry.IsDir {
		return nil, fmt.Errorf("open %s: it is a directory", path)
	}
	return f.openEntry(entry, strings.Join(names, "/"))
}

// lookup finds the entry at a path, and returns the names on its way as Walk has
// them.
func (f *FAT) lookup(path string) (entry DirEntry, names []string, err error) {
	entry = f.root()
	shown := path
	if strings.ContainsFunc(path, func(r rune) bool { return !unicode.IsPrint(r) }) {
		shown = strconv.Quote(path)
	}
	if units := utf16.Encode([]rune("C:\\" + strings.Trim(path, "/") + "\x00")); len(units) > fatMaxPath {
		return entry, nil, fmt.Errorf("open %s: firmware opens no path that is longer than %d characters", shown, fatMaxPath)
	}
	for name := range strings.SplitSeq(path, "/") {
		switch name {
		case "":
			continue
		case ".", "..":
			return entry, nil, fmt.Errorf("open %s: %w", shown, fs.ErrNotExist)
		}
		wanted := strings.TrimRight(strings.TrimLeft(name, " "), " .")
		if wanted == "" || len(utf16.Encode([]rune(wanted))) > fatMaxName || strings.ContainsFunc(wanted, func(r rune) bool { return r < 0x20 || strings.ContainsRune(`"*/:<>?\|`, r) }) {
			return entry, nil, fmt.Errorf("open %s: firmware opens no file of the name %q", shown, name)
		}
		if !entry.IsDir {
			return entry, nil, fmt.Errorf("open %s: %w", shown, fs.ErrNotExist)
		}
		entries, err := f.readDir(entry)
		if err != nil {
			return entry, nil, fmt.Errorf("open %s: %w", shown, err)
		}
		short, isShort := shortOf(wanted)
		found, listed := false, false
		for _, e := range entries {
			if !sameFATName(e.Name, wanted) && (!isShort || e.short != short) {
				listed = listed || e.Name == name
				continue
			}
			// The first one, unless firmware has read the directory before: then
			// the last one, and one by its long name rather than by its short one.
			if found {
				return entry, nil, fmt.Errorf("open %s: its directory has two entries named %q, and which one firmware opens cannot be told", shown, name)
			}
			entry, found = e, true
		}
		switch {
		case !found && listed:
			return entry, nil, fmt.Errorf("open %s: firmware lists a file %q, and opens none by that name", shown, name)
		case !found:
			return entry, nil, fmt.Errorf("open %s: %w", shown, fs.ErrNotExist)
		}
		names = append(names, entry.shown())
	}
	return entry, names, nil
}

// shortOf makes the 8.3 name that a name could be in an entry, when it could.
func shortOf(name string) (short [fatShortName]byte, ok bool) {
	copy(short[:], strings.Repeat(" ", fatShortName))
	base, extension := name, ""
	if at := strings.LastIndexByte(name, '.'); at >= 0 {
		base, extension = name[:at], name[at+1:]
	}
	put := func(into []byte, part string) bool {
		i := 0
		for _, r := range part {
			up := fatUpper(r)
			letter := up >= 'A' && up <= 'Z' || up >= 0xc0 && up <= 0xde && up != 0xd7
			if i == len(into) || r > 0xff || !letter && (r < '0' || r > '9') && !strings.ContainsRune("_^$~!#%&-{}()@`'\\", r) {
				return false
			}
			into[i] = byte(up)
			i++
		}
		return true
	}
	return short, base != "" && put(short[:8], base) && put(short[8:], extension)
}

// sameFATName compares names as EDK II's English collation does (EngStriColl).
func sameFATName(a, b string) bool {
	return strings.Map(fatUpper, a) == strings.Map(fatUpper, b)
}

// fatUpper makes a Latin-1 letter a capital. What EDK II's signed characters
// become when they are widened counts as what they were.
func fatUpper(r rune) rune {
	if r >= 0xff80 && r <= 0xffff {
		r -= 0xff00
	}
	if r >= 'a' && r <= 'z' || r >= 0xe0 && r <= 0xfe && r != 0xf7 {
		return r - 0x20
	}
	return r
}
