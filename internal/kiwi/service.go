package kiwi

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// Service is the attestation service that is put into the image.
type Service struct {
	Files   fs.FS  // its units and rules, from the image's root on
	Program string // path of the program, which goes to /usr/bin/attestable-image
}

// Where the service's program goes in the image, and what starts its socket.
const (
	serviceProgram = "usr/bin/attestable-image"
	serviceUnits   = "usr/lib/systemd/system"
	serviceSocket  = "attestable-image.socket"
)

// machines are the ELF machines that KIWI builds for: this machine's, since KIWI
// runs the image's own programs.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// check refuses a program that would not run in the image: it is for this machine's
// architecture, and needs nothing of the image's, above all no C library.
func (s *Service) check() error {
	file, err := elf.Open(s.Program)
	if err != nil {
		return fmt.Errorf("read the attestation service's program %s: it is no Linux program: %w", s.Program, err)
	}
	defer file.Close()
	if want, known := machines[runtime.GOARCH]; known && file.Machine != want {
		return fmt.Errorf("the attestation service's program %s is for %s, and the image for %s", s.Program, file.Machine, want)
	}
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("the attestation service's program %s needs the C library of the machine that it was built on: build it with CGO_ENABLED=0", s.Program)
		}
	}
	return nil
}

// stage puts the service into root/ of a staged description, and has systemd open
// its socket at boot.
func (s *Service) stage(c *copier, staged *os.Root) error {
	if err := s.check(); err != nil {
		return err
	}
	root, err := overlayTarget(staged)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := c.tree(root, s.Files, modes{scripts: true}); err != nil {
		return fmt.Errorf("copy the attestation service: %w", err)
	}
	wants := serviceUnits + "/sockets.target.wants"
	err = makeDirectories(root, filepath.Dir(serviceProgram))
	if err == nil {
		err = makeDirectories(root, wants)
	}
	if err == nil {
		err = root.Symlink("../"+serviceSocket, wants+"/"+serviceSocket)
	}
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("copy the attestation service: %w", err)
	}
	if err := copyProgram(root, s.Program); err != nil {
		return fmt.Errorf("copy the attestation service's program: %w", err)
	}
	return nil
}

// makeDirectories makes a directory in an image's root, and what is missing above it.
func makeDirectories(root *os.Root, name string) error {
	if err := root.Mkdir(name, 0o755); errors.Is(err, fs.ErrNotExist) && name != "." {
		if err := makeDirectories(root, filepath.Dir(name)); err != nil {
			return err
		}
		return makeDirectories(root, name)
	} else if errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	return root.Chmod(name, 0o755)
}

// copyProgram copies the file at path to where the service's program goes, over what
// is there.
func copyProgram(root *os.Root, path string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := root.Remove(serviceProgram); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	out, err := root.OpenFile(serviceProgram, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	return root.Chmod(serviceProgram, 0o755)
}
