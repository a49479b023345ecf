package attest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/digitorus/timestamp"
	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/sign"
)

// What the certificates of a local trust root say, so that nobody takes them
// for somebody's identity.
const (
	LocalIdentity     = "https://localhost/attestable-image/local"
	LocalIssuer       = "attestable-image local trust"
	localOrganization = "attestable-image local trust"
)

// Files of a local trust root. The keys are PKCS #8 in PEM, not encrypted, for
// their owner's eyes only.
const (
	localRootFile = "trusted_root.json"
	localCAFile   = "ca-key.pem"
	localTSAFile  = "tsa-key.pem"
)

// localLifetime is how long a local trust root is good for; it is meant to be
// thrown away long before.
const localLifetime = 365 * 24 * time.Hour

// localTimestampURL names the timestamp authority inside this process.
const localTimestampURL = LocalIdentity + "/timestamp"

// timestampPolicy is the policy of the local timestamp authority: one of the
// arc for documentation (2.999, Recommendation ITU-T X.660), for it follows none.
var timestampPolicy = asn1.ObjectIdentifier{2, 999, 1}

// LocalTrust is a throw-away certificate authority and timestamp authority in a
// directory. What it signs proves that the holder of the directory signed it,
// and nothing else.
type LocalTrust struct {
	Created bool // by this call of OpenLocalTrust

	ca, tsa   *x509.Certificate
	caKey     crypto.Signer
	tsaKey    crypto.Signer
	trusted   *Trust
	directory string
}

// ReadLocalTrust reads only what verifying needs of a local trust root.
func ReadLocalTrust(dir string) (*Trust, error) {
	path := filepath.Join(dir, localRootFile)
	t, err := ReadTrust(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the local trust root %s: there is none: 'attest --local-trust' makes one: %w", dir, err)
	}
	return t, err
}

// OpenLocalTrust opens the local trust root in dir, or creates it where dir is
// missing or empty.
func OpenLocalTrust(dir string) (*LocalTrust, error) {
	entries, err := os.ReadDir(dir)
	created := errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0
	if created {
		err = createLocalTrust(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("create the local trust root %s: %w", dir, err)
	}
	l := &LocalTrust{Created: created, directory: dir}
	if err := l.read(); err != nil {
		return nil, fmt.Errorf("open the local trust root %s: %w: name a directory that is empty or does not exist to get a new one", dir, err)
	}
	return l, nil
}

// createLocalTrust makes the keys, and the trust root last, so that a directory
// with one is complete.
func createLocalTrust(dir string) error {
	caKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return err
	}
	tsaKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	ca, err := issue(&x509.Certificate{
		Subject:               pkix.Name{Organization: []string{localOrganization}, CommonName: "attestable-image local CA"},
		NotBefore:             now.Add(-time.Minute),
		NotAfter:              now.Add(localLifetime),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, nil, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	// RFC 3161, section 2.3: timestamping alone, and critical.
	usage, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 8}})
	if err != nil {
		return err
	}
	tsa, err := issue(&x509.Certificate{
		Subject:         pkix.Name{Organization: []string{localOrganization}, CommonName: "attestable-image local timestamp authority"},
		NotBefore:       ca.NotBefore,
		NotAfter:        ca.NotAfter,
		KeyUsage:        x509.KeyUsageDigitalSignature,
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Critical: true, Value: usage}},
	}, ca, tsaKey.Public(), caKey)
	if err != nil {
		return err
	}
	trusted, err := root.NewTrustedRoot(root.TrustedRootMediaType01,
		[]root.CertificateAuthority{&root.FulcioCertificateAuthority{Root: ca, URI: LocalIdentity, ValidityPeriodStart: ca.NotBefore, ValidityPeriodEnd: ca.NotAfter}},
		nil,
		[]root.TimestampingAuthority{&root.SigstoreTimestampingAuthority{Leaf: tsa, Root: ca, URI: localTimestampURL, ValidityPeriodStart: ca.NotBefore, ValidityPeriodEnd: ca.NotAfter}},
		nil)
	if err != nil {
		return err
	}
	spaced, err := trusted.MarshalJSON()
	if err != nil {
		return err
	}
	// One line, the only form that gh reads.
	var line bytes.Buffer
	if err := json.Compact(&line, spaced); err != nil {
		return err
	}
	line.WriteByte('\n')
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, file := range []struct {
		name string
		key  *ecdsa.PrivateKey
	}{{localCAFile, caKey}, {localTSAFile, tsaKey}} {
		der, err := x509.MarshalPKCS8PrivateKey(file.key)
		if err != nil {
			return err
		}
		if err := writeNew(filepath.Join(dir, file.name), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
			return err
		}
	}
	return writeNew(filepath.Join(dir, localRootFile), line.Bytes())
}

// writeNew writes a file that must not exist yet.
func writeNew(path string, data []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	return errors.Join(err, file.Close())
}

// read reads all of the directory's files and checks that they belong together.
func (l *LocalTrust) read() error {
	var err error
	l.trusted, err = ReadLocalTrust(l.directory)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there are other files in it, and no %s", localRootFile)
	}
	if err != nil {
		return err
	}
	trusted := l.trusted.roots[0]
	authority, ok := trusted.FulcioCertificateAuthorities()[0].(*root.FulcioCertificateAuthority)
	if !ok || authority.URI != LocalIdentity || len(trusted.TimestampingAuthorities()) != 1 {
		return fmt.Errorf("%s is not one that this command made", localRootFile)
	}
	stamper, ok := trusted.TimestampingAuthorities()[0].(*root.SigstoreTimestampingAuthority)
	if !ok || stamper.Leaf == nil {
		return fmt.Errorf("%s is not one that this command made", localRootFile)
	}
	l.ca, l.tsa = authority.Root, stamper.Leaf
	if time.Now().After(l.ca.NotAfter) {
		return fmt.Errorf("it expired on %s", l.ca.NotAfter.Format(time.DateOnly))
	}
	if l.caKey, err = readKey(filepath.Join(l.directory, localCAFile), l.ca); err != nil {
		return err
	}
	l.tsaKey, err = readKey(filepath.Join(l.directory, localTSAFile), l.tsa)
	return err
}

// readKey reads the private key of a certificate.
func readKey(path string, owner *x509.Certificate) (crypto.Signer, error) {
	data, err := readFile(path, 64<<10)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s holds no key in PEM", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(owner.PublicKey) {
		return nil, fmt.Errorf("%s is not the key of the certificate in %s", path, localRootFile)
	}
	return key, nil
}

// issue signs template, whose serial number it sets, by parent, or by itself
// without one.
func issue(template, parent *x509.Certificate, public crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// GetCertificate issues the certificate of one signature (DER); it implements
// sigstore-go's CertificateProvider.
func (l *LocalTrust) GetCertificate(_ context.Context, keypair sign.Keypair, _ *sign.CertificateProviderOptions) ([]byte, error) {
	identity, err := url.Parse(LocalIdentity)
	if err != nil {
		return nil, err
	}
	issuer, err := asn1.MarshalWithParams(LocalIssuer, "utf8")
	if err != nil {
		return nil, err
	}
	now := time.Now()
	leaf, err := issue(&x509.Certificate{
		NotBefore:   now.Add(-time.Minute),
		NotAfter:    now.Add(10 * time.Minute),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		URIs:        []*url.URL{identity},
		// Both forms, for programs that know only the older one.
		ExtraExtensions: []pkix.Extension{
			{Id: certificate.OIDIssuer, Value: []byte(LocalIssuer)}, //nolint:staticcheck // see above
			{Id: certificate.OIDIssuerV2, Value: issuer},
		},
	}, l.ca, keypair.GetPublicKey(), l.caKey)
	if err != nil {
		return nil, fmt.Errorf("issue a local certificate: %w", err)
	}
	return leaf.Raw, nil
}

// timestampAuthority is the local authority as a client of sigstore-go that
// never leaves this process.
func (l *LocalTrust) timestampAuthority() *sign.TimestampAuthority {
	return sign.NewTimestampAuthority(&sign.TimestampAuthorityOptions{URL: localTimestampURL, Transport: localStamper{l}})
}

// localStamper answers RFC 3161 requests.
type localStamper struct{ *LocalTrust }

func (l localStamper) RoundTrip(request *http.Request) (*http.Response, error) {
	defer request.Body.Close()
	data, err := io.ReadAll(io.LimitReader(request.Body, 64<<10))
	if err != nil {
		return nil, err
	}
	asked, err := timestamp.ParseRequest(data)
	if err != nil {
		return nil, fmt.Errorf("read the timestamp request: %w", err)
	}
	answer, err := (&timestamp.Timestamp{
		HashAlgorithm:     asked.HashAlgorithm,
		HashedMessage:     asked.HashedMessage,
		Time:              time.Now().UTC(),
		Policy:            timestampPolicy,
		Nonce:             asked.Nonce,
		AddTSACertificate: true,
	}).CreateResponseWithOpts(l.tsa, l.tsaKey, crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("make a local timestamp: %w", err)
	}
	return &http.Response{
		Status: "201 Created", StatusCode: http.StatusCreated, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        http.Header{"Content-Type": {"application/timestamp-reply"}},
		Body:          io.NopCloser(bytes.NewReader(answer)),
		ContentLength: int64(len(answer)),
		Request:       request,
	}, nil
}
