package vm

import (
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/efi"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
)

// TestVariablesChangePCRs boots the golden disk with what UEFI variables can have
// the firmware load from it, and says in which of the PCRs it shows. What is
// predicted is the disk without its variables.
func TestVariablesChangePCRs(t *testing.T) {
	if testing.Short() {
		t.Skip("booting the golden disk is slow")
	}
	testenv.Tool(t, "qemu-system-x86_64")
	testenv.Tool(t, "swtpm")
	driver := testenv.Driver(0x8664)
	// One that fails has firmware go on to the disk's own boot path.
	application := testenv.PE(0x8664, testenv.PESection{Name: ".text", Data: []byte{0x48, 0xb8, 1, 0, 0, 0, 0, 0, 0, 0x80, 0xc3}}) // mov rax, EFI_LOAD_ERROR; ret
	for _, c := range []struct {
		name, variable, order string
		file                  []byte // at \loaded.efi
		differ                []int
	}{
		{"a driver", "Driver0000", "DriverOrder", driver, []int{2}},
		{"an application before the boot", "SysPrep0000", "SysPrepOrder", application, []int{4}},
		{"another boot image", "Boot0000", "BootOrder", application, []int{4}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := testenv.GoldenDisk(t, "stub257")
			d, err := disk.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			gpt, err := d.GPT()
			if err != nil {
				t.Fatal(err)
			}
			esp, err := gpt.ESP()
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "loaded.efi")
			if err := os.WriteFile(file, c.file, 0o600); err != nil {
				t.Fatal(err)
			}
			mcopy := exec.CommandContext(t.Context(), testenv.Tool(t, "mcopy"), "-i", path+"@@"+strconv.FormatInt(esp.Offset, 10), file, "::loaded.efi")
			mcopy.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1")
			if out, err := mcopy.CombinedOutput(); err != nil {
				t.Fatalf("mcopy: %v\n%s", err, out)
			}
			option := efi.LoadOption(c.name, efi.HardDriveFile(esp.Number, uint64(esp.Offset/512), uint64(esp.Size/512), efi.GUID(esp.GUID), "/loaded.efi"), nil)
			const attributes = efi.NonVolatile | efi.BootServiceAccess | efi.RuntimeAccess
			result, err := Boot(t.Context(), Options{
				Disk: path, TimeLimit: 3 * time.Minute, SerialLog: filepath.Join(t.TempDir(), "serial.log"),
				Variables: []efi.Variable{
					{Name: c.variable, Vendor: efi.GlobalVariable, Attributes: attributes, Data: option},
					{Name: c.order, Vendor: efi.GlobalVariable, Attributes: attributes, Data: []byte{0, 0}},
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			predicted, err := measure.Disk(t.Context(), d, measure.Options{PCRs: []int{2, 4, 7, 11, 12, 13}})
			if err != nil {
				t.Fatal(err)
			}
			var differ []int
			for _, comparison := range result.Compare(predicted) {
				if !comparison.Equal() {
					differ = append(differ, comparison.PCR)
					t.Logf("PCR %d is %s, predicted %s", comparison.PCR, hex.EncodeToString(comparison.Recorded), hex.EncodeToString(comparison.Predicted))
				}
			}
			if !slices.Equal(differ, c.differ) {
				t.Errorf("PCRs %v differ, not %v", differ, c.differ)
			}
		})
	}
}
