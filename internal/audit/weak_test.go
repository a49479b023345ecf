package audit

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/kiwi"
	"github.com/org/attestable-image-action/internal/testenv"
)

// TestWeakTemplate builds a weak variant of the template debian with KIWI: with
// an SSH server, a login prompt, a password, a writable partition, and verity
// that lets damaged blocks pass. Each is found.
func TestWeakTemplate(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: building a variant of the template debian with KIWI takes minutes")
	}
	description := t.TempDir()
	if err := os.CopyFS(description, os.DirFS(filepath.Join(testenv.Root(t), "kiwi-templates", "debian"))); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]struct{ old, new string }{
		"config.xml": {`<package name="binutils"/>`, `<package name="binutils"/><package name="openssh-server"/>`},
		"config.sh": {"\n# The package manager's state", `
systemctl unmask getty.target getty@.service serial-getty@.service
systemctl enable getty@tty1.service ssh.service
sed -i 's,^root:[^:]*:,root:$6$salt$hash:,' /etc/shadow

# The package manager's state`},
		"root/etc/fstab.script": {"set -eu\n", "set -eu\necho 'LABEL=data /data ext4 defaults 0 0' >> /etc/fstab\n"},
		"edit_boot_install.sh":  {"panic-on-corruption", "ignore-corruption"},
	} {
		path := filepath.Join(description, name)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		changed := strings.Replace(string(b), edit.old, edit.new, 1)
		if changed == string(b) {
			t.Fatalf("%s has no %q", name, edit.old)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(changed), info.Mode()); err != nil {
			t.Fatal(err)
		}
	}
	sources, err := kiwi.ParsePackageSources(os.Getenv("ATTESTABLE_IMAGE_PACKAGE_SOURCE"))
	if err != nil {
		t.Fatal(err)
	}
	result, err := kiwi.Build(t.Context(), kiwi.Options{
		Description: os.DirFS(description), Source: "weak variant of debian", PackageSources: sources, Output: filepath.Join(t.TempDir(), "out"),
	})
	if errors.Is(err, kiwi.ErrNoEngine) {
		testenv.Missing(t, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	r := auditFile(t, result.Disk, Options{})
	for id, path := range map[string]string{
		"sshd-enabled": "", "getty-enabled": "", "password-set": "etc/shadow", "writable-partition": "etc/fstab", "verity-ignores-corruption": "EFI/BOOT/",
	} {
		if !slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.ID == id && strings.HasPrefix(f.Path, path) }) {
			t.Errorf("%s is not found:\n%s", id, ids(r))
		}
	}
	for _, f := range r.Findings {
		t.Logf("%s %s at %s: %s", f.Severity, f.ID, f.Where(), f.Detail)
	}
}
