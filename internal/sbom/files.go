package sbom

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// dpkgInfo has a list of files for each package that is installed.
const dpkgInfo = "var/lib/dpkg/info"

// maxFileList bounds the list of a package's files, in bytes; the longest of
// Debian has some 3 MiB.
const maxFileList = 32 << 20

// Files lists the files and directories of a package as dpkg notes them, relative
// to the root file system. The error is fs.ErrNotExist when there is no such list,
// as for every rpm: its header is not read for that.
func Files(root fs.FS, p Package) ([]string, error) {
	if p.Kind != Deb || !debName().MatchString(p.Name) || !debArch().MatchString(p.Arch) {
		return nil, fs.ErrNotExist
	}
	// A package that may be installed for several architectures has its own in the
	// list's name.
	for _, name := range []string{p.Name + ":" + p.Arch, p.Name} {
		content, _, err := readFile(root, path.Join(dpkgInfo, name+".list"), maxFileList)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the list of files of package %s: %w", p.Name, err)
		}
		files := make([]string, 0, bytes.Count(content, []byte("\n")))
		for line := range strings.Lines(string(content)) {
			if name := path.Clean("/" + strings.TrimSuffix(line, "\n"))[1:]; name != "" {
				files = append(files, name)
			}
		}
		return files, nil
	}
	return nil, fs.ErrNotExist
}

// IsDatabase reports whether a file, by its path relative to the root file system,
// belongs to a package manager's database, which changes with every package.
func IsDatabase(name string) bool {
	for _, dir := range append([]string{"var/lib/dpkg"}, rpmDirs...) {
		if name == dir || strings.HasPrefix(name, dir+"/") {
			return true
		}
	}
	return false
}
