package kmsstandin_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/cms"
	"github.com/org/attestable-image-action/internal/kmsstandin"
	"github.com/org/attestable-image-action/internal/nsm"
	"github.com/org/attestable-image-action/internal/testenv"
	"github.com/org/attestable-image-action/internal/vm"
	"github.com/org/attestable-image-action/nitrotpm"
)

const role = "arn:aws:iam::111122223333:role/image"

// policy allows Decrypt to a role, on the conditions that are given as JSON members.
func policy(conditions string) string {
	return fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Sid":"s","Effect":"Allow","Principal":{"AWS":[%q]},"Action":["kms:Decrypt"],"Resource":"*"%s}]}`, role, conditions)
}

const zero = "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"

const bound = `,"Condition":{"StringEqualsIgnoreCase":{"kms:RecipientAttestation:NitroTPMPCR4":"` + zero + `","kms:RecipientAttestation:NitroTPMPCR12":["aa","` + zero + `"]}}`

func TestParsePolicyRefuses(t *testing.T) {
	replace := func(old, new string) string {
		if !strings.Contains(policy(bound), old) {
			t.Fatalf("%q is not in the policy", old)
		}
		return strings.Replace(policy(bound), old, new, 1)
	}
	for _, tc := range []struct{ name, text, err string }{
		{"nothing", "", "unexpected end"},
		{"two values", policy(bound) + "{}", "after top-level value"},
		{"a member twice", replace(`"Sid":"s"`, `"Sid":"s","sid":"t"`), "sid"},
		{"too large", policy(bound) + strings.Repeat(" ", 32768), "more than 32768"},
		{"another version", replace("2012-10-17", "2008-10-17"), "its version"},
		{"an element that is not known", replace(`"Sid":"s"`, `"NotAction":"s"`), "NotAction"},
		{"a denial", replace("Allow", "Deny"), "only Allow is evaluated"},
		{"a resource", replace(`"Resource":"*"`, `"Resource":"arn:aws:kms:x"`), "its resource"},
		{"a service", replace(`"AWS"`, `"Service"`), "names no principal"},
		{"a service beside", replace(`{"AWS":`, `{"Service":"ec2.amazonaws.com","AWS":`), "of the kind"},
		{"nobody", replace(`["`+role+`"]`, `[]`), "names no principal"},
		{"everybody", replace(role, "*"), "a wildcard"},
		{"every action", replace("kms:Decrypt", "kms:*"), "a wildcard"},
		{"another operator", replace("StringEqualsIgnoreCase", "StringLike"), "only StringEqualsIgnoreCase"},
		{"an operator beside", replace(`"StringEqualsIgnoreCase"`, `"StringNotEquals":{"a":"b"},"StringEqualsIgnoreCase"`), "only StringEqualsIgnoreCase"},
		{"a condition without keys", policy(`,"Condition":{"StringEqualsIgnoreCase":{}}`), "without keys"},
		{"an empty condition", policy(`,"Condition":{}`), "empty condition"},
	} {
		if _, err := kmsstandin.ParsePolicy([]byte(tc.text)); err == nil || !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: error %v, want %q", tc.name, err, tc.err)
		}
	}
}

func TestAllows(t *testing.T) {
	p, err := kmsstandin.ParsePolicy([]byte(policy(bound)))
	if err != nil {
		t.Fatal(err)
	}
	pcrs := func(pcr4, pcr12 string) map[string]string {
		return map[string]string{"kms:RecipientAttestation:NitroTPMPCR4": pcr4, "kms:RecipientAttestation:NitroTPMPCR12": pcr12}
	}
	for _, tc := range []struct {
		name, principal, action string
		context                 map[string]string
		want                    bool
	}{
		{"the image", role, "kms:Decrypt", pcrs(zero, zero), true},
		{"anybody", kmsstandin.AnyPrincipal, "kms:Decrypt", pcrs(zero, zero), true},
		{"in the other case", role, "kms:Decrypt", pcrs(zero, "AA"), true},
		{"another role", role + "2", "kms:Decrypt", pcrs(zero, zero), false},
		{"another action", role, "kms:Encrypt", pcrs(zero, zero), false},
		{"another PCR 4", role, "kms:Decrypt", pcrs("aa", zero), false},
		{"another PCR 12", role, "kms:Decrypt", pcrs(zero, "ab"), false},
		{"no PCR 12", role, "kms:Decrypt", map[string]string{"kms:RecipientAttestation:NitroTPMPCR4": zero}, false},
		{"no document", role, "kms:Decrypt", nil, false},
	} {
		if got := p.Allows(tc.principal, tc.action, tc.context); got != tc.want {
			t.Errorf("%s: allowed is %t", tc.name, got)
		}
	}
}

// TestServiceRefuses has calls that no service answers with a secret.
func TestServiceRefuses(t *testing.T) {
	n, err := vm.EmulateNitroTPM()
	if err != nil {
		t.Fatal(err)
	}
	tpm := n.Layer(testenv.SoftwareTPM(t))
	document := func(publicKey []byte) []byte {
		d, err := nsm.Get(tpm, nsm.Request{PublicKey: publicKey})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	spki := func(bits int) []byte {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	p, err := kmsstandin.ParsePolicy([]byte(policy(bound)))
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	const secret = "the secret"
	service := &kmsstandin.Service{
		Roots:  func() ([]nitrotpm.Root, error) { return []nitrotpm.Root{nitrotpm.Fingerprint(n.Root())}, nil },
		Policy: p,
		Decrypt: func(_ context.Context, call kmsstandin.Call) ([]byte, string, error) {
			return []byte(secret), call.KeyID, nil
		},
		Log: slog.New(slog.NewTextHandler(&log, nil)),
	}
	ask := func(method, target, authorization, body string) (int, string) {
		request := httptest.NewRequest(method, "/", strings.NewReader(body))
		request.Header.Set("X-Amz-Target", target)
		if authorization != "" {
			request.Header.Set("Authorization", authorization)
		}
		answer := httptest.NewRecorder()
		service.ServeHTTP(answer, request)
		if !strings.Contains(answer.Header().Get("Server"), "not AWS KMS") {
			t.Errorf("it calls itself %q", answer.Header().Get("Server"))
		}
		return answer.Code, answer.Body.String()
	}
	call := func(algorithm string, document []byte, more string) string {
		return fmt.Sprintf(`{"KeyId":"k","CiphertextBlob":"AA==","Recipient":{"KeyEncryptionAlgorithm":%q,"AttestationDocument":%q}%s}`,
			algorithm, base64.StdEncoding.EncodeToString(document), more)
	}
	const post, decrypt, signed, oaep = http.MethodPost, "TrentService.Decrypt", "AWS4-HMAC-SHA256 Credential=x", "RSAES_OAEP_SHA_256"

	good := document(der)
	status, body := ask(post, decrypt, signed, call(oaep, good, ""))
	var answer struct{ CiphertextForRecipient []byte }
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != 200 {
		t.Fatalf("status %d, %s", status, body)
	}
	if got, err := cms.Open(answer.CiphertextForRecipient, key); err != nil || string(got) != secret {
		t.Errorf("%q, %v", got, err)
	}
	for _, tc := range []struct {
		name, method, target, authorization, body, code string
	}{
		{"GET", http.MethodGet, decrypt, signed, "", "UnknownOperationException"},
		{"another call", post, "TrentService.GenerateDataKey", signed, "{}", "UnknownOperationException"},
		{"not signed", post, decrypt, "", call(oaep, good, ""), "MissingAuthenticationTokenException"},
		{"no JSON", post, decrypt, signed, "<", "SerializationException"},
		{"a member that is not known", post, decrypt, signed, call(oaep, good, `,"DryRun":true`), "SerializationException"},
		{"a megabyte", post, decrypt, signed, strings.Repeat(" ", 1<<20), "SerializationException"},
		{"another algorithm of the key", post, decrypt, signed, call(oaep, good, `,"EncryptionAlgorithm":"RSAES_OAEP_SHA_1"`), "ValidationException"},
		{"another algorithm of the recipient", post, decrypt, signed, call("RSAES_OAEP_SHA_1", good, ""), "ValidationException"},
		{"no document", post, decrypt, signed, `{"KeyId":"k","CiphertextBlob":"AA=="}`, "AccessDeniedException"},
		{"an empty document", post, decrypt, signed, call(oaep, nil, ""), "ValidationException"},
		{"half a document", post, decrypt, signed, call(oaep, good[:1000], ""), "ValidationException"},
		{"a changed document", post, decrypt, signed, call(oaep, append(bytes.Clone(good[:len(good)-1]), good[len(good)-1]^1), ""), "ValidationException"},
		{"a document without key", post, decrypt, signed, call(oaep, document(nil), ""), "ValidationException"},
		{"a document with a key of another kind", post, decrypt, signed, call(oaep, document([]byte("key")), ""), "ValidationException"},
		{"a document with a small key", post, decrypt, signed, call(oaep, document(spki(1024)), ""), "ValidationException"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, body := ask(tc.method, tc.target, tc.authorization, tc.body)
			if status != 400 || !strings.Contains(body, tc.code) || !strings.Contains(body, "not AWS KMS") || strings.Contains(body, "CiphertextForRecipient") {
				t.Errorf("status %d, %s, want %s", status, body, tc.code)
			}
		})
	}
	if strings.Contains(log.String(), secret) || !strings.Contains(log.String(), "released") || !strings.Contains(log.String(), "refused") {
		t.Errorf("the log is %s", log.String())
	}
}

// TestNotReleased holds that the stand-in is no part of the released program.
func TestNotReleased(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "github.com/org/attestable-image-action").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Contains(string(out), "kmsstandin") || !strings.Contains(string(out), "internal/awskms") {
		t.Error("the program imports the stand-in")
	}
}
