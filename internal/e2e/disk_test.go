package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// smallDisk makes a raw disk of the shape that the template's has, with
// nothing in it that could boot: a GPT, an EFI system partition, and one
// unified kernel image at the removable-media path.
func smallDisk(t *testing.T) string {
	t.Helper()
	const size, start = 64 << 20, 1 << 20 // bytes; FAT32 needs 33 MiB
	path := filepath.Join(t.TempDir(), "image.raw")
	file, err := os.Create(path)
	if err == nil {
		err = file.Truncate(size)
	}
	if err == nil {
		err = file.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(t.TempDir(), "uki.efi")
	if err := os.WriteFile(kernel, smallUKI(), 0o600); err != nil {
		t.Fatal(err)
	}
	partition := fmt.Sprintf("%s@@%d", path, start)
	for _, command := range [][]string{
		{"sgdisk", "--clear", "--new=1:2048:0", "--typecode=1:ef00", "--change-name=1:EFI", path},
		{"mformat", "-i", partition, "-F", "-T", fmt.Sprint((size - start - 1<<20) / 512), "-h", "64", "-s", "32", "::"},
		{"mmd", "-i", partition, "::EFI", "::EFI/BOOT"},
		{"mcopy", "-i", partition, kernel, "::EFI/BOOT/BOOTX64.EFI"},
	} {
		if out, err := exec.Command(testenv.Tool(t, command[0]), command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", command[0], err, out)
		}
	}
	return path
}

// smallUKI is a PE32+ image for x86_64 whose sections are those of a unified
// kernel image. The kernel in it is a PE32+ image, too, as firmware measures it.
func smallUKI() []byte {
	return portableExecutable([]peSection{
		{".text", bytes.Repeat([]byte{0xC3}, 64)}, // ret
		{".sdmagic", []byte("#### LoaderInfo: systemd-stub 252.39-1~deb12u1 ####\x00")},
		{".osrel", []byte("ID=debian\nVERSION_ID=\"12\"\n")},
		{".cmdline", []byte("root=/dev/dm-0 ro quiet\x00")},
		{".uname", []byte("6.1.0-test")},
		{".sbat", []byte("sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md\n")},
		{".initrd", bytes.Repeat([]byte("initrd"), 1000)},
		{".linux", portableExecutable([]peSection{{".text", bytes.Repeat([]byte{0xC3}, 5000)}})},
	})
}

type peSection struct {
	name string
	data []byte
}

// portableExecutable writes a PE32+ image (PE format specification, sections
// 3 and 4) with the sections in order, aligned to 512 bytes in the file and to
// 4096 in memory.
func portableExecutable(sections []peSection) []byte {
	const fileAlign, memoryAlign, optionalSize = 512, 4096, 112 + 16*8
	up := func(n, to int) int { return (n + to - 1) / to * to }
	le := binary.LittleEndian

	headers := make([]byte, 64, 1024)
	copy(headers, "MZ")
	le.PutUint32(headers[60:], 64) // e_lfanew
	headers = append(headers, "PE\x00\x00"...)
	headers = le.AppendUint16(headers, 0x8664) // Machine: x86-64
	headers = le.AppendUint16(headers, uint16(len(sections)))
	headers = append(headers, make([]byte, 12)...) // time stamp, no symbols
	headers = le.AppendUint16(headers, optionalSize)
	headers = le.AppendUint16(headers, 0x0022) // executable, large addresses
	optional := make([]byte, optionalSize)
	headersSize := up(len(headers)+optionalSize+40*len(sections), fileAlign)

	table, body := []byte(nil), []byte(nil)
	memory := up(headersSize, memoryAlign)
	for _, s := range sections {
		entry := make([]byte, 40)
		copy(entry, s.name)
		le.PutUint32(entry[8:], uint32(len(s.data)))                 // VirtualSize
		le.PutUint32(entry[12:], uint32(memory))                     // VirtualAddress
		le.PutUint32(entry[16:], uint32(up(len(s.data), fileAlign))) // SizeOfRawData
		le.PutUint32(entry[20:], uint32(headersSize+len(body)))      // PointerToRawData
		le.PutUint32(entry[36:], 0x40000040)                         // initialized, readable
		table = append(table, entry...)
		body = append(body, s.data...)
		body = append(body, make([]byte, up(len(body), fileAlign)-len(body))...)
		memory += up(len(s.data), memoryAlign)
	}
	le.PutUint16(optional[0:], 0x020b)                                // PE32+
	le.PutUint32(optional[16:], uint32(up(headersSize, memoryAlign))) // AddressOfEntryPoint
	le.PutUint32(optional[32:], memoryAlign)
	le.PutUint32(optional[36:], fileAlign)
	le.PutUint32(optional[56:], uint32(memory)) // SizeOfImage
	le.PutUint32(optional[60:], uint32(headersSize))
	le.PutUint16(optional[68:], 10)  // Subsystem: EFI application
	le.PutUint32(optional[108:], 16) // NumberOfRvaAndSizes

	image := slices.Concat(headers, optional, table)
	image = append(image, make([]byte, headersSize-len(image))...)
	return append(image, body...)
}
