package ami

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/efi"
	"github.com/org/attestable-image-action/internal/measure"
)

// Origin is where an artifact comes from, as far as its verification told. All
// of it may be "".
type Origin struct {
	Repository string // URL
	Commit     string // hex
	Workflow   string // URL with @REF
}

// Image is what an AMI is made of: an artifact and its attested measurements.
type Image struct {
	Origin Origin

	artifact     *artifact.Artifact
	document     *measure.Document
	architecture types.ArchitectureValues
	uefiData     string // AWS's variable store in base64, or ""
}

// NewImage checks that an AMI can be made of an artifact whose measurements were
// verified: attested is the document that was signed, not the one inside the
// artifact. Of the disk it reads nothing yet.
func NewImage(ctx context.Context, a *artifact.Artifact, attested *measure.Document, origin Origin) (*Image, error) {
	i := &Image{Origin: origin, artifact: a, document: attested}
	store, err := a.UEFIData(ctx)
	if err != nil {
		return nil, err
	}
	if err := i.check(store); err != nil {
		return nil, fmt.Errorf("make an AMI of %s: %w", a.Reference, err)
	}
	return i, nil
}

// Digest is that of the artifact's manifest, sha256:<hex>.
func (i *Image) Digest() string { return i.artifact.Reference.Digest.String() }

// Reference is the artifact's, with its digest.
func (i *Image) Reference() string { return i.artifact.Reference.String() }

// Size is the disk's, in bytes.
func (i *Image) Size() int64 { return i.document.Disk.Size }

// Architecture is EC2's name of it: x86_64 or arm64.
func (i *Image) Architecture() string { return string(i.architecture) }

// PCR is the attested value of a PCR in lower-case hex, or "".
func (i *Image) PCR(n int) string { return i.document.PCR(n) }

func (i *Image) check(store []byte) error {
	doc := i.document
	switch doc.Architecture {
	case "x86_64":
		i.architecture = types.ArchitectureValuesX8664
	case "aarch64":
		i.architecture = types.ArchitectureValuesArm64
	default:
		return fmt.Errorf("the attested architecture is %q, and EC2 boots x86_64 and aarch64 with UEFI: measure the disk with --arch", doc.Architecture)
	}
	switch {
	case doc.Disk == nil:
		return errors.New("the attested measurements do not say which disk they are of: measure the disk with --format json, and push and attest again")
	case doc.Disk.Size <= 0 || doc.Disk.Size > maxDisk:
		return fmt.Errorf("the attested disk has %d bytes, and an EBS volume has 1 to %d", doc.Disk.Size, int64(maxDisk))
	case doc.Measurements.HashAlgorithm != measure.SHA384:
		return fmt.Errorf("the attested PCRs are of the bank %s, and a NitroTPM attests SHA384: measure with --bank sha384", doc.Measurements.HashAlgorithm)
	}
	for _, n := range measure.IdentityPCRs {
		if doc.PCR(n) == "" && !measure.MayLack(n) {
			return fmt.Errorf("the attested measurements lack PCR %d, which a key policy may have to bind: measure with --pcr including %d", n, n)
		}
	}
	if len(store) == 0 {
		if doc.SecureBoot.Enabled {
			return errors.New("its attested measurements are for Secure Boot, but it carries no UEFI variable store (uefi-data.aws), without which instances boot with Secure Boot off: push it with --uefi-data")
		}
		return nil
	}
	i.uefiData = strings.TrimSpace(string(store))
	if len(i.uefiData) > efi.AWSMaxStore {
		return fmt.Errorf("its UEFI variable store has %d characters, and EC2 takes %d: leave out certificates or old dbx entries", len(i.uefiData), efi.AWSMaxStore)
	}
	variables, err := efi.DecodeAWSVariables([]byte(i.uefiData), nil)
	if err != nil {
		return err
	}
	return checkVariables(variables, doc.SecureBoot)
}

// checkVariables holds a variable store against the state of Secure Boot that
// was measured: PCR 7 is what the attestation says only with exactly these
// variables, and any other variable could change what boots.
func checkVariables(variables []efi.Variable, attested measure.SecureBootInfo) error {
	vendors := map[string]efi.GUID{
		"PK": efi.GlobalVariable, "KEK": efi.GlobalVariable, "db": efi.ImageSecurityDatabase, "dbx": efi.ImageSecurityDatabase,
	}
	found := map[string]measure.VariableInfo{}
	for _, v := range variables {
		if vendor, known := vendors[v.Name]; !known || v.Vendor != vendor {
			return fmt.Errorf("its UEFI variable store has a variable %q of vendor %s, which is none of Secure Boot's and which the attested measurements do not cover", v.Name, v.Vendor)
		}
		if _, twice := found[v.Name]; twice {
			return fmt.Errorf("its UEFI variable store has %s twice", v.Name)
		}
		if v.Attributes != efi.SecureBootAttributes {
			return fmt.Errorf("its UEFI variable store has %s with attributes %#x, and firmware takes it with %#x only", v.Name, v.Attributes, efi.SecureBootAttributes)
		}
		if len(v.Data) == 0 {
			continue // as good as none
		}
		if _, err := efi.ParseSignatureLists(v.Data); err != nil {
			return fmt.Errorf("its UEFI variable store: %s: %w", v.Name, err)
		}
		sum := sha256.Sum256(v.Data)
		found[v.Name] = measure.VariableInfo{Name: v.Name, Size: len(v.Data), SHA256: hex.EncodeToString(sum[:])}
	}
	if _, on := found["PK"]; on != attested.Enabled {
		state := map[bool]string{true: "on", false: "off"}
		return fmt.Errorf("its UEFI variable store turns Secure Boot %s, and its attested measurements are for Secure Boot %s: PCR 7 would be another one", state[on], state[attested.Enabled])
	}
	if attested.Enabled {
		for _, name := range []string{"KEK", "db"} {
			if _, there := found[name]; !there {
				return fmt.Errorf("its UEFI variable store turns Secure Boot on and has no %s", name)
			}
		}
	}
	for _, name := range []string{"PK", "KEK", "db", "dbx"} {
		at := slices.IndexFunc(attested.Variables, func(v measure.VariableInfo) bool { return v.Name == name })
		have, there := found[name]
		if there != (at >= 0) || there && !strings.EqualFold(attested.Variables[at].SHA256, have.SHA256) {
			return fmt.Errorf("its UEFI variable store has another %s than the attested measurements were made with: PCR 7 would be another one", name)
		}
	}
	return nil
}

// tags are those that AMI and snapshots have.
func (i *Image) tags(family string) map[string]string {
	tags := map[string]string{
		tagDigest: i.Digest(), tagArtifact: i.Reference(), tagFamily: family,
		tagRepository: i.Origin.Repository, tagCommit: i.Origin.Commit, tagWorkflow: i.Origin.Workflow,
	}
	for _, n := range measure.IdentityPCRs {
		tags[tagPCR+strconv.Itoa(n)] = i.PCR(n)
	}
	for key, value := range tags {
		if value == "" {
			delete(tags, key)
		} else {
			tags[key] = tagValue(value)
		}
	}
	return tags
}
