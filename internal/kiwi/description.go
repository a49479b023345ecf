package kiwi

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
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
		if info, err := fs.Stat(description, name); err == nil && info.Mode().IsRegular() {
			return name, nil
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

// tree copies the content of a tree into the directory dir, over what is there:
// regular files with their permissions, directories and symbolic links. A file
// that begins with #! becomes executable when scripts is set, because an
// embedded file has no mode.
func (c *copier) tree(dir string, tree fs.FS, scripts bool) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(tree, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if c.files++; c.files > maxFiles {
			return fmt.Errorf("there are more than %d files", maxFiles)
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		switch mode := info.Mode(); {
		case mode.IsDir():
			return copyDirectory(root, name, mode)
		case mode.IsRegular():
			return c.file(root, tree, name, info, scripts)
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
	return root.Chmod(name, permissions(mode)|0o700)
}

// permissions are the bits of a mode that an image keeps.
func permissions(mode fs.FileMode) fs.FileMode {
	return mode & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
}

func (c *copier) file(root *os.Root, tree fs.FS, name string, info fs.FileInfo, scripts bool) error {
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
	mode := permissions(info.Mode())
	if scripts {
		mode = 0o644
		if start, _ := buffered.Peek(2); bytes.Equal(start, []byte("#!")) {
			mode = 0o755
		}
	}
	_, err = io.Copy(out, buffered)
	if err := errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("copy %s: %w", name, err)
	}
	if err := root.Chmod(name, mode); err != nil {
		return err
	}
	if scripts { // an embedded file has no time either
		return nil
	}
	return root.Chtimes(name, info.ModTime(), info.ModTime())
}

// stage writes the description that KIWI will read into the new directory dir:
// the caller's, with the service and the overlay in root/ and with what was replaced
// in it.
func (o *Options) stage(dir string) error {
	name, err := configFile(o.Description)
	if err != nil {
		return fmt.Errorf("read the KIWI description %s: %w", o.Source, err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // the container reads it
		return err
	}
	var c copier
	if err := c.tree(dir, o.Description, o.Embedded); err != nil {
		return fmt.Errorf("copy the KIWI description %s: %w", o.Source, err)
	}
	if o.Service != nil {
		if err := o.Service.stage(&c, dir); err != nil {
			return err
		}
	}
	if o.Overlay != "" {
		if err := stageOverlay(&c, dir, o.Overlay); err != nil {
			return err
		}
	}
	config, err := readBounded(o.Description, name, maxConfigBytes)
	if err != nil {
		return fmt.Errorf("read the KIWI description %s: %w", o.Source, err)
	}
	edited, err := o.edit(config)
	if err != nil {
		return fmt.Errorf("read %s of the KIWI description %s: %w", name, o.Source, err)
	}
	if bytes.Equal(edited, config) {
		return nil
	}
	target := filepath.Join(dir, filepath.FromSlash(name))
	if err := os.Remove(target); err != nil { // a link of the user's must not be written through
		return err
	}
	return os.WriteFile(target, edited, 0o600)
}

// stageOverlay copies the overlay into root/ of the staged description, which
// KIWI copies into the image's root.
func stageOverlay(c *copier, dir, overlay string) error {
	info, err := os.Stat(overlay)
	switch {
	case err != nil:
		return fmt.Errorf("read the overlay: %w", err)
	case !info.IsDir():
		return fmt.Errorf("read the overlay: %s is not a directory", overlay)
	}
	target, err := overlayTarget(dir)
	if err != nil {
		return err
	}
	if err := c.tree(target, os.DirFS(overlay), false); err != nil {
		return fmt.Errorf("copy the overlay %s: %w", overlay, err)
	}
	return nil
}

// overlayTarget makes root/ of a staged description where there is none, and returns
// its path.
func overlayTarget(dir string) (string, error) {
	target := filepath.Join(dir, "root")
	err := os.Mkdir(target, 0o755) //nolint:gosec // the image's own root
	switch {
	case errors.Is(err, fs.ErrExist):
	case err != nil:
		return "", err
	default:
		// KIWI would no longer unpack this, now that there is a directory.
		if _, err := os.Lstat(filepath.Join(dir, "root.tar.gz")); err == nil {
			return "", errors.New("the description has its files in root.tar.gz, which KIWI does not join with an overlay: unpack it into root/")
		}
	}
	return target, nil
}

// readBounded reads a file of at most limit bytes.
func readBounded(tree fs.FS, name string, limit int64) ([]byte, error) {
	file, err := tree.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, limit+1))
	switch {
	case err != nil:
		return nil, err
	case int64(len(content)) > limit:
		return nil, fmt.Errorf("%s is larger than %d bytes", path.Base(name), limit)
	}
	return content, nil
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
