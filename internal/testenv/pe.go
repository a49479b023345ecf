package testenv

import (
	"encoding/binary"
	"slices"
)

// PESection is a section of an image that PE makes.
type PESection struct {
	Name string // up to 8 bytes
	Data []byte
}

// PE makes a PE32+ image, an EFI application for the machine (0x8664 or
// 0xaa64), with these sections in the order given. It holds no code worth
// running; its headers are those that EDK II accepts. SizeOfHeaders is 1024
// bytes, and the content of each section begins at a multiple of 512.
func PE(machine uint16, sections ...PESection) []byte {
	const (
		peOffset    = 64
		directories = 16
		optional    = 112 + 8*directories
		headers     = 1024
		align       = 512
	)
	le := binary.LittleEndian
	pad := func(b []byte) []byte { return append(b, make([]byte, -len(b)&(align-1))...) }
	b := make([]byte, headers)
	copy(b, "MZ")
	le.PutUint32(b[60:], peOffset)
	copy(b[peOffset:], "PE\x00\x00")
	file := b[peOffset+4:]
	le.PutUint16(file, machine)
	le.PutUint16(file[2:], uint16(len(sections)))
	le.PutUint16(file[16:], optional)
	le.PutUint16(file[18:], 0x0222) // executable, large addresses, no line numbers
	opt := file[20:]
	le.PutUint16(opt, 0x20b)        // PE32+
	le.PutUint32(opt[16:], 0x1000)  // AddressOfEntryPoint
	le.PutUint32(opt[20:], 0x1000)  // BaseOfCode
	le.PutUint32(opt[32:], 0x1000)  // SectionAlignment
	le.PutUint32(opt[36:], align)   // FileAlignment
	le.PutUint32(opt[60:], headers) // SizeOfHeaders
	le.PutUint16(opt[68:], 10)      // EFI application
	le.PutUint32(opt[108:], directories)
	table := opt[optional:]
	address := uint32(0x1000)
	for i, s := range sections {
		raw := table[40*i : 40*(i+1)]
		copy(raw[:8], s.Name)
		le.PutUint32(raw[8:], uint32(len(s.Data))) // VirtualSize
		le.PutUint32(raw[12:], address)
		if len(s.Data) > 0 {
			le.PutUint32(raw[16:], uint32((len(s.Data)+align-1)&^(align-1)))
			le.PutUint32(raw[20:], uint32(len(b)))
		}
		le.PutUint32(raw[36:], 0x40000040) // initialised data, readable
		b = pad(append(b, s.Data...))
		// The headers moved if append did; what follows them did not.
		opt, table = b[peOffset+24:], b[peOffset+24+optional:]
		address += (uint32(len(s.Data)) + 0xfff) &^ 0xfff
	}
	le.PutUint32(opt[56:], address) // SizeOfImage
	return b
}

// Driver makes an EFI boot service driver for the machine (0x8664 or 0xaa64)
// that does nothing and says that it succeeded.
func Driver(machine uint16) []byte {
	code := []byte{0x31, 0xc0, 0xc3} // xor eax, eax; ret
	if machine == 0xaa64 {
		code = []byte{0x00, 0x00, 0x80, 0xd2, 0xc0, 0x03, 0x5f, 0xd6} // mov x0, #0; ret
	}
	b := PE(machine, PESection{".text", code})
	const subsystem = 64 + 24 + 68
	binary.LittleEndian.PutUint16(b[subsystem:], 11)
	return b
}

// UKI makes a unified kernel image of the sections that systemd-stub of a
// version ("257.13-1") measures, with a kernel that is a PE image, too.
func UKI(machine uint16, stub string, more ...PESection) []byte {
	sections := slices.Concat([]PESection{
		{".text", []byte{0xc3}},
		{".sdmagic", []byte("#### LoaderInfo: systemd-stub " + stub + " ####\x00")},
		{".osrel", []byte("ID=debian\nVERSION_ID=\"13\"\n")},
		{".cmdline", []byte("ro quiet\x00")},
		{".initrd", []byte("no initrd worth unpacking")},
		{".linux", PE(machine, PESection{".text", []byte{0xc3}})},
	}, more)
	return PE(machine, sections...)
}
