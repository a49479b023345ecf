package kiwi

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/org/attestable-image-action/internal/lazyregexp"
	"github.com/org/attestable-image-action/internal/untrusted"
)

// DefaultEpoch is the time of an image whose source has none: 2025-01-01T00:00:00Z
// in seconds since 1970. It is the same in every version of this program.
const DefaultEpoch = 1735689600

// ParseEpoch reads SOURCE_DATE_EPOCH, whole seconds since 1970 in decimal.
// See https://reproducible-builds.org/specs/source-date-epoch/.
func ParseEpoch(text string) (int64, error) {
	// The times that FAT can keep.
	const first, last = 315532800, 4354819199
	epoch, err := strconv.ParseInt(text, 10, 64)
	if err != nil || epoch < first || epoch > last || text != strconv.FormatInt(epoch, 10) {
		return 0, fmt.Errorf("read SOURCE_DATE_EPOCH: %q is no number of seconds since 1970 between %d and %d, as `git log -1 --format=%%ct` prints it", text, first, last)
	}
	return epoch, nil
}

// checkEpoch refuses a time that has not come yet: what is made during the build
// would be older, and keep the time of this build.
func checkEpoch(epoch int64, now time.Time) error {
	if at := time.Unix(epoch, 0); at.After(now) {
		return fmt.Errorf("the image's time (SOURCE_DATE_EPOCH, or that of the commit) is %s, and this machine's clock says %s: set the clock, or an earlier SOURCE_DATE_EPOCH",
			at.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// notIdentity are entries of a description that say how and of what an image is
// built, and that KIWI does not read. They do not change its identifiers.
var notIdentity = map[string]bool{"Dockerfile": true, "builder": true, LockName: true, ".git": true}

// settle gives everything in a staged description the time of the image, and returns
// what the description is made of, in the order of the paths. config counts in place of
// the content of the file called configName.
func settle(staged *os.Root, configName string, config []byte, epoch int64) ([]File, error) {
	var files []File
	// WalkDir goes through the names of a directory in lexical order.
	err := fs.WalkDir(staged.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if top, _, _ := strings.Cut(name, "/"); !notIdentity[top] {
			content := io.Reader(nil)
			if name == configName {
				content = bytes.NewReader(config)
				if info, err = staged.Stat(name); err != nil { // it may be a link
					return err
				}
			}
			file, err := describeFile(staged, name, info, content)
			if err != nil {
				return err
			}
			files = append(files, file)
		}
		stamp := unix.NsecToTimespec(epoch * int64(time.Second))
		return unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(staged.Name(), filepath.FromSlash(name)), []unix.Timespec{stamp, stamp}, unix.AT_SYMLINK_NOFOLLOW)
	})
	return files, err
}

// describeFile describes an entry of a staged description.
func describeFile(staged *os.Root, name string, info fs.FileInfo, content io.Reader) (File, error) {
	mode := info.Mode()
	bits := mode.Perm()
	for bit, flag := range map[fs.FileMode]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if mode&flag != 0 {
			bits |= bit
		}
	}
	switch {
	case mode.IsDir():
		return File{Path: name, Kind: "directory", Mode: fmt.Sprintf("%o", bits)}, nil
	case mode&fs.ModeSymlink != 0:
		target, err := staged.Readlink(name)
		return File{Path: name, Kind: "link", Target: target}, err
	case mode.IsRegular():
		if content == nil {
			file, err := staged.Open(name)
			if err != nil {
				return File{}, err
			}
			defer file.Close()
			content = file
		}
		sum := sha256.New()
		_, err := io.Copy(sum, content)
		return File{Path: name, Kind: "file", Mode: fmt.Sprintf("%o", bits), SHA256: hex.EncodeToString(sum.Sum(nil))}, err
	}
	return File{}, errors.New(name + " is neither a file, a directory nor a symbolic link")
}

// seed is what identifiers in an image are derived from.
func seed(description string, epoch int64, architecture string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "attestable-image v1\n%s\n%d\n%s\n", description, epoch, architecture))
	return hex.EncodeToString(sum[:])
}

// Architecture is that of the images that are built here, x86_64 or aarch64: KIWI runs
// the image's own programs.
func Architecture() string {
	switch runtime.GOARCH {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return runtime.GOARCH
}

// snapshotSource is a package repository in an archive of snapshots, whose path has
// the time of the snapshot.
var snapshotSource = lazyregexp.New(`<source\s[^>]*path\s*=\s*["'][^"']*/[0-9]{8}T[0-9]{6}Z[/"']`)

// fromSnapshot reports whether a staged description takes packages from an archive
// of snapshots, whose lists of packages say that they are out of date.
func fromSnapshot(dir string) (bool, error) {
	tree, err := untrusted.Dir(dir)
	if err != nil {
		return false, err
	}
	defer tree.Close()
	name, err := configFile(tree)
	if err != nil {
		return false, err
	}
	config, err := untrusted.ReadFile(tree, name, maxConfigBytes+maxSources*4096)
	if err != nil {
		return false, fmt.Errorf("read the copy of the KIWI description: %w", err)
	}
	return snapshotSource().Match(config), nil
}
