package sbom

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// sqlite is a database of SQLite's file format 3 ("Database File Format", sqlite.org),
// of which this reads one table from end to end. Numbers are big-endian.
type sqlite struct {
	content  []byte
	pageSize int64
	usable   int64            // bytes of a page without those at its end that are reserved
	pages    int64            // of the database, the first is 1
	newer    map[int64][]byte // pages of the write-ahead log
	used     map[int64]bool   // pages that were read: none can be in two places
}

const (
	sqliteMagic = "SQLite format 3\x00"
	sqliteDepth = 20 // pages above each other in a table

	sqliteInterior = 5
	sqliteLeaf     = 13
)

// sqliteBlobs returns a column of every row of a table, which has to be a blob, in
// the order of the rows. wal is the write-ahead log beside the database, empty when
// there is none.
func sqliteBlobs(content, wal []byte, table string, column int) ([][]byte, error) {
	db, err := openSQLite(content, wal)
	if err != nil {
		return nil, err
	}
	root := int64(0)
	err = db.rows(1, func(record []byte) error {
		kind, err := sqliteColumn(record, 0)
		if err != nil {
			return err
		}
		name, err := sqliteColumn(record, 1)
		if err != nil {
			return err
		}
		if string(kind.bytes) != "table" || string(name.bytes) != table {
			return nil
		}
		if root != 0 {
			return fmt.Errorf("it has two tables %s", table)
		}
		page, err := sqliteColumn(record, 3)
		if err == nil && (!page.isInteger() || page.integer() < 2) {
			err = fmt.Errorf("the table %s begins nowhere", table)
		}
		if err == nil {
			root = page.integer()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read its schema: %w", err)
	}
	if root == 0 {
		return nil, fmt.Errorf("it has no table %s", table)
	}
	var blobs [][]byte
	err = db.rows(root, func(record []byte) error {
		value, err := sqliteColumn(record, column)
		if err == nil && !value.isBlob() {
			err = fmt.Errorf("column %d of row %d is no blob", column, len(blobs)+1)
		}
		if err == nil && len(blobs) == maxPackages {
			err = fmt.Errorf("it has more than %d rows", maxPackages)
		}
		blobs = append(blobs, value.bytes)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read its table %s: %w", table, err)
	}
	return blobs, nil
}

func openSQLite(content, wal []byte) (*sqlite, error) {
	db := &sqlite{content: content, used: map[int64]bool{}}
	if len(content) < 100 || string(content[:16]) != sqliteMagic {
		return nil, errors.New("it does not begin as a SQLite database does")
	}
	db.pageSize = pageSize(uint32(binary.BigEndian.Uint16(content[16:])))
	if db.pageSize < 512 || db.pageSize&(db.pageSize-1) != 0 {
		return nil, fmt.Errorf("it has pages of %d bytes, which SQLite does not have", db.pageSize)
	}
	db.usable = db.pageSize - int64(content[20])
	if db.usable < 480 {
		return nil, fmt.Errorf("%d of %d bytes of its pages are reserved", content[20], db.pageSize)
	}
	db.pages = int64(len(content)) / db.pageSize
	if err := db.readWAL(wal); err != nil {
		return nil, fmt.Errorf("its write-ahead log: %w", err)
	}
	// Changes that only a newer SQLite understands have another number here.
	first, err := db.page(1)
	if err != nil {
		return nil, err
	}
	if first[19] > 2 {
		return nil, fmt.Errorf("it is of the format %d, and 1 and 2 are known", first[19])
	}
	if encoding := binary.BigEndian.Uint32(first[56:]); encoding > 1 {
		return nil, fmt.Errorf("its texts are in encoding %d, and only UTF-8 is read", encoding)
	}
	return db, nil
}

// pageSize is the size of a page as the file has it, where 1 stands for 65536.
func pageSize(n uint32) int64 {
	if n == 1 {
		return 1 << 16
	}
	return int64(n)
}

// The write-ahead log: a header of 32 bytes, and frames of a header of 24 bytes and
// a page. It counts up to the last frame that ends a transaction; what is behind a
// frame with another salt or a wrong checksum is left of an earlier log.
const (
	walMagic       = 0x377f0682 // with its lowest bit, checksums are big-endian
	walVersion     = 3007000
	walHeader      = 32
	walFrameHeader = 24
)

func (db *sqlite) readWAL(wal []byte) error {
	if len(wal) == 0 {
		return nil
	}
	if len(wal) < walHeader {
		return nil // SQLite takes none of it, either
	}
	magic := binary.BigEndian.Uint32(wal)
	if magic&^1 != walMagic {
		return nil // likewise
	}
	var order binary.ByteOrder = binary.LittleEndian
	if magic&1 != 0 {
		order = binary.BigEndian
	}
	sum := walChecksum(order, [2]uint32{}, wal[:24])
	if sum != walPair(wal[24:]) {
		return nil // likewise
	}
	if version := binary.BigEndian.Uint32(wal[4:]); version != walVersion {
		return fmt.Errorf("it is of version %d, and %d is known", version, walVersion)
	}
	if size := pageSize(binary.BigEndian.Uint32(wal[8:])); size != db.pageSize {
		return fmt.Errorf("it has pages of %d bytes, and the database of %d", size, db.pageSize)
	}
	salt := walPair(wal[16:])
	pending := map[int64][]byte{}
	for rest := wal[walHeader:]; int64(len(rest)) >= walFrameHeader+db.pageSize; rest = rest[walFrameHeader+db.pageSize:] {
		page := rest[walFrameHeader : walFrameHeader+db.pageSize]
		number, size := int64(binary.BigEndian.Uint32(rest)), int64(binary.BigEndian.Uint32(rest[4:]))
		sum = walChecksum(order, walChecksum(order, sum, rest[:8]), page)
		if number == 0 || walPair(rest[8:]) != salt || walPair(rest[16:]) != sum {
			break
		}
		pending[number] = page
		if size == 0 {
			continue
		}
		if db.newer == nil {
			db.newer = map[int64][]byte{}
		}
		maps.Copy(db.newer, pending)
		clear(pending)
		db.pages = size
	}
	return nil
}

func walPair(b []byte) [2]uint32 {
	return [2]uint32{binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])}
}

func walChecksum(order binary.ByteOrder, sum [2]uint32, b []byte) [2]uint32 {
	for ; len(b) >= 8; b = b[8:] {
		sum[0] += order.Uint32(b) + sum[1]
		sum[1] += order.Uint32(b[4:]) + sum[0]
	}
	return sum
}

// page returns a page.
func (db *sqlite) page(number int64) ([]byte, error) {
	if number < 1 || number > db.pages {
		return nil, fmt.Errorf("there is no page %d among its %d", number, db.pages)
	}
	if p, ok := db.newer[number]; ok {
		return p, nil
	}
	if number*db.pageSize > int64(len(db.content)) {
		return nil, fmt.Errorf("its page %d lies behind its end", number)
	}
	return db.content[(number-1)*db.pageSize : number*db.pageSize], nil
}

// take returns a page that was not taken before.
func (db *sqlite) take(number int64) ([]byte, error) {
	p, err := db.page(number)
	if err == nil && db.used[number] {
		err = fmt.Errorf("its page %d is in two places", number)
	}
	db.used[number] = true
	return p, err
}

// rows calls visit for the record of every row of the table that begins at a page.
func (db *sqlite) rows(root int64, visit func(record []byte) error) error {
	return db.tree(root, 0, visit)
}

func (db *sqlite) tree(number int64, depth int, visit func([]byte) error) error {
	if depth > sqliteDepth {
		return fmt.Errorf("it has more than %d pages above each other", sqliteDepth)
	}
	page, err := db.take(number)
	if err != nil {
		return err
	}
	start := int64(0)
	if number == 1 {
		start = 100
	}
	head := page[start:]
	header := int64(8)
	if head[0] == sqliteInterior {
		header = 12
	} else if head[0] != sqliteLeaf {
		return fmt.Errorf("its page %d is of type %d, and belongs to no table", number, head[0])
	}
	cells := int64(binary.BigEndian.Uint16(head[3:]))
	if header+2*cells > db.usable-start {
		return fmt.Errorf("its page %d speaks of %d cells, which have no room", number, cells)
	}
	for i := range cells {
		cell := int64(binary.BigEndian.Uint16(head[header+2*i:]))
		if cell < start+header+2*cells || cell >= db.usable {
			return fmt.Errorf("cell %d of page %d lies outside of it", i, number)
		}
		at := page[cell:db.usable]
		if head[0] == sqliteInterior {
			if len(at) < 4 {
				return fmt.Errorf("cell %d of page %d is cut off", i, number)
			}
			if err := db.tree(int64(binary.BigEndian.Uint32(at)), depth+1, visit); err != nil {
				return err
			}
			continue
		}
		record, err := db.record(at)
		if err == nil {
			err = visit(record)
		}
		if err != nil {
			return fmt.Errorf("cell %d of page %d: %w", i, number, err)
		}
	}
	if head[0] == sqliteInterior {
		return db.tree(int64(binary.BigEndian.Uint32(head[8:])), depth+1, visit)
	}
	return nil
}

// record reads the record of a cell of a leaf: its length, the number of its row,
// and its bytes, of which the last may lie in other pages.
func (db *sqlite) record(cell []byte) ([]byte, error) {
	length, n := sqliteVarint(cell)
	if n == 0 {
		return nil, errors.New("it is cut off")
	}
	_, m := sqliteVarint(cell[n:])
	if m == 0 {
		return nil, errors.New("it is cut off")
	}
	body := cell[n+m:]
	if length > uint64(db.pages)*uint64(db.pageSize) {
		return nil, fmt.Errorf("it has %d bytes, more than the database", length)
	}
	size := int64(length)
	// Section 1.6, "B-tree Pages": what of a record lies in its own page.
	local, most, least := size, db.usable-35, (db.usable-12)*32/255-23
	if size > most {
		if local = least + (size-least)%(db.usable-4); local > most {
			local = least
		}
	}
	if local > int64(len(body)) {
		return nil, errors.New("it is cut off")
	}
	if local == size {
		return body[:size], nil
	}
	if int64(len(body)) < local+4 {
		return nil, errors.New("it is cut off")
	}
	record := slices.Clone(body[:local])
	next := int64(binary.BigEndian.Uint32(body[local:]))
	for int64(len(record)) < size {
		page, err := db.take(next)
		if err != nil {
			return nil, err
		}
		part := min(size-int64(len(record)), db.usable-4)
		record = append(record, page[4:4+part]...)
		next = int64(binary.BigEndian.Uint32(page))
	}
	return record, nil
}

// sqliteVarint reads an integer of up to 9 bytes; n is 0 when it is cut off.
func sqliteVarint(b []byte) (value uint64, n int) {
	for i := range min(len(b), 9) {
		if i == 8 {
			return value<<8 | uint64(b[8]), 9
		}
		value = value<<7 | uint64(b[i]&0x7f)
		if b[i]&0x80 == 0 {
			return value, i + 1
		}
	}
	return 0, 0
}

// sqliteValue is a value of a record: its serial type, and its bytes.
type sqliteValue struct {
	kind  uint64
	bytes []byte
}

func (v sqliteValue) isInteger() bool {
	return v.kind >= 1 && v.kind <= 6 || v.kind == 8 || v.kind == 9
}
func (v sqliteValue) isBlob() bool { return v.kind >= 12 && v.kind%2 == 0 }

// integer is the value of an integer.
func (v sqliteValue) integer() int64 {
	switch v.kind {
	case 8:
		return 0
	case 9:
		return 1
	}
	var n int64
	for i, b := range v.bytes {
		if i == 0 {
			n = int64(int8(b))
			continue
		}
		n = n<<8 | int64(b)
	}
	return n
}

// sqliteColumn returns a column of a record, NULL when the record ends before it.
func sqliteColumn(record []byte, column int) (sqliteValue, error) {
	length, n := sqliteVarint(record)
	if n == 0 || length < uint64(n) || length > uint64(len(record)) {
		return sqliteValue{}, errors.New("the record has no header")
	}
	header, body := record[n:length], record[length:]
	for i := 0; ; i++ {
		if len(header) == 0 {
			return sqliteValue{}, nil
		}
		kind, n := sqliteVarint(header)
		if n == 0 {
			return sqliteValue{}, errors.New("the record's header is cut off")
		}
		header = header[n:]
		var size uint64
		switch kind {
		case 0, 8, 9: // NULL, and the numbers 0 and 1
		case 1, 2, 3, 4:
			size = kind
		case 5:
			size = 6
		case 6, 7:
			size = 8
		case 10, 11:
			return sqliteValue{}, fmt.Errorf("the record has a value of the type %d, which SQLite keeps for itself", kind)
		default:
			size = (kind - 12) / 2
		}
		if size > uint64(len(body)) {
			return sqliteValue{}, errors.New("a value of the record is cut off")
		}
		if i == column {
			return sqliteValue{kind, body[:size]}, nil
		}
		body = body[size:]
	}
}
