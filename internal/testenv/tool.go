package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Tool returns the path of a program that runs beside the tests: one that
// scripts/tools builds, or one that is installed. Where it is missing, the test
// is skipped by name, or fails with ATTESTABLE_IMAGE_REQUIRE=1.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path, err := Program(name)
	if err != nil {
		Missing(t, err)
	}
	return path
}

// Missing ends a test that cannot run on this machine: it fails where
// ATTESTABLE_IMAGE_REQUIRE=1 says that everything must run, and is skipped
// elsewhere.
func Missing(t testing.TB, reason any) {
	t.Helper()
	if os.Getenv("ATTESTABLE_IMAGE_REQUIRE") == "1" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// Program returns the path of a program, the pinned one first. Tests use Tool, which
// says what happens where it is missing.
func Program(name string) (string, error) {
	cache := os.Getenv("ATTESTABLE_IMAGE_CACHE")
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("look for %s: %w", name, err)
		}
		cache = filepath.Join(dir, "attestable-image")
	}
	path := filepath.Join(cache, "tools", name)
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
		return path, nil
	}
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	// Where Debian keeps what makes file systems, for users whose PATH lacks it.
	if path, err := exec.LookPath(filepath.Join("/usr/sbin", name)); err == nil {
		return path, nil
	}
	return "", fmt.Errorf("%s is not installed: run scripts/setup", name)
}
