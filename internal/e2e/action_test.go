package e2e

import (
	"strings"
	"testing"
)

// TestActionRefuses runs the action in jobs that cannot succeed: each must end
// before anything is built, with one annotation that says what to change.
func TestActionRefuses(t *testing.T) {
	if testing.Short() {
		t.Skip("act is not run with -short")
	}
	tokens := []string{"ACTIONS_ID_TOKEN_REQUEST_URL=http://127.0.0.1:1/idtoken", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=x"}
	for _, c := range []struct {
		name   string
		inputs map[string]string
		env    []string
		want   string
	}{
		// act cannot withhold a permission, but what the runner does then is to
		// leave the variables out.
		{"without the permission id-token", map[string]string{"template": "debian"}, nil, "id-token: write"},
		{"without an image", map[string]string{"name": "image"}, tokens, "neither 'template' nor 'description'"},
		{"with two images", map[string]string{"template": "debian", "description": "image"}, tokens, "both 'template' and 'description'"},
		{"with no boolean", map[string]string{"template": "debian", "push": "yes"}, tokens, "'push' must be true or false"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, run := checkout(t, actionWorkflow(c.inputs, ""))
			result := act(t, dir, run, "dummy", c.env)
			if !result.failed {
				t.Error("the workflow succeeded")
			}
			if len(result.errors) != 1 || !strings.Contains(result.errors[0], c.want) {
				t.Errorf("errors are %q; want one that contains %q", result.errors, c.want)
			}
			if strings.Contains(result.log, "Build attestable-image") {
				t.Error("something was built before the error")
			}
		})
	}
}
