package attest

import (
	"errors"
	"fmt"

	"github.com/org/attestable-image-action/internal/lazyregexp"
	"github.com/org/attestable-image-action/internal/strictjson"
)

// PredicateCycloneDX is the type of an attestation of a software bill of materials in
// CycloneDX; that in SPDX has a type for each version. GitHub's own attest action and
// cosign use the same.
const (
	PredicateCycloneDX  = "https://cyclonedx.org/bom"
	predicateSPDXPrefix = "https://spdx.dev/Document/v"
)

var spdxVersion = lazyregexp.New(`^SPDX-([0-9]+\.[0-9]+)$`)

// SBOMPredicateType tells the format of a software bill of materials, which has to be
// SPDX or CycloneDX in JSON, by the fields that GitHub's own attest action tells it
// by.
func SBOMPredicateType(document []byte) (string, error) {
	if !isObject(document) {
		return "", errors.New("it is not a JSON object: give SPDX or CycloneDX in JSON")
	}
	var fields struct {
		SPDXVersion  string `json:"spdxVersion"`
		SPDXID       string `json:"SPDXID"`
		BOMFormat    string `json:"bomFormat"`
		SerialNumber string `json:"serialNumber"`
		SpecVersion  string `json:"specVersion"`
	}
	if err := strictjson.Unmarshal(document, &fields); err != nil {
		return "", fmt.Errorf("it is neither SPDX nor CycloneDX: %w", err)
	}
	spdx := fields.SPDXVersion != "" || fields.SPDXID != ""
	cycloneDX := fields.BOMFormat != ""
	switch m := spdxVersion().FindStringSubmatch(fields.SPDXVersion); {
	case spdx && cycloneDX:
		return "", errors.New("it says that it is SPDX and that it is CycloneDX")
	case spdx && (m == nil || fields.SPDXID == ""):
		return "", fmt.Errorf("it is SPDX with the version %.60q and the SPDXID %.60q: both are needed, as in \"SPDX-2.3\" and \"SPDXRef-DOCUMENT\"", fields.SPDXVersion, fields.SPDXID)
	case spdx:
		return predicateSPDXPrefix + m[1], nil
	case cycloneDX && (fields.BOMFormat != "CycloneDX" || fields.SerialNumber == "" || fields.SpecVersion == ""):
		return "", errors.New("it is CycloneDX without bomFormat \"CycloneDX\", serialNumber or specVersion, which are needed")
	case cycloneDX:
		return PredicateCycloneDX, nil
	}
	return "", errors.New("it is neither SPDX (spdxVersion) nor CycloneDX (bomFormat)")
}
