package vm

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/efi"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
)

// TestBootAuthority boots disks whose unified kernel image is allowed in the
// ways that are easily predicted wrong, and compares PCR 4 and 7 event by event.
func TestBootAuthority(t *testing.T) {
	if testing.Short() {
		t.Skip("booting disks is slow")
	}
	testenv.Tool(t, "qemu-system-x86_64")
	testenv.Tool(t, "swtpm")
	golden := testenv.GoldenDisk(t, "stub257")
	esp := []string{"-i", golden + "@@1048576"}
	file := filepath.Join(t.TempDir(), "uki.efi")
	mcopy := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(testenv.Tool(t, "mcopy"), append(slices.Clone(esp), args...)...).CombinedOutput(); err != nil {
			t.Fatalf("mcopy: %v\n%s", err, out)
		}
	}
	mcopy("::EFI/BOOT/BOOTX64.EFI", file)
	unsigned, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	ca := testenv.NewSigner(t, "ca", nil)
	leaf := testenv.NewSigner(t, "leaf", ca)
	other := testenv.NewSigner(t, "other", nil)
	byLeaf, byBoth := leaf.Sign(t, unsigned), other.Sign(t, leaf.Sign(t, unsigned))
	digest := func(image []byte) []byte {
		parsed, err := efi.ParseImage(bytes.NewReader(image), int64(len(image)))
		if err != nil {
			t.Fatal(err)
		}
		h := sha256.New()
		if err := parsed.Authenticode(h); err != nil {
			t.Fatal(err)
		}
		return h.Sum(nil)
	}
	list := func(s *testenv.Signer) []byte { return testenv.SignatureList(efi.CertX509, s.Certificate.Raw) }
	tbs := sha256.Sum256(ca.Certificate.RawTBSCertificate)
	caRevoked := testenv.SignatureList(efi.CertX509SHA256, append(tbs[:], make([]byte, 16)...))

	for _, test := range []struct {
		name    string
		image   []byte
		db, dbx []byte
		want    []byte // data of the db entry that is measured; nil when firmware denies
	}{
		{"issuing CA only", byLeaf, list(ca), nil, ca.Certificate.Raw},
		{"two signatures, db turned", byBoth, slices.Concat(list(other), list(leaf)), nil, leaf.Certificate.Raw},
		{"unsigned, its digest in db", unsigned, testenv.SignatureList(efi.CertSHA256, digest(unsigned)), nil, digest(unsigned)},
		{"CA in dbx by digest", byLeaf, list(ca), caRevoked, nil},
		{"CA in dbx by digest, image's digest in db", byLeaf, slices.Concat(list(ca), testenv.SignatureList(efi.CertSHA256, digest(byLeaf))), caRevoked, digest(byLeaf)},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := os.WriteFile(file, test.image, 0o600); err != nil {
				t.Fatal(err)
			}
			mcopy("-o", file, "::EFI/BOOT/BOOTX64.EFI")
			o := Options{
				Disk: golden, TimeLimit: 3 * time.Minute, SerialLog: filepath.Join(t.TempDir(), "serial.log"),
				SecureBoot: measure.SecureBoot{PK: list(ca), KEK: list(ca), DB: test.db, DBX: test.dbx},
			}
			d, err := disk.Open(golden)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			p, err := measure.Disk(t.Context(), d, measure.Options{PCRs: []int{4, 7}, SecureBoot: o.SecureBoot})
			result, bootErr := Boot(t.Context(), o)
			if test.want == nil {
				if err == nil || !errors.Is(bootErr, ErrNotBootable) {
					t.Errorf("the prediction says %v, the boot %v; want neither to succeed", err, bootErr)
				}
				return
			}
			if err := errors.Join(err, bootErr); err != nil {
				t.Fatal(err)
			}
			if len(p.Authorities) != 1 || !bytes.Equal(p.Authorities[0].Data, test.want) {
				t.Errorf("predicted authority is %v", p.Authorities)
			}
			for _, c := range result.Compare(p) {
				if !c.Equal() {
					t.Errorf("PCR %d is predicted as %x, the boot recorded %x; event %d differs", c.PCR, c.Predicted, c.Recorded, c.FirstDifference())
				}
			}
		})
	}
}
