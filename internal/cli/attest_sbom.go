package cli

import (
	"fmt"

	"github.com/spf13/pflag"

	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/sbom"
)

// sbomFiles are the bills of materials of --sbom.
type sbomFiles []string

func (f *sbomFiles) add(flags *pflag.FlagSet) {
	flags.StringArrayVar((*[]string)(f), "sbom", nil, "attest this bill of materials, too: `FILE` in SPDX or CycloneDX, JSON; once for each format")
}

// sbomFile is a bill of materials that was read.
type sbomFile struct {
	path          string
	predicateType string
	content       []byte
}

// read reads the files. An empty name is none, as an action gives it.
func (f sbomFiles) read() ([]sbomFile, error) {
	var read []sbomFile
	for _, path := range f {
		if path == "" {
			continue
		}
		content, err := readBounded(path, attest.MaxPredicate)
		s := sbomFile{path: path, content: content}
		if err == nil {
			s.predicateType, err = attest.SBOMPredicateType(content)
		}
		if err != nil {
			return nil, fmt.Errorf("attest the bill of materials %s: %w", path, err)
		}
		for _, other := range read {
			if other.predicateType == s.predicateType {
				return nil, usagef("--sbom: %s and %s are of the same format: give one of each", other.path, path)
			}
		}
		read = append(read, s)
	}
	return read, nil
}

// checkSBOMs refuses to sign a bill of materials that says itself that it is about
// another disk than the measurements.
func checkSBOMs(sboms []sbomFile, measurements []byte) error {
	for _, s := range sboms {
		about, err := sbom.DiskDigest(s.content)
		if err != nil {
			return fmt.Errorf("attest the bill of materials %s: %w", s.path, err)
		}
		doc, err := measure.ParseDocument(measurements)
		if err != nil {
			return fmt.Errorf("attest the bill of materials %s: %w", s.path, err)
		}
		if about != "" && doc.Disk != nil && about != doc.Disk.SHA256 {
			return fmt.Errorf("attest the bill of materials %s: it is about the disk with the SHA-256 %s, and the artifact has the one with %s: make it anew of the disk that was pushed", s.path, about, doc.Disk.SHA256)
		}
	}
	return nil
}

// sbomAttestations are the statements to make about bills of materials.
func sbomAttestations(sboms []sbomFile) []*attestation {
	made := make([]*attestation, 0, len(sboms))
	for _, s := range sboms {
		made = append(made, &attestation{predicateType: s.predicateType, predicate: s.content})
	}
	return made
}
