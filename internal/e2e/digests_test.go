package e2e

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"maps"
	"slices"
	"testing"

	"github.com/org/attestable-image-action/internal/efi"
	"github.com/org/attestable-image-action/internal/testenv"
)

// TestMatrixDigests takes the Authenticode digest of every EFI file that the
// boot matrix is made of, unsigned and signed in each of its ways: systemd-boot
// and systemd-stub of each Debian suite, the kernel, and the unified kernel
// images made of them, for both architectures. go-efilib and go-uefi take the
// same, and go-uefi agrees about who signed.
func TestMatrixDigests(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: Debian's packages are not downloaded")
	}
	ways := identities(t)
	for _, g := range guests {
		files := map[string][]byte{"kernel": g.kernel(t)}
		for _, stub := range stubs {
			dir := "usr/lib/systemd/boot/efi/"
			files["systemd-stub "+stub.version] = testenv.DebianFile(t, stub.suite, g.debian, "systemd-boot-efi", dir+"linux"+g.efi+".efi.stub")
			files["systemd-boot "+stub.version] = testenv.DebianFile(t, stub.suite, g.debian, "systemd-boot-efi", dir+"systemd-boot"+g.efi+".efi")
			files["unified kernel image, stub "+stub.version] = g.uki(t, stub.suite)
		}
		for _, name := range slices.Sorted(maps.Keys(files)) {
			t.Run(g.name+"/"+name, func(t *testing.T) {
				before := peersAgree(t, files[name], false)
				for way, identity := range ways {
					signed := identity.sign(files[name])
					if n := peersAgree(t, signed, false); n <= before && way != "digest" {
						t.Errorf("%s: %d signatures, and %d before", way, n, before)
					}
				}
			})
		}
	}
}

// withoutRelocations clears, in the section table, how many COFF relocations each
// section has. Debian's systemd 252 was linked with counts of relocations that
// are not there: firmware does not look, Go's debug/pe, which both libraries
// build upon, refuses the file.
func withoutRelocations(image []byte) []byte {
	image = bytes.Clone(image)
	le := binary.LittleEndian
	file := image[le.Uint32(image[60:])+4:]
	table := file[20+le.Uint16(file[16:]):]
	for i := range int(le.Uint16(file[2:])) {
		clear(table[40*i+32 : 40*i+34])
	}
	return image
}

// peersAgree compares the digests of an image, and the verdicts on its
// signatures, with those of libraries of others. changed says that the image is
// not what was signed. It returns how many signatures there are.
func peersAgree(t *testing.T, content []byte, changed bool) (signatures int) {
	t.Helper()
	readable := len(testenv.AuthenticodePeers(crypto.SHA256, content)) > 0
	if !readable {
		// What sbsign signed is compared below; the others get a copy.
		peersAgree(t, withoutRelocations(content), true)
	}
	image, err := efi.ParseImage(bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	digests := map[crypto.Hash][]byte{}
	for _, alg := range []crypto.Hash{crypto.SHA256, crypto.SHA384} {
		h := alg.New()
		if err := image.Authenticode(h); err != nil {
			t.Fatal(err)
		}
		digests[alg] = h.Sum(nil)
		peers := testenv.AuthenticodePeers(alg, content)
		for _, name := range []string{testenv.GoEFILib, testenv.GoUEFI} {
			// go-uefi pads an odd length; TestOddLength asks firmware.
			odd := name == testenv.GoUEFI && len(content)%8 != 0
			if readable && bytes.Equal(peers[name], digests[alg]) == odd {
				t.Errorf("%s digest is %x, %s says %x", alg, digests[alg], name, peers[name])
			}
		}
	}
	ders, err := image.Signatures()
	if err != nil {
		t.Fatal(err)
	}
	for _, der := range ders {
		s, err := efi.ParseAuthenticode(der)
		if err != nil {
			t.Fatal(err)
		}
		ours := bytes.Equal(s.Digest, digests[s.Hash])
		theirs := ours
		if readable {
			// It ends with an error at the first signature over another digest.
			theirs, _ = testenv.GoUEFIVerifies(content, s.Signer)
		}
		if ours != theirs || ours == changed {
			t.Errorf("the signature by %s holds: %t; go-uefi says %t", s.Signer.Subject, ours, theirs)
		}
	}
	return len(ders)
}

// TestOddLength boots a unified kernel image whose length is no multiple of 8,
// of which go-uefi takes another digest: it pads the file with zeros. Firmware
// decides, and it does not.
func TestOddLength(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: a boot takes a while")
	}
	g := guests[0]
	uki := append(g.uki(t, "trixie"), "odd"...)
	image, err := efi.ParseImage(bytes.NewReader(uki), int64(len(uki)))
	if err != nil {
		t.Fatal(err)
	}
	h := crypto.SHA384.New()
	if err := image.Authenticode(h); err != nil {
		t.Fatal(err)
	}
	peers := testenv.AuthenticodePeers(crypto.SHA384, uki)
	if !bytes.Equal(peers[testenv.GoEFILib], h.Sum(nil)) || bytes.Equal(peers[testenv.GoUEFI], h.Sum(nil)) {
		t.Fatalf("the digest is %x, others take %x", h.Sum(nil), peers)
	}
	bootsAsPredicted(t, bootDisk(t, map[string][]byte{g.boot: uki}), "--pcr", "4,5,7,9,11,12,13")
}
