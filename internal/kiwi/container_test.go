package kiwi

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// testContainer is a container that is never run.
func testContainer(t *testing.T, engineName string, vfat bool) *container {
	t.Helper()
	dir := t.TempDir()
	c := &container{
		engine: &engine{name: engineName, program: "/nonexistent"}, image: "builder:1", host: host{vfat: vfat},
		description: filepath.Join(dir, "description"), output: filepath.Join(dir, "output"), tools: filepath.Join(dir, "tools"),
	}
	if err := c.prepare(nil); err != nil {
		t.Fatal(err)
	}
	return c
}

// has reports whether args has these words one after the other.
func has(args []string, words ...string) bool {
	for i := range args {
		if i+len(words) <= len(args) && slices.Equal(args[i:i+len(words)], words) {
			return true
		}
	}
	return false
}

func TestContainerRights(t *testing.T) {
	for _, name := range []string{"http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY"} {
		t.Setenv(name, "")
	}
	c := testContainer(t, "docker", true)
	c.devices = devices{loops: []int{1, 3}, partitions: []int{0, 7}}
	args := c.buildArgs()
	// Every right is listed here: one more has to be added on purpose.
	var rights []string
	for i, arg := range args {
		if strings.HasPrefix(arg, "--cap") || arg == "--security-opt" || arg == "--device-cgroup-rule" || arg == "--volume" ||
			arg == "--device" || arg == "--privileged" || arg == "--pid" || arg == "--ipc" || arg == "--network" || arg == "--userns" {
			rights = append(rights, arg+" "+args[i+1])
		}
	}
	want := []string{
		"--cap-add SYS_ADMIN",
		"--cap-add MKNOD",
		"--security-opt apparmor=unconfined",
		"--device-cgroup-rule c 10:237 rmw",
		"--device-cgroup-rule b 7:1 rmw",
		"--device-cgroup-rule b 7:3 rmw",
		"--device-cgroup-rule b 259:0 rmw",
		"--device-cgroup-rule b 259:7 rmw",
	}
	if !slices.Equal(rights, want) {
		t.Errorf("rights are\n%q, want\n%q", rights, want)
	}
	if args[0] != "create" || args[len(args)-1] != "builder:1" {
		t.Errorf("arguments %q", args)
	}
	if has(args, "--env", "http_proxy") {
		t.Error("a proxy that is not set is handed on")
	}
	if !has(args, "--env", "LOOPS=1 3") || !has(args, "--env", "PARTITIONS=0 7") {
		t.Errorf("the container does not hear of its devices: %q", args)
	}
	if strings.Contains(strings.Join(args, " "), "vfat") {
		t.Errorf("the stand-in for vfat is in the normal path: %q", args)
	}
}

func TestContainerOptions(t *testing.T) {
	t.Setenv("https_proxy", "http://user:secret@proxy")
	c := testContainer(t, "podman", false)
	c.engine.hostNetwork = true
	c.repositories = []string{"", "/srv/a,b"}
	c.epoch, c.seed, c.checkDates = 1700000000, "5eed", true
	args := c.buildArgs()
	for _, want := range [][]string{
		{"--env", "SOURCE_DATE_EPOCH=1700000000"},
		{"--env", "ATTESTABLE_IMAGE_SEED=5eed"},
		{"--env", "CHECK_DATES=true"},
		{"--hostname", "attestable-image"},
		{"--mount", "type=bind,source=" + c.tools + "/identify,target=/run/attestable-image/identify,readonly"},
		{"--mount", "type=bind,source=" + c.tools + "/du,target=/run/attestable-image/du,readonly"},
		{"--mount", "type=bind,source=" + c.tools + "/packages,target=/run/attestable-image/packages,readonly"},
		{"--env", "https_proxy"}, // by name: its value is not on a command line
		{"--env", "SYSTEMD_RELAX_ESP_CHECKS=1"},
		{"--network", "host"},
		{"--security-opt", "label=disable"},
		{"--mount", `type=bind,"source=/srv/a,b",target=/run/attestable-image/repositories/1,readonly`},
		{"--mount", "type=bind,source=" + c.tools + "/mount.vfat,target=/usr/sbin/mount.vfat,readonly"},
		{"--mount", "type=bind,source=" + c.tools + "/umount.tmpfs,target=/usr/sbin/umount.tmpfs,readonly"},
	} {
		if !has(args, want...) {
			t.Errorf("%q is missing in %q", want, args)
		}
	}
	if strings.Contains(strings.Join(args, " "), "secret") {
		t.Error("a proxy's password is on the command line")
	}
	if other := testContainer(t, "docker", true); other.name == c.name {
		t.Errorf("two containers are called %s", c.name)
	}
}
