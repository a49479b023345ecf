package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/audit"
)

// TestPrintHostile shows what is open first, and nothing from an image as it is.
func TestPrintHostile(t *testing.T) {
	report := &audit.HostileBoot{BoundPCRs: []int{2, 4, 12, 13}, Boots: 3, Inputs: []audit.HostileInput{
		{ID: "a", Name: "first", ControlledBy: "network", Result: audit.NoEffect},
		{ID: "b", Name: "second", ControlledBy: "hypervisor", Result: audit.Measured, PCRs: []int{4, 12}},
		{ID: "c", Name: "third", ControlledBy: "network", Result: audit.Open, Seen: "it \x1b[31mran\n::error::"},
		{ID: "d", Name: "fourth", ControlledBy: "network", Result: audit.NotTried, Seen: "there is none"},
	}}
	var out bytes.Buffer
	printHostile(&out, report)
	text := out.String()
	for _, want := range []string{"OPEN                 third", "measured (PCR 4, 12) second", "not tried            fourth", "1 open, 1 not tried, 0 stopped the boot, 1 measured, 1 without effect", "4 inputs in 3 boots"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not said in\n%s", want, text)
		}
	}
	if strings.Index(text, "OPEN") > strings.Index(text, "no effect") || strings.Contains(text, "\x1b") || strings.Contains(text, "\n::error") {
		t.Errorf("what is open comes late, or as the image wrote it:\n%s", text)
	}
}

// TestAuditKeepsItsForm reads a report with the member of hostile boots as one without.
func TestAuditKeepsItsForm(t *testing.T) {
	report := &audit.Report{SchemaVersion: audit.ReportVersion, Audited: []audit.Audited{}, Findings: []audit.Finding{}}
	without, err := report.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(without, []byte("hostile")) {
		t.Errorf("a report without hostile boots has the member:\n%s", without)
	}
	report.HostileBoot = &audit.HostileBoot{SchemaVersion: 1, Inputs: []audit.HostileInput{{ID: "a", Result: audit.Open}}}
	with, err := report.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	read, err := audit.ParseReport(with)
	if err != nil || read.HostileBoot == nil || len(read.HostileBoot.Open()) != 1 {
		t.Errorf("read %+v, %v", read, err)
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(with, &members); err != nil || members["schemaVersion"] == nil || members["hostileBoot"] == nil {
		t.Errorf("members %v, %v", members, err)
	}
}
