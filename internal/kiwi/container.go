package kiwi

import (
	"context"
	"crypto/rand"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/org/attestable-image-action/internal/untrusted"
)

// tools run inside the container: KIWI's call, the clean-up, what stands in for
// programs that would make each image another, what compares packages with a lock,
// and what stands in for vfat.
//
//go:embed container
var tools embed.FS

// toolDir is where the container sees the tools.
const toolDir = "/run/attestable-image/"

// cleanTimeout bounds the removal of a container and of what it held.
const cleanTimeout = 2 * time.Minute

// container is one run of KIWI.
type container struct {
	engine       *engine
	image        string
	host         host
	log          io.Writer
	name         string
	description  string   // host path, seen as /description
	output       string   // host path, seen as /output
	tools        string   // host path of the tools
	lock         string   // host path of the packages that are allowed, "" for any
	repositories []string // host paths of package sources by number, "" for remote ones
	epoch        int64    // seconds since 1970: SOURCE_DATE_EPOCH
	seed         string   // what identifiers in the image are derived from
	checkDates   bool     // lists of packages that are out of date are refused
	devices      devices  // that it may use
	tail         string   // end of what the container printed
}

// prepare makes the directories that the container sees. Packages that are locked
// are the only ones that it may use.
func (c *container) prepare(locked []Package) error {
	c.name = "attestable-image-" + strings.ToLower(rand.Text()[:16])
	for _, dir := range []string{c.output, c.tools} {
		if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // root in the container may be nobody here
			return err
		}
	}
	entries, err := tools.ReadDir("container")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		content, err := tools.ReadFile("container/" + entry.Name())
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(c.tools, entry.Name()), content, 0o755); err != nil { //nolint:gosec // programs
			return err
		}
	}
	if len(locked) == 0 {
		return nil
	}
	var text strings.Builder
	for _, p := range locked {
		fmt.Fprintln(&text, p)
	}
	c.lock = filepath.Join(c.tools, LockName)
	return os.WriteFile(c.lock, []byte(text.String()), 0o644) //nolint:gosec // nothing secret
}

// args are the options of a container that runs one of the tools.
func (c *container) args(name, tool string) []string {
	args := []string{
		"--name", name, "--entrypoint", toolDir + tool,
		// All that KIWI needs beyond the engine's defaults: to mount, and the device
		// that hands loop devices out, with some of these. It is not --privileged, and
		// it has a /dev of its own: this machine's has the terminals of its users. The
		// tools make what is missing there, which podman does not let by default.
		"--cap-add", "SYS_ADMIN", "--cap-add", "MKNOD",
		"--security-opt", "apparmor=unconfined",
		"--device-cgroup-rule", "c 10:237 rmw",
		"--mount", bind(c.output, "/output", false),
		"--mount", c.tool(tool),
	}
	args = append(args, c.devices.args()...)
	if c.engine.name == "podman" {
		args = append(args, "--security-opt", "label=disable")
	}
	return args
}

// tool describes the mount of a tool.
func (c *container) tool(name string) string {
	return bind(filepath.Join(c.tools, name), toolDir+name, true)
}

// buildArgs is the command line that makes the container for KIWI.
func (c *container) buildArgs() []string {
	args := append([]string{"create"}, c.args(c.name, "build")...)
	args = append(args, c.engine.network()...)
	args = append(args,
		"--hostname", "attestable-image", // the same in every build
		"--mount", bind(c.description, "/description", true),
		"--mount", c.tool("identify"),
		"--mount", c.tool("du"),
		"--mount", c.tool("packages"),
		"--mount", c.tool("losetup"),
		"--mount", c.tool("partx"),
		"--env", fmt.Sprintf("OWNER=%d:%d", os.Getuid(), os.Getgid()),
		"--env", fmt.Sprintf("SOURCE_DATE_EPOCH=%d", c.epoch),
		"--env", "ATTESTABLE_IMAGE_SEED="+c.seed,
		"--env", fmt.Sprintf("CHECK_DATES=%t", c.checkDates),
		// The kernel's package would make an initrd of its own, which nothing uses.
		"--env", "INITRD=No",
		// bootctl looks for a vfat in the mounted EFI system partition, which need not
		// be one, and asks udev about it, which is not there.
		"--env", "SYSTEMD_RELAX_ESP_CHECKS=1",
	)
	for _, proxy := range proxies() {
		args = append(args, "--env", proxy)
	}
	if c.lock != "" {
		args = append(args, "--mount", bind(c.lock, toolDir+LockName, true))
	}
	for i, dir := range c.repositories {
		if dir != "" {
			args = append(args, "--mount", bind(dir, fmt.Sprintf("%s/%d", localRepository, i), true))
		}
	}
	if !c.host.vfat {
		args = append(args,
			"--mount", bind(filepath.Join(c.tools, "mount.vfat"), "/usr/sbin/mount.vfat", true),
			"--mount", bind(filepath.Join(c.tools, "umount.tmpfs"), "/usr/sbin/umount.tmpfs", true),
		)
	}
	return append(args, c.image)
}

// bind describes a bind mount, in the form of CSV that engines read.
func bind(source, target string, readOnly bool) string {
	field := "source=" + source
	if strings.ContainsAny(field, `,"`+"\n") {
		field = `"` + strings.ReplaceAll(field, `"`, `""`) + `"`
	}
	mount := "type=bind," + field + ",target=" + target
	if readOnly {
		mount += ",readonly"
	}
	return mount
}

// read reads a file that the container left in its output. The container may have left
// anything there under that name.
func (c *container) read(name string, limit int64) ([]byte, error) {
	output, err := untrusted.Dir(c.output)
	if err != nil {
		return nil, err
	}
	defer output.Close()
	return untrusted.ReadFile(output, name, limit)
}

// used returns the packages that the image is made of, nil when the package manager
// does not tell.
func (c *container) used() ([]Package, error) {
	content, err := c.read("packages.used", MaxLockBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read which packages the image is made of: %w", err)
	}
	packages, err := parseUsed(content)
	if err != nil {
		return nil, fmt.Errorf("read which packages the image is made of: %w", err)
	}
	return packages, nil
}

// build runs KIWI to its end, or kills it when ctx is done.
func (c *container) build(ctx context.Context) error {
	// A container that is being made cannot be told from none, so this is not
	// interrupted: it takes less than a second.
	if _, err := c.engine.ask(context.WithoutCancel(ctx), c.buildArgs()...); err != nil {
		return fmt.Errorf("make a container with %s: %w", c.engine.name, err)
	}
	live := &liveLog{w: c.log}
	cmd := c.engine.command(ctx, "start", "--attach", c.name)
	cmd.Stdout, cmd.Stderr = live, live
	err := cmd.Run()
	live.close()
	c.tail = string(live.tail)
	return errors.Join(err, c.remove())
}

// remove removes the container, and kills it if it still runs.
func (c *container) remove() error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanTimeout)
	defer cancel()
	var err error
	for range 10 {
		if _, err = c.engine.ask(ctx, "rm", "--force", "--volumes", c.name); err == nil || strings.Contains(strings.ToLower(err.Error()), "no such container") ||
			strings.Contains(err.Error(), "no container with") {
			return nil
		}
		time.Sleep(500 * time.Millisecond)
	}
	return fmt.Errorf("remove the container %s: %w", c.name, err)
}

// clean releases what a failed build left: loop devices of files in the output
// directory, and these files, which may not be this user's.
func (c *container) clean() error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanTimeout)
	defer cancel()
	args := append([]string{"run", "--rm"}, c.args(c.name+"-clean", "clean")...)
	if _, err := c.engine.ask(ctx, append(args, "--network", "none", c.image)...); err != nil {
		return fmt.Errorf("clean up after the build: %w", err)
	}
	return nil
}

// reason tells why a build failed: from KIWI's log, or from the end of what the
// container printed when there is none.
func (c *container) reason(log string, logErr, runErr error) error {
	e := &LogError{}
	if logErr == nil {
		e.Log = log
		if content, err := readTail(log); err == nil {
			e.Reason = Reason(content)
		}
	}
	if e.Reason == "" {
		e.Reason = lastLine(c.tail)
		if e.Reason == "" {
			e.Reason = runErr.Error()
		}
	}
	return e
}
