package kiwi

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/org/attestable-image-action/internal/untrusted"
)

// Bounds of a description or an overlay, so that a wrong directory ends with a
// sentence and not with a full disk.
const (
	maxFiles       = 200_000
	maxStagedBytes = 16 << 30
	maxConfigBytes = 4 << 20
)

// errNoConfig is what a directory that holds no description ends with.
var errNoConfig = errors.New("it holds neither config.xml nor a file ending in .kiwi")

// configFile returns the name of the file that KIWI will read in a description:
// config.xml, image/config.xml, or the first file ending in .kiwi.
func configFile(description fs.FS) (string, error) {
	for _, name := range []string{"config.xml", "image/config.xml"} {
		info, err := fs.Stat(description, name)
		switch {
		case err == nil && info.Mode().IsRegular():
			return name, nil
		case errors.Is(err, untrusted.ErrOutside):
			return "", err
		}
	}
	matches, err := fs.Glob(description, "*.kiwi")
	if err != nil {
		return "", err
	}
	if len(matches) == 0 {
		return "", errNoConfig
	}
	return matches[0], nil
}

// copier copies trees and counts what it copied.
type copier struct {
	files int
	bytes int64
}

// modes says which permissions copied files and directories get: their own, if
// nothing else is said.
type modes struct {
	// scripts is set for embedded files, which have no permissions: one that begins
	// with #! becomes executable.
	scripts bool
	// tracked are the permissions that git records, by path.
	tracked map[string]fs.FileMode
}

// of returns the permissions for a directory, or for a file that begins with start.
func (m modes) of(name string, own fs.FileMode, start []byte) fs.FileMode {
	switch {
	case m.scripts && (own.IsDir() || bytes.Equal(start, []byte("#!"))):
		return 0o755
	case m.scripts:
		return 0o644
	}
	if mode, ok := m.tracked[name]; ok && mode.IsDir() == own.IsDir() {
		return permissions(mode)
	}
	if own.IsDir() {
		return permissions(own) | 0o700
	}
	return permissions(own)
}

// tree copies the content of a tree into a directory, over what is there: regular files,
// directories and symbolic links. No link leads what is written out of the directory.
// git's own directory stays behind: it is no part of a source, and its configuration
// holds the token of a checkout.
func (c *copier) tree(root *os.Root, tree fs.FS, m modes) error {
	return fs.WalkDir(tree, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if c.files++; c.files > maxFiles {
			return fmt.Errorf("there are more than %d files", maxFiles)
		}
		if name == ".git" {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		switch mode := info.Mode(); {
		case mode.IsDir():
			return copyDirectory(root, name, m.of(name, mode, nil))
		case mode.IsRegular():
			return c.file(root, tree, name, info, m)
		case mode&fs.ModeSymlink != 0:
			target, err := fs.ReadLink(tree, name)
			if err != nil {
				return err
			}
			if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return root.Symlink(target, name)
		default:
			return fmt.Errorf("%s is neither a file, a directory nor a symbolic link: remove it, the image makes such files itself", name)
		}
	})
}

// copyDirectory makes a directory, or sets the permissions of the one there.
func copyDirectory(root *os.Root, name string, mode fs.FileMode) error {
	if name == "." {
		return nil
	}
	err := root.Mkdir(name, 0o755)
	if errors.Is(err, fs.ErrExist) {
		if info, statErr := root.Stat(name); statErr != nil || !info.IsDir() {
			return fmt.Errorf("%s is a directory in one place and a file in the other", name)
		}
		err = nil
	}
	if err != nil {
		return err
	}
	return root.Chmod(name, mode)
}

// permissions are the bits of a mode that an image keeps.
func permissions(mode fs.FileMode) fs.FileMode {
	return mode & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
}

func (c *copier) file(root *os.Root, tree fs.FS, name string, info fs.FileInfo, m modes) error {
	if c.bytes += info.Size(); c.bytes > maxStagedBytes {
		return fmt.Errorf("the files are larger than %d GiB in sum", maxStagedBytes>>30)
	}
	in, err := tree.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	out, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	buffered := bufio.NewReader(io.LimitReader(in, info.Size()))
	start, _ := buffered.Peek(2) // a shorter file has no #!
	mode := m.of(name, info.Mode(), start)
	_, err = io.Copy(out, buffered)
	if err := errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("copy %s: %w", name, err)
	}
	return root.Chmod(name, mode)
}

// stage writes the description that KIWI will read into the new directory dir:
// the caller's, with the service and the overlay in root/ and with what was replaced
// in it. It returns what the description is made of. The package sources do not count
// in it: the same packages from another place make the same image.
func (o *Options) stage(dir string) ([]File, error) {
	name, err := configFile(o.Description)
	if err != nil {
		return nil, fmt.Errorf("read the KIWI description %s: %w", o.Source, err)
	}
	if err := makeDirectory(dir); err != nil {
		return nil, err
	}
	staged, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer staged.Close()
	var c copier
	if err := c.tree(staged, o.Description, modes{scripts: o.Embedded, tracked: o.Tracked}); err != nil {
		return nil, fmt.Errorf("copy the KIWI description %s: %w", o.Source, err)
	}
	if o.Service != nil {
		if err := o.Service.stage(&c, staged); err != nil {
			return nil, err
		}
	}
	if o.Overlay != "" {
		if err := o.stageOverlay(&c, staged); err != nil {
			return nil, err
		}
	}
	config, err := untrusted.ReadFile(o.Description, name, maxConfigBytes)
	if err != nil {
		return nil, fmt.Errorf("read the KIWI description %s: %w", o.Source, err)
	}
	identity, err := o.edit(config, nil)
	if err != nil {
		return nil, fmt.Errorf("read %s of the KIWI description %s: %w", name, o.Source, err)
	}
	edited, err := o.edit(config, o.PackageSources)
	if err != nil {
		return nil, fmt.Errorf("read %s of the KIWI description %s: %w", name, o.Source, err)
	}
	if !bytes.Equal(edited, config) {
		if err := replace(staged, name, edited); err != nil {
			return nil, fmt.Errorf("edit the copy of the KIWI description %s: %w", o.Source, err)
		}
	}
	files, err := settle(staged, name, identity, o.Epoch)
	if err != nil {
		return nil, fmt.Errorf("read the copy of the KIWI description %s: %w", o.Source, err)
	}
	return files, nil
}

// replace puts other content into a file, or in the place of a link to one. Whatever is
// replaced, it counts the same: the permissions stay.
func replace(root *os.Root, name string, content []byte) error {
	info, err := root.Stat(name)
	if err != nil {
		return err
	}
	if err := root.Remove(name); err != nil {
		return err
	}
	if err := root.WriteFile(name, content, 0o600); err != nil {
		return err
	}
	return root.Chmod(name, permissions(info.Mode()))
}

// makeDirectory makes a directory that everybody may read, whatever the umask is.
func makeDirectory(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil { //nolint:gosec // the container reads it
		return err
	}
	return os.Chmod(path, 0o755) //nolint:gosec // as above
}

// stageOverlay copies the overlay into root/ of the staged description, which
// KIWI copies into the image's root.
func (o *Options) stageOverlay(c *copier, staged *os.Root) error {
	overlay, err := untrusted.Dir(o.Overlay)
	if err != nil {
		return fmt.Errorf("read the overlay: %w", err)
	}
	defer overlay.Close()
	target, err := overlayTarget(staged)
	if err != nil {
		return err
	}
	defer target.Close()
	if err := c.tree(target, overlay, modes{tracked: o.OverlayTracked}); err != nil {
		return fmt.Errorf("copy the overlay %s: %w", o.Overlay, err)
	}
	return nil
}

// overlayTarget opens root/ of a staged description, and makes it where there is none.
func overlayTarget(staged *os.Root) (*os.Root, error) {
	err := staged.Mkdir("root", 0o755)
	switch {
	case errors.Is(err, fs.ErrExist):
		if info, err := staged.Lstat("root"); err != nil || !info.IsDir() {
			return nil, errors.New("root of the description is a symbolic link or a file, and files are to be put into it: make it a directory")
		}
	case err != nil:
		return nil, err
	default:
		// KIWI would no longer unpack this, now that there is a directory.
		if _, err := staged.Lstat("root.tar.gz"); err == nil {
			return nil, errors.New("the description has its files in root.tar.gz, which KIWI does not join with an overlay: unpack it into root/")
		}
		if err := staged.Chmod("root", 0o755); err != nil { // whatever the umask is
			return nil, err
		}
	}
	return staged.OpenRoot("root")
}

// Templates lists the templates in a folder of them, in order.
func Templates(folder fs.FS) ([]string, error) {
	entries, err := fs.ReadDir(folder, ".")
	if err != nil {
		return nil, fmt.Errorf("list the templates: %w", err)
	}
	var names []string
	for _, entry := range entries {
		if !entry.IsDir() || strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		if sub, err := fs.Sub(folder, entry.Name()); err == nil {
			if _, err := configFile(sub); err == nil {
				names = append(names, entry.Name())
			}
		}
	}
	return names, nil
}
