package cli

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/org/attestable-image-action/internal/audit"
	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/gha"
	"github.com/org/attestable-image-action/internal/kiwi"
	"github.com/org/attestable-image-action/internal/lazyregexp"
	"github.com/org/attestable-image-action/internal/untrusted"
)

// imageSource is what a user's image is built from, as far as it is the user's own: an
// annotation points into it, and into nothing else.
type imageSource struct {
	description string       // directory of the KIWI description, "" for a template
	places      *kiwi.Places // in it, nil where it cannot be read
	overlay     string       // directory of the overlay, "" for none
}

func newImageSource(description, overlay string) imageSource {
	s := imageSource{description: description, overlay: overlay}
	if description != "" {
		if tree, err := untrusted.Dir(description); err == nil {
			if places, err := kiwi.ReadPlaces(tree); err == nil {
				s.places = places
			}
		}
	}
	return s
}

// packagesOf are the packages that bring what a rule finds, where their names do not
// say it.
var packagesOf = map[string][]string{
	"sshd-enabled": {"openssh-server"}, "sshd-installed": {"openssh-server"},
	"ssm-agent-enabled": {"amazon-ssm-agent"}, "ssm-agent-installed": {"amazon-ssm-agent"},
	"ec2-instance-connect-installed": {"ec2-instance-connect"},
	"cloud-init-enabled":             {"cloud-init"}, "cloud-init-installed": {"cloud-init"},
}

// namedPackage are rules that find programs whose packages may have their names.
var namedPackage = lazyregexp.New(`^(remote-shell-(enabled|installed)|remote-management|self-update)$`)

// accountOf is what a finding about an account says in detail.
var accountOf = lazyregexp.New(`^the account ("(?:[^"\\]|\\.)*")$`)

// place is where in the repository the cause of a finding stands. It is none where that
// is not certain.
func (s imageSource) place(d *disk.Disk, f audit.Finding) gha.Place {
	if at, ok := s.file(d, f); ok {
		return at
	}
	if s.places == nil {
		return gha.Place{}
	}
	find := func() (kiwi.Place, bool) {
		names := packagesOf[f.ID]
		if namedPackage().MatchString(f.ID) {
			base := path.Base(f.Path)
			names = []string{base, strings.TrimSuffix(base, ".service")}
		}
		for _, name := range names {
			if at, ok := s.places.Package(name); ok {
				return at, true
			}
		}
		if m := accountOf().FindStringSubmatch(f.Detail); m != nil {
			if name, err := strconv.Unquote(m[1]); err == nil {
				return s.places.User(name)
			}
		}
		if strings.HasSuffix(f.Path, "#.cmdline") {
			return s.places.KernelOption(f.Detail)
		}
		return kiwi.Place{}, false
	}
	at, ok := find()
	if !ok {
		return gha.Place{}
	}
	return inRepository(filepath.Join(s.description, filepath.FromSlash(at.File)), at.Line)
}

// file is the place of a finding about a file of the image's root that the user's own
// is copied to. The line counts where the one still has the content of the other.
func (s imageSource) file(d *disk.Disk, f audit.Finding) (gha.Place, bool) {
	if !fs.ValidPath(f.Path) || strings.Contains(f.Path, "#") {
		return gha.Place{}, false
	}
	dir, name := "", f.Path // of the user's own file
	if s.overlay != "" && hasFile(s.overlay, name) {
		dir = s.overlay
	} else if s.places != nil {
		if at, ok := s.places.RootFile(f.Path); ok {
			dir, name = s.description, at.File
		}
	}
	if dir == "" {
		return gha.Place{}, false
	}
	content, err := rootFile(d, f.Partition, f.Path)
	if err != nil {
		return gha.Place{}, false // of another partition, such as the EFI system partition
	}
	line := 0
	if tree, err := untrusted.Dir(dir); err == nil {
		defer tree.Close()
		if text, err := untrusted.ReadFile(tree, name, maxPlacedFile); err == nil && bytes.Equal(text, content) {
			line = f.Line
		}
	}
	return inRepository(filepath.Join(dir, filepath.FromSlash(name)), line), true
}

// hasFile reports whether a directory has a regular file of that name.
func hasFile(dir, name string) bool {
	tree, err := untrusted.Dir(dir)
	if err != nil {
		return false
	}
	defer tree.Close()
	info, err := tree.Lstat(name)
	return err == nil && info.Mode().IsRegular()
}

// maxPlacedFile bounds a file in which a line is counted, in bytes.
const maxPlacedFile = 1 << 20

// rootFile reads the beginning of a file of a partition.
func rootFile(d *disk.Disk, partition int, name string) ([]byte, error) {
	gpt, err := d.GPT()
	if err != nil {
		return nil, err
	}
	for _, p := range gpt.Partitions {
		if p.Number != partition {
			continue
		}
		filesystem, err := disk.OpenFilesystem(io.NewSectionReader(d, p.Offset, p.Size), p.Size)
		if err != nil {
			return nil, err
		}
		file, err := filesystem.Open(name)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		return io.ReadAll(io.LimitReader(file, maxPlacedFile+1))
	}
	return nil, errors.New("there is no such partition")
}

// errorPlace is where the cause of build's error stands.
func (s imageSource) errorPlace(err error) gha.Place {
	if s.description == "" {
		return gha.Place{}
	}
	if lock, ok := errors.AsType[*kiwi.LockError](err); ok {
		name := filepath.Join(s.description, kiwi.LockName)
		if _, err := os.Stat(name); err != nil || lock.Lock != kiwi.LockName+" of "+s.description {
			return gha.Place{}
		}
		return inRepository(name, 0)
	}
	tree, treeErr := untrusted.Dir(s.description)
	if treeErr != nil {
		return gha.Place{}
	}
	defer tree.Close()
	at, ok := kiwi.PlaceOfError(tree, err)
	if !ok {
		return gha.Place{}
	}
	return inRepository(filepath.Join(s.description, filepath.FromSlash(at.File)), at.Line)
}

// inRepository is the place of a file relative to the top of the checkout that it lies
// in, or else of the workspace; none where it lies outside of both.
func inRepository(name string, line int) gha.Place {
	name, err := filepath.Abs(name)
	if err != nil {
		return gha.Place{}
	}
	top := os.Getenv("GITHUB_WORKSPACE")
	for dir := filepath.Dir(name); ; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(filepath.Join(dir, ".git")); err == nil {
			top = dir
			break
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	if top == "" {
		return gha.Place{}
	}
	relative, err := filepath.Rel(top, name)
	if err != nil || !filepath.IsLocal(relative) {
		return gha.Place{}
	}
	return gha.Place{File: filepath.ToSlash(relative), Line: line}
}

// placedError is an error whose cause stands in a file of the user's.
type placedError struct {
	error
	at gha.Place
}

func (e placedError) Unwrap() error { return e.error }
