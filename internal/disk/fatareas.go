package disk

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// FATKind says what a run of bytes of a FAT file system is for.
type FATKind int

// The kinds of bytes in a FAT file system.
const (
	FATBootSector      FATKind = iota // the fields that say where all else is
	FATReserved                       // boot code, FSInfo, copy of the boot sector: nothing that firmware reads
	FATTable                          // the FAT in use
	FATTableCopy                      // another FAT
	FATDirectory                      // entries, up to the one that ends the directory
	FATDirectoryUnused                // behind that
	FATFile                           // content of a file
	FATFileSlack                      // of a file's last cluster, behind its end
	FATFree                           // clusters of no file
	FATBehind                         // behind the last cluster
)

// FATArea is a run of bytes of a FAT file system.
type FATArea struct {
	Extent // bytes from the start of the file system

	Kind FATKind
	Path string // of the file or directory; "" for the root
	From int64  // of a file's content: bytes from the start of the file
}

// fatMaxFiles is more than EFI system partitions have.
const fatMaxFiles = 1 << 16

// errCrossLinked means that files or directories share clusters.
var errCrossLinked = errors.New("files or directories share clusters: the file system is damaged")

// fatWalker goes through all directories once.
type fatWalker struct {
	fat      *FAT
	visit    func(name string, file *File) error
	dir      func(name string, runs []run) error
	clusters int64           // that may still be found in use
	seen     map[uint32]bool // directories by their first cluster
	files    int
	twice    error // about a name that leads to two entries
}

// use counts the clusters of a chain. More than there are means that chains are
// shared, which could make a walk take for ever.
func (w *fatWalker) use(runs []run) error {
	for _, r := range runs {
		w.clusters -= r.length / w.fat.clusterSize
	}
	if w.clusters < 0 {
		return errCrossLinked
	}
	return nil
}

func (w *fatWalker) start() error {
	w.clusters, w.seen = int64(w.fat.clusters), map[uint32]bool{}
	if err := w.walk(w.fat.root(), "", 0); err != nil {
		return err
	}
	return w.twice
}

func (w *fatWalker) walk(entry DirEntry, name string, depth int) error {
	if depth > fatMaxDepth {
		return fmt.Errorf("the directory %s lies too deep", name)
	}
	runs, err := w.fat.dirRuns(entry)
	if err != nil {
		return fmt.Errorf("list directory /%s: %w", name, err)
	}
	if w.seen[entry.cluster] {
		return errCrossLinked
	}
	w.seen[entry.cluster] = true
	entries, err := w.fat.readDir(entry)
	if err != nil {
		return fmt.Errorf("list directory /%s: %w", name, err)
	}
	if err := sameDirectory(entries); err != nil && w.twice == nil {
		w.twice = fmt.Errorf("list directory /%s: %w", name, err)
	}
	if entry.cluster != 0 {
		if err := w.use(runs); err != nil {
			return err
		}
	}
	if w.dir != nil {
		if err := w.dir(name, runs); err != nil {
			return err
		}
	}
	for _, e := range entries {
		if w.files++; w.files > fatMaxFiles {
			return fmt.Errorf("there are more than %d files", fatMaxFiles)
		}
		at := e.shown() // it may have slashes and dots in it
		if name != "" {
			at = name + "/" + at
		}
		if e.IsDir {
			if err := w.walk(e, at, depth+1); err != nil {
				return err
			}
			continue
		}
		file, err := w.fat.openEntry(e, at)
		if err != nil {
			return err
		}
		if err := w.use(file.runs); err != nil {
			return err
		}
		if err := w.visit(at, file); err != nil {
			return err
		}
	}
	return nil
}

// openEntry opens the file of a directory's entry.
func (f *FAT) openEntry(e DirEntry, name string) (*File, error) {
	file := &File{fat: f, path: name, size: e.Size, ReadOnly: e.ReadOnly, Short: e.Short()}
	if e.Size > 0 {
		var err error
		if file.runs, err = f.chain(e.cluster, e.Size); err != nil {
			return nil, fmt.Errorf("open %s: %w", name, err)
		}
	}
	return file, nil
}

// Walk calls visit for every file, in the order of the disk. A file system on
// which clusters have two uses, or with a broken chain, is an error when the
// walk comes to it; one on which a name leads to two entries is one in the end.
func (f *FAT) Walk(visit func(name string, file *File) error) error {
	w := &fatWalker{fat: f, visit: visit}
	return w.start()
}

// Areas divides the file system's bytes, size of them, by what they are for: in
// ascending order, without gaps or overlaps.
func (f *FAT) Areas(size int64) ([]FATArea, error) {
	var areas []FATArea
	add := func(from, to int64, kind FATKind, name string, at int64) {
		if to > from {
			areas = append(areas, FATArea{Extent{from, to - from}, kind, name, at})
		}
	}
	// The fields of the boot sector end behind the file system's type.
	fields := int64(62)
	if f.bits == 32 {
		fields = 90
	}
	add(0, fields, FATBootSector, "", 0)
	add(f.firstFAT, f.fatOffset, FATTableCopy, "", 0)
	add(f.fatOffset, f.fatOffset+f.fatSize, FATTable, "", 0)
	add(f.fatOffset+f.fatSize, f.rootOffset, FATTableCopy, "", 0)
	add(fields, f.firstFAT, FATReserved, "", 0)
	data := f.dataOffset + int64(f.clusters)*f.clusterSize
	w := &fatWalker{fat: f, visit: func(name string, file *File) error {
		left, at := file.size, int64(0)
		for _, r := range file.runs {
			n := min(left, r.length)
			add(r.offset, r.offset+n, FATFile, name, at)
			add(r.offset+n, r.offset+r.length, FATFileSlack, name, 0)
			left, at = left-n, at+n
		}
		return nil
	}, dir: func(name string, runs []run) error {
		end, err := f.scanDir(runs, func([]byte, int64) {})
		if err != nil {
			return err
		}
		for i, ended := 0, false; i < len(runs); i++ {
			from, to := runs[i].offset, runs[i].offset+runs[i].length
			used := to
			switch {
			case ended:
				used = from
			case end >= from && end < to:
				used, ended = end+fatEndRead, true
			}
			add(from, used, FATDirectory, name, 0)
			add(used, to, FATDirectoryUnused, name, 0)
		}
		return nil
	}}
	add(f.rootOffset+f.rootEntries*fatEntrySize, f.dataOffset, FATDirectoryUnused, "", 0)
	if err := w.start(); err != nil {
		return nil, err
	}
	slices.SortFunc(areas, func(a, b FATArea) int { return cmp.Compare(a.Offset, b.Offset) })
	var all []FATArea
	at := int64(0)
	gap := func(to int64) {
		if end := min(to, data); at < end {
			all = append(all, FATArea{Extent{at, end - at}, FATFree, "", 0})
			at = end
		}
		if at < to {
			all = append(all, FATArea{Extent{at, to - at}, FATBehind, "", 0})
			at = to
		}
	}
	for _, a := range areas {
		if a.Offset < at {
			return nil, errCrossLinked
		}
		gap(a.Offset)
		all = append(all, a)
		at += a.Length
	}
	gap(size)
	return all, nil
}
