package testenv

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/org/attestable-image-action/internal/kiwi"
)

// diskTimeout bounds one build of the template, with its builder image.
const diskTimeout = 20 * time.Minute

// DebianDisk returns the path of the raw disk that KIWI builds from the template
// debian. It is built once and kept in the cache until the template or the
// package that builds it changes; tests must not write to it. With -short, or
// where no container engine answers, the test is skipped by name; with
// ATTESTABLE_IMAGE_REQUIRE=1 a missing engine fails it.
//
// ATTESTABLE_IMAGE_PACKAGE_SOURCE names other package repositories than the
// template's public ones.
func DebianDisk(t testing.TB) string {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: building the template debian with KIWI takes minutes")
	}
	ctx, cancel := context.WithTimeout(context.Background(), diskTimeout)
	defer cancel()
	disk, err := debianDisk(ctx, Root(t))
	if errors.Is(err, kiwi.ErrNoEngine) {
		Missing(t, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return disk
}

// debianDisk builds the disk from the source tree at root, or finds it.
func debianDisk(ctx context.Context, root string) (string, error) {
	packages := os.Getenv("ATTESTABLE_IMAGE_PACKAGE_SOURCE")
	sources, err := kiwi.ParsePackageSources(packages)
	if err != nil {
		return "", err
	}
	template := os.DirFS(filepath.Join(root, "kiwi-templates", "debian"))
	key, err := sumOfTrees(packages, template, os.DirFS(filepath.Join(root, "internal", "kiwi")))
	if err != nil {
		return "", err
	}
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	images := filepath.Join(cache, "images")
	if err := os.MkdirAll(images, 0o755); err != nil { //nolint:gosec // nothing secret
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(images, "lock"), os.O_CREATE|os.O_RDWR, 0o644) //nolint:gosec // a path of ours
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil { //nolint:gosec // a descriptor fits
		return "", fmt.Errorf("wait for another build of the disk: %w", err)
	}
	dir := filepath.Join(images, key)
	done := filepath.Join(dir, "disk")              // the disk's file name, written last
	if name, err := os.ReadFile(done); err == nil { //nolint:gosec // a path of ours
		return filepath.Join(dir, string(name)), nil
	}
	// A disk is hundreds of MiB: those of yesterday are removed.
	if old, err := filepath.Glob(filepath.Join(images, "*", "disk")); err == nil {
		for _, path := range old {
			if info, err := os.Stat(path); err == nil && time.Since(info.ModTime()) > 24*time.Hour {
				_ = os.RemoveAll(filepath.Dir(path))
			}
		}
	}
	result, err := kiwi.Build(ctx, kiwi.Options{
		Description: template, Source: "template debian", Embedded: true,
		PackageSources: sources, Output: dir,
	})
	if err != nil {
		return "", err
	}
	return result.Disk, os.WriteFile(done, []byte(filepath.Base(result.Disk)), 0o644) //nolint:gosec // nothing secret
}

// cacheDir is where the project keeps what it builds for its tests.
func cacheDir() (string, error) {
	if dir := os.Getenv("ATTESTABLE_IMAGE_CACHE"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache: %w", err)
	}
	return filepath.Join(dir, "attestable-image"), nil
}

// sumOfTrees returns a short SHA-256, in hex, of a text and of the files in
// trees, tests and what is only to be read left out.
func sumOfTrees(text string, trees ...fs.FS) (string, error) {
	hash := sha256.New()
	fmt.Fprintf(hash, "%s %q\n", runtime.GOARCH, text)
	for _, tree := range trees {
		err := fs.WalkDir(tree, ".", func(name string, entry fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case entry.IsDir() && entry.Name() == "testdata":
				return fs.SkipDir
			case !entry.Type().IsRegular() || strings.HasSuffix(name, "_test.go") || strings.HasSuffix(name, ".md"):
				return nil
			}
			content, err := fs.ReadFile(tree, name)
			if err != nil {
				return err
			}
			fmt.Fprintf(hash, "%s %d\n", name, len(content))
			hash.Write(content)
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(hash.Sum(nil))[:16], nil
}
