package efi

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Signer makes Authenticode signatures that firmware accepts: RSA with 2048 to
// 4096 bits over SHA-256. Any crypto.Signer will do as the key, be it in a
// file, a token or a service.
type Signer struct {
	key          crypto.Signer
	certificates []*x509.Certificate // the signer's own, then those above it
}

// NewSigner checks that firmware can verify what the key signs, and that the
// first certificate is the key's. The other certificates are embedded too, so
// that firmware can find the way to an issuer in db.
func NewSigner(key crypto.Signer, certificates ...*x509.Certificate) (*Signer, error) {
	if len(certificates) == 0 {
		return nil, errors.New("make a Secure Boot signer: there is no certificate")
	}
	if len(certificates) > maxCertificates {
		return nil, fmt.Errorf("make a Secure Boot signer: %d certificates are more than the %d that fit", len(certificates), maxCertificates)
	}
	if err := CheckKey(key.Public()); err != nil {
		return nil, err
	}
	if public, ok := certificates[0].PublicKey.(*rsa.PublicKey); !ok || !public.Equal(key.Public()) {
		return nil, fmt.Errorf("make a Secure Boot signer: the certificate of %q is for another key: give the one that was issued for this key", certificates[0].Subject)
	}
	return &Signer{key, certificates}, nil
}

// CheckKey says whether firmware can verify what a key signs, by its public
// half.
func CheckKey(public crypto.PublicKey) error {
	key, ok := public.(*rsa.PublicKey)
	if !ok {
		return fmt.Errorf("make a Secure Boot signer: the key is %s, and firmware verifies RSA only: use an RSA key of 2048 to 4096 bits", keyKind(public))
	}
	if bits := key.N.BitLen(); bits < 2048 || bits > 4096 {
		return fmt.Errorf("make a Secure Boot signer: the RSA key has %d bits, and firmware verifies 2048 to 4096", bits)
	}
	return nil
}

func keyKind(public crypto.PublicKey) string {
	algorithm := map[string]string{
		"*ecdsa.PublicKey": "ECDSA", "ed25519.PublicKey": "Ed25519", "*ecdh.PublicKey": "ECDH", "*dsa.PublicKey": "DSA",
	}[fmt.Sprintf("%T", public)]
	if algorithm == "" {
		return fmt.Sprintf("of type %T", public)
	}
	return algorithm
}

// Certificate is the signer's own certificate.
func (s *Signer) Certificate() *x509.Certificate { return s.certificates[0] }

// SignedBy reports whether the image has an intact signature that names this
// very certificate.
func (i *Image) SignedBy(certificate *x509.Certificate) (bool, error) {
	ders, err := i.Signatures()
	if err != nil {
		return false, err
	}
	for _, der := range ders {
		signature, err := ParseAuthenticode(der)
		if err != nil || !signature.Signer.Equal(certificate) {
			continue // somebody else's: nothing here depends on it
		}
		h := signature.Hash.New()
		if err := i.Authenticode(h); err != nil {
			return false, err
		}
		if bytes.Equal(h.Sum(nil), signature.Digest) {
			return true, nil
		}
	}
	return false, nil
}

// SignedImage is an image with one more signature than the file it was made
// from. It is an io.ReaderAt over the new file.
type SignedImage struct {
	base    io.ReaderAt
	size    int64 // of base
	tail    []byte
	patches []patch
}

type patch struct {
	offset int64
	data   []byte
}

// Size is the length of the signed file in bytes.
func (s *SignedImage) Size() int64 { return s.size + int64(len(s.tail)) }

// ReadAt reads from the signed file at a byte offset.
func (s *SignedImage) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("read at a negative offset")
	}
	n := 0
	if off < s.size {
		want := int(min(int64(len(p)), s.size-off))
		got, err := s.base.ReadAt(p[:want], off)
		if got < want {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return got, err
		}
		n = got
	}
	if at := off + int64(n); at >= s.size && at < s.Size() {
		n += copy(p[n:], s.tail[at-s.size:])
	}
	for _, patch := range s.patches {
		for i, b := range patch.data {
			if at := patch.offset + int64(i) - off; at >= 0 && at < int64(n) {
				p[at] = b
			}
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// peMaxFile bounds an image: offsets in a PE file have 32 bits.
const peMaxFile = 1<<32 - 1

// Sign appends a signature to those that the image has. An image that has none
// is padded with zeros to a multiple of 8 bytes first, as the certificate table
// must be aligned (Microsoft PE Format, "The Attribute Certificate Table"); the
// padding is part of what is signed, so the Authenticode digest can differ from
// that of the unsigned file. Signing the same image with the same key gives the
// same bytes: the signature carries no time.
func (s *Signer) Sign(image *Image) (*SignedImage, error) {
	signed, err := s.sign(image)
	if err != nil {
		return nil, fmt.Errorf("sign PE image: %w", err)
	}
	return signed, nil
}

func (s *Signer) sign(image *Image) (*SignedImage, error) {
	if image.certEntry == 0 {
		return nil, errors.New("its headers have no room for a certificate table")
	}
	table := int64(image.certOffset)
	switch {
	case image.certSize == 0:
		table = (image.size + 7) &^ 7
	case table+int64(image.certSize) != image.size:
		return nil, fmt.Errorf("its certificate table ends at byte %d, but the file at byte %d: remove what follows the signatures", table+int64(image.certSize), image.size)
	case table%8 != 0 || image.certSize%8 != 0:
		return nil, fmt.Errorf("its certificate table at byte %d of %d bytes is not aligned to 8 bytes: remove its signatures first", table, image.certSize)
	}
	if _, err := image.Signatures(); err != nil {
		return nil, err
	}
	if image.certSize == 0 {
		// What has no certificate table is hashed to its end, padding included.
		padded := &SignedImage{base: image.r, size: image.size, tail: make([]byte, table-image.size)}
		var err error
		if image, err = parseImage(padded, padded.Size()); err != nil {
			return nil, err
		}
	}
	h := crypto.SHA256.New()
	if err := image.Authenticode(h); err != nil {
		return nil, err
	}
	der, err := s.pkcs7(h.Sum(nil))
	if err != nil {
		return nil, err
	}
	entry := winCertificate(der)
	size := int64(image.certSize) + int64(len(entry))
	if size > peMaxCerts || image.size+int64(len(entry)) > peMaxFile {
		return nil, fmt.Errorf("with one more signature the certificate table has %d bytes and the file %d, which is too long", size, image.size+int64(len(entry)))
	}
	directory := binary.LittleEndian.AppendUint32(nil, uint32(table))
	directory = binary.LittleEndian.AppendUint32(directory, uint32(size))
	signed := &SignedImage{
		base: image.r, size: image.size, tail: entry,
		patches: []patch{{image.certEntry, directory}, {image.checksum, make([]byte, 4)}},
	}
	sum, err := peChecksum(signed)
	if err != nil {
		return nil, err
	}
	signed.patches[1].data = binary.LittleEndian.AppendUint32(nil, sum)
	return signed, s.check(signed)
}

// check reads the signature back as firmware will.
func (s *Signer) check(signed *SignedImage) error {
	image, err := parseImage(signed, signed.Size())
	if err != nil {
		return err
	}
	intact, err := image.SignedBy(s.Certificate())
	if err == nil && !intact {
		err = errors.New("the signature that the key made does not verify: the key is not the one that it says it is")
	}
	return err
}

// winCertificate wraps PKCS#7 SignedData in a WIN_CERTIFICATE, padded to 8
// bytes.
func winCertificate(der []byte) []byte {
	const header, revision2, pkcsSignedData = 8, 0x0200, 0x0002
	padding := -len(der) & 7
	entry := binary.LittleEndian.AppendUint32(nil, uint32(header+len(der)+padding))
	entry = binary.LittleEndian.AppendUint16(entry, revision2)
	entry = binary.LittleEndian.AppendUint16(entry, pkcsSignedData)
	return append(append(entry, der...), make([]byte, padding)...)
}

// peChecksum is the CheckSum of the optional header: the file's 16-bit words,
// summed with the carry added back, plus the file's length. The field itself
// must read as zero.
func peChecksum(s *SignedImage) (uint32, error) {
	var sum uint64
	r := io.NewSectionReader(s, 0, s.Size())
	buf := make([]byte, 256<<10)
	for {
		n, err := io.ReadFull(r, buf)
		if n%2 == 1 {
			buf[n] = 0
			n++
		}
		for b := buf[:n]; len(b) >= 2; b = b[2:] {
			sum += uint64(binary.LittleEndian.Uint16(b))
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return 0, fmt.Errorf("take checksum: %w", err)
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint32(sum) + uint32(s.Size()), nil
}

// spcPEImageData is the DER of the SpcAttributeTypeAndOptionalValue that stands
// before every PE image's digest: the type SPC_PE_IMAGE_DATA_OBJID, no flags,
// and the file name "<<<Obsolete>>>" in UTF-16BE, as the format wants it
// ("Windows Authenticode Portable Executable Signature Format" 1.0).
var spcPEImageData = func() []byte {
	name := make([]byte, 0, 28)
	for _, c := range []byte("<<<Obsolete>>>") {
		name = append(name, 0, c)
	}
	file := derTLV(0xa0, derTLV(0xa2, derTLV(0x80, name))) // SpcLink file, SpcString unicode
	oid := []byte{0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x01, 0x0f}
	data := derTLV(0x30, slices.Concat(derTLV(0x03, []byte{0}), file))
	return derTLV(0x30, slices.Concat(derTLV(0x06, oid), data))
}()

var oidContentType = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}

// pkcs7 makes the DER of PKCS#7 SignedData over an image's SHA-256 Authenticode
// digest.
func (s *Signer) pkcs7(digest []byte) ([]byte, error) {
	sha256 := pkix.AlgorithmIdentifier{Algorithm: digestAlgorithms[0].oid, Parameters: asn1.NullRawValue}
	var content spcIndirectData
	content.Data.FullBytes = spcPEImageData
	content.Digest.Algorithm, content.Digest.Digest = sha256, digest
	encoded, err := asn1.Marshal(content)
	if err != nil {
		return nil, fmt.Errorf("encode SpcIndirectDataContent: %w", err)
	}
	var body asn1.RawValue
	if _, err := asn1.Unmarshal(encoded, &body); err != nil {
		return nil, fmt.Errorf("encode SpcIndirectDataContent: %w", err)
	}
	h := crypto.SHA256.New()
	h.Write(body.Bytes)
	attributes, err := authenticatedAttributes(h.Sum(nil))
	if err != nil {
		return nil, fmt.Errorf("encode authenticated attributes: %w", err)
	}
	h.Reset()
	h.Write(derTLV(0x31, attributes)) // signed as the SET OF that they are
	signature, err := s.key.Sign(rand.Reader, h.Sum(nil), crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("make the RSA signature: %w", err)
	}
	signer := s.certificates[0]
	info := signerInfo{
		Version:                 1,
		DigestAlgorithm:         sha256,
		AuthenticatedAttributes: asn1.RawValue{FullBytes: derTLV(0xa0, attributes)},
		SignatureAlgorithm:      pkix.AlgorithmIdentifier{Algorithm: oidRSA, Parameters: asn1.NullRawValue},
		Signature:               signature,
	}
	info.IssuerAndSerial.Issuer.FullBytes = signer.RawIssuer
	info.IssuerAndSerial.Serial = signer.SerialNumber
	var certificates []byte
	for _, c := range s.certificates {
		certificates = append(certificates, c.Raw...)
	}
	data, err := asn1.Marshal(signedData{
		Version:          1,
		DigestAlgorithms: []pkix.AlgorithmIdentifier{sha256},
		Content:          contentInfo{oidSpcIndirectData, explicit0(encoded)},
		Certificates:     asn1.RawValue{FullBytes: derTLV(0xa0, certificates)},
		SignerInfos:      []signerInfo{info},
	})
	if err != nil {
		return nil, fmt.Errorf("encode PKCS#7 SignedData: %w", err)
	}
	der, err := asn1.Marshal(contentInfo{oidSignedData, explicit0(data)})
	if err != nil {
		return nil, fmt.Errorf("encode PKCS#7 ContentInfo: %w", err)
	}
	// EDK II looks for the digest algorithm 32 bytes into the signature, where it
	// lies when every length around it takes two bytes.
	if len(der) > 0xffff || der[1] != 0x82 || data[1] != 0x82 {
		return nil, fmt.Errorf("the signature with its certificates has %d bytes, and firmware reads 300 to 65535: leave out certificates", len(der))
	}
	return der, nil
}

// authenticatedAttributes encodes contentType and messageDigest, in DER's order
// of a SET OF, without the tag and length of the set.
func authenticatedAttributes(digest []byte) ([]byte, error) {
	var encoded [][]byte
	for _, a := range []struct {
		oid   asn1.ObjectIdentifier
		value any
	}{{oidContentType, oidSpcIndirectData}, {oidMessageDigest, digest}} {
		value, err := asn1.Marshal(a.value)
		if err != nil {
			return nil, err
		}
		der, err := asn1.Marshal(attribute{a.oid, asn1.RawValue{FullBytes: derTLV(0x31, value)}})
		if err != nil {
			return nil, err
		}
		encoded = append(encoded, der)
	}
	slices.SortFunc(encoded, bytes.Compare)
	return bytes.Join(encoded, nil), nil
}

// explicit0 wraps an encoding in the tag [0] EXPLICIT.
func explicit0(der []byte) asn1.RawValue {
	return asn1.RawValue{FullBytes: derTLV(0xa0, der)}
}

// derTLV puts a tag of one byte and a length in front of content.
func derTLV(tag byte, content []byte) []byte {
	out := []byte{tag}
	switch n := len(content); {
	case n < 0x80:
		out = append(out, byte(n))
	case n < 0x100:
		out = append(out, 0x81, byte(n))
	case n < 0x10000:
		out = append(out, 0x82, byte(n>>8), byte(n))
	default:
		out = append(out, 0x83, byte(n>>16), byte(n>>8), byte(n))
	}
	return append(out, content...)
}
