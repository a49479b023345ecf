package attest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"net/url"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/sign"
)

// authority is a certificate authority and a timestamp authority, within the
// test, that certify whatever they are told.
type authority struct {
	*LocalTrust // for its timestamp authority
	trust       *Trust
	ca          *x509.Certificate
	key         crypto.Signer
	certify     certificate.Summary // what the next certificate says
}

// newAuthority makes an authority of an organization. logs are those that its
// trust root names.
func newAuthority(t *testing.T, organization string, logs map[string]*root.TransparencyLog) *authority {
	t.Helper()
	local, err := OpenLocalTrust(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	ca, err := issue(&x509.Certificate{
		Subject:               pkix.Name{Organization: []string{organization}, CommonName: "Root"},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}, nil, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	trusted, err := root.NewTrustedRoot(root.TrustedRootMediaType01,
		[]root.CertificateAuthority{&root.FulcioCertificateAuthority{Root: ca, ValidityPeriodStart: ca.NotBefore}}, nil,
		[]root.TimestampingAuthority{&root.SigstoreTimestampingAuthority{Leaf: local.tsa, Root: local.ca, ValidityPeriodStart: ca.NotBefore}}, logs)
	if err != nil {
		t.Fatal(err)
	}
	data, err := trusted.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	trust, err := ParseTrust("root of "+organization, data)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{LocalTrust: local, trust: trust, ca: ca, key: key, certify: certified(testClaims())}
}

// GetCertificate implements sigstore-go's CertificateProvider.
func (a *authority) GetCertificate(_ context.Context, keypair sign.Keypair, _ *sign.CertificateProviderOptions) ([]byte, error) {
	identity, err := url.Parse(a.certify.SubjectAlternativeName)
	if err != nil {
		return nil, err
	}
	var extensions []pkix.Extension
	for _, e := range []struct {
		id    asn1.ObjectIdentifier
		value string
	}{
		{certificate.OIDIssuerV2, a.certify.Issuer},
		{certificate.OIDBuildSignerURI, a.certify.BuildSignerURI},
		{certificate.OIDBuildSignerDigest, a.certify.BuildSignerDigest},
		{certificate.OIDBuildConfigURI, a.certify.BuildConfigURI},
		{certificate.OIDBuildTrigger, a.certify.BuildTrigger},
		{certificate.OIDRunnerEnvironment, a.certify.RunnerEnvironment},
		{certificate.OIDSourceRepositoryURI, a.certify.SourceRepositoryURI},
		{certificate.OIDSourceRepositoryDigest, a.certify.SourceRepositoryDigest},
		{certificate.OIDSourceRepositoryRef, a.certify.SourceRepositoryRef},
		{certificate.OIDSourceRepositoryIdentifier, a.certify.SourceRepositoryIdentifier},
		{certificate.OIDSourceRepositoryOwnerURI, a.certify.SourceRepositoryOwnerURI},
		{certificate.OIDSourceRepositoryOwnerIdentifier, a.certify.SourceRepositoryOwnerIdentifier},
		{certificate.OIDRunInvocationURI, a.certify.RunInvocationURI},
	} {
		if e.value == "" {
			continue
		}
		value, err := asn1.MarshalWithParams(e.value, "utf8")
		if err != nil {
			return nil, err
		}
		extensions = append(extensions, pkix.Extension{Id: e.id, Value: value})
	}
	now := time.Now()
	leaf, err := issue(&x509.Certificate{
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		URIs: []*url.URL{identity}, ExtraExtensions: extensions,
	}, a.ca, keypair.GetPublicKey(), a.key)
	if err != nil {
		return nil, err
	}
	return leaf.Raw, nil
}

// signer signs with the authority and verifies against trust, which may be
// another one's.
func (a *authority) signer(trust *Trust) *Signer {
	s := NewLocalSigner(a.LocalTrust)
	s.authority, s.trust = a, trust
	return s
}

// statement makes a statement about testDigest.
func statement(t *testing.T, predicateType string, predicate []byte) *Statement {
	t.Helper()
	s, err := NewStatement("ghcr.io/octo-org/image", testDigest, predicateType, predicate)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// testMeasurements is a measurements predicate.
var testMeasurements = []byte(`{"Measurements":{"HashAlgorithm":"SHA384","PCR4":"00"}}`)

// provenanceOf is the provenance predicate of claims.
func provenanceOf(t *testing.T, claims *Claims) []byte {
	t.Helper()
	predicate, err := claims.Provenance("https://github.com")
	if err != nil {
		t.Fatal(err)
	}
	return predicate
}

// bundle signs whatever it is told, without a look at the result.
func (a *authority) bundle(t *testing.T, s *Statement) []byte {
	t.Helper()
	payload, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return a.envelope(t, payload)
}

func (a *authority) envelope(t *testing.T, payload []byte) []byte {
	t.Helper()
	key, err := sign.NewEphemeralKeypair(nil)
	if err != nil {
		t.Fatal(err)
	}
	message, err := sign.Bundle(&sign.DSSEData{Data: payload, PayloadType: PayloadType}, key, sign.BundleOptions{
		CertificateProvider:        a,
		CertificateProviderOptions: &sign.CertificateProviderOptions{},
		TimestampAuthorities:       []*sign.TimestampAuthority{a.timestampAuthority()},
	})
	if err != nil {
		t.Fatal(err)
	}
	line, err := marshalBundle(message)
	if err != nil {
		t.Fatal(err)
	}
	return line
}

// both signs provenance and measurements of the test's job.
func (a *authority) both(t *testing.T) []Candidate {
	t.Helper()
	return []Candidate{
		{Source: "provenance", Data: a.bundle(t, statement(t, PredicateProvenance, provenanceOf(t, testClaims())))},
		{Source: "measurements", Data: a.bundle(t, statement(t, PredicateMeasurements, testMeasurements))},
	}
}
