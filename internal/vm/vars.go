package vm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"unicode/utf16"

	"github.com/org/attestable-image-action/internal/efi"
	"github.com/org/attestable-image-action/internal/measure"
)

// GUIDs in the byte order of UEFI: the first three fields are little-endian.
var (
	// EFI_SYSTEM_NV_DATA_FV_GUID, fff12b8d-7696-4c8b-a985-2747075b4f50.
	nvDataVolume = []byte{0x8d, 0x2b, 0xf1, 0xff, 0x96, 0x76, 0x8b, 0x4c, 0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f, 0x50}
	// gEfiAuthenticatedVariableGuid, aaf32c78-947b-439a-a180-2e144ec37792.
	authenticatedStore = []byte{0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92}
	// gEfiSecureBootEnableDisableGuid, f0a30bc7-af08-4556-99c4-001009c93a44.
	secureBootEnable = efi.GUID{0xc7, 0x0b, 0xa3, 0xf0, 0x08, 0xaf, 0x56, 0x45, 0x99, 0xc4, 0x00, 0x10, 0x09, 0xc9, 0x3a, 0x44}
)

// Layout of edk2's variable store, all little-endian: a firmware volume (UEFI
// PI 1.8, volume 3, section 3.2.1), whose header is followed by a
// VARIABLE_STORE_HEADER and variables (edk2, AuthenticatedVariableFormat.h).
const (
	volumeLengthAt    = 32
	volumeSignatureAt = 40
	headerLengthAt    = 48
	minVolumeHeader   = 56

	storeHeaderSize = 28 // GUID, size, format, state, reserved
	storeFormatted  = 0x5a
	storeHealthy    = 0xfe

	variableStart      = 0x55aa
	variableHeaderSize = 60
	variableAdded      = 0x3f
	variableDeleted    = 0xfd // AND-ed to the state: flash can only clear bits
)

// enroll returns a copy of a firmware's variable store with the variables of s in
// it, as if they had been set in setup mode, and more.
func enroll(s measure.SecureBoot, more []efi.Variable, store []byte) ([]byte, error) {
	content := slices.Clone(store)
	const ownAttributes = efi.NonVolatile | efi.BootServiceAccess
	variables := []efi.Variable{
		{Name: "PK", Vendor: efi.GlobalVariable, Attributes: efi.SecureBootAttributes, Data: s.PK},
		{Name: "KEK", Vendor: efi.GlobalVariable, Attributes: efi.SecureBootAttributes, Data: s.KEK},
		{Name: "db", Vendor: efi.ImageSecurityDatabase, Attributes: efi.SecureBootAttributes, Data: s.DB},
		{Name: "dbx", Vendor: efi.ImageSecurityDatabase, Attributes: efi.SecureBootAttributes, Data: s.DBX},
		{Name: "SecureBootEnable", Vendor: secureBootEnable, Attributes: ownAttributes},
	}
	if s.Enabled() {
		variables[4].Data = []byte{1}
	}
	if s.Enabled() || len(more) > 0 {
		formatBlank(content)
	}
	for _, v := range append(variables, more...) {
		if len(v.Data) == 0 {
			continue
		}
		if err := setVariable(content, v); err != nil {
			return nil, fmt.Errorf("%s: %w", v.Name, err)
		}
	}
	return content, nil
}

// setVariable puts a variable into a store, in place of one of the same name and
// vendor.
func setVariable(content []byte, v efi.Variable) error {
	store, err := variableArea(content)
	if err != nil {
		return err
	}
	var encoded []byte
	for _, unit := range append(utf16.Encode([]rune(v.Name)), 0) {
		encoded = binary.LittleEndian.AppendUint16(encoded, unit)
	}
	at := 0
	for {
		if len(store)-at < variableHeaderSize {
			return errors.New("the variable store is full")
		}
		header := store[at:]
		if binary.LittleEndian.Uint16(header) != variableStart {
			break
		}
		nameSize, dataSize := binary.LittleEndian.Uint32(header[36:]), binary.LittleEndian.Uint32(header[40:])
		end := uint64(variableHeaderSize) + uint64(nameSize) + uint64(dataSize)
		if end > uint64(len(header)) {
			return fmt.Errorf("the variable at byte %d of the variable store is larger than the store", at)
		}
		if bytes.Equal(header[44:60], v.Vendor[:]) && bytes.Equal(header[60:60+nameSize], encoded) {
			header[2] &= variableDeleted
		}
		at += int(end+3) &^ 3
		if at > len(store) {
			at = len(store)
		}
	}
	variable := make([]byte, variableHeaderSize, variableHeaderSize+len(encoded)+len(v.Data))
	binary.LittleEndian.PutUint16(variable, variableStart)
	variable[2] = variableAdded
	binary.LittleEndian.PutUint32(variable[4:], v.Attributes)
	// The monotonic count, the time stamp and the public key's index stay 0.
	binary.LittleEndian.PutUint32(variable[36:], uint32(len(encoded)))
	binary.LittleEndian.PutUint32(variable[40:], uint32(len(v.Data)))
	copy(variable[44:], v.Vendor[:])
	variable = append(append(variable, encoded...), v.Data...)
	if len(variable) > len(store)-at {
		return fmt.Errorf("%d bytes do not fit into the %d that are free in the variable store", len(variable), len(store)-at)
	}
	copy(store[at:], variable)
	return nil
}

// variableArea is the part of a variable store's firmware volume that holds
// variables.
func variableArea(content []byte) ([]byte, error) {
	if len(content) < minVolumeHeader || !bytes.Equal(content[16:32], nvDataVolume) || string(content[volumeSignatureAt:volumeSignatureAt+4]) != "_FVH" {
		return nil, errors.New("the file is not a firmware volume with variables")
	}
	length := binary.LittleEndian.Uint64(content[volumeLengthAt:])
	header := int(binary.LittleEndian.Uint16(content[headerLengthAt:]))
	if length > uint64(len(content)) || length < uint64(header+storeHeaderSize) {
		return nil, fmt.Errorf("the firmware volume says it has %d bytes, the file has %d", length, len(content))
	}
	store := content[header:length]
	if !bytes.Equal(store[:16], authenticatedStore) {
		return nil, errors.New("the firmware keeps no authenticated variables, so it cannot do Secure Boot")
	}
	size := binary.LittleEndian.Uint32(store[16:])
	if store[20] != storeFormatted || store[21] != storeHealthy || size < storeHeaderSize || uint64(size) > uint64(len(store)) {
		return nil, errors.New("the variable store is damaged")
	}
	return store[storeHeaderSize:size], nil
}
