package kiwi_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/org/attestable-image-action/internal/kiwi"
	"github.com/org/attestable-image-action/internal/testenv"
)

// watcher is a log that tells when a line has been seen.
type watcher struct {
	mu   sync.Mutex
	text bytes.Buffer
	line string
	seen chan struct{}
	once sync.Once
}

func (w *watcher) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text.Write(p)
	if w.line != "" && strings.Contains(w.text.String(), w.line) {
		w.once.Do(func() { close(w.seen) })
	}
	return len(p), nil
}

func (w *watcher) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// template is the template debian as it is embedded, with some files replaced.
func template(t *testing.T, replace map[string]func(string) string) fs.FS {
	t.Helper()
	dir := t.TempDir()
	source := os.DirFS(filepath.Join(testenv.Root(t), "kiwi-templates", "debian"))
	if err := os.CopyFS(dir, source); err != nil {
		t.Fatal(err)
	}
	for name, edit := range replace {
		path := filepath.Join(dir, name)
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		edited := edit(string(content))
		if edited == string(content) {
			t.Fatalf("the edit of %s changed nothing", name)
		}
		if err := os.WriteFile(path, []byte(edited), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return os.DirFS(dir)
}

// build builds a description that is made to fail.
func build(t *testing.T, ctx context.Context, description fs.FS, output string, log *watcher) error {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: KIWI takes its time, and the first builder image minutes")
	}
	sources, err := kiwi.ParsePackageSources(os.Getenv("ATTESTABLE_IMAGE_PACKAGE_SOURCE"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = kiwi.Build(ctx, kiwi.Options{
		Description: description, Source: "test", Embedded: true, PackageSources: sources, Output: output, Log: log,
	})
	if errors.Is(err, kiwi.ErrNoEngine) {
		testenv.Missing(t, err)
	}
	if err == nil {
		t.Fatal("a build that cannot succeed did")
	}
	return err
}

// TestFailures builds descriptions that fail at different depths, and asks for
// the reason, the log, and that nothing else is left.
func TestFailures(t *testing.T) {
	for _, tc := range []struct{ name, file, from, to, want string }{
		{"schema", "config.xml", `<version>1.0.0</version>`, `<edition>1.0.0</edition>`, "the description does not follow KIWI's schema: "},
		{"repository", "config.xml", `"http://deb.debian.org/debian"`, `"dir:///nonexistent"`, "E: Unable to locate package mawk"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			description := template(t, map[string]func(string) string{
				tc.file: func(s string) string { return strings.Replace(s, tc.from, tc.to, 1) },
			})
			if tc.name == "repository" && os.Getenv("ATTESTABLE_IMAGE_PACKAGE_SOURCE") != "" {
				t.Skip("ATTESTABLE_IMAGE_PACKAGE_SOURCE would replace the repository")
			}
			output := t.TempDir()
			log := &watcher{}
			err := build(t, t.Context(), description, output, log)
			var failed *kiwi.LogError
			if !errors.As(err, &failed) || !strings.Contains(failed.Reason, tc.want) {
				t.Fatalf("error is %v, want %q; the log is\n%s", err, tc.want, log)
			}
			content, readErr := os.ReadFile(failed.Log)
			if readErr != nil || filepath.Dir(failed.Log) != output || !bytes.Contains(content, []byte("ERROR")) {
				t.Errorf("KIWI's log %s: %v", failed.Log, readErr)
			}
			left(t, output, "kiwi.log")
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
		})
	}
}

// TestInterruption stops a build while it holds a loop device, mounts and a
// container.
func TestInterruption(t *testing.T) {
	engine := "docker"
	if exec.Command(engine, "version").Run() != nil {
		engine = "podman"
	}
	loops := list(t, "losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE")
	mounts := mountPoints(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	log := &watcher{line: "Syncing root filesystem data", seen: make(chan struct{})}
	stopped := make(chan time.Time, 1)
	var held bool // the build has a loop device when it is stopped
	go func() {
		select {
		case <-log.seen:
			for line := range list(t, "losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE") {
				held = held || !loops[line]
			}
			stopped <- time.Now()
			cancel()
		case <-ctx.Done():
		}
	}()
	output := t.TempDir()
	err := build(t, ctx, template(t, nil), output, log)
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "the build was stopped") {
		t.Fatalf("error is %v; the log is\n%s", err, log)
	}
	if took := time.Since(<-stopped); took > time.Minute {
		t.Errorf("it took %s to stop", took)
	}
	if !held {
		t.Error("the build had no loop device when it was stopped: nothing was tried")
	}
	left(t, output, "kiwi.log")
	for id := range list(t, engine, "ps", "--all", "--quiet") {
		mounted, err := exec.Command(engine, "inspect", "--format", "{{.Name}}{{range .Mounts}} {{.Source}}{{end}}", id).Output()
		if err == nil && strings.Contains(string(mounted), output) { // an error: it is gone
			t.Errorf("the container %s is left", mounted)
		}
	}
	for line := range list(t, "losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE") {
		if !loops[line] && strings.Contains(line, "(deleted)") {
			t.Errorf("the loop device %s is left", line)
		}
	}
	for point := range mountPoints(t) {
		if !mounts[point] && strings.HasPrefix(point, output) {
			t.Errorf("the mount %s is left", point)
		}
	}
}

// left checks that a failed build left these files in its output directory only.
func left(t *testing.T, output string, want ...string) {
	t.Helper()
	allowed := map[string]bool{".attestable-image-build": true}
	for _, name := range want {
		allowed[name] = true
	}
	entries, err := os.ReadDir(output)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if !allowed[entry.Name()] {
			t.Errorf("%s is left in the output directory", entry.Name())
		}
	}
}

// list returns the lines that a program prints.
func list(t *testing.T, program string, args ...string) map[string]bool {
	t.Helper()
	output, err := exec.Command(program, args...).Output()
	if err != nil {
		testenv.Missing(t, err)
	}
	lines := map[string]bool{}
	for line := range strings.Lines(string(output)) {
		lines[strings.TrimSpace(line)] = true
	}
	return lines
}

// mountPoints returns where something is mounted on this machine.
func mountPoints(t *testing.T) map[string]bool {
	t.Helper()
	content, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	points := map[string]bool{}
	for line := range strings.Lines(string(content)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			points[fields[4]] = true
		}
	}
	return points
}
