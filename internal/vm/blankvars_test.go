package vm

import (
	"bytes"
	"os"
	"testing"

	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
)

// TestFormatBlank compares with the volume that edk2 itself makes, as it lies
// in the store with Microsoft's keys beside the empty one.
func TestFormatBlank(t *testing.T) {
	const dir = "/usr/share/AAVMF/"
	blank, err := os.ReadFile(dir + "AAVMF_VARS.fd")
	if err != nil {
		testenv.Missing(t, err)
	}
	formatted, err := os.ReadFile(dir + "AAVMF_VARS.ms.fd")
	if err != nil {
		testenv.Missing(t, err)
	}
	ours := bytes.Clone(blank)
	formatBlank(ours)
	const head = volumeHeader + storeHeaderSize
	if !bytes.Equal(ours[:head], formatted[:head]) {
		t.Errorf("the header is\n%x\nedk2 makes\n%x", ours[:head], formatted[:head])
	}
	if !bytes.Equal(ours[blankVolume:], blank[blankVolume:]) {
		t.Error("what follows the volume changed")
	}
	variables, err := enroll(measure.SecureBoot{PK: []byte("platform")}, nil, blank)
	if err != nil {
		t.Fatal(err)
	}
	if got := liveVariables(t, variables); got["PK"] != "platform" || len(got) != 2 {
		t.Errorf("variables are %q", got)
	}
}

// TestFormatBlankLeaves leaves alone what is no empty flash.
func TestFormatBlankLeaves(t *testing.T) {
	used := make([]byte, blankVolume)
	used[blankVolume-1] = 1
	for name, flash := range map[string][]byte{
		"empty": {}, "short": make([]byte, blankVolume-1), "used": used, "other filling": bytes.Repeat([]byte{7}, blankVolume), "formatted": emptyStore(blankVolume),
	} {
		before := bytes.Clone(flash)
		if formatBlank(flash); !bytes.Equal(flash, before) {
			t.Errorf("%s: changed", name)
		}
	}
}
