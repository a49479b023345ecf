package kiwi

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/org/attestable-image-action/internal/lazyregexp"
)

// LockName is the name of a lock beside a description.
const LockName = "packages.lock"

// Bounds of a lock, in bytes and packages.
const (
	MaxLockBytes    = 16 << 20
	maxLockPackages = 100_000
)

// lockHeader begins a lock.
const lockHeader = `# The packages of an image, made by attestable-image build --update-lock.
# A build with this lock uses these and no others.
#
# image's architecture, package, version, package's architecture, SHA-256
`

// Package is a package of an image.
type Package struct {
	Name, Version, Architecture string // as the package names them
	SHA256                      string // of its file, lower-case hex
}

// Lock is the packages of an image by the architecture of the image (x86_64), each
// list sorted.
type Lock map[string][]Package

var (
	// What package formats allow, and a shell's word.
	lockWord     = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9._+:~^-]{0,254}$`)
	architecture = lazyregexp.New(`^[a-z0-9_-]{1,32}$`)
)

// parsePackage reads "NAME VERSION ARCHITECTURE SHA256". An error does not repeat it: what
// is given as a lock may be any file.
func parsePackage(fields []string) (Package, error) {
	if len(fields) != 4 {
		return Package{}, errors.New("it does not name a package, its version, its architecture and its SHA-256")
	}
	p := Package{fields[0], fields[1], fields[2], fields[3]}
	switch {
	case !lockWord().MatchString(p.Name):
		return Package{}, errors.New("its first word is no name of a package")
	case !lockWord().MatchString(p.Version):
		return Package{}, errors.New("it has no version of a package")
	case !architecture().MatchString(p.Architecture):
		return Package{}, errors.New("it has no architecture of a package")
	}
	if sum, err := hex.DecodeString(p.SHA256); err != nil || len(sum) != 32 || strings.ToLower(p.SHA256) != p.SHA256 {
		return Package{}, errors.New("it has no SHA-256 in lower-case hex")
	}
	return p, nil
}

// ParseLock reads a lock. Lines that begin with # are comments.
func ParseLock(content []byte) (Lock, error) {
	if len(content) > MaxLockBytes {
		return nil, fmt.Errorf("it is larger than %d bytes", MaxLockBytes)
	}
	lock := Lock{}
	number, count := 0, 0
	for line := range bytes.Lines(content) {
		number++
		text := strings.TrimSpace(string(line))
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		if count++; count > maxLockPackages {
			return nil, fmt.Errorf("it has more than %d packages", maxLockPackages)
		}
		fields := strings.Fields(text)
		p, err := parsePackage(fields[1:])
		if err == nil && !architecture().MatchString(fields[0]) {
			err = errors.New("it begins with no architecture")
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		lock[fields[0]] = append(lock[fields[0]], p)
	}
	for image, packages := range lock {
		lock[image] = sortPackages(packages)
	}
	return lock, nil
}

// parseUsed reads the packages that a build wrote down.
func parseUsed(content []byte) ([]Package, error) {
	var packages []Package
	number := 0
	for line := range bytes.Lines(content) {
		number++
		p, err := parsePackage(strings.Fields(string(line)))
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		packages = append(packages, p)
		if len(packages) > maxLockPackages {
			return nil, fmt.Errorf("there are more than %d packages", maxLockPackages)
		}
	}
	return sortPackages(packages), nil
}

// sortPackages sorts packages by name, and leaves out what is there twice.
func sortPackages(packages []Package) []Package {
	slices.SortFunc(packages, func(a, b Package) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Architecture, b.Architecture),
			strings.Compare(a.Version, b.Version), strings.Compare(a.SHA256, b.SHA256))
	})
	return slices.Compact(packages)
}

// Format writes a lock, sorted by architecture and package.
func (l Lock) Format() []byte {
	b := bytes.NewBufferString(lockHeader)
	for _, image := range sortedKeys(l) {
		for _, p := range l[image] {
			fmt.Fprintf(b, "%s %s\n", image, p)
		}
	}
	return b.Bytes()
}

// ImageSHA256 is the SHA-256, in hex, of what a build here that used all of the lock
// would write as packages.lock; "" when the lock has no packages for it.
func (l Lock) ImageSHA256() string {
	packages := l[Architecture()]
	if len(packages) == 0 {
		return ""
	}
	return Lock{Architecture(): packages}.digest()
}

// digest is the SHA-256 of a lock in hex, "" for none.
func (l Lock) digest() string {
	if l == nil {
		return ""
	}
	return sumOf(l.Format())
}

func sortedKeys(l Lock) []string {
	keys := make([]string, 0, len(l))
	for key := range l {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// String is a package as a line of a lock has it.
func (p Package) String() string {
	return p.Name + " " + p.Version + " " + p.Architecture + " " + p.SHA256
}

// PackageChange is a difference between a lock and what a build uses.
type PackageChange struct {
	Name         string
	Locked, Used []Package // of this name; none where there is no such package
}

// String tells a change in half a sentence.
func (c PackageChange) String() string {
	versions := func(packages []Package) string {
		list := make([]string, 0, len(packages))
		for _, p := range packages {
			list = append(list, p.Version+" ("+p.Architecture+")")
		}
		return strings.Join(list, ", ")
	}
	locked, used := versions(c.Locked), versions(c.Used)
	switch {
	case locked == "":
		return fmt.Sprintf("%s %s is not in the lock", c.Name, used)
	case used == "":
		return fmt.Sprintf("%s %s is not used", c.Name, locked)
	case locked == used:
		return fmt.Sprintf("%s %s has other bytes: SHA-256 %s, locked %s", c.Name, used, sums(c.Used), sums(c.Locked))
	default:
		return fmt.Sprintf("%s is %s, locked %s", c.Name, used, locked)
	}
}

func sums(packages []Package) string {
	list := make([]string, 0, len(packages))
	for _, p := range packages {
		list = append(list, p.SHA256)
	}
	return strings.Join(list, ", ")
}

// comparePackages returns the differences, sorted by name. A build that ended early
// used a part only: then packages that it did not use are no difference.
func comparePackages(locked, used []Package, part bool) []PackageChange {
	byName := map[string]*PackageChange{}
	change := func(name string) *PackageChange {
		if byName[name] == nil {
			byName[name] = &PackageChange{Name: name}
		}
		return byName[name]
	}
	for _, p := range locked {
		c := change(p.Name)
		c.Locked = append(c.Locked, p)
	}
	for _, p := range used {
		c := change(p.Name)
		c.Used = append(c.Used, p)
	}
	var changes []PackageChange
	for _, c := range byName {
		if slices.Equal(c.Locked, c.Used) || part && !slices.ContainsFunc(c.Used, func(p Package) bool { return !slices.Contains(c.Locked, p) }) {
			continue
		}
		changes = append(changes, *c)
	}
	slices.SortFunc(changes, func(a, b PackageChange) int { return strings.Compare(a.Name, b.Name) })
	return changes
}

// LockError is a build that would use other packages than its lock has.
type LockError struct {
	Lock    string // what the lock is called
	Changes []PackageChange
}

// maxToldChanges bounds the changes in an error's sentence.
const maxToldChanges = 20

func (e *LockError) Error() string {
	told := make([]string, 0, maxToldChanges+1)
	for i, c := range e.Changes {
		if i == maxToldChanges {
			told = append(told, fmt.Sprintf("and %d more", len(e.Changes)-i))
			break
		}
		told = append(told, c.String())
	}
	return fmt.Sprintf("the packages are not those of %s: %s: use package sources that have the locked ones, such as a snapshot archive's, or renew the lock with --update-lock",
		e.Lock, strings.Join(told, "; "))
}
