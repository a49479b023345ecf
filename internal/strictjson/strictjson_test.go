package strictjson

import (
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	for name, tc := range map[string]struct{ data, want string }{
		"object":                 {`{"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}`, ""},
		"no object":              {` "a" `, ""},
		"twice":                  {`{"a": 1, "a": 1}`, `member "a" stands twice in one object`},
		"twice, far inside":      {`{"b": [[{"c": {"a": 1, "x": [], "a": 2}}]]}`, `member "a" stands twice in one object`},
		"twice, other case":      {`{"subject": 1, "Subject": 2}`, `member "Subject" stands twice in one object`},
		"twice, by an escape":    {`{"a": 1, "\u0061": 2}`, `member "a" stands twice in one object`},
		"twice, other fold":      {`{"Di\u017fk": 1, "Disk": 2}`, `member "Disk" stands twice in one object`},
		"nothing":                {``, "unexpected end of JSON input"},
		"something after it":     {`{} {}`, "after top-level value"},
		"a brace after it":       {`{}}`, "after top-level value"},
		"nested without measure": {strings.Repeat("[", 1<<20), "exceeded max depth"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Check([]byte(tc.data))
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}
