package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/efi"
	"github.com/org/attestable-image-action/internal/testenv"
)

// instanceUp bounds the time from the start of QEMU to the service's first answer.
const instanceUp = 8 * time.Minute

// provesItself boots the image of an artifact, which has the attestation service in
// it, on an emulated NitroTPM, and asks it who it is: verify instance against the
// artifact. Then other images answer in its place, and each is refused for what it
// is. All of them when ATTESTABLE_IMAGE_MATRIX is set, as scripts/instance-matrix
// does; otherwise those whose PCR 4 is the artifact's.
func (a *artifact) provesItself(t *testing.T) {
	full := os.Getenv("ATTESTABLE_IMAGE_MATRIX") != ""
	for _, c := range []struct {
		name   string
		always bool
		boots  func(t *testing.T) (disk string, flags []string)
		failed []string // the checks that do not hold
	}{
		{"as attested", true, func(*testing.T) (string, []string) { return a.disk, nil }, nil},
		{"another command line", true, a.withBootEntry, []string{"PCR 12"}},
		{"a driver that a UEFI variable has firmware load", true, a.withDriver, []string{"PCR 2"}},
		{"an add-on's command line", false, a.withAddon, []string{"PCR 4", "PCR 12"}},
		{"another unified kernel image", false, a.withOtherKernelImage, []string{"PCR 4"}},
		{"one more package", false, a.withOneMorePackage, []string{"PCR 4"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !full && !c.always {
				t.Skip("the long form, scripts/instance-matrix, boots this")
			}
			disk, flags := c.boots(t)
			v := a.instance(t, disk, flags...)
			if c.failed == nil {
				v.accepted(t, a.reference)
			} else {
				v.refused(t, c.failed)
			}
		})
	}
}

// instanceVerdict is what verify instance --format json says, and with which status.
type instanceVerdict struct {
	Verified   bool
	Generation string
	Checks     []struct {
		Name, Expected, Found string
		OK                    bool
	}
	status int
}

func (v *instanceVerdict) accepted(t *testing.T, reference string) {
	t.Helper()
	if v.status != 0 || !v.Verified || v.Generation != reference {
		t.Errorf("status %d, the image is that of %q, not of %q: %+v", v.status, v.Generation, reference, v.Checks)
	}
	seen := map[string]bool{}
	for _, c := range v.Checks {
		seen[c.Name] = c.OK
	}
	for _, name := range []string{"root", "signature", "nonce", "PCR 4", "PCR 12", "TLS key"} {
		if !seen[name] {
			t.Errorf("nothing says that %s holds: %+v", name, v.Checks)
		}
	}
}

// refused demands that these checks fail, and no others.
func (v *instanceVerdict) refused(t *testing.T, want []string) {
	t.Helper()
	if v.status != 1 || v.Verified {
		t.Errorf("status %d, verified is %t", v.status, v.Verified)
	}
	var failed []string
	for _, c := range v.Checks {
		if !c.OK {
			failed = append(failed, c.Name)
		}
	}
	if !slices.Equal(failed, want) {
		t.Errorf("%q fail, not %q: %+v", failed, want, v.Checks)
	}
}

// instance boots a disk and verifies the instance against the artifact.
func (a *artifact) instance(t *testing.T, disk string, flags ...string) *instanceVerdict {
	t.Helper()
	dir := t.TempDir()
	root, serial := filepath.Join(dir, "root.pem"), filepath.Join(dir, "serial.log")
	port := freePort(t)
	ctx, cancel := context.WithTimeout(t.Context(), instanceUp+3*time.Minute)
	defer cancel()
	boot := exec.CommandContext(ctx, command(t), append([]string{
		"boot", disk, "--nitrotpm", "--nitrotpm-root", root,
		"--forward", fmt.Sprintf("%d:8443", port), "--serial-log", serial, "--time-limit", (instanceUp + 2*time.Minute).String(),
	}, flags...)...)
	var bootOutput bytes.Buffer
	boot.Stdout, boot.Stderr = &bootOutput, &bootOutput
	boot.Cancel = func() error { return boot.Process.Signal(syscall.SIGTERM) }
	if err := boot.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- boot.Wait() }()
	t.Cleanup(func() {
		if t.Failed() {
			lines, _ := os.ReadFile(serial)
			t.Logf("boot said:\n%s\nthe serial line ends in:\n%s", &bootOutput, lines[max(0, len(lines)-3000):])
		}
	})
	// The boot command writes the root before it starts anything.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if _, err := os.Stat(root); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("boot writes no root")
		}
	}
	verify := exec.CommandContext(ctx, command(t), "verify", "instance", fmt.Sprintf("https://127.0.0.1:%d", port),
		"--wait", instanceUp.String(), "--format", "json", "--root", root,
		"--artifact", a.reference, "--trusted-root", a.stack.TrustedRoot, "--repo", testenv.DefaultRun.Repository,
		"--cert-oidc-issuer", a.stack.Issuer.URL, "--signer-workflow", testenv.DefaultRun.Repository+"/"+a.workflow.WorkflowPath)
	var stdout, stderr bytes.Buffer
	verify.Stdout, verify.Stderr = &stdout, &stderr
	err := verify.Run()
	v := &instanceVerdict{status: verify.ProcessState.ExitCode()}
	if unread := json.Unmarshal(stdout.Bytes(), v); unread != nil {
		t.Errorf("verify instance: %v, %v\n%s%s", err, unread, &stdout, &stderr)
	}
	// An interrupted boot compares. What the firmware was told is not on the disk,
	// and so not predicted.
	_ = boot.Process.Signal(syscall.SIGTERM)
	if err := <-ended; (err != nil) != (len(flags) > 0) {
		t.Errorf("boot ended with %v", err)
	}
	return v
}

// withBootEntry lets the firmware's boot entry have options: with Secure Boot off,
// systemd-stub takes them in place of the unified kernel image's own command line.
func (a *artifact) withBootEntry(t *testing.T) (string, []string) {
	t.Helper()
	image, err := os.ReadFile(a.kernelImage(t))
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := bytes.Cut(image, []byte("console=ttyS0 "))
	line, _, _ = bytes.Cut(line, []byte{0})
	var options []byte
	for _, unit := range utf16.Encode([]rune("console=ttyS0 " + string(line) + " systemd.mask=nothing.service\x00")) {
		options = binary.LittleEndian.AppendUint16(options, unit)
	}
	return a.disk, loading(t, a.disk, "Boot", "/EFI/BOOT/BOOTX64.EFI", options)
}

// withDriver has the firmware load a driver from the EFI system partition before it
// starts anything, as whoever registers an AMI can with its UefiData.
func (a *artifact) withDriver(t *testing.T) (string, []string) {
	t.Helper()
	to, driver := copyOf(t, a.disk), filepath.Join(t.TempDir(), "driver.efi")
	if err := os.WriteFile(driver, testenv.Driver(0x8664), 0o600); err != nil {
		t.Fatal(err)
	}
	onESP(t, to, "mcopy", driver, "::driver.efi")
	return to, loading(t, to, "Driver", "/driver.efi", nil)
}

// loading makes the flags of a boot whose firmware has the variables KIND0000 and
// KINDOrder, which have it load a file of the disk's EFI system partition.
func loading(t *testing.T, path, kind, file string, options []byte) []string {
	t.Helper()
	const code, vars = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
	if _, err := os.Stat(vars); err != nil {
		testenv.Missing(t, err)
	}
	d, err := disk.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	table, err := disk.ReadGPT(d, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	esp := table.Partitions[0]
	option := efi.LoadOption("of a test", efi.HardDriveFile(esp.Number, uint64(esp.Offset/512), uint64(esp.Size/512), efi.GUID(esp.GUID), file), options)
	const global = "8be4df61-93ca-11d2-aa0d-00e098032b8c" // EFI_GLOBAL_VARIABLE
	variables, err := json.Marshal(map[string]any{"version": 2, "variables": []any{
		map[string]any{"name": kind + "0000", "guid": global, "attr": 7, "data": hex.EncodeToString(option)},
		map[string]any{"name": kind + "Order", "guid": global, "attr": 7, "data": "0000"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	list, made := filepath.Join(dir, "variables.json"), filepath.Join(dir, "vars.fd")
	if err := os.WriteFile(list, variables, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(testenv.Tool(t, "virt-fw-vars"), "--input", vars, "--set-json", list, "--output", made).CombinedOutput(); err != nil {
		t.Fatalf("virt-fw-vars: %v\n%s", err, out)
	}
	return []string{"--firmware-code", code, "--firmware-vars", made}
}

// withAddon is the disk with an add-on beside its unified kernel image.
func (a *artifact) withAddon(t *testing.T) (string, []string) {
	t.Helper()
	p := parts{t: t, suite: "trixie", guest: guests[0]}
	disk := copyOf(t, a.disk)
	file := filepath.Join(t.TempDir(), "addon")
	if err := os.WriteFile(file, p.addon(testenv.PESection{Name: ".cmdline", Data: []byte("systemd.mask=nothing.service")}), 0o600); err != nil {
		t.Fatal(err)
	}
	onESP(t, disk, "mmd", "::EFI/BOOT/BOOTX64.EFI.extra.d")
	onESP(t, disk, "mcopy", file, "::EFI/BOOT/BOOTX64.EFI.extra.d/one.addon.efi")
	return disk, nil
}

// kernelImage is the path of a copy of the disk's unified kernel image.
func (a *artifact) kernelImage(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "uki.efi")
	onESP(t, a.disk, "mcopy", "::EFI/BOOT/BOOTX64.EFI", file)
	return file
}

// withOtherKernelImage is the disk with another command line inside its unified
// kernel image.
func (a *artifact) withOtherKernelImage(t *testing.T) (string, []string) {
	t.Helper()
	disk, file := copyOf(t, a.disk), a.kernelImage(t)
	image, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	from, to := []byte(" panic=-1 "), []byte(" panic=-9 ")
	if bytes.Count(image, from) != 1 {
		t.Fatalf("the kernel image has %q %d times", from, bytes.Count(image, from))
	}
	if err := os.WriteFile(file, bytes.Replace(image, from, to, 1), 0o600); err != nil {
		t.Fatal(err)
	}
	onESP(t, disk, "mcopy", "-o", file, "::EFI/BOOT/BOOTX64.EFI")
	return disk, nil
}

// withOneMorePackage is an image of the template with one more package.
func (a *artifact) withOneMorePackage(t *testing.T) (string, []string) {
	t.Helper()
	dir := t.TempDir()
	description := filepath.Join(dir, "description")
	if err := os.CopyFS(description, os.DirFS(filepath.Join(testenv.Root(t), "kiwi-templates", "debian"))); err != nil {
		t.Fatal(err)
	}
	for _, script := range []string{"config.sh", "edit_boot_install.sh", "root/usr/libexec/attestable-image-demo", "builder/dracut-packages"} {
		if err := os.Chmod(filepath.Join(description, script), 0o755); err != nil { //nolint:gosec // it is to be run
			t.Fatal(err)
		}
	}
	config := filepath.Join(description, "config.xml")
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	const package1 = `<package name="zstd"/>`
	if bytes.Count(text, []byte(package1)) != 1 {
		t.Fatalf("the template has no %s to put another one behind", package1)
	}
	if err := os.WriteFile(config, bytes.Replace(text, []byte(package1), []byte(package1+`<package name="hostname"/>`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), command(t), "build", "--description", description, "--serve", "--output", filepath.Join(dir, "image"),
		"--package-source", os.Getenv("ATTESTABLE_IMAGE_PACKAGE_SOURCE"))
	var stderr bytes.Buffer
	build.Stderr = &stderr
	out, err := build.Output()
	if err != nil {
		t.Fatalf("build: %v\n%s", err, stderr.Bytes()[max(0, stderr.Len()-3000):])
	}
	return strings.TrimSpace(string(out)), nil
}

// copyOf copies a disk, holes and all.
func copyOf(t *testing.T, disk string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "disk.raw")
	if out, err := exec.Command("cp", "--sparse=always", disk, to).CombinedOutput(); err != nil {
		t.Fatalf("copy the disk: %v\n%s", err, out)
	}
	return to
}

// onESP runs one of mtools on a disk's EFI system partition, the first one.
func onESP(t *testing.T, disk, tool string, args ...string) {
	t.Helper()
	out, err := exec.Command(testenv.Tool(t, "sgdisk"), "--info=1", disk).CombinedOutput()
	var start int64
	for line := range strings.Lines(string(out)) {
		if _, at, ok := strings.Cut(line, "First sector: "); ok {
			_, err = fmt.Sscan(at, &start)
		}
	}
	if err != nil || start == 0 {
		t.Fatalf("sgdisk: %v\n%s", err, out)
	}
	cmd := exec.Command(testenv.Tool(t, tool), append([]string{"-i", fmt.Sprintf("%s@@%d", disk, start*512)}, args...)...)
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", tool, args, err, out)
	}
}

// freePort returns a TCP port of 127.0.0.1 that nobody listens on.
func freePort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // a TCP listener
}
