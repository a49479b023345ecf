package cli

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/efi"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
	"github.com/org/attestable-image-action/internal/vm"
)

const bootPath = "EFI/BOOT/BOOTX64.EFI"

// testKey is an RSA key that is made once.
var testKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

// writePEM writes a file of the test.
func writePEM(t testing.TB, kind string, der []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), strings.ToLower(strings.ReplaceAll(kind, " ", "-"))+".pem")
	if err := os.WriteFile(path, pemBlock(kind, der), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// keyAndCertificate writes a key and a certificate of it.
func keyAndCertificate(t testing.TB, key crypto.Signer) (keyFile, certFile string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := selfSigned("Test signer", testKey())
	if err != nil {
		t.Fatal(err)
	}
	return writePEM(t, "PRIVATE KEY", der), writePEM(t, "CERTIFICATE", certificate.Raw)
}

// readESP reads a file of a disk's EFI system partition.
func readESP(t testing.TB, path, name string) []byte {
	t.Helper()
	d, err := disk.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	gpt, err := d.GPT()
	if err != nil {
		t.Fatal(err)
	}
	esp, err := gpt.ESP()
	if err != nil {
		t.Fatal(err)
	}
	fat, err := disk.OpenFAT(io.NewSectionReader(d, esp.Offset, esp.Size), esp.Size)
	if err != nil {
		t.Fatal(err)
	}
	f, err := fat.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(io.NewSectionReader(f, 0, f.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// replaceESP gives a file of a disk's EFI system partition other content.
func replaceESP(t testing.TB, path, name string, content []byte) {
	t.Helper()
	d, err := disk.OpenWritable(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	gpt, err := d.GPT()
	if err != nil {
		t.Fatal(err)
	}
	esp, err := gpt.ESP()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.ReplaceFile(esp, name, bytes.NewReader(content), int64(len(content))); err != nil {
		t.Fatal(err)
	}
}

// mustExecute runs a command line that must succeed.
func mustExecute(t *testing.T, args ...string) (stdout, stderr string) {
	t.Helper()
	status, stdout, stderr := execute(t, args...)
	if status != 0 {
		t.Fatalf("%s: status %d: %s", strings.Join(args, " "), status, stderr)
	}
	return stdout, stderr
}

func parseDocument(t *testing.T, b string) *measure.Document {
	t.Helper()
	doc, err := measure.ParseDocument([]byte(b))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// sbverify says whether sbverify accepts the image on a disk by a certificate.
func sbverify(t *testing.T, path, cert string) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image.efi")
	if err := os.WriteFile(image, readESP(t, path, bootPath), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(testenv.Tool(t, "sbverify"), "--cert", cert, image).CombinedOutput(); err != nil {
		t.Errorf("sbverify: %v\n%s", err, out)
	}
}

// TestSign signs two different disks with one identity: both verify, PCR 7 is
// the same for both, and signing again changes nothing.
func TestSign(t *testing.T) {
	keys := filepath.Join(t.TempDir(), "keys")
	pcr7 := map[string]bool{}
	for n, name := range []string{"stub257", "sbA252"} {
		path := testenv.GoldenDisk(t, name)
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		out := t.TempDir()
		stdout, stderr := mustExecute(t, "sign", "--create-keys", keys, "--format", "json",
			"--uefi-data", filepath.Join(out, "uefi-data.aws"), "--variables-output", filepath.Join(out, "variables"), path)
		doc := parseDocument(t, stdout)
		if made := strings.Contains(stderr, "made a Secure Boot identity in "+keys); made != (n == 0) || !strings.Contains(stderr, "signed "+bootPath) {
			t.Errorf("%s: standard error is %q", name, stderr)
		}
		sbverify(t, path, filepath.Join(keys, "db.crt"))
		pcr7[doc.PCR(7)] = true
		if len(doc.SecureBoot.Authorities) != 1 || doc.SecureBoot.Authorities[0].Subject != "CN=Secure Boot db" {
			t.Errorf("%s: authorities are %+v", name, doc.SecureBoot.Authorities)
		}

		// measure with the variables says the same.
		args := []string{"measure", "--format", "json", "--disk-digest=false"}
		for _, v := range identityVariables {
			written, err := os.ReadFile(filepath.Join(out, "variables", v+".esl"))
			if err != nil {
				t.Fatal(err)
			}
			if kept, err := os.ReadFile(filepath.Join(keys, v+".esl")); err != nil || !bytes.Equal(kept, written) {
				t.Errorf("%s.esl is not the identity's (%v)", v, err)
			}
			args = append(args, "--"+v, filepath.Join(out, "variables", v+".esl"))
		}
		if again, _ := mustExecute(t, append(args, path)...); again != stdout {
			t.Errorf("%s: sign says\n%s\nmeasure says\n%s", name, stdout, again)
		}

		// The variable store holds the same lists.
		store, err := os.ReadFile(filepath.Join(out, "uefi-data.aws"))
		if err != nil {
			t.Fatal(err)
		}
		variables, err := efi.DecodeAWSVariables(store, nil)
		if err != nil || len(variables) != 3 {
			t.Fatalf("%d variables in the store, %v", len(variables), err)
		}
		for i, v := range variables {
			list, err := os.ReadFile(filepath.Join(keys, identityVariables[i]+".esl"))
			if err != nil {
				t.Fatal(err)
			}
			if v.Name != identityVariables[i] || v.Attributes != 0x27 || !bytes.Equal(v.Data, list) {
				t.Errorf("variable %d of the store is %s with attributes %#x and %d bytes", i, v.Name, v.Attributes, len(v.Data))
			}
		}

		// Nothing outside of the EFI system partition changed, and it is in order.
		after, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		const espStart, espEnd = 2048 * 512, 165888 * 512
		if !bytes.Equal(before[:espStart], after[:espStart]) || !bytes.Equal(before[espEnd:], after[espEnd:]) {
			t.Errorf("%s: bytes outside of the EFI system partition changed", name)
		}
		esp := filepath.Join(out, "esp.img")
		if err := os.WriteFile(esp, after[espStart:espEnd], 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(testenv.Tool(t, "fsck.vfat"), "-n", esp).CombinedOutput(); err != nil {
			t.Errorf("fsck.vfat: %v\n%s", err, out)
		}

		_, stderr = mustExecute(t, "sign", "--create-keys", keys, path)
		if !strings.Contains(stderr, `was already signed by "CN=Secure Boot db" and is left as it is`) {
			t.Errorf("%s: standard error of the second time is %q", name, stderr)
		}
		if again, err := os.ReadFile(path); err != nil || !bytes.Equal(again, after) {
			t.Errorf("%s: signing again changed the disk (%v)", name, err)
		}
	}
	if len(pcr7) != 1 {
		t.Errorf("one identity gives %d values of PCR 7", len(pcr7))
	}
	for _, name := range append(identityFiles(true), "PK.key", "KEK.key") {
		info, err := os.Stat(filepath.Join(keys, name))
		if err != nil {
			t.Error(err)
		} else if secret := strings.HasSuffix(name, ".key"); secret && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", name, info.Mode().Perm())
		}
	}
}

// TestSignAddon signs what systemd-stub has firmware load, too.
func TestSignAddon(t *testing.T) {
	path := testenv.GoldenDisk(t, "stub257")
	addon := filepath.Join(t.TempDir(), "addon.efi")
	if err := os.WriteFile(addon, testenv.PE(0x8664, testenv.PESection{Name: ".cmdline", Data: []byte("quiet")}), 0o600); err != nil {
		t.Fatal(err)
	}
	const name = bootPath + ".extra.d/quiet.addon.efi"
	for _, args := range [][]string{{"mmd", "::" + bootPath + ".extra.d"}, {"mcopy", addon, "::" + name}} {
		cmd := exec.Command(testenv.Tool(t, args[0]), append([]string{"-i", path + "@@1M"}, args[1:]...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	stdout, stderr := mustExecute(t, "sign", "--create-keys", filepath.Join(t.TempDir(), "keys"), "--format", "json", path)
	for _, signed := range []string{bootPath, name} {
		if !strings.Contains(stderr, "signed "+signed+" by") {
			t.Errorf("%s is not signed: %s", signed, stderr)
		}
	}
	chain := parseDocument(t, stdout).BootChain
	if len(chain) != 2 || chain[1].Path != name {
		t.Errorf("boot chain %+v", chain)
	}
}

// TestSignBoots boots signed disks under Secure Boot, one of them with somebody
// else's signature before ours: every PCR is as predicted.
func TestSignBoots(t *testing.T) {
	if testing.Short() {
		t.Skip("booting signed disks is slow")
	}
	testenv.Tool(t, "qemu-system-x86_64")
	testenv.Tool(t, "swtpm")
	keyFile, certFile := keyAndCertificate(t, testKey())
	certificates, err := readCertificates(certFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"stub257", "sbA252"} {
		t.Run(name, func(t *testing.T) {
			path := testenv.GoldenDisk(t, name)
			boot := func(s measure.SecureBoot) (*vm.Result, error) {
				return vm.Boot(t.Context(), vm.Options{
					Disk: path, SecureBoot: s, TimeLimit: 3 * time.Minute, SerialLog: filepath.Join(t.TempDir(), "serial.log"),
				})
			}
			if name == "stub257" {
				// Firmware does enforce what it is given.
				if _, err := boot(derivedVariables(certificates[0])); !errors.Is(err, vm.ErrNotBootable) {
					t.Errorf("the disk booted before it was signed: %v", err)
				}
			}
			mustExecute(t, "sign", "--key", keyFile, "--cert", certFile, path)
			o := measure.Options{SecureBoot: derivedVariables(certificates[0]), PCRs: []int{4, 5, 7, 11, 12, 13}}
			d, err := disk.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			p, err := measure.Disk(t.Context(), d, o)
			if err != nil {
				t.Fatal(err)
			}
			result, err := boot(o.SecureBoot)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range result.Compare(p) {
				if !c.Equal() {
					t.Errorf("PCR %d is predicted as %x, the boot recorded %x", c.PCR, c.Predicted, c.Recorded)
				}
			}
		})
	}
}

// TestSignFromDescriptor gives the key and the certificate as descriptors.
func TestSignFromDescriptor(t *testing.T) {
	path := testenv.GoldenDisk(t, "stub257")
	keyFile, certFile := keyAndCertificate(t, testKey())
	descriptor := func(name string) string {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		n, err := duplicate(f)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("fd:%d", n)
	}
	mustExecute(t, "sign", "--key", descriptor(keyFile), "--cert", descriptor(certFile), path)
	sbverify(t, path, certFile)
}

// TestSignWithKMS makes an identity whose db key is in AWS KMS.
func TestSignWithKMS(t *testing.T) {
	service := testenv.StartKMS(t, map[string]*rsa.PrivateKey{"alias/secure-boot": testKey()})
	keys := filepath.Join(t.TempDir(), "keys")
	path := testenv.GoldenDisk(t, "stub257")
	mustExecute(t, "sign", "--key", "awskms:alias/secure-boot", "--create-keys", keys, path)
	sbverify(t, path, filepath.Join(keys, "db.crt"))
	if _, err := os.Stat(filepath.Join(keys, "db.key")); err == nil {
		t.Error("there is a db.key beside the key in AWS KMS")
	}
	if n := service.Signs(); n != 2 { // the certificate, the image
		t.Errorf("%d signatures were asked for, want 2", n)
	}
	mustExecute(t, "sign", "--key", "awskms:alias/secure-boot", "--create-keys", keys, path)
	if n := service.Signs(); n != 2 {
		t.Errorf("%d signatures were asked for after signing again, want 2", n)
	}
	status, _, stderr := execute(t, "sign", "--key", "awskms:alias/other", "--create-keys", keys, path)
	if status != 1 || !strings.Contains(stderr, "open AWS KMS key alias/other") {
		t.Errorf("with a key that is not there: status %d, %q", status, stderr)
	}
}

// TestSignOutputs runs the command as a step of the action does.
func TestSignOutputs(t *testing.T) {
	path := testenv.GoldenDisk(t, "stub257")
	keyFile, certFile := keyAndCertificate(t, testKey())
	dir := t.TempDir()
	output := filepath.Join(dir, "output")
	t.Setenv("GITHUB_ACTIONS", "true")
	t.Setenv("GITHUB_OUTPUT", output)
	if err := os.WriteFile(output, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	store := filepath.Join(dir, "uefi-data.aws")
	status, stdout, stderr := executeHere(t, "sign", "--key", keyFile, "--cert", certFile,
		"--variables-output", filepath.Join(dir, "secure-boot"), "--uefi-data", store, path)
	if status != 0 {
		t.Fatalf("status %d: %s", status, stderr)
	}
	outputs, err := os.ReadFile(output)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"PK", "KEK", "db", "uefi-data"} {
		if !strings.Contains(string(outputs), want+"<<") && !strings.Contains(string(outputs), want+"=") {
			t.Errorf("there is no output %s in\n%s", want, outputs)
		}
	}
	if strings.Contains(string(outputs), "dbx") {
		t.Errorf("there is an output dbx without one in\n%s", outputs)
	}
	secret, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(strings.TrimSpace(string(secret)), "\n")[1:3] {
		if strings.Contains(stdout+stderr+string(outputs), line) {
			t.Error("the key was printed")
		}
	}
}

func TestSignRefuses(t *testing.T) {
	disk257 := testenv.GoldenDisk(t, "stub257")
	keyFile, certFile := keyAndCertificate(t, testKey())
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecdsaFile, _ := keyAndCertificate(t, curve)
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	otherFile, _ := keyAndCertificate(t, other)
	encrypted := writePEM(t, "ENCRYPTED PRIVATE KEY", []byte("whatever"))
	traditional := filepath.Join(t.TempDir(), "traditional.pem")
	if err := os.WriteFile(traditional, pem.EncodeToMemory(&pem.Block{
		Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"}, Bytes: []byte("x"),
	}), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := writePEM(t, "PRIVATE KEY", []byte("secret material"))
	certificates, err := readCertificates(certFile)
	if err != nil {
		t.Fatal(err)
	}
	dbx := filepath.Join(t.TempDir(), "dbx.esl")
	if err := os.WriteFile(dbx, efi.CertificateLists(certificates...), 0o600); err != nil {
		t.Fatal(err)
	}
	part := t.TempDir()
	if err := os.WriteFile(filepath.Join(part, "PK.esl"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	noUKI := testenv.GoldenDisk(t, "stub257")
	replaceESP(t, noUKI, bootPath, testenv.PE(0x8664, testenv.PESection{Name: ".text", Data: []byte{0xc3}}))
	full := testenv.GoldenDisk(t, "stub257")
	replaceESP(t, full, bootPath, testenv.UKI(0x8664, "257.13-1", testenv.PESection{Name: ".big", Data: make([]byte, 45<<20)}))
	esl := func(v string) string { return filepath.Join(testenv.Root(t), "testdata/golden/sbA252."+v+".esl") }

	for _, tc := range []struct {
		name   string
		disk   string
		args   []string
		status int
		want   string
	}{
		{"nothing to sign with", disk257, nil, 2, "give the key to sign with by --key and --cert, or a Secure Boot identity by --create-keys; if a secret was meant to be here, it is empty"},
		{"no certificate", disk257, []string{"--key", keyFile}, 2, "give the key's certificate by --cert"},
		{"certificate twice", disk257, []string{"--create-keys", part, "--cert", certFile}, 2, "leave out --cert"},
		{"no such format", disk257, []string{"--format", "yaml"}, 2, `there is no format "yaml"`},
		{"key as an argument", disk257, []string{"--key", "-----BEGIN PRIVATE KEY-----\nMII", "--cert", certFile}, 2, "--key holds a key itself, which every program on this machine can see there"},
		{"no such key", disk257, []string{"--key", "/nonexistent.pem", "--cert", certFile}, 1, "read the key for Secure Boot: open /nonexistent.pem: no such file"},
		{"key is encrypted", disk257, []string{"--key", encrypted, "--cert", certFile}, 1, "it is encrypted, and no pass phrase is asked for: decrypt it into a file descriptor, as in --key fd:3 3< <(openssl pkey -in KEY.pem)"},
		{"key is encrypted as of old", disk257, []string{"--key", traditional, "--cert", certFile}, 1, "it is encrypted, and no pass phrase is asked for"},
		{"key is broken", disk257, []string{"--key", broken, "--cert", certFile}, 1, "its PEM block holds no private key that can be read"},
		{"certificate for a key", disk257, []string{"--key", certFile, "--cert", certFile}, 1, "it has no private key in PEM"},
		{"key for a certificate", disk257, []string{"--key", keyFile, "--cert", keyFile}, 1, "it has no certificate, neither in PEM"},
		{"ECDSA", disk257, []string{"--key", ecdsaFile, "--cert", certFile}, 1, "the key is ECDSA, and firmware verifies RSA only"},
		{"ECDSA for an identity", disk257, []string{"--key", ecdsaFile, "--create-keys", filepath.Join(part, "new")}, 1, "the key is ECDSA, and firmware verifies RSA only"},
		{"wrong key for the certificate", disk257, []string{"--key", otherFile, "--cert", certFile}, 1, `the certificate of "CN=Test signer" is for another key`},
		{"no descriptor", disk257, []string{"--key", "fd:one", "--cert", certFile}, 2, "names no file descriptor to read from"},
		{"standard output", disk257, []string{"--key", "fd:1", "--cert", certFile}, 2, "names no file descriptor to read from"},
		{"descriptor is not open", disk257, []string{"--key", "fd:999", "--cert", certFile}, 1, "open it for this program, as in 999<FILE"},
		{"KMS without a key", disk257, []string{"--key", "awskms:", "--cert", certFile}, 2, "awskms: needs the key's identifier"},
		{"half an identity", disk257, []string{"--create-keys", part}, 1, "it lacks db.crt, db.key, KEK.esl, db.esl, and a part of an identity is never made anew"},
		{"revoked", disk257, []string{"--key", keyFile, "--cert", certFile, "--dbx", dbx}, 1, "nothing was changed: "},
		{"db of somebody else", disk257, []string{"--key", keyFile, "--cert", certFile, "--PK", esl("PK"), "--KEK", esl("KEK"), "--db", esl("db")}, 1, "no entry of db has the signer of"},
		{"db without PK", disk257, []string{"--key", keyFile, "--cert", certFile, "--db", esl("db")}, 2, "give --PK too"},
		{"no such disk", "/nonexistent.raw", []string{"--key", keyFile, "--cert", certFile}, 1, "/nonexistent.raw: no such file"},
		{"no disk", certFile, []string{"--key", keyFile, "--cert", certFile}, 1, "there is no GUID partition table"},
		{"no UKI", noUKI, []string{"--key", keyFile, "--cert", certFile}, 1, bootPath + ", which firmware starts, is neither a unified kernel image (a .linux section with a systemd-stub before it) nor systemd-boot"},
		{"no room", full, []string{"--key", keyFile, "--cert", certFile}, 1, "make the partition larger (KIWI: efipartsize)"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before, _ := os.ReadFile(tc.disk) // one does not exist
			status, stdout, stderr := execute(t, append(append([]string{"sign"}, tc.args...), tc.disk)...)
			if status != tc.status || !strings.Contains(stderr, tc.want) {
				t.Errorf("status %d, stderr %q; want status %d and %q", status, stderr, tc.status, tc.want)
			}
			if line, _, _ := strings.Cut(strings.TrimSpace(stderr), "\nSee '"); strings.Contains(line, "\n") || stdout != "" {
				t.Errorf("standard error has not one sentence: %q; standard output is %q", stderr, stdout)
			}
			if strings.Contains(stderr, "MII") || strings.Contains(stderr, "secret material") {
				t.Errorf("a key was printed: %q", stderr)
			}
			if after, _ := os.ReadFile(tc.disk); !bytes.Equal(before, after) {
				t.Error("the disk was changed")
			}
		})
	}
	if _, err := os.Stat(filepath.Join(part, "new")); err == nil {
		t.Error("an identity was made for a key that firmware cannot use")
	}
}

// TestSignWithFiles signs for variables that are given as files.
func TestSignWithFiles(t *testing.T) {
	path := testenv.GoldenDisk(t, "sbA252")
	keyFile, certFile := keyAndCertificate(t, testKey())
	certificates, err := readCertificates(certFile)
	if err != nil {
		t.Fatal(err)
	}
	// db has the golden disk's own certificate first, then ours.
	golden := filepath.Join(testenv.Root(t), "testdata/golden/sbA252.")
	lists, err := os.ReadFile(golden + "db.esl")
	if err != nil {
		t.Fatal(err)
	}
	db := filepath.Join(t.TempDir(), "db.esl")
	if err := os.WriteFile(db, append(lists, efi.CertificateLists(certificates...)...), 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, _ := mustExecute(t, "sign", "--key", keyFile, "--cert", certFile, "--format", "json",
		"--PK", golden+"PK.esl", "--KEK", golden+"KEK.esl", "--db", db, "--dbx", golden+"dbx.esl", path)
	var doc struct {
		SecureBoot struct{ Variables []struct{ Name string } }
	}
	if err := json.Unmarshal([]byte(stdout), &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.SecureBoot.Variables) != 4 {
		t.Errorf("variables are %+v", doc.SecureBoot.Variables)
	}
	image, err := efi.ParseImage(bytes.NewReader(readESP(t, path, bootPath)), int64(len(readESP(t, path, bootPath))))
	if err != nil {
		t.Fatal(err)
	}
	if signatures, err := image.Signatures(); err != nil || len(signatures) != 2 {
		t.Errorf("%d signatures, %v; want the old one and ours", len(signatures), err)
	}
}
