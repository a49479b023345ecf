package testenv

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// AddSections appends sections to a PE32+ image, as ukify does to systemd-stub.
// The image is not signed afterwards.
func AddSections(image []byte, sections ...PESection) ([]byte, error) {
	le := binary.LittleEndian
	pe := int(le.Uint32(image[60:]))
	file := pe + 4
	optional := file + 20
	count := int(le.Uint16(image[file+2:]))
	table := optional + int(le.Uint16(image[file+16:]))
	sectionAlign, fileAlign := le.Uint32(image[optional+32:]), le.Uint32(image[optional+36:])
	headers := le.Uint32(image[optional+60:])
	if need := uint32(table + 40*(count+len(sections))); need > headers {
		// Make room: everything behind the headers moves.
		grown := (need + fileAlign - 1) &^ (fileAlign - 1)
		shift := grown - headers
		image = slices.Concat(image[:headers], make([]byte, shift), image[headers:])
		for i := range count {
			raw := image[table+40*i:]
			if offset := le.Uint32(raw[20:]); offset != 0 {
				le.PutUint32(raw[20:], offset+shift)
			}
		}
		le.PutUint32(image[optional+60:], grown)
		if first := le.Uint32(image[table+12:]); grown > first {
			return nil, fmt.Errorf("the headers of the image have no room for %d more sections", len(sections))
		}
	} else {
		image = slices.Clone(image)
	}
	end := uint32(0)
	for i := range count {
		raw := image[table+40*i:]
		end = max(end, le.Uint32(raw[12:])+le.Uint32(raw[8:]))
	}
	for i, s := range sections {
		address := (end + sectionAlign - 1) &^ (sectionAlign - 1)
		image = append(image, make([]byte, -len(image)&int(fileAlign-1))...)
		raw := image[table+40*(count+i):]
		copy(raw[:8], make([]byte, 8))
		copy(raw[:8], s.Name)
		le.PutUint32(raw[8:], uint32(len(s.Data)))
		le.PutUint32(raw[12:], address)
		le.PutUint32(raw[16:], (uint32(len(s.Data))+fileAlign-1)&^(fileAlign-1))
		le.PutUint32(raw[20:], uint32(len(image)))
		le.PutUint32(raw[36:], 0x40000040) // initialised data, readable
		end = address + uint32(len(s.Data))
		image = append(image, s.Data...)
		image = append(image, make([]byte, -len(image)&int(fileAlign-1))...)
	}
	le.PutUint16(image[file+2:], uint16(count+len(sections)))
	le.PutUint32(image[optional+56:], (end+sectionAlign-1)&^(sectionAlign-1)) // SizeOfImage
	return image, nil
}

// debianMirror is where the packages of DebianFile come from, unless
// ATTESTABLE_IMAGE_PACKAGE_SOURCE names another place.
const debianMirror = "http://deb.debian.org/debian"

// DebianFile returns the content of a file of a Debian package, such as
// ("sid", "amd64", "systemd-boot-efi", "usr/lib/systemd/boot/efi/linuxx64.efi.stub").
// A name that ends in "*" stands for the first file that begins so. Package
// and index are kept in the user's cache directory for a day.
func DebianFile(t testing.TB, suite, arch, name, file string) []byte {
	t.Helper()
	return DebianFiles(t, suite, arch, name, file)[0]
}

// DebianFiles is DebianFile for several files of a package, in their order.
func DebianFiles(t testing.TB, suite, arch, name string, files ...string) [][]byte {
	t.Helper()
	deb, err := debianPackage(suite, arch, name)
	if err == nil {
		var contents [][]byte
		if contents, err = filesOfPackage(deb, files); err == nil {
			return contents
		}
	}
	t.Fatalf("get %s of Debian's %s (%s, %s): %v", strings.Join(files, ", "), name, suite, arch, err)
	return nil
}

// packageSource is the mirror, and the directory that keeps what came from it.
func packageSource() (mirror, dir string, err error) {
	mirror = debianMirror
	if source := strings.Fields(os.Getenv("ATTESTABLE_IMAGE_PACKAGE_SOURCE")); len(source) > 0 {
		mirror = strings.TrimSuffix(source[0], "/")
	}
	cache, err := os.UserCacheDir()
	return mirror, filepath.Join(cache, "attestable-image", "packages"), err
}

func debianPackage(suite, arch, name string) (string, error) {
	fields, err := debianFields(suite, arch, name)
	if err != nil {
		return "", err
	}
	mirror, dir, err := packageSource()
	if err != nil {
		return "", err
	}
	return download(mirror+"/"+fields["Filename"], filepath.Join(dir, path.Base(fields["Filename"])), fields["SHA256"])
}

// debianFields reads a package's paragraph in the index of a suite.
func debianFields(suite, arch, name string) (map[string]string, error) {
	mirror, dir, err := packageSource()
	if err != nil {
		return nil, err
	}
	index, err := download(mirror+"/dists/"+suite+"/main/binary-"+arch+"/Packages.xz", filepath.Join(dir, suite+"-"+arch+"-Packages.xz"), "")
	if err != nil {
		return nil, err
	}
	unpacked, err := unpackIndex(index)
	if err != nil {
		return nil, err
	}
	defer unpacked.Close()
	fields := map[string]string{}
	lines := bufio.NewScanner(unpacked)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if line == "" {
			if fields["Package"] == name {
				break
			}
			clear(fields)
			continue
		}
		if key, value, ok := strings.Cut(line, ": "); ok {
			fields[key] = value
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", index, err)
	}
	if fields["Package"] != name {
		return nil, fmt.Errorf("%s has no package %s for %s", suite, name, arch)
	}
	return fields, nil
}

// unpackIndex opens what an index holds. It is kept beside the index, which takes
// a second to unpack.
func unpackIndex(index string) (*os.File, error) {
	path := strings.TrimSuffix(index, ".xz")
	packed, err := os.Stat(index)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(path); err == nil && info.ModTime().After(packed.ModTime()) {
		return os.Open(path)
	}
	content, err := exec.Command("xz", "--decompress", "--stdout", index).Output()
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", index, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".unpack-*")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return nil, err
	}
	return os.Open(path)
}

// download fetches a file once a day, or for ever when its digest is known.
func download(url, to, digest string) (string, error) {
	if info, err := os.Stat(to); err == nil && (digest != "" || time.Since(info.ModTime()) < 24*time.Hour) {
		return to, nil
	}
	client := http.Client{Timeout: 10 * time.Minute}
	response, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("get %s: %s", url, response.Status)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o750); err != nil {
		return "", err
	}
	f, err := os.CreateTemp(filepath.Dir(to), ".download-*")
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(f, h), response.Body); err != nil {
		return "", fmt.Errorf("get %s: %w", url, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); digest != "" && got != digest {
		return "", fmt.Errorf("get %s: its SHA-256 is %s, the index says %s", url, got, digest)
	}
	return to, os.Rename(f.Name(), to)
}

// filesOfPackage reads files of a .deb.
func filesOfPackage(deb string, names []string) (contents [][]byte, err error) {
	cmd := exec.Command("dpkg-deb", "--fsys-tarfile", deb)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	contents = make([][]byte, len(names))
	missing := len(names)
	for archive := tar.NewReader(out); missing > 0; {
		header, err := archive.Next()
		if err != nil {
			_ = cmd.Wait() // the reason is on stderr
			absent := names[slices.IndexFunc(contents, func(c []byte) bool { return c == nil })]
			return nil, fmt.Errorf("%s has no %s: %w %s", filepath.Base(deb), absent, err, stderr.Bytes())
		}
		have := strings.TrimPrefix(header.Name, "./")
		i := slices.IndexFunc(names, func(name string) bool {
			prefix, wild := strings.CutSuffix(name, "*")
			return have == name || wild && strings.HasPrefix(have, prefix)
		})
		if header.Typeflag != tar.TypeReg || i < 0 || contents[i] != nil {
			continue
		}
		if contents[i], err = io.ReadAll(archive); err != nil {
			return nil, err
		}
		missing--
	}
	// The rest must be read, too: dpkg-deb waits for it.
	if _, err := io.Copy(io.Discard, out); err != nil {
		return nil, err
	}
	return contents, cmd.Wait()
}

// DebianDepends returns the first package that a package of a Debian suite
// depends on, as those do that only stand for the newest version of another.
func DebianDepends(t testing.TB, suite, arch, name string) string {
	t.Helper()
	fields, err := debianFields(suite, arch, name)
	if err != nil {
		t.Fatalf("look up Debian's %s (%s, %s): %v", name, suite, arch, err)
	}
	first, _, _ := strings.Cut(fields["Depends"], ",")
	first, _, _ = strings.Cut(first, "|")
	first, _, _ = strings.Cut(strings.TrimSpace(first), " ")
	return first
}
