package efi

import (
	"bytes"
	"compress/flate"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/adler32"
	"hash/crc32"
	"io"
	"unicode/utf8"
)

// Variable is a UEFI variable (UEFI 2.10, section 8.2).
type Variable struct {
	Name       string
	Vendor     GUID
	Attributes uint32
	Data       []byte
	// Time is the EFI_TIME of the last authenticated write, and Digest that of
	// the certificate that may write next; both are kept for variables with
	// TimeBasedAuthenticated only. Digest is 32 bytes or empty.
	Time   [16]byte
	Digest []byte
}

// Attributes of variables (UEFI 2.10, section 8.2.1).
const (
	NonVolatile            = 0x01
	BootServiceAccess      = 0x02
	RuntimeAccess          = 0x04
	TimeBasedAuthenticated = 0x20

	SecureBootAttributes = NonVolatile | BootServiceAccess | RuntimeAccess | TimeBasedAuthenticated
)

// AWS's variable store, which EC2's RegisterImage takes as UefiData:
//
//	base64( "AMZNUEFI" ‖ u32 CRC-32C of what follows ‖ u32 version ‖ zlib stream )
//
// The stream is zlib (RFC 1950) with a preset dictionary. Its content is a u64
// count and that many variables, each with u64 lengths before its name (UTF-8),
// its data and its digest. All integers are little-endian.
const (
	awsMagic      = "AMZNUEFI"
	awsHeader     = 16 // magic, CRC, version
	awsZlib       = 0x78f9
	awsDictionary = 0x6bb7d9f7 // Adler-32 of the preset dictionary
	awsTrailer    = 4          // Adler-32 of the content

	// AWSMaxStore is the longest store that EC2 takes, in characters of base64.
	AWSMaxStore = 64000
	// Real stores have a few dozen variables. The bounds keep a stream that
	// unpacks to gigabytes from filling memory.
	awsMaxContent   = 1 << 20
	awsMaxVariables = 4096
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// EncodeAWSVariables encodes variables as AWS's variable store, in base64
// without a line end. The same variables always give the same characters.
//
// The stream declares AWS's preset dictionary, but never refers to it, so that
// it unpacks alike with the dictionary and without.
func EncodeAWSVariables(variables []Variable) ([]byte, error) {
	content := binary.LittleEndian.AppendUint64(nil, uint64(len(variables)))
	for _, v := range variables {
		if !utf8.ValidString(v.Name) || v.Name == "" {
			return nil, fmt.Errorf("encode AWS variable store: %q is no name of a variable", v.Name)
		}
		if v.Attributes&TimeBasedAuthenticated == 0 && (len(v.Digest) > 0 || v.Time != [16]byte{}) {
			return nil, fmt.Errorf("encode AWS variable store: %s is not authenticated, so it has neither a time nor a digest", v.Name)
		}
		content = appendAWSVariable(content, v)
	}
	if len(content) > awsMaxContent {
		return nil, fmt.Errorf("encode AWS variable store: the variables take %d bytes, more than the %d that are possible", len(content), awsMaxContent)
	}
	var b bytes.Buffer
	b.WriteString(awsMagic)
	b.Write(make([]byte, 8)) // CRC, version 0
	var zlibHeader []byte
	zlibHeader = binary.BigEndian.AppendUint16(zlibHeader, awsZlib)
	zlibHeader = binary.BigEndian.AppendUint32(zlibHeader, awsDictionary)
	b.Write(zlibHeader)
	w, err := flate.NewWriter(&b, flate.BestCompression)
	if err == nil {
		_, err = w.Write(content)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("encode AWS variable store: %w", err)
	}
	store := binary.BigEndian.AppendUint32(b.Bytes(), adler32.Checksum(content))
	binary.LittleEndian.PutUint32(store[8:], crc32.Checksum(store[12:], castagnoli))
	out := base64.StdEncoding.AppendEncode(nil, store)
	if len(out) > AWSMaxStore {
		return nil, fmt.Errorf("encode AWS variable store: it has %d characters, and EC2 takes %d: leave out certificates or old dbx entries", len(out), AWSMaxStore)
	}
	return out, nil
}

func appendAWSVariable(b []byte, v Variable) []byte {
	blob := func(data []byte) {
		b = binary.LittleEndian.AppendUint64(b, uint64(len(data)))
		b = append(b, data...)
	}
	blob([]byte(v.Name))
	blob(v.Data)
	b = append(b, v.Vendor[:]...)
	b = binary.LittleEndian.AppendUint32(b, v.Attributes)
	if v.Attributes&TimeBasedAuthenticated != 0 {
		b = append(b, v.Time[:]...)
		blob(v.Digest)
	}
	return b
}

// DecodeAWSVariables reads a store in AWS's form. A store that AWS's own tools
// made refers to the preset dictionary; without it (nil) only those are read
// that do not, such as EncodeAWSVariables makes.
func DecodeAWSVariables(store, dictionary []byte) ([]Variable, error) {
	variables, err := decodeAWSVariables(store, dictionary)
	if err != nil {
		return nil, fmt.Errorf("read AWS variable store: %w", err)
	}
	return variables, nil
}

func decodeAWSVariables(store, dictionary []byte) ([]Variable, error) {
	store = bytes.TrimSpace(store)
	if len(store) > AWSMaxStore {
		return nil, fmt.Errorf("it has %d characters, more than the %d that EC2 takes", len(store), AWSMaxStore)
	}
	raw, err := base64.StdEncoding.AppendDecode(nil, store)
	if err != nil {
		return nil, fmt.Errorf("it is not base64: %w", err)
	}
	if len(raw) < awsHeader+6+awsTrailer || string(raw[:8]) != awsMagic {
		return nil, fmt.Errorf("it does not begin with %q: it is none, or cut off", awsMagic)
	}
	if want, got := binary.LittleEndian.Uint32(raw[8:]), crc32.Checksum(raw[12:], castagnoli); want != got {
		return nil, fmt.Errorf("its CRC-32C is %08x, but its content gives %08x: it is damaged", want, got)
	}
	if version := binary.LittleEndian.Uint32(raw[12:]); version != 0 {
		return nil, fmt.Errorf("it is of version %d, and only 0 is known", version)
	}
	stream, trailer := raw[awsHeader:len(raw)-awsTrailer], raw[len(raw)-awsTrailer:]
	if binary.BigEndian.Uint16(stream) != awsZlib || binary.BigEndian.Uint32(stream[2:]) != awsDictionary {
		return nil, fmt.Errorf("its stream begins with %x, not with a zlib header that names AWS's dictionary", stream[:6])
	}
	if dictionary != nil && adler32.Checksum(dictionary) != awsDictionary {
		return nil, errors.New("the dictionary given is not AWS's")
	}
	compressed := bytes.NewReader(stream[6:])
	content, err := io.ReadAll(io.LimitReader(flate.NewReaderDict(compressed, dictionary), awsMaxContent+1))
	switch {
	case err != nil && dictionary == nil:
		return nil, fmt.Errorf("its stream is damaged, or was made with AWS's dictionary, which is not part of this program: %w", err)
	case err != nil:
		return nil, fmt.Errorf("its stream is damaged: %w", err)
	case len(content) > awsMaxContent:
		return nil, fmt.Errorf("it unpacks to more than %d bytes", awsMaxContent)
	case compressed.Len() > 0:
		return nil, fmt.Errorf("%d bytes follow its stream", compressed.Len())
	}
	if want, got := binary.BigEndian.Uint32(trailer), adler32.Checksum(content); want != got {
		return nil, fmt.Errorf("the Adler-32 of its content is %08x, but the content gives %08x: it is damaged", want, got)
	}
	r := awsReader{rest: content}
	count := r.integer(8)
	if r.err != nil {
		return nil, fmt.Errorf("count of variables: %w", r.err)
	}
	if count > awsMaxVariables {
		return nil, fmt.Errorf("%d variables are more than the %d that are read", count, awsMaxVariables)
	}
	variables := make([]Variable, 0, count)
	for i := range count {
		v := r.variable()
		if r.err == nil && !utf8.ValidString(v.Name) {
			r.err = errors.New("its name is not UTF-8")
		}
		if r.err != nil {
			return nil, fmt.Errorf("variable %d of %d: %w", i+1, count, r.err)
		}
		variables = append(variables, v)
	}
	if len(r.rest) > 0 {
		return nil, fmt.Errorf("%d bytes follow the last of %d variables", len(r.rest), count)
	}
	return variables, nil
}

// awsReader reads fields from the front of rest, until the first error.
type awsReader struct {
	rest []byte
	err  error
}

func (r *awsReader) bytes(n uint64) []byte {
	if r.err != nil {
		return nil
	}
	if n > uint64(len(r.rest)) {
		r.err = fmt.Errorf("a field of %d bytes in the %d that are left", n, len(r.rest))
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

// integer reads a little-endian integer of up to 8 bytes.
func (r *awsReader) integer(size uint64) uint64 {
	var padded [8]byte
	copy(padded[:], r.bytes(size))
	return binary.LittleEndian.Uint64(padded[:])
}

func (r *awsReader) blob() []byte { return r.bytes(r.integer(8)) }

func (r *awsReader) variable() Variable {
	v := Variable{Name: string(r.blob()), Data: r.blob()}
	copy(v.Vendor[:], r.bytes(16))
	v.Attributes = uint32(r.integer(4))
	if v.Attributes&TimeBasedAuthenticated != 0 {
		copy(v.Time[:], r.bytes(16))
		v.Digest = r.blob()
	}
	return v
}
