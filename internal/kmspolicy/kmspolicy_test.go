package kmspolicy

import (
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/org/attestable-image-action/internal/efi"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
)

var update = flag.Bool("update", false, "write the golden files anew")

const zero = "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"

// separator is PCR 2 where no driver was loaded.
const separator = "518923b0f955d08da077c96aaba522b9decede61c599cea6c41889cfbea4ae4d50529d96fe4d1afdafb65e7f95bf23c4"

// value is a digest that begins with two hex digits.
func value(prefix string) string { return prefix + strings.Repeat("7", 96-len(prefix)) }

func generation(name string, secureBoot bool, pcrs map[int]string) Generation {
	return Generation{Name: name, Document: &measure.Document{
		Measurements: measure.Measurements{HashAlgorithm: measure.SHA384, PCRs: pcrs},
		SecureBoot:   measure.SecureBootInfo{Enabled: secureBoot},
	}}
}

// build is a generation as measure makes it, with Secure Boot off.
func build(name, pcr4 string) Generation {
	return generation(name, false, map[int]string{2: separator, 4: value(pcr4), 7: value("77"), 11: value("b" + pcr4[:1]), 12: zero, 13: zero})
}

var (
	admin, _ = ParsePrincipal("arn:aws:iam::111122223333:role/key-admin")
	seal, _  = ParsePrincipal("arn:aws:iam::111122223333:role/seal")
	user, _  = ParsePrincipal("arn:aws:iam::111122223333:role/service/image")
)

func policyOf(t testing.TB, generations []Generation, pcrs []int) *KeyPolicy {
	t.Helper()
	conditions, err := Bind(generations, pcrs, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &KeyPolicy{
		Administrators: []Principal{admin}, Encrypters: []Principal{seal}, Users: []Principal{user},
		Conditions: conditions, Generations: generations,
	}
}

func jsonOf(t testing.TB, p *KeyPolicy) []byte {
	t.Helper()
	out, err := p.JSON()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestBindRefuses(t *testing.T) {
	pcrs := map[int]string{2: separator, 4: value("4a"), 7: value("7a"), 11: value("ba"), 12: zero, 13: zero}
	without := func(n int) map[int]string {
		some := map[int]string{}
		for m, v := range pcrs {
			if m != n {
				some[m] = v
			}
		}
		return some
	}
	with := func(n int, v string) map[int]string {
		some := without(n)
		some[n] = v
		return some
	}
	sha256 := generation("image", false, pcrs)
	sha256.Document.Measurements.HashAlgorithm = measure.SHA256
	for _, c := range []struct {
		name        string
		generations []Generation
		pcrs        []int
		without     []int
		want        string
	}{
		{"nothing", nil, nil, nil, "there are no measurements"},
		{"no PCR 12", []Generation{generation("image", false, without(12))}, nil, nil, "PCR 12 is not among the measurements, and without it a command line that a boot entry adds goes unnoticed (GHSA-xrv8-2pf5-f3q7)"},
		{"no PCR 12 with Secure Boot", []Generation{generation("image", true, without(12))}, nil, nil, "PCR 12 is not among the measurements"},
		{"no PCR 12 in the second", []Generation{build("first", "4a"), generation("second", false, without(12))}, nil, nil, "for second: PCR 12 is not among"},
		{"no PCR 4", []Generation{generation("image", false, without(4))}, nil, nil, "PCR 4 is not among the measurements: measure with --pcr including 4"},
		{"no PCR 7", []Generation{generation("image", true, without(7))}, nil, nil, "PCR 7 is not among the measurements"},
		{"PCR 4 alone", []Generation{generation("image", false, pcrs)}, []int{2, 4, 13}, nil, "without PCR 12 they let in the same image with a command line or credentials of somebody else's (GHSA-xrv8-2pf5-f3q7)"},
		{"PCR 4 alone with Secure Boot", []Generation{generation("image", true, pcrs)}, []int{2, 4, 13}, nil, "without PCR 12 they let in the same image with a command line or credentials of somebody else's (GHSA-xrv8-2pf5-f3q7)"},
		{"PCR 7 without Secure Boot", []Generation{generation("image", false, pcrs)}, []int{7, 12}, nil, "PCR 7 is the same for every image while Secure Boot is off"},
		{"PCR 7 of one that has it off", []Generation{generation("on", true, pcrs), generation("off", false, pcrs)}, []int{7, 12, 13}, nil, "for off: PCR 7 is the same"},
		{"no boot", []Generation{generation("image", true, pcrs)}, []int{11, 12}, nil, "do not say what was booted"},
		{"zero PCR 4", []Generation{generation("image", false, with(4, zero))}, nil, nil, "PCR 4 is zero"},
		{"zero PCR 7", []Generation{generation("image", true, with(7, zero))}, nil, nil, "PCR 7 is zero"},
		{"no hex", []Generation{generation("image", false, with(4, value("xx")))}, nil, nil, "PCR 4 is not a SHA384 digest in hex"},
		{"too short", []Generation{generation("image", false, with(12, "00"))}, nil, nil, "PCR 12 is not a SHA384 digest in hex"},
		{"another bank", []Generation{sha256}, nil, nil, "SHA256 bank"},
		{"banks mixed", []Generation{build("first", "4a"), sha256}, nil, nil, "SHA256 bank"},
		{"PCR 4 without 2", []Generation{generation("image", false, pcrs)}, []int{4, 12, 13}, nil, "without PCR 2 they let in the same image with a driver"},
		{"bound and left out", []Generation{generation("image", false, pcrs)}, []int{2, 4, 12, 13}, []int{13}, "and to be left out"},
		{"PCR 4 without 13", []Generation{generation("image", false, pcrs)}, []int{2, 4, 12}, nil, "without PCR 13 they let in the same image with an extension"},
		{"PCR 4 without 2, Secure Boot claimed", []Generation{generation("image", true, pcrs)}, []int{4, 12, 13}, nil, "without PCR 2"},
		{"PCR 7 alone", []Generation{generation("image", true, pcrs)}, []int{7}, nil, "without PCR 12 they let in"},
		{"PCR 7 without 13", []Generation{generation("image", true, pcrs)}, []int{7, 12}, nil, "without PCR 13 they let in"},
		{"no PCR 4 to leave out", []Generation{build("a", "4a")}, nil, []int{4}, "PCR 4 cannot be left out"},
		{"no PCR 12 to leave out", []Generation{build("a", "4a")}, nil, []int{12}, "PCR 12 cannot be left out"},
		{"no PCR 13 in the measurements", []Generation{generation("image", false, without(13))}, nil, nil, "PCR 13 is not among the measurements, and whether the image has extensions is not guessed: measure again, have an artifact measured with --remeasure"},
		{"no PCR 13 with Secure Boot", []Generation{generation("image", true, without(13))}, nil, nil, "PCR 13 is not among the measurements"},
		{"PCR 7 of every instance", []Generation{generation("image", true, with(7, noSecureBoot))}, nil, nil, "PCR 7 is that of every instance with Secure Boot off"},
		{"PCR 7 of every instance, asked for", []Generation{generation("image", true, with(7, noSecureBoot))}, []int{4, 7, 12, 13}, nil, "PCR 7 is that of every instance with Secure Boot off"},
		{"the separator in PCR 7", []Generation{generation("image", true, with(7, separator))}, nil, nil, "PCR 7 is that of firmware that records no variable"},
		{"the separator in PCR 4", []Generation{generation("image", false, with(4, separator))}, nil, nil, "PCR 4 is that of every machine"},
		{"ones in PCR 4", []Generation{generation("image", false, with(4, strings.Repeat("f", 96)))}, nil, nil, "PCR 4 is all ones"},
		{"zero in PCR 2", []Generation{generation("image", false, with(2, zero))}, nil, nil, "PCR 2 is zero"},
		{"events of PCR 7 that record Secure Boot off", []Generation{withEvents(t, 0)}, nil, nil, "their events of PCR 7 that it is off"},
		{"events of PCR 7 that lead elsewhere", []Generation{generationWith(pcrs, measure.EventInfo{PCR: 7, Digest: value("00")})}, nil, nil, "events of PCR 7 do not lead to its value"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conditions, err := Bind(c.generations, c.pcrs, c.without)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, conditions %v; want an error with %q", err, conditions, c.want)
			}
		})
	}
}

func TestBind(t *testing.T) {
	on := func(pcr4, pcr7 string) Generation {
		return generation("on", true, map[int]string{4: value(pcr4), 7: value(pcr7), 12: zero, 13: zero})
	}
	with12 := func(pcr4, pcr12 string) Generation {
		return generation("off", false, map[int]string{2: separator, 4: value(pcr4), 12: value(pcr12), 13: zero})
	}
	for _, c := range []struct {
		name        string
		generations []Generation
		pcrs        []int
		without     []int
		want        []map[int][]string
	}{
		{"standard boot", []Generation{build("a", "4a")}, nil, nil, []map[int][]string{{2: {separator}, 4: {value("4a")}, 12: {zero}, 13: {zero}}}},
		{"Secure Boot", []Generation{on("4a", "7a")}, nil, nil, []map[int][]string{{7: {value("7a")}, 12: {zero}, 13: {zero}}}},
		{"capital letters", []Generation{build("a", "4A")}, nil, nil, []map[int][]string{{2: {separator}, 4: {value("4a")}, 12: {zero}, 13: {zero}}}},
		{"chosen PCRs", []Generation{on("4a", "7a")}, []int{4, 7, 12, 13}, nil, []map[int][]string{{4: {value("4a")}, 7: {value("7a")}, 12: {zero}, 13: {zero}}}},
		{"two generations that differ in PCR 4", []Generation{build("a", "4a"), build("b", "4b")}, nil, nil, []map[int][]string{{2: {separator}, 4: {value("4a"), value("4b")}, 12: {zero}, 13: {zero}}}},
		{"the same one twice", []Generation{build("a", "4a"), build("b", "4a")}, nil, nil, []map[int][]string{{2: {separator}, 4: {value("4a")}, 12: {zero}, 13: {zero}}}},
		{"one signer, two images", []Generation{on("4a", "7a"), on("4b", "7a")}, nil, nil, []map[int][]string{{7: {value("7a")}, 12: {zero}, 13: {zero}}}},
		{"two that differ in both", []Generation{with12("4a", "ca"), with12("4b", "cb")}, nil, nil, []map[int][]string{
			{2: {separator}, 4: {value("4a")}, 12: {value("ca")}, 13: {zero}}, {2: {separator}, 4: {value("4b")}, 12: {value("cb")}, 13: {zero}},
		}},
		{"three, two of which join", []Generation{with12("4a", "ca"), with12("4b", "cb"), with12("4c", "ca")}, nil, nil, []map[int][]string{
			{2: {separator}, 4: {value("4a"), value("4c")}, 12: {value("ca")}, 13: {zero}}, {2: {separator}, 4: {value("4b")}, 12: {value("cb")}, 13: {zero}},
		}},
		{"all four of a square", []Generation{with12("4a", "ca"), with12("4b", "cb"), with12("4a", "cb"), with12("4b", "ca")}, nil, nil, []map[int][]string{
			{2: {separator}, 4: {value("4a"), value("4b")}, 12: {value("ca"), value("cb")}, 13: {zero}},
		}},
		{"from standard boot to Secure Boot", []Generation{build("a", "4a"), on("4b", "7a")}, nil, nil, []map[int][]string{
			{2: {separator}, 4: {value("4a")}, 12: {zero}, 13: {zero}}, {7: {value("7a")}, 12: {zero}, 13: {zero}},
		}},
		{"a document without PCR 2", []Generation{generation("a", false, map[int]string{4: value("4a"), 12: zero, 13: zero})}, nil, nil, []map[int][]string{
			{2: {separator}, 4: {value("4a")}, 12: {zero}, 13: {zero}},
		}},
		{"PCR 2 left out", []Generation{build("a", "4a")}, nil, []int{2}, []map[int][]string{{4: {value("4a")}, 12: {zero}, 13: {zero}}}},
		{"PCR 2 and 13 left out of an older document", []Generation{generation("a", false, map[int]string{4: value("4a"), 12: zero})}, nil, []int{2, 13}, []map[int][]string{{4: {value("4a")}, 12: {zero}}}},
		{"PCR 2 left out of a list", []Generation{build("a", "4a")}, []int{4, 12, 13}, []int{2}, []map[int][]string{{4: {value("4a")}, 12: {zero}, 13: {zero}}}},
		{"Secure Boot, and events that say so", []Generation{withEvents(t, 1)}, nil, nil, []map[int][]string{{7: {withEvents(t, 1).Document.PCR(7)}, 12: {zero}, 13: {zero}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			conditions, err := Bind(c.generations, c.pcrs, c.without)
			if err != nil {
				t.Fatal(err)
			}
			var got []map[int][]string
			for _, condition := range conditions {
				got = append(got, condition.Values)
			}
			for _, want := range c.want {
				if !slices.ContainsFunc(got, func(values map[int][]string) bool { return sameValues(values, want) }) {
					t.Errorf("conditions %v lack %v", got, want)
				}
			}
			if len(got) != len(c.want) {
				t.Errorf("%d conditions %v, want %d", len(got), got, len(c.want))
			}
		})
	}
}

// noSecureBoot is PCR 7 of a genuine NitroTPM without Secure Boot, and of OVMF.
const noSecureBoot = "98441c7f7625d10058c47683aec486ce311c633235eb555593a7ee791121e3578ae72d04ecef661f272d59058b77af35"

func generationWith(pcrs map[int]string, events ...measure.EventInfo) Generation {
	g := generation("image", true, pcrs)
	g.Document.Events = events
	return g
}

// withEvents is a generation that says that Secure Boot is on, with keys, and whose
// events of PCR 7 record the variable SecureBoot as told.
func withEvents(t *testing.T, enabled byte) Generation {
	t.Helper()
	value := make([]byte, 48)
	var events []measure.EventInfo
	for _, data := range [][]byte{
		efi.VariableData(efi.GlobalVariable, "SecureBoot", []byte{enabled}), efi.VariableData(efi.GlobalVariable, "PK", []byte("a key")), make([]byte, 4),
	} {
		digest := sha512.Sum384(data)
		sum := sha512.Sum384(append(value, digest[:]...))
		value = sum[:]
		events = append(events, measure.EventInfo{PCR: 7, Digest: hex.EncodeToString(digest[:]), Data: hex.EncodeToString(data)})
	}
	return generationWith(map[int]string{7: hex.EncodeToString(value), 12: zero, 13: zero}, events...)
}

// sameValues compares without regard to the order of a PCR's values.
func sameValues(a, b map[int][]string) bool {
	sorted := func(m map[int][]string) map[int][]string {
		out := map[int][]string{}
		for n, values := range m {
			out[n] = slices.Sorted(slices.Values(values))
		}
		return out
	}
	return reflect.DeepEqual(sorted(a), sorted(b))
}

// TestPolicyAllowsExactlyTheGenerations makes policies of random generations
// whose PCRs come from few values, so that many are alike in part, and asks for
// every combination of the values: what was measured is allowed, and no mixture.
func TestPolicyAllowsExactlyTheGenerations(t *testing.T) {
	random := rand.New(rand.NewPCG(4, 12))
	statements, combinations, allowed := 0, 0, 0
	for range 300 {
		pcrs := []int{2, 4, 12, 13}
		if random.IntN(2) == 0 {
			pcrs = []int{2, 4, 11, 12, 13}
		}
		var generations []Generation
		measured := map[string]bool{}
		for i := range 1 + random.IntN(6) {
			values := map[int]string{}
			id := ""
			for _, n := range pcrs {
				k := random.IntN(3)
				values[n] = value(fmt.Sprintf("%x%d", n, k))
				id += fmt.Sprint(k)
			}
			measured[id] = true
			generations = append(generations, generation(fmt.Sprint(i), false, values))
		}
		p := policyOf(t, generations, pcrs)
		policy := jsonOf(t, p)
		statements += len(p.Conditions)
		for i := range int(pow(3, len(pcrs))) {
			values, id := map[int]string{}, ""
			for _, n := range pcrs {
				values[n] = strings.ToUpper(value(fmt.Sprintf("%x%d", n, i%3)))
				id += fmt.Sprint(i % 3)
				i /= 3
			}
			got := allows(t, policy, request{user.String(), "kms:Decrypt", attested(values)})
			if got != measured[id] {
				t.Fatalf("PCRs %s: allowed is %t, and of the generations %v:\n%s", id, got, measured, policy)
			}
			combinations++
			if got {
				allowed++
			}
		}
	}
	t.Logf("%d statements in 300 policies; %d of %d combinations are allowed", statements, allowed, combinations)
	if allowed == 0 || allowed == combinations {
		t.Error("nothing was told apart")
	}
}

func pow(base, exponent int) int {
	result := 1
	for range exponent {
		result *= base
	}
	return result
}

// TestPolicyKeepsRolesApart asks for every action of KMS as every principal.
func TestPolicyKeepsRolesApart(t *testing.T) {
	image := build("image", "4a")
	policy := jsonOf(t, policyOf(t, []Generation{image}, nil))
	right := attested(image.Document.Measurements.PCRs)
	wrong := attested(map[int]string{2: separator, 4: value("4b"), 12: zero, 13: zero})
	changed := attested(map[int]string{2: separator, 4: value("4a"), 12: value("cc"), 13: zero})
	driver := attested(map[int]string{2: value("2b"), 4: value("4a"), 12: zero, 13: zero})
	extended := attested(map[int]string{2: separator, 4: value("4a"), 12: zero, 13: value("dd")})
	// Service Authorization Reference, "Actions, resources, and condition keys
	// for AWS Key Management Service".
	for action := range strings.FieldsSeq(`CancelKeyDeletion ConnectCustomKeyStore CreateAlias CreateCustomKeyStore CreateGrant
		CreateKey Decrypt DeleteAlias DeleteCustomKeyStore DeleteImportedKeyMaterial DeriveSharedSecret DescribeCustomKeyStores
		DescribeKey DisableKey DisableKeyRotation DisconnectCustomKeyStore EnableKey EnableKeyRotation Encrypt GenerateDataKey
		GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext GenerateDataKeyWithoutPlaintext GenerateMac GenerateRandom
		GetKeyPolicy GetKeyRotationStatus GetParametersForImport GetPublicKey ImportKeyMaterial ListAliases ListGrants
		ListKeyPolicies ListKeyRotations ListKeys ListResourceTags ListRetirableGrants PutKeyPolicy ReEncryptFrom ReEncryptTo
		ReplicateKey RetireGrant RevokeGrant RotateKeyOnDemand ScheduleKeyDeletion Sign SynchronizeMultiRegionKey TagResource
		UntagResource UpdateAlias UpdateCustomKeyStore UpdateKeyDescription UpdatePrimaryRegion Verify VerifyMac`) {
		action = "kms:" + action
		reveals := slices.Contains([]string{"kms:Decrypt", "kms:DeriveSharedSecret", "kms:GenerateDataKey", "kms:GenerateDataKeyPair", "kms:GenerateRandom"}, action)
		uses := reveals || slices.Contains([]string{
			"kms:CreateGrant", "kms:Encrypt", "kms:GenerateDataKeyPairWithoutPlaintext", "kms:GenerateDataKeyWithoutPlaintext", "kms:GenerateMac",
			"kms:ImportKeyMaterial", "kms:ReEncryptFrom", "kms:ReEncryptTo", "kms:ReplicateKey", "kms:RetireGrant", "kms:Sign", "kms:Verify", "kms:VerifyMac",
		}, action)
		for _, c := range []struct {
			who     Principal
			what    string
			context map[string]string
			want    bool
		}{
			{user, "the image", right, reveals},
			{user, "another image", wrong, false},
			{user, "the image with another command line", changed, false},
			{user, "the image with a driver", driver, false},
			{user, "the image with an extension", extended, false},
			{user, "no attestation", nil, false},
			{seal, "no attestation", nil, action == "kms:Encrypt" || action == "kms:DescribeKey"},
			{seal, "the image", right, action == "kms:Encrypt" || action == "kms:DescribeKey"},
		} {
			if got := allows(t, policy, request{c.who.String(), action, c.context}); got != c.want {
				t.Errorf("%s of %s, %s: allowed is %t", action, c.who, c.what, got)
			}
		}
		for _, context := range []map[string]string{nil, right} {
			if uses && allows(t, policy, request{admin.String(), action, context}) {
				t.Errorf("the administrator may %s", action)
			}
		}
	}
	for _, action := range []string{"kms:PutKeyPolicy", "kms:ScheduleKeyDeletion", "kms:DescribeKey"} {
		if !allows(t, policy, request{admin.String(), action, nil}) {
			t.Errorf("the administrator may not %s", action)
		}
	}
}

func TestPolicyRefuses(t *testing.T) {
	good := policyOf(t, []Generation{build("image", "4a")}, nil)
	root, err := AccountRoot("aws", "111122223333")
	if err != nil {
		t.Fatal(err)
	}
	china, err := ParsePrincipal("arn:aws-cn:iam::111122223333:role/key-admin")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(p *KeyPolicy)
		want   string
	}{
		{"no administrator", func(p *KeyPolicy) { p.Administrators = nil }, "names no administrator"},
		{"no user", func(p *KeyPolicy) { p.Users = nil }, "names no role"},
		{"no condition", func(p *KeyPolicy) { p.Conditions = nil }, "has no condition"},
		{"an account as user", func(p *KeyPolicy) { p.Users = []Principal{root} }, "may not use the key"},
		{"a user who administers", func(p *KeyPolicy) { p.Administrators = append(p.Administrators, user) }, "would be a user and an administrator"},
		{"two partitions", func(p *KeyPolicy) { p.Administrators = []Principal{china} }, "not in the same partition"},
		{"too many generations", func(p *KeyPolicy) {
			for i := range 60 {
				p.Conditions = append(p.Conditions, Condition{map[int][]string{4: {value(fmt.Sprintf("%02x", i))}, 12: {value(fmt.Sprintf("%02x", i))}}})
			}
		}, "leave out generations that no longer run"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := *good
			p.Administrators, p.Conditions = slices.Clone(p.Administrators), slices.Clone(p.Conditions)
			c.change(&p)
			for name, write := range map[string]func() ([]byte, error){"JSON": p.JSON, "Terraform": p.Terraform} {
				if out, err := write(); err == nil || out != nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%s: error %v, want one with %q", name, err, c.want)
				}
			}
		})
	}
}

func TestGolden(t *testing.T) {
	signed := generation("ghcr.io/octo-org/image@sha256:"+strings.Repeat("5", 64), true, map[int]string{7: value("7a"), 12: zero, 13: zero})
	for name, generations := range map[string][]Generation{
		"one":     {build("ghcr.io/octo-org/image@sha256:"+strings.Repeat("1", 64), "4a")},
		"rolling": {build("measurements-1.json", "4a"), build("measurements-2.json", "4b"), signed},
	} {
		t.Run(name, func(t *testing.T) {
			p := policyOf(t, generations, nil)
			terraform, err := p.Terraform()
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name+".json", jsonOf(t, p))
			golden(t, name+".tf", terraform)
		})
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: run the test with -update", err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; run the test with -update and look at the difference. Got:\n%s", path, got)
	}
}

// TestKMSTakesThePolicy makes a key with the policy and gives another one to it,
// in moto, which keeps a policy and reads no PCR: what it allows is for the
// evaluation above.
func TestKMSTakesThePolicy(t *testing.T) {
	testenv.StartAWS(t)
	c, err := config.LoadDefaultConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	client := kms.NewFromConfig(c)
	first := string(jsonOf(t, policyOf(t, []Generation{build("one", "4a")}, nil)))
	second := string(jsonOf(t, policyOf(t, []Generation{build("one", "4a"), build("two", "4b")}, nil)))
	key, err := client.CreateKey(t.Context(), &kms.CreateKeyInput{Policy: &first})
	if err != nil {
		t.Fatal(err)
	}
	kept := func() string {
		t.Helper()
		out, err := client.GetKeyPolicy(t.Context(), &kms.GetKeyPolicyInput{KeyId: key.KeyMetadata.KeyId, PolicyName: aws.String("default")})
		if err != nil {
			t.Fatal(err)
		}
		return aws.ToString(out.Policy)
	}
	if got := kept(); !sameJSON(t, got, first) {
		t.Errorf("the new key has the policy %s", got)
	}
	if _, err := client.PutKeyPolicy(t.Context(), &kms.PutKeyPolicyInput{KeyId: key.KeyMetadata.KeyId, PolicyName: aws.String("default"), Policy: &second}); err != nil {
		t.Fatal(err)
	}
	if got := kept(); !sameJSON(t, got, second) {
		t.Errorf("the key has the policy %s", got)
	}
}

func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	var x, y any
	if err := json.Unmarshal([]byte(a), &x); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(b), &y); err != nil {
		t.Fatal(err)
	}
	return reflect.DeepEqual(x, y)
}

func TestParsePrincipal(t *testing.T) {
	for _, arn := range []string{
		"arn:aws:iam::111122223333:role/image", "arn:aws:iam::111122223333:role/service/image+=,.@_-", "arn:aws:iam::111122223333:user/alice",
		"arn:aws:iam::111122223333:root", "arn:aws-cn:iam::111122223333:role/image", "arn:aws-us-gov:iam::111122223333:role/image",
	} {
		if p, err := ParsePrincipal(arn); err != nil || p.String() != arn {
			t.Errorf("%s: %v, %v", arn, p, err)
		}
	}
	for _, arn := range []string{
		"", "*", "image", "111122223333", "arn:aws:iam::111122223333:role/*", "arn:aws:iam::111122223333:role/", "arn:aws:iam::1111:role/image",
		"arn:aws:iam::111122223333:group/image", "arn:aws:sts::111122223333:assumed-role/image/i-0", "arn:aws:iam::*:role/image",
		"arn:aws:iam::111122223333:role/image\n", "arn:aws:iam::111122223333:role/${x}", `arn:aws:iam::111122223333:role/a"b`,
	} {
		if p, err := ParsePrincipal(arn); err == nil {
			t.Errorf("%q is taken for %v", arn, p)
		}
	}
	if _, err := AccountRoot("aws", "1111-2222-3333"); err == nil {
		t.Error("an account with dashes is taken")
	}
}

func FuzzParsePrincipal(f *testing.F) {
	f.Add("arn:aws:iam::111122223333:role/image")
	f.Add("arn:aws:iam::111122223333:root")
	f.Add("*")
	f.Fuzz(func(t *testing.T, arn string) {
		p, err := ParsePrincipal(arn)
		if err != nil {
			return
		}
		if p.String() != arn {
			t.Errorf("%q became %q", arn, p)
		}
		if strings.ContainsAny(arn, "*?$%{}\"'\\ \n\r") {
			t.Errorf("%q is taken for a principal", arn)
		}
	})
}
