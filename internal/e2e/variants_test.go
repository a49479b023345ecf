package e2e

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"slices"
	"strings"
	"testing"
	"time"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	"github.com/sigstore/sigstore-go/pkg/sign"

	"github.com/org/attestable-image-action/internal/testenv"
)

// A variant is one way in which an artifact, or what is attested of it, is not
// what it should be.
type variant struct {
	name string
	// make makes the bundles that are found instead of the genuine ones. With
	// nil, or where it returns nil, the genuine ones are there.
	make func(t *testing.T, d, other *deployment) map[string][]byte
	// applies tells for which deployments it is something; nil for all.
	applies func(d *deployment) bool
	// arrange changes what is met, after the bundles were delivered.
	arrange func(t *testing.T, v *delivery, other *deployment)
	// genuine says that it is no tampering: everybody must accept it.
	genuine bool
	// reasons are ours to refuse: one of them is said.
	reasons []string
	// except says of a program why it cannot notice, and nothing where it can.
	except func(d *deployment, program string) string
}

// noLayers is why some never notice what was done to a layer.
func noLayers(_ *deployment, program string) string {
	if program == "ours" {
		return ""
	}
	return "never fetches layers: the manifest names them by digest"
}

// madeAnew is why a copy of a log entry's body counts for nothing to sigstore-go
// since 1.2.2, which gh does not have yet.
func madeAnew(d *deployment, program string) string {
	if d.log != 2 || program == "gh" {
		return ""
	}
	return "makes the entry of Rekor v2 anew from what was signed, and proves that the log holds that: the copy in the bundle is not looked at"
}

func logged(d *deployment) bool   { return d.log > 0 }
func stamped(d *deployment) bool  { return d.stamped }
func keyless(d *deployment) bool  { return d.stack != nil }
func publicly(d *deployment) bool { return d.stack != nil && d.stack.FulcioWithoutSCTURL != "" }
func promised(d *deployment) bool { return d.log == 1 }

// stampedElsewhere is for those who can have a certificate issued and stamped.
func stampedElsewhere(d *deployment) bool { return d.stack != nil && (d.stamped || d.log == 1) }

// otherBundle is the deployment's other bundle.
func (d *deployment) otherBundle(predicateType string) *protobundle.Bundle {
	for other, b := range d.bundles {
		if other != predicateType {
			return b
		}
	}
	panic("there is but one bundle")
}

// leaf is a bundle's certificate.
func leaf(b *protobundle.Bundle) *protocommon.X509Certificate {
	return b.GetVerificationMaterial().GetCertificate()
}

// mutated makes a variant of changes to copies of the bundles.
func mutated(change func(b *protobundle.Bundle, other *protobundle.Bundle)) func(*testing.T, *deployment, *deployment) map[string][]byte {
	return func(t *testing.T, d, _ *deployment) map[string][]byte {
		t.Helper()
		return d.each(t, func(b *protobundle.Bundle, predicateType string) { change(b, d.otherBundle(predicateType)) })
	}
}

// resigned makes a variant of other signatures under the same payloads.
func resigned(s signing) func(*testing.T, *deployment, *deployment) map[string][]byte {
	return func(t *testing.T, d, _ *deployment) map[string][]byte {
		t.Helper()
		if s.run != (testenv.Run{}) {
			s.run.Visibility = d.run.Visibility
		}
		return d.signed(t, s, nil)
	}
}

// valid has a certificate issued again, valid from and for these times from now.
func valid(d *deployment, from, length time.Duration) func(leaf *x509.Certificate) ([]byte, error) {
	return func(leaf *x509.Certificate) ([]byte, error) {
		start := time.Now().Add(from)
		return d.stack.Reissue(leaf, start, start.Add(length))
	}
}

// otherDigest is of nothing that there is, in hex.
var otherDigest = strings.Repeat("5a", 32)

// variants are every way that is tried.
func variants() []variant {
	middle := func(data []byte) []byte { data = bytes.Clone(data); data[len(data)/2] ^= 1; return data }
	replaced := func(from, to string) func(b, _ *protobundle.Bundle) {
		return func(b, _ *protobundle.Bundle) {
			envelope := b.GetDsseEnvelope()
			envelope.Payload = bytes.ReplaceAll(envelope.GetPayload(), []byte(from), []byte(to))
		}
	}
	return []variant{
		{name: "untouched", genuine: true},
		{
			name: "certificate that expired since, used and timed in its time", genuine: true, applies: stampedElsewhere,
			make: func(t *testing.T, d, _ *deployment) map[string][]byte {
				bundles := d.signed(t, signing{reissue: valid(d, -time.Minute, time.Minute+4*time.Second)}, nil)
				time.Sleep(5 * time.Second)
				return bundles
			},
		},

		// The artifact.
		{
			name: "manifest: a byte changed in the registry",
			arrange: func(t *testing.T, v *delivery, _ *deployment) {
				_, digest, _ := strings.Cut(v.reference, "@")
				v.artifact.registry.Lie(t, func(path string, body []byte) []byte {
					if strings.HasSuffix(path, "/manifests/"+digest) || strings.HasSuffix(path, "/manifests/"+releaseTag) {
						return flip(body, bytes.Index(body, []byte(`"pcr4"`))+len(`"pcr4":"`)+1)
					}
					return body
				})
				// Given a digest, cosign never looks at what is under it.
				repository, _, _ := strings.Cut(v.reference, "@")
				v.cosignReference = repository + ":" + releaseTag
			},
			reasons: []string{"its content has the digest", "digest"},
		},
		{
			name: "disk layer: a byte changed in the registry",
			arrange: func(t *testing.T, v *delivery, _ *deployment) {
				_, manifest := v.artifact.manifest(t)
				v.artifact.registry.Lie(t, func(path string, body []byte) []byte {
					if strings.HasSuffix(path, "/blobs/"+manifest.Layers[0].Digest.String()) {
						return middle(body)
					}
					return body
				})
				v.remeasure = true
			},
			reasons: []string{"disk: expected"},
			except:  noLayers,
		},
		{
			name: "disk layer changed, and manifest and tag pushed again",
			arrange: func(t *testing.T, v *delivery, _ *deployment) {
				_, manifest := v.artifact.manifest(t)
				v.reference = v.artifact.pushTampered(t, "tampered", manifest.Layers[0].Digest.String())
			},
			reasons: []string{"it is about another digest", "holds no bundle about"},
		},

		// The envelope.
		{name: "payload: a byte changed", make: mutated(func(b, _ *protobundle.Bundle) {
			payload := b.GetDsseEnvelope().GetPayload()
			b.GetDsseEnvelope().Payload = flip(payload, bytes.LastIndex(payload, []byte(`":"`))+3) // of the last text in the predicate
		}), reasons: []string{"it is no Sigstore bundle", "read the in-toto statement", "could not verify envelope", "log inclusion"}},
		{name: "payload: another subject put in", make: func(t *testing.T, d, _ *deployment) map[string][]byte {
			_, digest, _ := strings.Cut(d.artifact.reference, "@sha256:")
			return d.each(t, func(b *protobundle.Bundle, _ string) { replaced(digest, otherDigest)(b, nil) })
		}, reasons: []string{"it is about another digest"}},
		{name: "payload: another predicate type put in", make: mutated(func(b, _ *protobundle.Bundle) {
			replaced(predicateProvenance, predicateProvenance+".1")(b, nil)
			replaced(predicateMeasurements, predicateMeasurements+".1")(b, nil)
		}), reasons: []string{"provenance attestation: expected a bundle that verifies", "measurements attestation: expected a bundle that verifies"}},
		{name: "payload of the other statement", make: mutated(func(b, other *protobundle.Bundle) {
			b.GetDsseEnvelope().Payload = other.GetDsseEnvelope().GetPayload()
		}), reasons: []string{"could not verify envelope", "log inclusion"}},
		{name: "payload type changed", make: mutated(func(b, _ *protobundle.Bundle) {
			b.GetDsseEnvelope().PayloadType = "application/json"
		}), reasons: []string{`its payload is of type "application/json"`}},
		{name: "signature: a byte changed", make: mutated(func(b, _ *protobundle.Bundle) {
			s := b.GetDsseEnvelope().GetSignatures()[0]
			s.Sig = middle(s.GetSig())
		}), reasons: []string{"signature", "timestamp", "log inclusion"}},
		{name: "signature of the other statement", make: mutated(func(b, other *protobundle.Bundle) {
			b.GetDsseEnvelope().Signatures = other.GetDsseEnvelope().GetSignatures()
		}), reasons: []string{"signature", "timestamp", "log inclusion"}},
		{name: "signature removed", make: mutated(func(b, _ *protobundle.Bundle) {
			b.GetDsseEnvelope().Signatures = nil
		}), reasons: []string{"signature", "timestamp", "log inclusion"}},

		// The certificate.
		{name: "certificate: a byte changed", make: mutated(func(b, _ *protobundle.Bundle) {
			c := leaf(b)
			c.RawBytes = middle(c.GetRawBytes())
		}), reasons: []string{"certificate", "x509", "it is no Sigstore bundle", "log inclusion"}},
		{name: "certificate of the other bundle", make: mutated(func(b, other *protobundle.Bundle) {
			leaf(b).RawBytes = leaf(other).GetRawBytes()
		}), reasons: []string{"signature", "certificate", "log inclusion"}},
		{name: "certificate without an SCT", applies: publicly, make: func(t *testing.T, d, _ *deployment) map[string][]byte {
			return d.signed(t, signing{fulcio: d.stack.FulcioWithoutSCTURL}, nil)
		}, reasons: []string{"signed certificate timestamp", "SCT"}},
		{name: "certificate with a forged SCT", applies: publicly, make: func(t *testing.T, d, _ *deployment) map[string][]byte {
			return d.signed(t, signing{reissue: d.stack.ForgeSCT}, nil)
		}, reasons: []string{"signed certificate timestamp", "SCT"}},
		{name: "certificate that had expired when it was used", applies: stampedElsewhere, make: func(t *testing.T, d, _ *deployment) map[string][]byte {
			return d.signed(t, signing{reissue: valid(d, -time.Hour, 10*time.Minute)}, nil)
		}, reasons: []string{"certificate", "expired"}},
		{name: "certificate that was not valid yet", applies: stampedElsewhere, make: func(t *testing.T, d, _ *deployment) map[string][]byte {
			return d.signed(t, signing{reissue: valid(d, time.Hour, 10*time.Minute)}, nil)
		}, reasons: []string{"certificate", "valid"}},
		{name: "expired certificate, and no time", applies: stampedElsewhere, make: func(t *testing.T, d, _ *deployment) map[string][]byte {
			bundles := make(map[string][]byte)
			for predicateType := range d.bundles {
				b := d.sign(t, d.payload(predicateType), signing{reissue: valid(d, -time.Minute, time.Minute+2*time.Second), withoutTimestamp: true})
				for _, entry := range b.GetVerificationMaterial().GetTlogEntries() {
					entry.InclusionPromise = nil // which alone proves the time
				}
				bundles[predicateType] = bundleLine(t, b)
			}
			time.Sleep(3 * time.Second)
			return bundles
		}, reasons: []string{"timestamp", "time"}},

		// The log.
		{name: "log entry removed", applies: logged, make: mutated(func(b, _ *protobundle.Bundle) {
			b.GetVerificationMaterial().TlogEntries = nil
		}), reasons: []string{"log", "timestamp"}},
		{name: "log entry: a byte changed", applies: logged, make: mutated(func(b, _ *protobundle.Bundle) {
			e := b.GetVerificationMaterial().GetTlogEntries()[0]
			e.CanonicalizedBody = flip(e.GetCanonicalizedBody(), len(e.GetCanonicalizedBody())/2)
		}), reasons: []string{"log", "entry", "it is no Sigstore bundle", "signature"}, except: madeAnew},
		{name: "log entry of the other statement", applies: logged, make: mutated(func(b, other *protobundle.Bundle) {
			b.GetVerificationMaterial().TlogEntries = other.GetVerificationMaterial().GetTlogEntries()
		}), reasons: []string{"log", "entry", "signature", "hash"}},
		{name: "log entry that no log has", applies: logged, make: neverLogged, reasons: []string{"inclusion", "log", "entry"}},
		{name: "inclusion proof: a hash changed", applies: logged, make: mutated(func(b, _ *protobundle.Bundle) {
			hashes := b.GetVerificationMaterial().GetTlogEntries()[0].GetInclusionProof().GetHashes()
			hashes[0] = middle(hashes[0])
		}), reasons: []string{"inclusion", "root"}},
		{name: "inclusion proof: another place", applies: logged, make: mutated(func(b, _ *protobundle.Bundle) {
			e := b.GetVerificationMaterial().GetTlogEntries()[0]
			e.LogIndex--
			e.GetInclusionProof().LogIndex--
		}), reasons: []string{"inclusion", "root", "index", "log entr"}},
		{name: "checkpoint of another log", applies: logged, make: func(t *testing.T, d, other *deployment) map[string][]byte {
			return d.each(t, func(b *protobundle.Bundle, predicateType string) {
				from := other.bundles[predicateType].GetVerificationMaterial().GetTlogEntries()[0]
				b.GetVerificationMaterial().GetTlogEntries()[0].GetInclusionProof().Checkpoint = from.GetInclusionProof().GetCheckpoint()
			})
		}, reasons: []string{"checkpoint", "root", "inclusion"}},
		{name: "inclusion promise: a byte changed", applies: promised, make: mutated(func(b, _ *protobundle.Bundle) {
			p := b.GetVerificationMaterial().GetTlogEntries()[0].GetInclusionPromise()
			p.SignedEntryTimestamp = middle(p.GetSignedEntryTimestamp())
		}), reasons: []string{"not enough verified log entries"}},
		{name: "inclusion promise removed", applies: promised, make: mutated(func(b, _ *protobundle.Bundle) {
			b.GetVerificationMaterial().GetTlogEntries()[0].InclusionPromise = nil
		}), reasons: []string{"timestamp", "promise"}},
		{name: "time in the log changed", applies: promised, make: mutated(func(b, _ *protobundle.Bundle) {
			b.GetVerificationMaterial().GetTlogEntries()[0].IntegratedTime -= 60
		}), reasons: []string{"not enough verified log entries"}},

		// The timestamp.
		{name: "timestamp removed", applies: stamped, make: mutated(func(b, _ *protobundle.Bundle) {
			b.GetVerificationMaterial().TimestampVerificationData = nil
		}), reasons: []string{"timestamp"}},
		{name: "timestamp: a byte changed", applies: stamped, make: mutated(func(b, _ *protobundle.Bundle) {
			s := b.GetVerificationMaterial().GetTimestampVerificationData().GetRfc3161Timestamps()[0]
			s.SignedTimestamp = slices.Clone(s.GetSignedTimestamp())
			s.SignedTimestamp[len(s.GetSignedTimestamp())-8] ^= 1 // in the signature
		}), reasons: []string{"timestamp"}},
		{name: "timestamp of the other signature", applies: stamped, make: mutated(func(b, other *protobundle.Bundle) {
			b.GetVerificationMaterial().TimestampVerificationData = other.GetVerificationMaterial().GetTimestampVerificationData()
		}), reasons: []string{"timestamp"}},
		{name: "timestamp of another authority", applies: stamped, make: func(t *testing.T, d, other *deployment) map[string][]byte {
			stranger := sign.NewTimestampAuthority(&sign.TimestampAuthorityOptions{URL: other.stack.TimestampURL})
			return d.each(t, func(b *protobundle.Bundle, _ string) {
				response, err := stranger.GetTimestamp(context.Background(), b.GetDsseEnvelope().GetSignatures()[0].GetSig())
				if err != nil {
					t.Fatal(err)
				}
				b.GetVerificationMaterial().TimestampVerificationData = &protobundle.TimestampVerificationData{
					Rfc3161Timestamps: []*protocommon.RFC3161SignedTimestamp{{SignedTimestamp: response}},
				}
			})
		}, reasons: []string{"timestamp"}},

		// Everything fits together, and is of somebody else, or about something else.
		{name: "about another digest", make: func(t *testing.T, d, _ *deployment) map[string][]byte {
			_, digest, _ := strings.Cut(d.artifact.reference, "@sha256:")
			return d.signed(t, signing{}, func(p []byte) []byte { return bytes.ReplaceAll(p, []byte(digest), []byte(otherDigest)) })
		}, applies: keyless, reasons: []string{"it is about another digest"}},
		{name: "of another predicate type", make: func(t *testing.T, d, _ *deployment) map[string][]byte {
			return d.signed(t, signing{}, func(p []byte) []byte {
				p = bytes.ReplaceAll(p, []byte(`"`+predicateProvenance+`"`), []byte(`"`+predicateProvenance+`.1"`))
				return bytes.ReplaceAll(p, []byte(`"`+predicateMeasurements+`"`), []byte(`"`+predicateMeasurements+`.1"`))
			})
		}, applies: keyless, reasons: []string{"attestation: expected a bundle that verifies, found none"}},
		{name: "with the token of another repository", applies: keyless, make: resigned(signing{run: testenv.Run{Repository: "octo-org/other", RepositoryID: "812345679"}}),
			reasons: []string{"repository: expected https://github.com/octo-org/image, found https://github.com/octo-org/other"}},
		{name: "with the token of another owner", applies: keyless, make: resigned(signing{run: testenv.Run{Repository: "octo-org-x/image", RepositoryID: "1", RepositoryOwnerID: "2"}}),
			reasons: []string{"repository: expected https://github.com/octo-org/image, found https://github.com/octo-org-x/image"}},
		{name: "with the token of another workflow", applies: keyless, make: resigned(signing{run: testenv.Run{WorkflowPath: ".github/workflows/other.yml"}}),
			reasons: []string{"workflow: expected https://github.com/octo-org/image/.github/workflows/image.yml, found https://github.com/octo-org/image/.github/workflows/other.yml"}},
		{name: "by another deployment", make: func(t *testing.T, d, other *deployment) map[string][]byte {
			bundles := make(map[string][]byte)
			for predicateType := range d.bundles {
				bundles[predicateType] = bundleLine(t, other.sign(t, d.payload(predicateType), signing{run: testenv.DefaultRun}))
			}
			return bundles
		}, reasons: []string{"certificate", "timestamp", "not enough verified log entries"}},
		{name: "against the trust root of another deployment", arrange: func(_ *testing.T, v *delivery, other *deployment) {
			v.trustedRootOverride, v.trustedRootLinesOverride = other.stack.TrustedRoot, other.stack.TrustedRootLines
		}, reasons: []string{"certificate", "timestamp", "not enough verified log entries"}},

		// The bundle.
		{name: "bundle cut off", make: func(t *testing.T, d, _ *deployment) map[string][]byte {
			bundles := d.each(t, nothing)
			for predicateType, line := range bundles {
				bundles[predicateType] = line[:len(line)*2/3]
			}
			return bundles
		}, reasons: []string{"it is no Sigstore bundle", "it must hold Sigstore bundles", "read the answer"}},
		{name: "bundle of a version that there is not", make: mutated(func(b, _ *protobundle.Bundle) {
			b.MediaType = "application/vnd.dev.sigstore.bundle.v9+json"
		}), reasons: []string{"it is no Sigstore bundle"}},
	}
}

// neverLogged signs the statements and gives each signature the entry of the
// genuine one, with the new signature and certificate in its body.
func neverLogged(t *testing.T, d, _ *deployment) map[string][]byte {
	t.Helper()
	bundles := make(map[string][]byte)
	encode := base64.StdEncoding.EncodeToString
	certificates := func(b *protobundle.Bundle) (der, encodedPEM string) {
		raw := leaf(b).GetRawBytes()
		return encode(raw), encode(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}))
	}
	for predicateType, genuine := range d.bundles {
		b := d.sign(t, d.payload(predicateType), signing{withoutLog: true})
		d.each(t, func(copied *protobundle.Bundle, of string) {
			if of != predicateType {
				return
			}
			entry := copied.GetVerificationMaterial().GetTlogEntries()[0]
			oldDER, oldPEM := certificates(genuine)
			newDER, newPEM := certificates(b)
			body := strings.NewReplacer(
				encode(genuine.GetDsseEnvelope().GetSignatures()[0].GetSig()), encode(b.GetDsseEnvelope().GetSignatures()[0].GetSig()),
				oldDER, newDER, oldPEM, newPEM).Replace(string(entry.GetCanonicalizedBody()))
			if body == string(entry.GetCanonicalizedBody()) {
				t.Errorf("the log's entry holds neither signature nor certificate: %s", body)
			}
			entry.CanonicalizedBody = []byte(body)
			b.GetVerificationMaterial().TlogEntries = copied.GetVerificationMaterial().GetTlogEntries()
		})
		bundles[predicateType] = bundleLine(t, b)
	}
	return bundles
}
