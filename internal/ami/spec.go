package ami

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/lazyregexp"
)

// Spec is what is wanted of an AMI beside the artifact. CheckSpec fills in what
// is left out.
type Spec struct {
	Region      string // that the disk is uploaded to
	Name        string // of the AMI; "" for DefaultName
	Description string
	Family      string // of the AMIs that replace each other; "" for DefaultFamily
	Tags        map[string]string
	CopyTo      []string // further regions
	ShareWith   []Principal
	Keep        int // AMIs of the family that remain in each region; 0 for all
	Zeros       ZeroBlocks
	Encrypt     bool
	KMSKey      string // ARN; "" for the account's default key
}

// Principal is who may launch an AMI: an account, an organisation or an
// organisational unit.
type Principal struct {
	Account      string // 12 digits
	Organization string // ARN
	Unit         string // ARN
}

func (p Principal) String() string { return p.Account + p.Organization + p.Unit }

var (
	accountForm      = lazyregexp.New(`^[0-9]{12}$`)
	organizationForm = lazyregexp.New(`^arn:aws[a-z-]*:organizations::[0-9]{12}:organization/o-[a-z0-9]{10,32}$`)
	unitForm         = lazyregexp.New(`^arn:aws[a-z-]*:organizations::[0-9]{12}:ou/o-[a-z0-9]{10,32}/ou-[0-9a-z]{4,32}-[a-z0-9]{8,32}$`)
	regionForm       = lazyregexp.New(`^[a-z]{2,4}(-[a-z0-9]+){1,3}-[0-9]{1,2}$`)
	keyForm          = lazyregexp.New(`^arn:aws[a-z-]*:kms:([a-z0-9-]+):[0-9]{12}:key/[A-Za-z0-9-]+$`)
	imageIDForm      = lazyregexp.New(`^ami-[0-9a-f]{8,17}$`)
)

// ParsePrincipal reads an account number, or the ARN of an organisation or of an
// organisational unit.
func ParsePrincipal(s string) (Principal, error) {
	switch {
	case accountForm().MatchString(s):
		return Principal{Account: s}, nil
	case organizationForm().MatchString(s):
		return Principal{Organization: s}, nil
	case unitForm().MatchString(s):
		return Principal{Unit: s}, nil
	}
	return Principal{}, fmt.Errorf("%q is neither an AWS account (12 digits) nor the ARN of an organisation or organisational unit", s)
}

// CheckRegion tells whether a name has the form of a region's.
func CheckRegion(name string) error {
	if !regionForm().MatchString(name) {
		return fmt.Errorf("%q is no AWS region such as eu-central-1", name)
	}
	return nil
}

// CheckImageID tells whether s has the form of an AMI's identifier.
func CheckImageID(s string) error {
	if !imageIDForm().MatchString(s) {
		return fmt.Errorf("%q is no AMI such as ami-0123456789abcdef0", s)
	}
	return nil
}

// ParseTag reads KEY=VALUE.
func ParseTag(s string) (key, value string, err error) {
	key, value, ok := strings.Cut(s, "=")
	switch {
	case !ok || key == "":
		return "", "", fmt.Errorf("%q is not of the form KEY=VALUE", s)
	case utf8.RuneCountInString(key) > maxTagKey || utf8.RuneCountInString(value) > maxTagValue:
		return "", "", fmt.Errorf("the tag %.40q is too long: AWS takes %d characters of key and %d of value", key, maxTagKey, maxTagValue)
	case strings.HasPrefix(strings.ToLower(key), "aws:") || strings.HasPrefix(key, tagPrefix):
		return "", "", fmt.Errorf("the tag %q begins as those that AWS or this program sets", key)
	case tagForbidden().MatchString(key) || tagForbidden().MatchString(value):
		return "", "", fmt.Errorf("the tag %q has characters that AWS does not take: use letters, digits, spaces and + - = . _ : / @", key)
	}
	return key, value, nil
}

// Limits of AWS's tags, in characters, and in tags of one resource.
const (
	maxTagKey   = 128
	maxTagValue = 256
	maxTags     = 50
)

var tagForbidden = lazyregexp.New(`[^\pL\pN\pZ+\-=._:/@]`)

// tagValue makes a value of a tag: what AWS does not take becomes a dash.
func tagValue(s string) string {
	s = tagForbidden().ReplaceAllString(strings.ToValidUTF8(s, "-"), "-")
	if runes := []rune(s); len(runes) > maxTagValue {
		s = string(runes[:maxTagValue])
	}
	return s
}

// Names of AMIs: 3 to 128 characters.
const (
	minName = 3
	maxName = 128
	// maxDescription is the longest description of an AMI, in characters.
	maxDescription = 255
)

var nameForbidden = lazyregexp.New(`[^A-Za-z0-9()\[\] ./\-'@_]`)

// CheckName tells whether EC2 takes a name for an AMI.
func CheckName(name string) error {
	if len(name) < minName || len(name) > maxName || nameForbidden().MatchString(name) || strings.TrimSpace(name) != name {
		return fmt.Errorf("%q is no name of an AMI: use %d to %d letters, digits, spaces and ( ) [ ] . / - ' @ _", name, minName, maxName)
	}
	return nil
}

// DefaultName is what an AMI is called unless a name is given: the image's name
// and version, and the beginning of the artifact's digest, which makes it
// unique. EC2 takes it, whatever the artifact is called.
func (i *Image) DefaultName() string {
	name := i.artifact.Name
	if version := i.version(); version != "" && !strings.Contains(name, version) {
		name += "-" + version
	}
	name = nameForbidden().ReplaceAllString(name, "-")
	suffix := "-" + i.artifact.Reference.Digest.Hex[:12]
	return name[:min(len(name), maxName-len(suffix))] + suffix
}

func (i *Image) version() string {
	return i.artifact.Manifest.Annotations[artifact.AnnotationVersion]
}

// DefaultFamily names the AMIs that replace each other: those of one repository
// of the registry, image name without its version, and architecture.
func (i *Image) DefaultFamily() string {
	name := i.artifact.Name
	if version := i.version(); version != "" {
		name = strings.TrimSuffix(strings.TrimSuffix(name, version), "-")
	}
	place := "oci"
	if !i.artifact.Reference.IsLayout() {
		place = i.artifact.Reference.Place()
	}
	return tagValue(place + ":" + name + ":" + i.Architecture())
}

// CheckSpec checks what is wanted of an AMI and fills in what was left out,
// without asking AWS anything.
func (i *Image) CheckSpec(s Spec) (Spec, error) {
	if s.Name == "" {
		s.Name = i.DefaultName()
	}
	if s.Family == "" {
		s.Family = i.DefaultFamily()
	}
	if s.Description == "" {
		s.Description = "Attestable image " + i.Reference()
		if runes := []rune(s.Description); len(runes) > maxDescription {
			s.Description = string(runes[:maxDescription])
		}
	}
	if err := CheckName(s.Name); err != nil {
		return s, err
	}
	switch {
	case utf8.RuneCountInString(s.Description) > maxDescription:
		return s, fmt.Errorf("the description has %d characters, and EC2 takes %d", utf8.RuneCountInString(s.Description), maxDescription)
	case s.Family != tagValue(s.Family):
		return s, fmt.Errorf("the family %.40q is too long for a tag, or has characters that AWS does not take: use up to %d letters, digits, spaces and + - = . _ : / @", s.Family, maxTagValue)
	case s.Keep < 0:
		return s, fmt.Errorf("%d AMIs cannot be kept", s.Keep)
	case s.KMSKey != "" && !keyForm().MatchString(s.KMSKey):
		return s, fmt.Errorf("%q is no ARN of a KMS key: StartSnapshot takes arn:aws:kms:REGION:ACCOUNT:key/ID, and no alias", s.KMSKey)
	case s.KMSKey != "" && keyForm().FindStringSubmatch(s.KMSKey)[1] != s.Region:
		return s, fmt.Errorf("the KMS key %s is not in the region %s of the snapshot", s.KMSKey, s.Region)
	case s.Encrypt && s.KMSKey == "" && len(s.ShareWith) > 0:
		return s, errors.New("an AMI that is encrypted with the account's default key cannot be shared, since nobody else may use that key: give a key of your own")
	case len(s.CopyTo) > 0 && s.KMSKey != "" && keyIn(s.KMSKey, s.Region) == "" && len(s.ShareWith) > 0:
		return s, fmt.Errorf("the AMIs in further regions would be encrypted with the account's default keys, since %s is of one region only, and could then not be shared: give a multi-Region key", s.KMSKey)
	case s.Encrypt && s.Zeros == OmitZeros:
		return s, errors.New("blocks that were never written read as garbage on an encrypted volume, which breaks dm-verity: zero blocks inside partitions cannot be omitted together with encryption")
	}
	for _, region := range append([]string{s.Region}, s.CopyTo...) {
		if err := CheckRegion(region); err != nil {
			return s, err
		}
	}
	slices.Sort(s.CopyTo)
	s.CopyTo = slices.DeleteFunc(slices.Compact(s.CopyTo), func(region string) bool { return region == s.Region })
	if tags := i.allTags(s); len(tags) > maxTags-3 { // run, owner, alive
		return s, fmt.Errorf("an AMI would get %d tags, and AWS allows %d with those of this program: give fewer", len(tags), maxTags)
	}
	return s, nil
}

// allTags are the tags of AMI and snapshots, with those that were asked for.
func (i *Image) allTags(s Spec) map[string]string {
	tags := map[string]string{"Name": s.Name}
	maps.Copy(tags, s.Tags)
	maps.Copy(tags, i.tags(s.Family))
	return tags
}
