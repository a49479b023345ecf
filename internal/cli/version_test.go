package cli

import (
	"context"
	"runtime/debug"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/spf13/cobra"
)

// TestBuildOf reads what Go's tools write into a binary.
func TestBuildOf(t *testing.T) {
	settings := func(pairs ...string) (all []debug.BuildSetting) {
		for i := 0; i < len(pairs); i += 2 {
			all = append(all, debug.BuildSetting{Key: pairs[i], Value: pairs[i+1]})
		}
		return all
	}
	for name, c := range map[string]struct {
		info debug.BuildInfo
		want string
	}{
		"go install":               {debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}}, "attestable-image v1.2.3\ncommit not recorded\n"},
		"go build in a clone":      {debug.BuildInfo{Main: debug.Module{Version: "(devel)"}, Settings: settings("vcs.revision", "5f3d")}, "attestable-image of no release\ncommit 5f3d\n"},
		"go build with changes":    {debug.BuildInfo{Main: debug.Module{Version: "(devel)"}, Settings: settings("vcs.revision", "5f3d", "vcs.modified", "true")}, "attestable-image of no release\ncommit 5f3d with changes\n"},
		"go build -buildvcs=false": {debug.BuildInfo{Main: debug.Module{Version: "(devel)"}}, "attestable-image of no release\ncommit not recorded\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := buildOf(&c.info).String(); !strings.HasPrefix(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestOutsideLinux holds that what needs Linux says so elsewhere, and that nothing
// else does.
func TestOutsideLinux(t *testing.T) {
	for system, refused := range map[string]bool{"darwin": true, "linux": false} {
		root, err := Command(fstest.MapFS{})
		if err != nil {
			t.Fatal(err)
		}
		for _, cmd := range root.Commands() {
			if cmd.RunE != nil {
				cmd.RunE = func(*cobra.Command, []string) error { return nil }
			}
		}
		refuseOutsideLinux(root, system)
		for _, name := range append([]string{"measure", "inspect", "diff", "pull", "version"}, linuxOnly...) {
			cmd, _, err := root.Find([]string{name})
			if err != nil {
				t.Fatal(err)
			}
			cmd.SetContext(context.Background())
			err = cmd.RunE(cmd, nil)
			needs := false
			for _, only := range linuxOnly {
				needs = needs || only == name
			}
			switch want := "run attestable-image " + name + " on darwin: it needs Linux; run it on a Linux machine"; {
			case refused && needs && (err == nil || err.Error() != want):
				t.Errorf("%s on %s: %v, want %q", name, system, err, want)
			case (!refused || !needs) && err != nil:
				t.Errorf("%s on %s: %v", name, system, err)
			}
		}
	}
}
