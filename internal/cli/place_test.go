package cli

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/org/attestable-image-action/internal/audit"
	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/gha"
	"github.com/org/attestable-image-action/internal/kiwi"
	"github.com/org/attestable-image-action/internal/testenv"
)

const placedDescription = `<image>
  <preferences><type image="oem" kernelcmdline="console=ttyS0
    systemd.debug_shell=1"/></preferences>
  <users><user name="root" password="x"/></users>
  <packages type="image">
    <package name="openssh-server"/>
    <package name="dropbear"/>
  </packages>
</image>
`

// writeTree writes files below a directory.
func writeTree(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPlaceOfFinding holds that a finding is shown where its cause is, and nowhere when
// that is not certain.
func TestPlaceOfFinding(t *testing.T) {
	d, err := disk.Open(testenv.DebianDisk(t))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	const pam = "etc/pam.d/common-auth"
	genuine, err := rootFile(d, 2, pam)
	if err != nil || len(genuine) == 0 {
		t.Fatalf("read %s of the image: %v", pam, err)
	}
	workspace := t.TempDir()
	t.Setenv("GITHUB_WORKSPACE", workspace)
	writeTree(t, workspace, map[string]string{
		"image/config.xml": placedDescription, "image/root/etc/passwd": "x\n", "image/root/etc/no-such-file": "x\n",
		"overlay/" + pam: string(genuine), "changed/" + pam: "auth nullok\n", "overlay/EFI/BOOT/BOOTX64.EFI": "x",
	})
	in := func(name string) string { return filepath.Join(workspace, name) }
	own := newImageSource(in("image"), in("overlay"))
	at := func(file string, line int) gha.Place { return gha.Place{File: file, Line: line} }
	cmdline := "EFI/BOOT/BOOTX64.EFI#.cmdline"
	for _, tc := range []struct {
		name    string
		source  imageSource
		finding audit.Finding
		want    gha.Place
	}{
		{"a package", own, audit.Finding{ID: "sshd-installed", Partition: 2, Path: "usr/sbin/sshd"}, at("image/config.xml", 6)},
		{"a package by its program", own, audit.Finding{ID: "remote-shell-installed", Partition: 2, Path: "usr/sbin/dropbear"}, at("image/config.xml", 7)},
		{"a package by its unit", own, audit.Finding{ID: "remote-shell-enabled", Partition: 2, Path: "etc/systemd/system/multi-user.target.wants/dropbear.service"}, at("image/config.xml", 7)},
		{"a package that came with another", own, audit.Finding{ID: "cloud-init-installed", Partition: 2, Path: "usr/bin/cloud-init"}, gha.Place{}},
		{"a package of a template", newImageSource("", in("overlay")), audit.Finding{ID: "sshd-installed", Partition: 2, Path: "usr/sbin/sshd"}, gha.Place{}},
		{"an account", own, audit.Finding{ID: "password-set", Partition: 2, Path: "etc/shadow", Line: 1, Detail: `the account "root"`}, at("image/config.xml", 4)},
		{"another account", own, audit.Finding{ID: "password-set", Partition: 2, Path: "etc/shadow", Line: 9, Detail: `the account "web\"`}, gha.Place{}},
		{"an option of the kernel", own, audit.Finding{ID: "debug-shell-enabled", Partition: 1, Path: cmdline, Detail: "systemd.debug_shell=1"}, at("image/config.xml", 3)},
		{"a missing option", own, audit.Finding{ID: "no-lockdown", Partition: 1, Path: cmdline, Detail: "there is no lockdown="}, at("image/config.xml", 2)},
		{"a file of the overlay", own, audit.Finding{ID: "pam-nullok", Partition: 2, Path: pam, Line: 17}, at("overlay/"+pam, 17)},
		{"a file that is another now", newImageSource("", in("changed")), audit.Finding{ID: "pam-nullok", Partition: 2, Path: pam, Line: 17}, at("changed/"+pam, 0)},
		{"a file of root/", own, audit.Finding{ID: "pam-nullok", Partition: 2, Path: "etc/passwd", Line: 1}, at("image/root/etc/passwd", 0)},
		{"a file that the image lacks", own, audit.Finding{ID: "pam-nullok", Partition: 2, Path: "etc/no-such-file", Line: 1}, gha.Place{}},
		{"a file of a package", own, audit.Finding{ID: "pam-nullok", Partition: 2, Path: "etc/login.defs", Line: 1}, gha.Place{}},
		{"a file of the EFI system partition", own, audit.Finding{ID: "x", Partition: 1, Path: "EFI/BOOT/BOOTX64.EFI"}, gha.Place{}},
		{"a path that leads out", own, audit.Finding{ID: "x", Partition: 2, Path: "../image/config.xml"}, gha.Place{}},
		{"the disk", own, audit.Finding{ID: "command-line-override"}, gha.Place{}},
		{"no description", newImageSource(in("none"), in("none")), audit.Finding{ID: "sshd-installed", Partition: 2, Path: "usr/sbin/sshd"}, gha.Place{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.source.place(d, tc.finding); got != tc.want {
				t.Errorf("%+v, want %+v", got, tc.want)
			}
		})
	}
}

// TestPlaceInRepository holds that places are relative to the checkout: in the reusable
// workflow it is not the workspace.
func TestPlaceInRepository(t *testing.T) {
	workspace := t.TempDir()
	t.Setenv("GITHUB_WORKSPACE", workspace)
	writeTree(t, workspace, map[string]string{"source/.git/HEAD": "", "source/image/config.xml": "", "image/config.xml": ""})
	for name, want := range map[string]string{
		filepath.Join(workspace, "source/image/config.xml"): "image/config.xml",
		filepath.Join(workspace, "image/config.xml"):        "image/config.xml",
		filepath.Join(t.TempDir(), "config.xml"):            "",
	} {
		if got := inRepository(name, 3); got.File != want || want != "" && got.Line != 3 {
			t.Errorf("%s is at %+v, want %q", name, got, want)
		}
	}
}

// TestAnnotations prints what the runner is told.
func TestAnnotations(t *testing.T) {
	workspace := t.TempDir()
	for name, value := range map[string]string{"GITHUB_WORKSPACE": workspace, "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": filepath.Join(workspace, "summary"), "GITHUB_OUTPUT": filepath.Join(workspace, "output")} {
		t.Setenv(name, value)
	}
	finding := func(id string, severity audit.Severity, detail string) audit.Finding {
		return audit.Finding{ID: id, Severity: severity, Partition: 2, Path: "a", Detail: detail, Fix: "Fix it."}
	}
	o := &openings{report: &audit.Report{Findings: []audit.Finding{
		finding("one", audit.High, "first"), finding("one", audit.High, "second"), finding("two", audit.Medium, "50%\n::error::x"), finding("three", audit.Low, "quiet"),
	}}}
	o.placed = map[string]placedFinding{"one": {o.report.Findings[1], gha.Place{File: "image/a,b:c", Line: 4}}}
	var out bytes.Buffer
	o.annotate(&out)
	want := "::warning file=image/a%2Cb%3Ac,line=4,title=attestable-image%3A one::partition 2, a: second. Fix it.\n" +
		"::warning title=attestable-image%3A two::partition 2, a: 50%25 : :error::x. Fix it.\n"
	if out.String() != want {
		t.Errorf("printed\n%swant\n%s", out.String(), want)
	}

	writeTree(t, workspace, map[string]string{"image/config.xml": "<image>\n<preferences>\n</image>\n"})
	status, _, stderr := executeHere(t, "build", "--description", filepath.Join(workspace, "image"), "--output", filepath.Join(workspace, "out"))
	if status != 1 || !bytes.Contains([]byte(stderr), []byte("::error file=image/config.xml,line=3,title=attestable-image::")) {
		t.Errorf("status %d: %s", status, stderr)
	}
	source := newImageSource(filepath.Join(workspace, "image"), "")
	lock := fmt.Errorf("build: %w", &kiwi.LockError{Lock: "packages.lock of " + source.description})
	if got := source.errorPlace(lock); got.File != "" {
		t.Errorf("without a lock there the place is %+v", got)
	}
	writeTree(t, workspace, map[string]string{"image/packages.lock": ""})
	if got := source.errorPlace(lock); got.File != "image/packages.lock" {
		t.Errorf("the lock's place is %+v", got)
	}
}
