package efi

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"
)

// GUID is an EFI_GUID in the byte order of UEFI: the first three fields are
// little-endian (UEFI 2.10, appendix A).
type GUID [16]byte

// String is the registry form, lower case.
func (g GUID) String() string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x",
		binary.LittleEndian.Uint32(g[0:]), binary.LittleEndian.Uint16(g[4:]),
		binary.LittleEndian.Uint16(g[6:]), g[8:10], g[10:])
}

// MustGUID reads the registry form of a constant.
func MustGUID(s string) GUID {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != 16 {
		panic("efi: malformed GUID " + s)
	}
	slices.Reverse(b[0:4])
	slices.Reverse(b[4:6])
	slices.Reverse(b[6:8])
	return GUID(b)
}

// Vendors of the variables of Secure Boot (UEFI 2.10, section 3.3 and 32.4.1).
var (
	GlobalVariable        = MustGUID("8be4df61-93ca-11d2-aa0d-00e098032b8c") // SecureBoot, PK, KEK
	ImageSecurityDatabase = MustGUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f") // db, dbx
)

// Types of signatures (UEFI 2.10, section 32.4.1).
var (
	CertX509       = MustGUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072") // DER certificate
	CertSHA256     = MustGUID("c1c41626-504c-4092-aca9-41f936934328") // Authenticode digest
	CertSHA384     = MustGUID("ff3e5307-9fd0-48c9-85f1-8ad56c701e01") // Authenticode digest
	CertSHA512     = MustGUID("093e0fae-a6c4-4f50-9f1b-d41e2b89c19a") // Authenticode digest
	CertX509SHA256 = MustGUID("3bd2a492-96c0-4079-b420-fcf98ef103ed") // digest of a TBSCertificate, and a time
	CertX509SHA384 = MustGUID("7076876e-80c2-4ee6-aad2-28b349a6865b") // digest of a TBSCertificate, and a time
	CertX509SHA512 = MustGUID("446dbf63-2502-4cda-bcfa-2465d2b0fe9d") // digest of a TBSCertificate, and a time
)

// SignatureList is an EFI_SIGNATURE_LIST (UEFI 2.10, section 32.4.1).
type SignatureList struct {
	Type       GUID
	Header     []byte // SignatureHeader; empty for every type that UEFI defines
	Signatures []Signature
}

// Signature is an EFI_SIGNATURE_DATA.
type Signature struct {
	Owner GUID
	Data  []byte // as the list's type says
}

// Bytes is the entry as it lies in the variable, and as EV_EFI_VARIABLE_AUTHORITY
// measures it: the owner, then the data.
func (s Signature) Bytes() []byte {
	return slices.Concat(s.Owner[:], s.Data)
}

const signatureListHeader = 28 // type, list size, header size, signature size

// ParseSignatureLists reads the content of PK, KEK, db or dbx: one
// EFI_SIGNATURE_LIST after the other, each to its own SignatureListSize. The
// result shares memory with b.
func ParseSignatureLists(b []byte) ([]SignatureList, error) {
	if isSignedUpdate(b) {
		return nil, errors.New("read EFI signature list: it is a signed update of a variable (.auth), which has the list behind a signature: give the list alone (.esl)")
	}
	var lists []SignatureList
	for offset := 0; offset < len(b); {
		list, size, err := parseSignatureList(b[offset:])
		if err != nil {
			return nil, fmt.Errorf("read EFI signature list at byte %d of %d: %w", offset, len(b), err)
		}
		lists = append(lists, list)
		offset += size
	}
	return lists, nil
}

// isSignedUpdate tells an EFI_VARIABLE_AUTHENTICATION_2 (UEFI 2.10, section
// 8.2.1): an EFI_TIME, then a WIN_CERTIFICATE_UEFI_GUID of PKCS#7.
func isSignedUpdate(b []byte) bool {
	const header = 16 + 24
	le := binary.LittleEndian
	return len(b) >= header && le.Uint16(b[20:]) == 0x0200 && le.Uint16(b[22:]) == 0x0ef1 && GUID(b[24:header]) == certTypePKCS7
}

var certTypePKCS7 = MustGUID("4aafd29d-68df-49ee-8aa9-347d375665a7")

func parseSignatureList(b []byte) (SignatureList, int, error) {
	le := binary.LittleEndian
	if len(b) < signatureListHeader {
		return SignatureList{}, 0, fmt.Errorf("%d bytes are left, but its header alone has %d: the file is cut off, or is no EFI signature list", len(b), signatureListHeader)
	}
	listSize, headerSize, size := uint64(le.Uint32(b[16:])), uint64(le.Uint32(b[20:])), uint64(le.Uint32(b[24:]))
	switch {
	case listSize > uint64(len(b)):
		return SignatureList{}, 0, fmt.Errorf("its size is %d bytes, but %d are left: the file is cut off, or is no EFI signature list", listSize, len(b))
	case listSize < signatureListHeader+headerSize:
		return SignatureList{}, 0, fmt.Errorf("its size of %d bytes has no room for headers of %d", listSize, signatureListHeader+headerSize)
	case size < 16:
		return SignatureList{}, 0, fmt.Errorf("a signature of %d bytes has no room for its owner's GUID", size)
	}
	list := SignatureList{Type: GUID(b[:16]), Header: b[signatureListHeader : signatureListHeader+headerSize]}
	entries := b[signatureListHeader+headerSize : listSize]
	if uint64(len(entries))%size != 0 {
		return SignatureList{}, 0, fmt.Errorf("%d bytes of signatures are not a multiple of their size of %d", len(entries), size)
	}
	// More entries than this are no real list: the smallest real one, a SHA-256
	// digest, has 48 bytes.
	if len(entries)/int(size) > 1<<16 {
		return SignatureList{}, 0, errors.New("it has more than 65,536 signatures")
	}
	for ; len(entries) > 0; entries = entries[size:] {
		list.Signatures = append(list.Signatures, Signature{Owner: GUID(entries[:16]), Data: entries[16:size]})
	}
	return list, int(listSize), nil
}

// VariableData encodes UEFI_VARIABLE_DATA, what firmware measures of a variable
// (TCG PC Client Platform Firmware Profile 1.06, section 10.4.2.6): vendor, the
// lengths of name (characters) and data (bytes) as 64-bit little-endian
// integers, the name in UTF-16LE without a NUL, the data.
func VariableData(vendor GUID, name string, data []byte) []byte {
	units := utf16.Encode([]rune(name))
	out := slices.Grow(vendor[:len(vendor):len(vendor)], 16+2*len(units)+len(data))
	out = binary.LittleEndian.AppendUint64(out, uint64(len(units)))
	out = binary.LittleEndian.AppendUint64(out, uint64(len(data)))
	for _, u := range units {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return append(out, data...)
}

// ParseVariableData reads UEFI_VARIABLE_DATA. The data share memory with b.
func ParseVariableData(b []byte) (vendor GUID, name string, data []byte, err error) {
	const header = 16 + 8 + 8
	if len(b) < header {
		return GUID{}, "", nil, fmt.Errorf("read UEFI variable data: %d bytes are less than its header of %d", len(b), header)
	}
	units, size := binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
	rest := uint64(len(b) - header)
	if units > rest/2 || size != rest-2*units {
		return GUID{}, "", nil, fmt.Errorf("read UEFI variable data: a name of %d characters and %d bytes of data do not make the %d bytes that there are", units, size, rest)
	}
	text := make([]uint16, units)
	for i := range text {
		text[i] = binary.LittleEndian.Uint16(b[header+2*i:])
	}
	return GUID(b[:16]), string(utf16.Decode(text)), b[header+2*units:], nil
}
