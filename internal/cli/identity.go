package cli

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/org/attestable-image-action/internal/efi"
	"github.com/org/attestable-image-action/internal/measure"
)

// identityVariables are the variables that an identity has a certificate for.
var identityVariables = []string{"PK", "KEK", "db"}

// identityKeyBits is the size of the RSA keys of a new identity.
const identityKeyBits = 3072

// identityYears is how long certificates of a new identity say that they are
// valid. Firmware does not look, since it has no clock that it trusts.
const identityYears = 30

// openIdentity opens the Secure Boot identity in dir, or makes it when dir does
// not exist or is empty: for PK, KEK and db each NAME.key (PKCS#8 in PEM, mode
// 0600), NAME.crt (PEM) and NAME.esl (EFI signature list). Nothing in dir is
// ever overwritten, since PCR 7 depends on every byte of the lists.
//
// With a key of the caller's, db.crt is that key's and there is no db.key.
// created tells whether the identity is new.
func openIdentity(dir string, dbKey crypto.Signer) (created bool, err error) {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0:
		if err := createIdentity(dir, dbKey); err != nil {
			return false, fmt.Errorf("make a Secure Boot identity in %s: %w", dir, err)
		}
		return true, nil
	case err != nil:
		return false, fmt.Errorf("open the Secure Boot identity in %s: %w", dir, err)
	}
	var missing []string
	for _, name := range identityFiles(dbKey == nil) {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return false, fmt.Errorf("open the Secure Boot identity in %s: it lacks %s, and a part of an identity is never made anew: restore what is missing, or give a directory that does not exist", dir, strings.Join(missing, ", "))
	}
	return false, nil
}

// identityFiles are what signing needs of an identity. The keys of PK and KEK
// may be kept elsewhere: they are needed to change the variables only.
func identityFiles(withKey bool) []string {
	files := []string{"db.crt"}
	if withKey {
		files = append(files, "db.key")
	}
	for _, name := range identityVariables {
		files = append(files, name+".esl")
	}
	return files
}

// createIdentity makes the whole identity beside dir, and then gives it its
// name, so that there is never a part of one.
func createIdentity(dir string, dbKey crypto.Signer) (err error) {
	parent := filepath.Dir(filepath.Clean(dir))
	if err := os.MkdirAll(parent, 0o755); err != nil { //nolint:gosec // the directory above may be anybody's
		return err
	}
	staged, err := os.MkdirTemp(parent, ".secure-boot-*") // mode 0700
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(staged)
		}
	}()
	for _, name := range identityVariables {
		key := dbKey
		if key == nil || name != "db" {
			private, err := rsa.GenerateKey(rand.Reader, identityKeyBits)
			if err != nil {
				return err
			}
			der, err := x509.MarshalPKCS8PrivateKey(private)
			if err != nil {
				return err
			}
			if err := createFile(filepath.Join(staged, name+".key"), 0o600, pemBlock("PRIVATE KEY", der)); err != nil {
				return err
			}
			key = private
		}
		certificate, err := selfSigned("Secure Boot "+name, key)
		if err != nil {
			return err
		}
		if err := createFile(filepath.Join(staged, name+".crt"), 0o644, pemBlock("CERTIFICATE", certificate.Raw)); err != nil {
			return err
		}
		if err := createFile(filepath.Join(staged, name+".esl"), 0o644, efi.CertificateLists(certificate)); err != nil {
			return err
		}
	}
	return os.Rename(staged, dir) // onto nothing, or an empty directory
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// createFile writes a new file; one that exists is an error.
func createFile(path string, mode fs.FileMode, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}

func selfSigned(name string, key crypto.Signer) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := time.Now().UTC().Truncate(24 * time.Hour)
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now,
		NotAfter:              now.AddDate(identityYears, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		BasicConstraintsValid: true,
		SignatureAlgorithm:    x509.SHA256WithRSA,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the certificate %q: %w", name, err)
	}
	return x509.ParseCertificate(der)
}

// derivedVariables are the variables of firmware that trusts one certificate
// and nothing else: PK, KEK and db all have it. They follow from the
// certificate alone, so whoever has it has the same PCR 7.
func derivedVariables(certificate *x509.Certificate) measure.SecureBoot {
	list := efi.CertificateLists(certificate)
	return measure.SecureBoot{PK: list, KEK: list, DB: list}
}

// awsVariables encodes the variables for EC2's RegisterImage.
func awsVariables(s measure.SecureBoot) ([]byte, error) {
	var variables []efi.Variable
	for _, v := range []struct {
		name   string
		vendor efi.GUID
		data   []byte
	}{
		{"PK", efi.GlobalVariable, s.PK}, {"KEK", efi.GlobalVariable, s.KEK},
		{"db", efi.ImageSecurityDatabase, s.DB}, {"dbx", efi.ImageSecurityDatabase, s.DBX},
	} {
		if len(v.data) == 0 {
			continue
		}
		variables = append(variables, efi.Variable{
			Name: v.name, Vendor: v.vendor, Attributes: efi.SecureBootAttributes, Data: v.data,
			Digest: make([]byte, 32),
		})
	}
	return efi.EncodeAWSVariables(variables)
}

// variablesInStore reads the variables of Secure Boot back from AWS's form.
func variablesInStore(store []byte) (measure.SecureBoot, error) {
	var s measure.SecureBoot
	variables, err := efi.DecodeAWSVariables(store, nil)
	if err != nil {
		return s, err
	}
	for _, v := range variables {
		for _, known := range []struct {
			name   string
			vendor efi.GUID
			into   *[]byte
		}{
			{"PK", efi.GlobalVariable, &s.PK}, {"KEK", efi.GlobalVariable, &s.KEK},
			{"db", efi.ImageSecurityDatabase, &s.DB}, {"dbx", efi.ImageSecurityDatabase, &s.DBX},
		} {
			if v.Name == known.name && v.Vendor == known.vendor {
				*known.into = v.Data
			}
		}
	}
	return s, nil
}
