package e2e

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
)

// secureBootIdentity is an RSA key and its certificate, both in PEM.
func secureBootIdentity(t *testing.T) (key, certificate string) {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Golden identity"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})),
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// actionSteps runs single steps of action.yml as a runner does: the script in
// the environment that the step declares, and nothing else.
type actionSteps struct {
	values map[string]string // of expressions, such as "steps.build.outputs.image-path"
	log    strings.Builder
}

var expression = regexp.MustCompile(`^\$\{\{ ([\w.-]+) \}\}$`)

// run runs the step of an identifier and keeps its outputs.
func (s *actionSteps) run(t *testing.T, id string) outcome {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(testenv.Root(t), "action.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var action struct {
		Runs struct {
			Steps []struct {
				ID  string
				Run string
				Env map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(data, &action); err != nil {
		t.Fatal(err)
	}
	for _, step := range action.Runs.Steps {
		if step.ID != id {
			continue
		}
		dir := t.TempDir()
		output := filepath.Join(dir, "output")
		if err := os.WriteFile(output, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		env := []string{"GITHUB_ACTIONS=true", "GITHUB_OUTPUT=" + output, "GITHUB_REPOSITORY=octo-org/image", "GITHUB_SHA=0123", "GITHUB_SERVER_URL=https://github.com"}
		for name, value := range step.Env {
			if found := expression.FindStringSubmatch(value); found != nil {
				value = s.values[found[1]]
			}
			env = append(env, name+"="+value)
		}
		o := run(t, env, "bash", "-e", "-o", "pipefail", "-c", step.Run)
		s.log.WriteString(o.output)
		written, err := os.ReadFile(output)
		if err != nil {
			t.Fatal(err)
		}
		s.log.Write(written)
		for name, value := range parseOutputs(string(written)) {
			s.values["steps."+id+".outputs."+name] = value
		}
		return o
	}
	t.Fatalf("action.yml has no step %s", id)
	return outcome{}
}

// parseOutputs reads a file of step outputs, NAME=VALUE or NAME<<DELIMITER.
func parseOutputs(content string) map[string]string {
	outputs := map[string]string{}
	lines := strings.Split(content, "\n")
	for i := 0; i < len(lines); i++ {
		name, delimiter, multi := strings.Cut(lines[i], "<<")
		if !multi {
			if name, value, ok := strings.Cut(lines[i], "="); ok {
				outputs[name] = value
			}
			continue
		}
		var value []string
		for i++; i < len(lines) && lines[i] != delimiter; i++ {
			value = append(value, lines[i])
		}
		outputs[name] = strings.Join(value, "\n")
	}
	return outputs
}

// TestActionSigns runs the steps of the action from the finished disk on, with
// a key in a secret: the artifact carries measurements for Secure Boot and the
// variable store, and who verifies it needs nothing else. The key is nowhere.
func TestActionSigns(t *testing.T) {
	binary := command(t)
	key, certificate := secureBootIdentity(t)
	work := t.TempDir()
	disk := smallDisk(t)
	layout := "oci:" + filepath.Join(t.TempDir(), "layout")
	s := &actionSteps{values: map[string]string{
		"github.action_path":             testenv.Root(t),
		"steps.prepare.outputs.bin":      binary,
		"steps.prepare.outputs.work":     work,
		"steps.build.outputs.image-path": disk,
		"inputs.secure-boot-key":         key,
		"inputs.secure-boot-cert":        certificate,
	}}
	builder := `{"Image": "builder", "Digest": "sha256:` + strings.Repeat("0", 64) + `", "KIWI": "10.3.9", "PackagesSHA256": "` + strings.Repeat("1", 64) +
		`", "Packages": [], "Inputs": {"SourceDateEpoch": 1, "DescriptionSHA256": "` + strings.Repeat("2", 64) + `", "PackagesLocked": false}}`
	err := os.Mkdir(filepath.Join(work, "image"), 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(work, "image", "builder.json"), []byte(builder), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.run(t, "sign").accepts(t)
	s.run(t, "measure").accepts(t)
	raw, err := os.ReadFile(filepath.Join(work, "measurements.json"))
	if err != nil {
		t.Fatal(err)
	}
	doc, err := measure.ParseDocument(raw)
	if err != nil {
		t.Fatal(err)
	}
	if !doc.SecureBoot.Enabled || len(doc.SecureBoot.Authorities) != 1 || doc.SecureBoot.Authorities[0].Subject != "CN=Golden identity" {
		t.Errorf("Secure Boot in the measurements is %+v", doc.SecureBoot)
	}
	if conditions := s.values["steps.measure.outputs.kms-conditions"]; !strings.Contains(conditions, "NitroTPMPCR7") {
		t.Errorf("the key policy does not bind PCR 7: %s", conditions)
	}

	// The registry is a directory here, else the step is as it is.
	reference := run(t, nil, binary, "push", "--quiet", "--measurements", filepath.Join(work, "measurements.json"),
		"--uefi-data", s.values["steps.sign.outputs.uefi-data"], disk, layout)
	reference.accepts(t)
	artifact := strings.TrimSpace(reference.output)
	trust := filepath.Join(t.TempDir(), "trust")
	run(t, nil, binary, "attest", "--local-trust", trust, artifact).accepts(t)
	run(t, nil, binary, "verify", "artifact", artifact, "--local-trust", trust, "--remeasure").accepts(t)

	for _, line := range strings.Split(strings.TrimSpace(key), "\n")[1:] {
		if len(line) > 20 && strings.Contains(s.log.String(), line) {
			t.Error("the log or an output has the key")
		}
	}
	out, err := exec.Command("grep", "-rlF", strings.Split(key, "\n")[3], work).CombinedOutput()
	if err == nil {
		t.Errorf("files have the key: %s", out)
	}

	// Without a key nothing is signed, and nothing is said about Secure Boot.
	s.values["steps.build.outputs.image-path"] = smallDisk(t)
	for _, name := range []string{"PK", "KEK", "db", "uefi-data"} {
		delete(s.values, "steps.sign.outputs."+name)
	}
	s.run(t, "measure").accepts(t)
	if raw, err = os.ReadFile(filepath.Join(work, "measurements.json")); err != nil {
		t.Fatal(err)
	}
	if doc, err = measure.ParseDocument(raw); err != nil || doc.SecureBoot.Enabled {
		t.Errorf("measured without a key: Secure Boot %v, %v", doc.SecureBoot.Enabled, err)
	}
}

// TestActionSignRefuses gives the step inputs that cannot be right. None of
// them is shown, since it could be a secret that was pasted wrongly.
func TestActionSignRefuses(t *testing.T) {
	binary := command(t)
	key, certificate := secureBootIdentity(t)
	_, other := secureBootIdentity(t)
	squeezed := strings.ReplaceAll(strings.ReplaceAll(strings.ReplaceAll(key, "-----BEGIN PRIVATE KEY-----", ""), "-----END PRIVATE KEY-----", ""), "\n", "")
	for _, tc := range []struct {
		name, key, certificate string
		want                   string
	}{
		{"key without its lines", squeezed, certificate, "input 'secure-boot-key' is neither a private key in PEM"},
		{"short secret", "hunter2", certificate, "input 'secure-boot-key' is neither a private key in PEM"},
		{"no certificate", key, "hunter2", "input 'secure-boot-cert' is neither a certificate in PEM nor a file"},
		{"key for a certificate", key, key, "it has no certificate, neither in PEM"},
		{"certificate for a key", certificate, certificate, "it has no private key in PEM"},
		{"another key's certificate", key, other, "is for another key"},
		{"one line", strings.ReplaceAll(key, "\n", " "), certificate, "it has no private key in PEM"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &actionSteps{values: map[string]string{
				"github.action_path":             testenv.Root(t),
				"steps.prepare.outputs.bin":      binary,
				"steps.prepare.outputs.work":     t.TempDir(),
				"steps.build.outputs.image-path": filepath.Join(t.TempDir(), "never-opened.raw"),
				"inputs.secure-boot-key":         tc.key,
				"inputs.secure-boot-cert":        tc.certificate,
			}}
			s.run(t, "sign").refuses(t, tc.want)
			if log := s.log.String(); !strings.Contains(log, "::error") || strings.Contains(log, "hunter2") || strings.Contains(log, squeezed[64:128]) {
				t.Errorf("the log is %q", log)
			}
		})
	}
}

// TestSignedBoots signs disks and boots them under Secure Boot, through
// systemd-boot and on the other architecture: every PCR is as predicted, and
// PCR 7 is that of the identity.
func TestSignedBoots(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: booting signed disks is slow")
	}
	binary := command(t)
	keys := filepath.Join(t.TempDir(), "keys")
	var flags []string
	for _, v := range []string{"PK", "KEK", "db"} {
		flags = append(flags, "--"+v, filepath.Join(keys, v+".esl"))
	}
	const suite = "trixie"
	for _, g := range guests {
		t.Run(g.name, func(t *testing.T) {
			loader := testenv.DebianFile(t, suite, g.debian, "systemd-boot-efi", "usr/lib/systemd/boot/efi/systemd-boot"+g.efi+".efi")
			disk := bootDisk(t, map[string][]byte{g.boot: loader, "EFI/Linux/signed.efi": g.uki(t, suite), "loader/loader.conf": []byte("timeout 0\n")})
			signed := run(t, nil, binary, "sign", "--create-keys", keys, disk)
			signed.accepts(t)
			for _, path := range []string{g.boot, "EFI/Linux/signed.efi"} {
				if !strings.Contains(signed.output, "signed "+path+" by") {
					t.Errorf("%s was not signed:\n%s", path, signed.output)
				}
			}
			bootsAsPredicted(t, disk, append([]string{"--pcr", "4,5,7,9,11,12,13"}, flags...)...)
		})
	}
	t.Run("type 1 entry", func(t *testing.T) {
		g := guests[0]
		loader := testenv.DebianFile(t, suite, g.debian, "systemd-boot-efi", "usr/lib/systemd/boot/efi/systemd-boot"+g.efi+".efi")
		disk := bootDisk(t, map[string][]byte{
			g.boot: loader, "vmlinuz": g.kernel(t), "initrd.img": []byte("070701 no archive either\n"),
			"loader/entries/one.conf": []byte("linux /vmlinuz\ninitrd /initrd.img\n"),
		})
		run(t, nil, binary, "sign", "--create-keys", keys, disk).refuses(t, "vmlinuz is started with an initrd and options that no signature covers")
	})
}
