package testenv

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"fmt"

	efilib "github.com/canonical/go-efilib"
	"github.com/foxboron/go-uefi/authenticode"
)

// Names of libraries that also take Authenticode digests.
const (
	GoEFILib = "go-efilib" // Canonical's
	GoUEFI   = "go-uefi"   // sbctl's
)

// AuthenticodePeers takes the Authenticode digest of a PE image with libraries
// of others, by their names. The digest of one that does not take it is missing.
func AuthenticodePeers(alg crypto.Hash, image []byte) map[string][]byte {
	digests := map[string][]byte{}
	if digest, err := efilib.ComputePeImageDigest(alg, bytes.NewReader(image), int64(len(image))); err == nil {
		digests[GoEFILib] = digest
	}
	if digest, err := goUEFIDigest(alg, image); err == nil {
		digests[GoUEFI] = digest
	}
	return digests
}

// goUEFIDigest keeps a panic of the library, which is not made for hostile
// images, from ending the tests.
func goUEFIDigest(alg crypto.Hash, image []byte) (digest []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("go-uefi: %v", r)
		}
	}()
	parsed, err := authenticode.Parse(bytes.NewReader(image))
	if err != nil {
		return nil, err
	}
	return parsed.Hash(alg), nil
}

// GoUEFIVerifies asks go-uefi whether an image has a signature that a
// certificate's key made over the image's digest.
func GoUEFIVerifies(image []byte, signer *x509.Certificate) (bool, error) {
	parsed, err := authenticode.Parse(bytes.NewReader(image))
	if err != nil {
		return false, err
	}
	return parsed.Verify(signer)
}
