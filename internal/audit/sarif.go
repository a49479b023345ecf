package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// The members of SARIF 2.1.0 (OASIS) that GitHub's code scanning reads, by the
// names that the standard gives them.
type (
	sarifLog struct {
		Schema  string     `json:"$schema"`
		Version string     `json:"version"`
		Runs    []sarifRun `json:"runs"`
	}
	sarifRun struct {
		Tool              sarifTool         `json:"tool"`
		AutomationDetails sarifAutomation   `json:"automationDetails"`
		Artifacts         []sarifArtifact   `json:"artifacts"`
		Results           []sarifResult     `json:"results"`
		ColumnKind        string            `json:"columnKind"`
		Invocations       []sarifInvocation `json:"invocations"`
	}
	sarifInvocation struct {
		ExecutionSuccessful bool `json:"executionSuccessful"`
	}
	sarifTool struct {
		Driver sarifDriver `json:"driver"`
	}
	sarifDriver struct {
		Name           string      `json:"name"`
		InformationURI string      `json:"informationUri"`
		Rules          []sarifRule `json:"rules"`
	}
	sarifAutomation struct {
		ID string `json:"id"`
	}
	sarifRule struct {
		ID               string        `json:"id"`
		Name             string        `json:"name"`
		ShortDescription sarifText     `json:"shortDescription"`
		FullDescription  sarifText     `json:"fullDescription"`
		Help             sarifHelp     `json:"help"`
		Default          sarifLevel    `json:"defaultConfiguration"`
		Properties       sarifProperty `json:"properties"`
	}
	sarifProperty struct {
		Tags             []string `json:"tags"`
		Precision        string   `json:"precision"`
		SecuritySeverity string   `json:"security-severity,omitempty"`
		ProblemSeverity  string   `json:"problem.severity"`
	}
	sarifLevel struct {
		Level string `json:"level"`
	}
	sarifText struct {
		Text string `json:"text"`
	}
	sarifHelp struct {
		Text     string `json:"text"`
		Markdown string `json:"markdown"`
	}
	sarifArtifact struct {
		Location sarifArtifactLocation `json:"location"`
	}
	sarifArtifactLocation struct {
		URI   string `json:"uri"`
		Index *int   `json:"index,omitempty"`
	}
	sarifResult struct {
		RuleID       string            `json:"ruleId"`
		RuleIndex    int               `json:"ruleIndex"`
		Level        string            `json:"level"`
		Message      sarifText         `json:"message"`
		Locations    []sarifLocation   `json:"locations"`
		Fingerprints map[string]string `json:"partialFingerprints"`
	}
	sarifLocation struct {
		Physical sarifPhysical `json:"physicalLocation"`
	}
	sarifPhysical struct {
		Artifact sarifArtifactLocation `json:"artifactLocation"`
		Region   sarifRegion           `json:"region"`
	}
	sarifRegion struct {
		StartLine int `json:"startLine"`
	}
)

// informationURI is where people find out what the rules mean.
const informationURI = "https://github.com/org/attestable-image-action"

// sarifLevels by severity: level, and GitHub's security-severity, a number on
// CVSS's scale that it turns into its own four words.
var sarifLevels = map[Severity]struct{ level, score, problem string }{
	Info:     {"note", "", "recommendation"},
	Low:      {"note", "3.0", "recommendation"},
	Medium:   {"warning", "5.5", "warning"},
	High:     {"error", "8.0", "error"},
	Critical: {"error", "9.5", "error"},
}

// sarifMaxResults is how many results GitHub takes from a run.
const sarifMaxResults = 25000

// SARIF is the report as SARIF 2.1.0, for GitHub's code scanning. A finding's
// place is a path that begins with its partition's number, such as
// "partition-2/etc/fstab". The same report always gives the same bytes.
func (r *Report) SARIF() ([]byte, error) {
	run := sarifRun{
		Tool:              sarifTool{sarifDriver{Name: "attestable-image inspect", InformationURI: informationURI, Rules: []sarifRule{}}},
		AutomationDetails: sarifAutomation{"attestable-image/audit/"},
		Artifacts:         []sarifArtifact{},
		Results:           []sarifResult{},
		ColumnKind:        "utf16CodeUnits",
		Invocations:       []sarifInvocation{{ExecutionSuccessful: true}},
	}
	index := map[string]int{}
	for i, id := range slices.Sorted(maps.Keys(rules)) {
		index[id] = i
		run.Tool.Driver.Rules = append(run.Tool.Driver.Rules, sarifRuleOf(id, rules[id]))
	}
	artifacts, seen := map[string]int{}, map[string]int{}
	for _, f := range r.Findings[:min(len(r.Findings), sarifMaxResults)] {
		uri := sarifURI(f)
		at, known := artifacts[uri]
		if !known {
			at = len(run.Artifacts)
			artifacts[uri] = at
			run.Artifacts = append(run.Artifacts, sarifArtifact{sarifArtifactLocation{URI: uri}})
		}
		n, ok := index[f.ID]
		if !ok {
			return nil, fmt.Errorf("write SARIF: there is no rule %q", f.ID)
		}
		// The same rule may have several findings in a file.
		key := f.ID + "\x00" + uri
		seen[key]++
		sum := sha256.Sum256([]byte(key + "\x00" + strconv.Itoa(seen[key])))
		run.Results = append(run.Results, sarifResult{
			RuleID: f.ID, RuleIndex: n, Level: sarifLevels[f.Severity].level,
			Message:      sarifText{clean(rules[f.ID].title + ": " + f.Detail + " (" + f.Where() + "). " + f.Fix)},
			Locations:    []sarifLocation{{sarifPhysical{sarifArtifactLocation{uri, &at}, sarifRegion{max(f.Line, 1)}}}},
			Fingerprints: map[string]string{"primaryLocationLineHash": hex.EncodeToString(sum[:16]) + ":1"},
		})
	}
	b, err := json.MarshalIndent(sarifLog{
		Schema: "https://json.schemastore.org/sarif-2.1.0.json", Version: "2.1.0", Runs: []sarifRun{run},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write SARIF: %w", err)
	}
	return append(b, '\n'), nil
}

func sarifRuleOf(id string, r rule) sarifRule {
	level := sarifLevels[r.severity]
	var name strings.Builder // PascalCase, as the standard wishes
	for word := range strings.SplitSeq(id, "-") {
		name.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return sarifRule{
		ID: id, Name: name.String(),
		ShortDescription: sarifText{r.title},
		FullDescription:  sarifText{r.why},
		Help: sarifHelp{
			Text:     r.why + " " + r.fix,
			Markdown: "**Why it matters.** " + markdown.Replace(r.why) + "\n\n**How to close it.** " + markdown.Replace(r.fix),
		},
		Default:    sarifLevel{level.level},
		Properties: sarifProperty{Tags: []string{"security", "hardening"}, Precision: "high", SecuritySeverity: level.score, ProblemSeverity: level.problem},
	}
}

var markdown = strings.NewReplacer("*", `\*`, "_", `\_`, "<", "&lt;")

// sarifURI is a relative reference, as RFC 3986 wants it.
func sarifURI(f Finding) string {
	if f.Partition == 0 {
		return "disk"
	}
	uri := []string{"partition-" + strconv.Itoa(f.Partition)}
	for part := range strings.SplitSeq(f.Path, "/") {
		if part != "" && part != "." {
			uri = append(uri, url.PathEscape(part))
		}
	}
	return strings.Join(uri, "/")
}
