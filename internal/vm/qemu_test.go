package vm

import (
	"slices"
	"strings"
	"testing"
)

// TestNetwork holds that a guest reaches somebody only when that is asked for.
func TestNetwork(t *testing.T) {
	for _, tc := range []struct {
		name string
		o    Options
		want string
	}{
		{"none", Options{}, "none"},
		{"forwarded", Options{Forwards: []Forward{{8443, 443}}}, "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:8443-:443"},
		{"outbound", Options{Outbound: true}, "user,id=net,restrict=off"},
		{"both", Options{Outbound: true, Forwards: []Forward{{1, 2}, {3, 4}}}, "user,id=net,restrict=off,hostfwd=tcp:127.0.0.1:1-:2,hostfwd=tcp:127.0.0.1:3-:4"},
	} {
		args := arguments(&tc.o, "/disk", "cpu")
		i := slices.IndexFunc(args, func(arg string) bool { return arg == "-nic" || arg == "-netdev" })
		if i < 0 || args[i+1] != tc.want {
			t.Errorf("%s: %s", tc.name, strings.Join(args, " "))
		}
	}
}
