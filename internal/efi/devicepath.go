package efi

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"
)

// Types of device path nodes (UEFI 2.10, section 10.3).
const (
	mediaDevicePath = 0x04
	endDevicePath   = 0x7f

	hardDriveNode     = 1 // of mediaDevicePath
	filePathNode      = 4
	firmwareFileNode  = 6
	firmwareVolume    = 7
	endEntireNode     = 0xff
	devicePathHeader  = 4  // type, sub-type, length
	hardDriveNodeSize = 42 // bytes
)

// HardDriveFile is the device path of a file on a partition of a GPT: the
// partition's number, its first sector, its size in sectors and its GUID, then
// the path, whose separators may be slashes.
func HardDriveFile(number int, start, sectors uint64, guid GUID, path string) []byte {
	le := binary.LittleEndian
	b := le.AppendUint16([]byte{mediaDevicePath, hardDriveNode}, hardDriveNodeSize)
	b = le.AppendUint32(b, uint32(number)) //nolint:gosec // a partition's number is small
	b = le.AppendUint64(b, start)
	b = le.AppendUint64(b, sectors)
	b = append(append(b, guid[:]...), 2, 2) // a GPT, identified by GUID
	name := UTF16Text(strings.ReplaceAll(path, "/", `\`))
	b = le.AppendUint16(append(b, mediaDevicePath, filePathNode), uint16(devicePathHeader+len(name))) //nolint:gosec // a path is short
	return append(append(b, name...), endDevicePath, endEntireNode, devicePathHeader, 0)
}

// LoadOption encodes an EFI_LOAD_OPTION that is active (UEFI 2.10, section
// 3.1.3): the content of Boot####, Driver#### and SysPrep####. optional are the
// load options that the image gets.
func LoadOption(description string, devicePath, optional []byte) []byte {
	const active = 1
	le := binary.LittleEndian
	b := le.AppendUint16(le.AppendUint32(nil, active), uint16(len(devicePath))) //nolint:gosec // a device path is short
	b = append(b, UTF16Text(description)...)
	return append(append(b, devicePath...), optional...)
}

// UTF16Text is a string as UEFI keeps it: UTF-16LE with a NUL.
func UTF16Text(s string) []byte {
	var b []byte
	for _, unit := range append(utf16.Encode([]rune(s)), 0) {
		b = binary.LittleEndian.AppendUint16(b, unit)
	}
	return b
}

// DevicePathText says for people what a device path names: the file and its
// partition, or the nodes by their types. It reads as far as the path is well
// formed, and returns an empty string for none at all.
func DevicePathText(b []byte) string {
	le := binary.LittleEndian
	var words []string
	for len(b) >= devicePathHeader {
		kind, sub, size := b[0], b[1], int(le.Uint16(b[2:]))
		if kind == endDevicePath || size < devicePathHeader || size > len(b) {
			break
		}
		node := b[devicePathHeader:size]
		b = b[size:]
		switch {
		case kind == mediaDevicePath && sub == filePathNode:
			var units []uint16
			for ; len(node) >= 2; node = node[2:] {
				units = append(units, le.Uint16(node))
			}
			words = append(words, printable(strings.TrimRight(string(utf16.Decode(units)), "\x00")))
		case kind == mediaDevicePath && sub == hardDriveNode && size == hardDriveNodeSize:
			words = append(words, fmt.Sprintf("partition %d (%s)", le.Uint32(node), GUID(node[20:36])))
		case kind == mediaDevicePath && sub == firmwareFileNode && len(node) == 16:
			words = append(words, "firmware file "+GUID(node).String())
		case kind == mediaDevicePath && sub == firmwareVolume && len(node) == 16:
			words = append(words, "firmware volume "+GUID(node).String())
		case kind == 1 && sub == 1 && len(node) == 2: // hardware, PCI
			words = append(words, fmt.Sprintf("PCI device %x.%x", node[1], node[0]))
		case kind == 2 && sub == 1 && len(node) == 8: // ACPI: of what follows, where it is
		default:
			words = append(words, fmt.Sprintf("node %d.%d", kind, sub))
		}
	}
	return strings.Join(words, ", ")
}

// printable quotes a name of somebody else's where it has other characters than
// printable ones.
func printable(name string) string {
	if quoted := strconv.Quote(name); strings.ReplaceAll(quoted, `\\`, `\`) != `"`+name+`"` {
		return quoted
	}
	return name
}
