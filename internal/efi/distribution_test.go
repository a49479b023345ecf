package efi

import (
	"bytes"
	"crypto"
	"fmt"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// comparePeers takes the digests of an image as libraries of others take them;
// without names for which it is known to be wrong, both must agree. Then it has
// go-uefi look at each signature, and compares the verdicts. It returns the
// signatures.
func comparePeers(t *testing.T, content []byte, wrong ...string) []*AuthenticodeSignature {
	t.Helper()
	image, err := ParseImage(bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	for _, alg := range []crypto.Hash{crypto.SHA256, crypto.SHA384} {
		ours := alg.New()
		if err := image.Authenticode(ours); err != nil {
			t.Fatal(err)
		}
		peers := testenv.AuthenticodePeers(alg, content)
		for _, name := range []string{testenv.GoEFILib, testenv.GoUEFI} {
			known := len(wrong) > 0 && wrong[0] == name
			if equal := bytes.Equal(peers[name], ours.Sum(nil)); equal == known {
				t.Errorf("%s digest is %x, %s says %x; want equal: %t", alg, ours.Sum(nil), name, peers[name], !known)
			}
		}
	}
	ders, err := image.Signatures()
	if err != nil {
		t.Fatal(err)
	}
	var signatures []*AuthenticodeSignature
	for _, der := range ders {
		s, err := ParseAuthenticode(der)
		if err != nil {
			t.Errorf("signature: %v", err)
			continue
		}
		signatures = append(signatures, s)
		h := s.Hash.New()
		if err := image.Authenticode(h); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(s.Digest, h.Sum(nil)) {
			t.Errorf("what %s signed is %x, not the image's digest %x", s.Signer.Subject, s.Digest, h.Sum(nil))
		}
		if ok, err := testenv.GoUEFIVerifies(content, s.Signer); !ok || err != nil {
			t.Errorf("go-uefi does not take the signature by %s: %v", s.Signer.Subject, err)
		}
	}
	if len(signatures) == 0 {
		return nil
	}
	// Somebody else did not sign it, and nobody signed another image.
	stranger := stranger(t)
	if ok, _ := testenv.GoUEFIVerifies(content, stranger.Certificate); ok || signatures[0].AnchoredBy(stranger.Certificate) {
		t.Errorf("a stranger vouches for it; go-uefi says %t", ok)
	}
	changed := bytes.Clone(content)
	changed[image.Sections[0].RawOffset] ^= 1
	h := signatures[0].Hash.New()
	if other, err := ParseImage(bytes.NewReader(changed), int64(len(changed))); err != nil || other.Authenticode(h) != nil {
		t.Fatalf("the image with a byte changed: %v", err)
	}
	if ok, _ := testenv.GoUEFIVerifies(changed, signatures[0].Signer); ok || bytes.Equal(signatures[0].Digest, h.Sum(nil)) {
		t.Errorf("the signature covers the image with a byte changed; go-uefi says %t", ok)
	}
	return signatures
}

var theStranger *testenv.Signer

// stranger signed nothing; making a key takes its time.
func stranger(t *testing.T) *testenv.Signer {
	if theStranger == nil {
		theStranger = testenv.NewSigner(t, "stranger", nil)
	}
	return theStranger
}

// TestDistributionImages reads EFI images as Debian ships them, signed by Debian
// and by Microsoft, and unsigned ones of every toolchain that is still about: the
// digests are those of go-efilib and go-uefi, and those that were signed.
func TestDistributionImages(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: Debian's packages are not downloaded")
	}
	type image struct {
		suite, arch, pack, file string
		signatures              int
	}
	var all []image
	for _, arch := range []struct{ debian, efi, grub string }{{"amd64", "x64", "x86_64-efi"}, {"arm64", "aa64", "arm64-efi"}} {
		all = append(all,
			image{"trixie", arch.debian, "shim-signed", "usr/lib/shim/shim" + arch.efi + ".efi.signed", 1},
			image{"trixie", arch.debian, "shim-helpers-" + arch.debian + "-signed", "usr/lib/shim/mm" + arch.efi + ".efi.signed", 1},
			image{"trixie", arch.debian, "shim-helpers-" + arch.debian + "-signed", "usr/lib/shim/fb" + arch.efi + ".efi.signed", 1},
			image{"trixie", arch.debian, "fwupd-" + arch.debian + "-signed", "usr/libexec/fwupd/efi/fwupd" + arch.efi + ".efi.signed", 1},
			image{"trixie", arch.debian, "systemd-boot-efi-" + arch.debian + "-signed", "usr/lib/systemd/boot/efi/systemd-boot" + arch.efi + ".efi.signed", 1},
			image{"trixie", arch.debian, "grub-efi-" + arch.debian + "-signed", "usr/lib/grub/" + arch.grub + "-signed/grub" + arch.efi + ".efi.signed", 1},
			image{"bookworm", arch.debian, "grub-efi-" + arch.debian + "-signed", "usr/lib/grub/" + arch.grub + "-signed/grub" + arch.efi + ".efi.signed", 1},
			image{"bookworm", arch.debian, "shim-signed", "usr/lib/shim/shim" + arch.efi + ".efi.signed", 1},
			image{"trixie", arch.debian, "linux-image-cloud-" + arch.debian, "boot/vmlinuz-*", 1},
			image{"bookworm", arch.debian, "linux-image-cloud-" + arch.debian, "boot/vmlinuz-*", 1},
			image{"trixie", arch.debian, "refind", "usr/share/refind/refind/refind_" + arch.efi + ".efi", 0},
			image{"trixie", arch.debian, "fwupd-unsigned", "usr/libexec/fwupd/efi/fwupd" + arch.efi + ".efi", 0},
		)
	}
	all = append(all,
		image{"trixie", "amd64", "memtest86+", "boot/memtest86+x64.efi", 0},
		image{"trixie", "amd64", "syslinux-efi", "usr/lib/SYSLINUX.EFI/efi64/syslinux.efi", 0},
		image{"trixie", "amd64", "efi-shell-x64", "usr/share/efi-shell-x64/shellx64.efi", 0},
		image{"trixie", "amd64", "ipxe", "usr/lib/ipxe/ipxe-amd64.efi", 0},
		image{"trixie", "amd64", "ipxe", "usr/lib/ipxe/ipxe-arm64.efi", 0},
	)
	for _, i := range all {
		t.Run(fmt.Sprintf("%s/%s/%s/%s", i.suite, i.arch, i.pack, i.file), func(t *testing.T) {
			pack := i.pack
			if i.file == "boot/vmlinuz-*" {
				pack = testenv.DebianDepends(t, i.suite, i.arch, pack)
			}
			content := testenv.DebianFile(t, i.suite, i.arch, pack, i.file)
			var wrong []string
			if len(content)%8 != 0 { // see goUEFIIsWrong
				wrong = []string{testenv.GoUEFI}
			}
			signatures := comparePeers(t, content, wrong...)
			if len(signatures) < i.signatures || i.signatures == 0 && len(signatures) > 0 {
				t.Errorf("%d signatures, want at least %d", len(signatures), i.signatures)
			}
			for _, s := range signatures {
				t.Logf("signed by %s, issued by %s", s.Signer.Subject, s.Signer.Issuer)
			}
		})
	}
}
