package disk

import "bytes"

// VerityArea is a run of bytes of a verity superblock, and of the rest of the
// hash block that it stands in.
type VerityArea struct {
	Extent // bytes from the start of the disk

	What    string
	Binding VerityBinding
}

// VerityBinding says what ties a byte of the superblock to the root hash.
type VerityBinding int

// The kinds of bytes in a superblock.
const (
	// VerityUnused bytes change nothing.
	VerityUnused VerityBinding = iota
	// VerityBound bytes take part in every digest: with another value the tree
	// does not lead to the root hash, or there is none.
	VerityBound
	// VerityLoose bytes have values besides the right one with which the tree
	// still leads to the root hash.
	VerityLoose
)

// Superblock divides the bytes from the superblock to the tree, in the order of
// the disk. There are none without a superblock.
func (v *Verity) Superblock() []VerityArea {
	if v.superblock == noSuperblock {
		return nil
	}
	var areas []VerityArea
	at := v.superblock
	add := func(end int64, what string, binding VerityBinding) {
		if end += v.superblock; end > at {
			areas = append(areas, VerityArea{Extent{at, end - at}, what, binding})
			at = end
		}
	}
	// Without a salt both types give the same digests.
	kind := VerityBound
	if len(v.Salt) == 0 {
		kind = VerityLoose
	}
	add(12, "signature and version", VerityBound)
	add(16, "hash type", kind)
	add(32, "UUID", VerityUnused)
	add(32+int64(len(v.Algorithm))+1, "hash algorithm", VerityBound)
	add(64, "unused", VerityUnused)
	add(72, "block sizes", VerityBound)
	// The root hash does not tell one number of blocks from another that gives
	// levels of the same length.
	add(80, "number of data blocks", VerityLoose)
	add(82, "length of the salt", VerityBound)
	add(88, "unused", VerityUnused)
	add(88+int64(len(v.Salt)), "salt", VerityBound)
	add(v.tree-v.superblock, "unused", VerityUnused)
	return areas
}

// Data is what the tree covers of the data at a byte offset of the disk.
func (v *Verity) Data(offset int64) Extent { return Extent{offset, v.DataBlocks * v.DataBlockSize} }

// Leads reports whether the topmost block leads to a root hash, as far as that
// can be told without the data.
func (v *Verity) Leads(root []byte) (bool, error) {
	got, ok, err := v.RootHash()
	return err == nil && (!ok || bytes.Equal(got, root)), err
}
