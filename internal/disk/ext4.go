package disk

import "io"

func openExt4(r io.ReaderAt, size int64) (*Filesystem, error) { return nil, ErrNoFilesystem }
