package efi

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/sha512"
	"testing"

	efilib "github.com/canonical/go-efilib"

	"github.com/org/attestable-image-action/internal/testenv"
)

// TestDistributionImages reads EFI images as Debian ships them, signed by
// Debian and by Microsoft: the digests are those of go-efilib, and those that
// were signed.
func TestDistributionImages(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: Debian's packages are not downloaded")
	}
	for _, test := range []struct {
		name, arch, pack, file string
		signed                 bool
	}{
		{"shim", "amd64", "shim-signed", "usr/lib/shim/shimx64.efi.signed", true},
		{"shim, aarch64", "arm64", "shim-signed", "usr/lib/shim/shimaa64.efi.signed", true},
		{"MokManager", "amd64", "shim-helpers-amd64-signed", "usr/lib/shim/mmx64.efi.signed", true},
		{"grub", "amd64", "grub-efi-amd64-signed", "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed", true},
		{"grub, aarch64", "arm64", "grub-efi-arm64-signed", "usr/lib/grub/arm64-efi-signed/grubaa64.efi.signed", true},
		{"kernel", "amd64", "linux-image-cloud-amd64", "boot/vmlinuz-*", true},
		{"kernel, aarch64", "arm64", "linux-image-cloud-arm64", "boot/vmlinuz-*", true},
		{"systemd-boot", "amd64", "systemd-boot-efi", "usr/lib/systemd/boot/efi/systemd-bootx64.efi", false},
		{"systemd-stub, aarch64", "arm64", "systemd-boot-efi", "usr/lib/systemd/boot/efi/linuxaa64.efi.stub", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			pack := test.pack
			if test.file == "boot/vmlinuz-*" {
				pack = testenv.DebianDepends(t, "trixie", test.arch, pack)
			}
			content := testenv.DebianFile(t, "trixie", test.arch, pack, test.file)
			image, err := ParseImage(bytes.NewReader(content), int64(len(content)))
			if err != nil {
				t.Fatal(err)
			}
			h256, h384 := sha256.New(), sha512.New384()
			if err := image.Authenticode(h256, h384); err != nil {
				t.Fatal(err)
			}
			for alg, ours := range map[crypto.Hash][]byte{crypto.SHA256: h256.Sum(nil), crypto.SHA384: h384.Sum(nil)} {
				theirs, err := efilib.ComputePeImageDigest(alg, bytes.NewReader(content), int64(len(content)))
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(ours, theirs) {
					t.Errorf("%s digest is %x, go-efilib says %x", alg, ours, theirs)
				}
			}
			signatures, err := image.Signatures()
			if err != nil {
				t.Fatal(err)
			}
			if (len(signatures) > 0) != test.signed {
				t.Errorf("%d signatures, want some: %v", len(signatures), test.signed)
			}
			for _, der := range signatures {
				signature, err := ParseAuthenticode(der)
				if err != nil {
					t.Errorf("signature: %v", err)
					continue
				}
				if signature.Hash != crypto.SHA256 || !bytes.Equal(signature.Digest, h256.Sum(nil)) {
					t.Errorf("what %s signed is %x", signature.Signer.Subject, signature.Digest)
				}
			}
		})
	}
}
