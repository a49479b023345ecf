package nitrotpm

import (
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// Limits of what is read, for those who read it from somewhere.
const (
	// MaxDocument bounds a document, in bytes. The TPM's protocol carries 8192.
	MaxDocument = 16 << 10
	// MaxField bounds nonce, user_data, public_key and each certificate, in bytes.
	MaxField = 1024
	// maxBundle bounds the number of certificates in cabundle; a genuine document
	// has four.
	maxBundle = 8
	// maxModuleID bounds module_id, in bytes.
	maxModuleID = 256
)

// readingMode refuses whatever could be read in two ways: a key that comes twice,
// tags, text that is not UTF-8, what follows the item.
func readingMode(indefinite cbor.IndefLengthMode) cbor.DecMode {
	mode, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       indefinite,
		TagsMd:            cbor.TagsForbidden,
		UTF8:              cbor.UTF8RejectInvalid,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
		MaxNestedLevels:   4,
		MaxArrayElements:  32,
		MaxMapPairs:       32,
	}.DecMode()
	if err != nil {
		panic(err) // the options are constants
	}
	return mode
}

var (
	// strict reads what has a definite length.
	strict = readingMode(cbor.IndefLengthForbidden)
	// lenient also reads the payload of a genuine document, which is a map of
	// indefinite length. Its members are then read strictly.
	lenient = readingMode(cbor.IndefLengthAllowed)
)

// member reads one member of a map into a value; CBOR null leaves the value as it
// is.
func member(members map[string]cbor.RawMessage, name string, into any) error {
	raw, ok := members[name]
	if !ok {
		return fmt.Errorf("%s is missing", name)
	}
	if err := strict.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// field reads one of the optional byte strings: CBOR null, or no member at all,
// is nil, and an empty string is not.
func field(members map[string]cbor.RawMessage, name string) ([]byte, error) {
	raw, ok := members[name]
	if !ok || isNull(raw) {
		return nil, nil
	}
	if !isByteString(raw) {
		return nil, fmt.Errorf("%s is not a byte string", name)
	}
	value := []byte{}
	if err := strict.Unmarshal(raw, &value); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(value) > MaxField {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", name, len(value), MaxField)
	}
	return value, nil
}

func isNull(item []byte) bool { return len(item) == 1 && item[0] == 0xf6 }

// isByteString tells a byte string (major type 2) from what the decoder would
// also put into a slice of bytes, such as an array of small numbers.
func isByteString(item []byte) bool { return len(item) > 0 && item[0]>>5 == 2 }
