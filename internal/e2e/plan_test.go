package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// workflowScript runs a script of the reusable workflow with these variables, and
// returns its outputs, what it printed, and whether it succeeded.
func workflowScript(t *testing.T, name string, env map[string]string) (outputs map[string]string, log string, ok bool) {
	t.Helper()
	output := filepath.Join(t.TempDir(), "output")
	cmd := exec.Command(filepath.Join(testenv.Root(t), "scripts", name))
	cmd.Dir = t.TempDir()
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "GITHUB_OUTPUT=" + output, "GITHUB_SHA=" + testenv.DefaultRun.SHA}
	for key, value := range env {
		cmd.Env = append(cmd.Env, key+"="+value)
	}
	text, err := cmd.CombinedOutput()
	written, readErr := os.ReadFile(output)
	if readErr != nil && !os.IsNotExist(readErr) {
		t.Fatal(readErr)
	}
	if left, err := os.ReadDir(cmd.Dir); err != nil || len(left) > 0 {
		t.Errorf("%s left %v: %v", name, left, err)
	}
	return readOutputs(t, string(written)), string(text), err == nil
}

// plan runs workflow-plan with inputs in place of the usual ones.
func plan(t *testing.T, inputs map[string]string) (outputs map[string]string, log string, ok bool) {
	t.Helper()
	env := map[string]string{
		"ARCHITECTURES": "x86_64", "VARIANTS": "", "TEMPLATE": "debian", "DESCRIPTION": "", "OVERLAY": "", "SERVE": "false", "NAME": "",
		"VERSION": "", "LOCK": "", "SBOM": "spdx", "FAIL_ON": "", "TAGS": "", "PUSH": "true", "FORK": "false",
	}
	maps.Copy(env, inputs)
	return workflowScript(t, "workflow-plan", env)
}

// planned reads the matrix of a plan.
func planned(t *testing.T, outputs map[string]string) []map[string]any {
	t.Helper()
	var matrix struct{ Include []map[string]any }
	if err := json.Unmarshal([]byte(outputs["matrix"]), &matrix); err != nil {
		t.Fatalf("the matrix is %q: %v", outputs["matrix"], err)
	}
	return matrix.Include
}

// TestWorkflowPlan holds which jobs the reusable workflow makes of its inputs.
func TestWorkflowPlan(t *testing.T) {
	outputs, log, ok := plan(t, map[string]string{
		"ARCHITECTURES": "aarch64, x86_64\n", "OVERLAY": "files", "TAGS": "1.2.3\nlatest", "SERVE": "true",
		"VARIANTS": `[{"variant": "web", "name": "web"}, {"variant": "own", "description": "kiwi", "serve": false, "sbom": "both"}]`,
	})
	if !ok || outputs["push"] != "true" {
		t.Fatalf("outputs %v\n%s", outputs, log)
	}
	images := planned(t, outputs)
	if len(images) != 4 {
		t.Fatalf("%d images", len(images))
	}
	for i, want := range []map[string]any{
		{"id": "web-aarch64", "runner": "ubuntu-24.04-arm", "template": "debian", "description": "", "name": "web", "serve": "true", "sbom": "spdx"},
		{"id": "web-x86_64", "runner": "ubuntu-24.04", "template": "debian", "description": "", "name": "web", "serve": "true", "sbom": "spdx"},
		{"id": "own-aarch64", "runner": "ubuntu-24.04-arm", "template": "", "description": "source/kiwi", "name": "", "serve": "false", "sbom": "both"},
		{"id": "own-x86_64", "runner": "ubuntu-24.04", "template": "", "description": "source/kiwi", "name": "", "serve": "false", "sbom": "both"},
	} {
		want["place"], want["overlay"] = float64(i), "source/files"
		want["tags"] = fmt.Sprintf("1.2.3-%s,latest-%[1]s", want["id"])
		for key, value := range want {
			if images[i][key] != value {
				t.Errorf("%s of image %d is %v, want %v", key, i, images[i][key], value)
			}
		}
	}

	outputs, log, ok = plan(t, nil)
	if images := planned(t, outputs); !ok || len(images) != 1 || images[0]["id"] != "x86_64" || images[0]["tags"] != "sha-"+testenv.DefaultRun.SHA+"-x86_64" {
		t.Errorf("one image: %v\n%s", images, log)
	}
	outputs, log, ok = plan(t, map[string]string{"FORK": "true"})
	if !ok || outputs["push"] != "false" || !strings.Contains(log, "::warning title=attestable-image::this pull request comes from a fork") {
		t.Errorf("of a fork: %v\n%s", outputs, log)
	}
}

// TestWorkflowPlanRefuses holds what the workflow makes no job of.
func TestWorkflowPlanRefuses(t *testing.T) {
	variant := func(pairs string) map[string]string {
		return map[string]string{"VARIANTS": `[{"variant": "web"` + pairs + `}]`}
	}
	nine := make([]string, 9)
	for i := range nine {
		nine[i] = fmt.Sprintf(`{"variant": "v%d"}`, i)
	}
	for name, c := range map[string]struct {
		inputs map[string]string
		want   string
	}{
		"no architecture":      {map[string]string{"ARCHITECTURES": " "}, "input architectures is empty"},
		"another architecture": {map[string]string{"ARCHITECTURES": "x86_64 riscv64"}, "input architectures has riscv64"},
		"a runner":             {variant(`, "runner": "self-hosted"`), "input variants has runner, which is none of"},
		"a misspelt input":     {variant(`, "ovrelay": "x"`), "input variants has ovrelay, which is none of"},
		"no JSON":              {map[string]string{"VARIANTS": "web"}, "input variants is no JSON"},
		"no list":              {map[string]string{"VARIANTS": `{"variant": "web"}`}, "must be a JSON list of objects"},
		"an empty list":        {map[string]string{"VARIANTS": `[]`}, "must be a JSON list of objects"},
		"no name":              {map[string]string{"VARIANTS": `[{"name": "web"}]`}, "every variant has a name"},
		"a name of a tag":      {map[string]string{"VARIANTS": `[{"variant": "Web:1"}]`}, "every variant has a name"},
		"a name of two lines":  {map[string]string{"VARIANTS": `[{"variant": "web\nx"}]`}, "every variant has a name"},
		"one name twice":       {map[string]string{"VARIANTS": `[{"variant": "web"}, {"variant": "web"}]`}, "has a name twice"},
		"a list as a value":    {variant(`, "name": ["web"]`), "a value is no text"},
		"too many":             {map[string]string{"VARIANTS": "[" + strings.Join(nine, ",") + "]"}, "9 images are more than the 8"},
		"an absolute path":     {map[string]string{"OVERLAY": "/etc"}, "overlay must be a path below the top of the repository"},
		"a path upwards":       {map[string]string{"LOCK": "image/../../attestable-image/x"}, "lock must be a path below"},
		"of a variant":         {variant(`, "description": "../attestable-image"`), "description must be a path below"},
		"of two lines":         {map[string]string{"OVERLAY": "a\nb"}, "overlay must be a path below"},
	} {
		t.Run(name, func(t *testing.T) {
			outputs, log, ok := plan(t, c.inputs)
			if ok || len(outputs) > 0 || !strings.HasPrefix(log, "::error title=attestable-image::") || !strings.Contains(log, c.want) || strings.Count(log, "\n") != 1 {
				t.Errorf("outputs %v, want an error with %q and nothing else\n%s", outputs, c.want, log)
			}
		})
	}
}

// TestWorkflowHostileInputs gives each input of the plan each hostile value: it comes
// out as it went in, or is refused with a sentence.
func TestWorkflowHostileInputs(t *testing.T) {
	for value, text := range hostile {
		if strings.Contains(text, "\xff") {
			continue // no character: GitHub's inputs are text
		}
		for _, together := range [][]string{{"ARCHITECTURES"}, {"VARIANTS"}, {"DESCRIPTION", "OVERLAY", "LOCK"}, {"TEMPLATE", "NAME", "VERSION", "SBOM", "FAIL_ON", "TAGS"}} {
			inputs := map[string]string{}
			for _, input := range together {
				inputs[input] = text
			}
			outputs, log, ok := plan(t, inputs)
			for _, line := range commandUse.FindAllString(log, -1) {
				if !ownCommand.MatchString(strings.TrimSpace(line)) {
					t.Errorf("%s as %s: the runner would take %q for a command", value, together, line)
				}
			}
			if !ok {
				if !strings.HasPrefix(log, "::error title=attestable-image::") || len(outputs) > 0 {
					t.Errorf("%s as %s: it fails with %q", value, together, log)
				}
				continue
			}
			if len(outputs) != 2 {
				t.Errorf("%s as %s: the outputs are %v", value, together, outputs)
			}
			for _, input := range together {
				key := strings.ReplaceAll(strings.ToLower(input), "_", "-")
				// Tags are split into words, each with the image's name behind it.
				if got := planned(t, outputs)[0][key]; got != text && got != "source/"+text && key != "tags" {
					t.Errorf("%s as %s comes out as %q", value, input, got)
				}
			}
		}
	}
}

// TestWorkflowCollect holds what becomes of what the jobs of the matrix hand on.
func TestWorkflowCollect(t *testing.T) {
	outputs, _, _ := plan(t, map[string]string{"ARCHITECTURES": "x86_64 aarch64"})
	matrix := outputs["matrix"]
	place := func(n, id, artifact string) string {
		t.Helper()
		outputs, log, ok := workflowScript(t, "workflow-place", map[string]string{
			"PLACE": n, "ID": id, "VARIANT": "", "ARCHITECTURE": id, "ARTIFACT": artifact, "DIGEST": "sha256:0",
			"PCR2": "2", "PCR4": "4" + id, "PCR7": "7", "PCR11": "11", "PCR12": "12", "PCR13": "13", "ATTESTATION_ID": "5\n::pwned", "ATTESTATION_URL": "", "BUNDLE": "attestations-" + id,
		})
		if !ok || len(outputs) != 1 {
			t.Fatalf("outputs %v\n%s", outputs, log)
		}
		return outputs["image-"+n]
	}
	object := func(pairs map[string]string) string {
		text, err := json.Marshal(pairs)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	arm, intel := place("0", "aarch64", "registry/image@sha256:a"), place("1", "x86_64", "registry/image@sha256:b")

	both := map[string]string{"MATRIX": matrix, "PUSH": "true", "BUILT": "{}", "ATTESTED": object(map[string]string{"image-0": arm, "image-1": intel, "image-2": ""})}
	outputs, log, ok := workflowScript(t, "workflow-collect", both)
	var images []map[string]string
	if err := json.Unmarshal([]byte(outputs["images"]), &images); !ok || err != nil || len(images) != 2 || len(outputs) != 10 {
		t.Fatalf("outputs %v: %v\n%s", outputs, err, log)
	}
	if images[0]["architecture"] != "aarch64" || images[1]["artifact"] != "registry/image@sha256:b" || images[1]["pcr4"] != "4x86_64" || outputs["pcr4"] != "" {
		t.Errorf("outputs %v", outputs)
	}

	outputs, _, _ = plan(t, nil)
	one := map[string]string{"MATRIX": outputs["matrix"], "PUSH": "false", "BUILT": object(map[string]string{"image-0": place("0", "x86_64", "")}), "ATTESTED": ""}
	outputs, log, ok = workflowScript(t, "workflow-collect", one)
	if !ok || outputs["pcr4"] != "4x86_64" || outputs["artifact"] != "" {
		t.Errorf("outputs %v\n%s", outputs, log)
	}

	for name, attested := range map[string]map[string]string{
		"one is missing":                 {"image-0": arm},
		"one is in the place of another": {"image-0": arm, "image-1": arm},
	} {
		both["ATTESTED"] = object(attested)
		if outputs, log, ok := workflowScript(t, "workflow-collect", both); ok || len(outputs) > 0 || !strings.Contains(log, "not every job of the matrix handed on its image") {
			t.Errorf("%s: outputs %v\n%s", name, outputs, log)
		}
	}
}
