package kiwi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/org/attestable-image-action/internal/lazyregexp"
	"github.com/org/attestable-image-action/internal/untrusted"
)

const (
	builderRepository = "attestable-image-builder"
	// pullTimeout bounds the wait for the base image: it is 30 MB.
	pullTimeout     = 5 * time.Minute
	downloadTimeout = 2 * time.Minute
	maxSourceBytes  = 64 << 20 // of KIWI's source; 10.3.9 is 1.2 MB
	maxIndexBytes   = 8 << 20
	maxContextFiles = 10_000 // of builder/
	maxContextBytes = 1 << 30
	defaultMirror   = "http://deb.debian.org/debian"
	defaultSuite    = "trixie"
)

var (
	baseArgument = lazyregexp.New(`(?m)^ARG BASE=(\S+)$`)
	// debianBase is a base that one made here can stand in for.
	debianBase = lazyregexp.New(`^(docker\.io/library/)?debian:` + defaultSuite + `(-slim)?(@sha256:[0-9a-f]{64})?$`)
	kiwiPin    = lazyregexp.New(`(?m)^kiwi==([0-9]+\.[0-9]+\.[0-9]+) --hash=sha256:([0-9a-f]{64})$`)
)

// builder is the container image that runs KIWI, and how it is made.
type builder struct {
	engine *engine
	files  fs.FS  // with Dockerfile and builder/
	mirror string // Debian mirror for a base made here
	log    io.Writer
	cache  string // directory for KIWI's source, "" for none
}

// image returns the name of the builder image for these inputs, and makes it
// when the engine does not have it yet.
func (b *builder) image(ctx context.Context) (string, error) {
	scratch, err := os.MkdirTemp("", "attestable-image-builder.")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(scratch)
	sum, err := b.stage(scratch)
	if err != nil {
		return "", fmt.Errorf("read the builder's Dockerfile: %w", err)
	}
	name := builderRepository + ":" + sum[:16]
	if _, err := b.engine.ask(ctx, "image", "inspect", "--format", "{{.Id}}", name); err == nil {
		return name, nil
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	fmt.Fprintf(b.log, "making the builder image %s\n", name)
	args := []string{"build", "--force-rm", "--tag", name}
	args = append(args, b.engine.network()...)
	for _, proxy := range proxies() {
		args = append(args, "--build-arg", proxy)
	}
	own, base, err := b.base(ctx, scratch)
	if err != nil {
		return "", err
	}
	if base != own {
		args = append(args, "--build-arg", "BASE="+base)
	}
	if base != "" {
		args = append(args, "--label", baseLabel+"="+base)
	}
	b.source(ctx, scratch)
	if err := b.run(b.engine.command(ctx, append(args, scratch)...)); err != nil {
		return "", fmt.Errorf("make the builder image from the Dockerfile: %w", err)
	}
	return name, nil
}

// run runs a command, whose output goes to the log. The error has its end.
func (b *builder) run(cmd *exec.Cmd) error {
	live := &liveLog{w: b.log}
	cmd.Stdout, cmd.Stderr = live, live
	err := cmd.Run()
	live.close()
	if err == nil {
		return nil
	}
	var lines []string
	for line := range strings.Lines(string(live.tail)) {
		lines = append(lines, strings.TrimSpace(line))
	}
	if told := tellingLines(lines); told != nil {
		return fmt.Errorf("%s (%w)", join(told[max(0, len(told)-3):]), err)
	}
	return fmt.Errorf("%s (%w)", lastLine(string(live.tail)), err)
}

// stage copies Dockerfile and builder/ into dir, the context of the build, and
// returns a SHA-256 of them in hex. The mirror counts, because packages of the
// builder come from there.
func (b *builder) stage(dir string) (string, error) {
	hash := sha256.New()
	fmt.Fprintf(hash, "%s\n%s\n", runtime.GOARCH, b.mirror)
	count, size := 0, 0
	add := func(name string, content []byte) error {
		count, size = count+1, size+len(content)
		switch {
		case strings.Contains(name, "\n"): // the sum would be ambiguous
			return fmt.Errorf("the name %q has a line break", name)
		case count > maxContextFiles || size > maxContextBytes:
			return fmt.Errorf("builder/ has more than %d files, or more than %d MiB", maxContextFiles, maxContextBytes>>20)
		}
		fmt.Fprintf(hash, "%s %d\n", name, len(content))
		hash.Write(content)
		target := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil { //nolint:gosec // the engine reads it
			return err
		}
		return os.WriteFile(target, content, 0o644) //nolint:gosec // the engine reads it
	}
	dockerfile, err := untrusted.ReadFile(b.files, "Dockerfile", maxConfigBytes)
	if err != nil {
		return "", err
	}
	if err := add("Dockerfile", dockerfile); err != nil {
		return "", err
	}
	if info, err := fs.Lstat(b.files, "builder"); err == nil && !info.IsDir() {
		return "", errors.New("builder is not a directory: a link would put files of this machine into the container image")
	}
	err = fs.WalkDir(b.files, "builder", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case name == "builder" && errors.Is(err, fs.ErrNotExist):
			return fs.SkipAll
		case err != nil || entry.IsDir():
			return err
		case !entry.Type().IsRegular():
			return fmt.Errorf("%s is neither a file nor a directory: what a Dockerfile copies has to be in builder/ itself", name)
		}
		content, err := untrusted.ReadFile(b.files, name, maxSourceBytes)
		if err != nil {
			return err
		}
		return add(name, content)
	})
	return hex.EncodeToString(hash.Sum(nil)), err
}

// base returns the base image that the Dockerfile names, "" where it has no ARG BASE,
// and the one to build on: the same, or one that is made here where no registry can
// be reached.
func (b *builder) base(ctx context.Context, scratch string) (own, base string, err error) {
	dockerfile, err := os.ReadFile(filepath.Join(scratch, "Dockerfile")) //nolint:gosec // staged above
	if err != nil {
		return "", "", err
	}
	m := baseArgument().FindSubmatch(dockerfile)
	if m == nil { // a Dockerfile of the user's, with a base of its own
		return "", "", nil
	}
	own = string(m[1])
	if _, err := b.engine.ask(ctx, "image", "inspect", "--format", "{{.Id}}", own); err == nil {
		return own, own, nil
	}
	pullCtx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	quiet := *b
	quiet.log = io.Discard
	err = quiet.run(b.engine.command(pullCtx, "pull", "--quiet", own))
	switch {
	case err == nil:
		return own, own, nil
	case ctx.Err() != nil:
		return "", "", ctx.Err()
	}
	if !debianBase().MatchString(own) {
		return "", "", fmt.Errorf("pull the builder's base image %s: %w: make its registry reachable, or name a builder image with --builder-image", own, err)
	}
	fmt.Fprintf(b.log, "the registry of %s cannot be used (%v): making the builder's root file system with mmdebstrap instead\n", own, err)
	base, err = b.makeBase(ctx)
	return own, base, err
}

// makeBase makes a Debian root file system on this machine and gives it to the
// engine as an image.
func (b *builder) makeBase(ctx context.Context) (string, error) {
	mirror := b.mirror
	if mirror == "" {
		mirror = defaultMirror
	}
	sum := sha256.Sum256([]byte(runtime.GOARCH + "\n" + mirror))
	name := "attestable-image-base:" + defaultSuite + "-" + hex.EncodeToString(sum[:8])
	if _, err := b.engine.ask(ctx, "image", "inspect", "--format", "{{.Id}}", name); err == nil {
		return name, nil
	}
	program, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return "", errors.New("make the builder's root file system: mmdebstrap is not installed: install it (apt-get install mmdebstrap), make a container registry reachable, or name a builder image with --builder-image")
	}
	scratch, err := os.MkdirTemp("", "attestable-image-base.")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(scratch)
	archive := filepath.Join(scratch, "base.tar")
	cmd := exec.CommandContext(ctx, program, "--variant=minbase", "--include=ca-certificates", defaultSuite, archive, mirror) //nolint:gosec // the program to run
	// mmdebstrap takes its root file system away again when it is asked to end.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	if err := b.run(cmd); err != nil {
		return "", fmt.Errorf("make the builder's root file system with mmdebstrap from %s: %w", mirror, err)
	}
	if err := b.run(b.engine.command(ctx, "import", archive, name)); err != nil {
		return "", fmt.Errorf("give the builder's root file system to %s: %w", b.engine.name, err)
	}
	return name, nil
}

// source puts KIWI's source into the context of the build, so that the container
// needs no access to PyPI. What fails here is only told: the Dockerfile downloads
// the source itself when there is none.
func (b *builder) source(ctx context.Context, scratch string) {
	requirements, err := os.ReadFile(filepath.Join(scratch, "builder", "requirements.txt")) //nolint:gosec // staged above
	if err != nil {
		return
	}
	m := kiwiPin().FindSubmatch(requirements)
	if m == nil {
		return
	}
	name := "kiwi-" + string(m[1]) + ".tar.gz"
	target := filepath.Join(scratch, "builder", name)
	if _, err := os.Stat(target); err == nil { //nolint:gosec // digits and dots only
		return
	}
	content, err := b.download(ctx, name, string(m[2]))
	if err == nil {
		err = os.WriteFile(target, content, 0o644) //nolint:gosec // the engine reads it
	}
	if err != nil {
		fmt.Fprintf(b.log, "%v: the container downloads it itself\n", err)
	}
}

// download returns KIWI's source, from the cache or from PyPI, with the SHA-256
// sum in hex.
func (b *builder) download(ctx context.Context, name, sum string) ([]byte, error) {
	cached := ""
	if b.cache != "" {
		cached = filepath.Join(b.cache, name)
		if content, err := readCached(b.cache, name); err == nil && sumOf(content) == sum {
			return content, nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, downloadTimeout)
	defer cancel()
	index := os.Getenv("PIP_INDEX_URL")
	if index == "" {
		index = "https://pypi.org/simple"
	}
	index = strings.TrimRight(index, "/") + "/kiwi/"
	page, err := get(ctx, index, maxIndexBytes)
	if err != nil {
		return nil, fmt.Errorf("look up KIWI's source: %w", err)
	}
	// The index is HTML, or JSON where the server likes that better; the address
	// stands in quotes in both, with or without a fragment. It need not be
	// trusted: the sum tells whether the file is the one.
	m := regexp.MustCompile(`"([^"#]*` + regexp.QuoteMeta(name) + `)[#"]`).FindSubmatch(page)
	if m == nil {
		return nil, fmt.Errorf("look up KIWI's source: %s does not list %s", redacted(index), name)
	}
	address, err := resolve(index, string(m[1]))
	if err != nil {
		return nil, fmt.Errorf("look up KIWI's source: %w", err)
	}
	content, err := get(ctx, address, maxSourceBytes)
	if err != nil {
		return nil, fmt.Errorf("download KIWI's source: %w", err)
	}
	if got := sumOf(content); got != sum {
		return nil, fmt.Errorf("download KIWI's source: %s has SHA-256 %s and not %s", redacted(address), got, sum)
	}
	if cached != "" { // best effort
		if err := os.MkdirAll(b.cache, 0o755); err == nil { //nolint:gosec // nothing secret
			_ = os.WriteFile(cached, content, 0o644) //nolint:gosec // nothing secret
		}
	}
	return content, nil
}

// readCached reads a file of the cache.
func readCached(dir, name string) ([]byte, error) {
	cache, err := untrusted.Dir(dir)
	if err != nil {
		return nil, err
	}
	defer cache.Close()
	return untrusted.ReadFile(cache, name, maxSourceBytes)
}

// resolve returns the address that a reference on a page means.
func resolve(page, reference string) (string, error) {
	base, err := url.Parse(page)
	if err != nil {
		return "", err
	}
	address, err := base.Parse(reference)
	if err != nil {
		return "", err
	}
	return address.String(), nil
}

// redacted is an address as a log may show it: that of a private index holds its
// password.
func redacted(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "the package index"
	}
	return u.Redacted()
}

// get fetches at most limit bytes.
func get(ctx context.Context, address string, limit int64) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil) //nolint:gosec // PyPI, or what the user names in its place
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request) //nolint:gosec // as above
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", redacted(address), response.Status)
	}
	content, err := io.ReadAll(io.LimitReader(response.Body, limit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", redacted(address), err)
	case int64(len(content)) > limit:
		return nil, fmt.Errorf("read %s: it is larger than %d bytes", redacted(address), limit)
	}
	return content, nil
}

func sumOf(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}
