package disk

// Extents lists where the file's bytes lie, in the order of the file: offsets
// are bytes from the start of the file system.
func (f *File) Extents() []Extent {
	extents := make([]Extent, 0, len(f.runs))
	left := f.size
	for _, r := range f.runs {
		n := min(r.length, left)
		extents = append(extents, Extent{Offset: r.offset, Length: n})
		left -= n
	}
	return extents
}
