package strictjson_test

import (
	"encoding/json"
	"os/exec"
	"reflect"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/strictjson"
	"github.com/org/attestable-image-action/internal/testenv"
)

// TestOtherReaders has Python and jq read what is let through: they read it alike,
// and as this program does.
func TestOtherReaders(t *testing.T) {
	const python = `import json, sys
print(json.dumps(json.loads(sys.stdin.buffer.read().decode("utf-8")), sort_keys=True, separators=(",", ":"), ensure_ascii=False))`
	readers := [][]string{{testenv.Tool(t, "python3"), "-c", python}, {testenv.Tool(t, "jq"), "-cS", "."}}
	for name, data := range strictjson.Accepted {
		var values []any
		for _, reader := range readers {
			cmd := exec.Command(reader[0], reader[1:]...) //nolint:gosec // it is ours
			cmd.Stdin = strings.NewReader(data)
			out, err := cmd.Output()
			if err != nil {
				t.Errorf("%s: %s does not read it: %v", name, reader[0], err)
				continue
			}
			var value any
			if err := json.Unmarshal(out, &value); err != nil {
				t.Fatalf("%s: %s printed %q: %v", name, reader[0], out, err)
			}
			values = append(values, value)
		}
		var ours any
		if err := strictjson.Unmarshal([]byte(data), &ours); err != nil {
			t.Fatal(err)
		}
		for i, value := range values {
			if !reflect.DeepEqual(value, ours) {
				t.Errorf("%s: %s reads %v, and this program %v", name, readers[i][0], value, ours)
			}
		}
	}
}
