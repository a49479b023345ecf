package kmspolicy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
)

// maxPolicy is the size that KMS accepts of a key policy, in bytes: AWS KMS
// Developer Guide, "Key policy format".
const maxPolicy = 32768

// UserActions are the actions whose answer KMS encrypts for the key in an
// attestation document, and the only ones that a PCR condition has an effect on:
// AWS KMS Developer Guide, "Condition keys for NitroTPM".
var UserActions = []string{
	"kms:Decrypt", "kms:DeriveSharedSecret", "kms:GenerateDataKey", "kms:GenerateDataKeyPair", "kms:GenerateRandom",
}

// AdministratorActions keep a key and its policy. They are listed, and not
// written kms:Create* and so on, for what is not among them: the use of the key
// (Decrypt, ReEncryptFrom, GenerateDataKey, GenerateMac, Sign, …), CreateGrant,
// with which one could allow oneself that use without any condition, ReplicateKey,
// which makes a copy with a policy of its own, and ImportKeyMaterial, after which
// somebody outside KMS knows the key.
var AdministratorActions = []string{
	"kms:CancelKeyDeletion", "kms:CreateAlias", "kms:DeleteAlias", "kms:DescribeKey", "kms:DisableKey",
	"kms:DisableKeyRotation", "kms:EnableKey", "kms:EnableKeyRotation", "kms:GetKeyPolicy", "kms:GetKeyRotationStatus",
	"kms:GetPublicKey", "kms:ListGrants", "kms:ListKeyPolicies", "kms:ListKeyRotations", "kms:ListResourceTags",
	"kms:PutKeyPolicy", "kms:RevokeGrant", "kms:RotateKeyOnDemand", "kms:ScheduleKeyDeletion", "kms:TagResource",
	"kms:UntagResource", "kms:UpdateAlias", "kms:UpdateKeyDescription",
}

// EncrypterActions seal a secret for the attested instances. Their answer
// reveals nothing, so that they need no attestation, and could have none: no PCR
// condition has an effect on Encrypt.
var EncrypterActions = []string{"kms:DescribeKey", "kms:Encrypt"}

// KeyPolicy is a whole key policy.
type KeyPolicy struct {
	Administrators []Principal // who keep the key, and cannot use it
	Encrypters     []Principal // who may encrypt with it; none is allowed
	Users          []Principal // who may use it, from an attested instance only
	Conditions     []Condition // of Bind
	Generations    []Generation
}

// document is a policy in the grammar of the IAM User Guide, "IAM JSON policy
// elements reference".
type document struct {
	Version   string
	Statement []statement
}

type statement struct {
	Sid       string
	Effect    string
	Principal map[string][]string // "AWS": ARNs
	Action    []string
	Resource  string
	Condition *Condition `json:",omitempty"`
}

// statements are what the policy allows; there is nothing else in it, and what
// no statement allows is denied.
func (p *KeyPolicy) statements() ([]statement, error) {
	if err := p.validate(); err != nil {
		return nil, fmt.Errorf("make a key policy: %w", err)
	}
	// In a key policy "*" is the key that has it.
	allow := func(sid string, principals []Principal, actions []string, condition *Condition) statement {
		return statement{sid, "Allow", map[string][]string{"AWS": arns(principals)}, actions, "*", condition}
	}
	statements := []statement{allow("Administer", p.Administrators, AdministratorActions, nil)}
	if len(p.Encrypters) > 0 {
		statements = append(statements, allow("Encrypt", p.Encrypters, EncrypterActions, nil))
	}
	for i := range p.Conditions {
		statements = append(statements, allow("UseWhenAttested"+strconv.Itoa(i+1), p.Users, UserActions, &p.Conditions[i]))
	}
	return statements, nil
}

func (p *KeyPolicy) validate() error {
	switch {
	case len(p.Administrators) == 0:
		return errors.New("it names no administrator: nobody could ever change the policy, nor delete the key")
	case len(p.Users) == 0:
		return errors.New("it names no role that may use the key")
	case len(p.Conditions) == 0:
		return errors.New("it has no condition, and would let every instance use the key")
	}
	for _, u := range p.Users {
		if !u.IsRole() {
			return fmt.Errorf("%s may not use the key: an instance has a role, and a condition holds for nobody else", u)
		}
		if slices.Contains(p.Administrators, u) {
			return fmt.Errorf("%s would be a user and an administrator: an instance that may change the policy needs no attestation to use the key", u)
		}
	}
	for _, other := range slices.Concat(p.Administrators, p.Encrypters, p.Users) {
		if other.Partition != p.Users[0].Partition {
			return fmt.Errorf("%s and %s are not in the same partition of AWS: IAM knows nothing of the other one", p.Users[0], other)
		}
	}
	return nil
}

// JSON is the policy as PutKeyPolicy and CreateKey take it, indented, with a
// newline at the end.
func (p *KeyPolicy) JSON() ([]byte, error) {
	statements, err := p.statements()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(document{"2012-10-17", statements}); err != nil {
		return nil, fmt.Errorf("write a key policy: %w", err)
	}
	if out.Len() > maxPolicy {
		return nil, fmt.Errorf("make a key policy: it has %d bytes, and KMS takes %d: leave out generations that no longer run", out.Len(), maxPolicy)
	}
	return out.Bytes(), nil
}

func arns(principals []Principal) []string {
	var list []string
	for _, p := range principals {
		if arn := p.String(); !slices.Contains(list, arn) {
			list = append(list, arn)
		}
	}
	return list
}
