package measure

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/testenv"
)

// golden is testdata/golden/golden.json: what real boots recorded.
type golden map[string]struct {
	SHA384     map[string]string
	SHA256     map[string]string
	SecureBoot map[string]string // file names
}

func readGolden(t testing.TB) golden {
	t.Helper()
	var g golden
	if err := json.Unmarshal(goldenFile(t, "golden.json"), &g); err != nil {
		t.Fatal(err)
	}
	return g
}

func goldenFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(testenv.Root(t), "testdata/golden", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (g golden) secureBoot(t testing.TB, name string) SecureBoot {
	t.Helper()
	var s SecureBoot
	for variable, into := range map[string]*[]byte{"PK": &s.PK, "KEK": &s.KEK, "db": &s.DB, "dbx": &s.DBX} {
		if file := g[name].SecureBoot[variable]; file != "" {
			*into = goldenFile(t, file)
		}
	}
	return s
}

func openDisk(t testing.TB, path string) *disk.Disk {
	t.Helper()
	d, err := disk.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// TestGolden compares predictions with what boots recorded: every PCR in both
// banks, and event by event with the firmware's log as another parser reads it.
func TestGolden(t *testing.T) {
	g := readGolden(t)
	for _, name := range []string{"stub257", "sbA252"} {
		path := testenv.GoldenDisk(t, name)
		for _, bank := range []Bank{SHA384, SHA256} {
			t.Run(name+"/"+string(bank), func(t *testing.T) {
				d := openDisk(t, path)
				p, err := Disk(t.Context(), d, Options{Bank: bank, PCRs: []int{2, 4, 5, 7, 9, 11, 12, 13}, SecureBoot: g.secureBoot(t, name)})
				if err != nil {
					t.Fatal(err)
				}
				recorded := g[name].SHA384
				if bank == SHA256 {
					recorded = g[name].SHA256
				}
				for _, n := range p.PCRs {
					if got, want := hex.EncodeToString(p.Value(n)), recorded[strconv.Itoa(n)]; got != want {
						t.Errorf("PCR %d is predicted as %s, the boot recorded %s", n, got, want)
					}
				}
				compareLog(t, p, goldenFile(t, name+".eventlog"))
				if read := d.BytesRead(); read > 5*p.Images[0].Size {
					t.Errorf("read %d bytes for a UKI of %d", read, p.Images[0].Size)
				}
			})
		}
	}
}

// compareLog compares the predicted events with those of a firmware's log, PCR
// by PCR: type, digest, and the data where the prediction has it.
func compareLog(t *testing.T, p *Prediction, raw []byte) {
	t.Helper()
	log, err := tcg.ParseEventLog(raw, tcg.ParseOpts{AllowPadding: true})
	if err != nil {
		t.Fatal(err)
	}
	alg := register.HashSHA384
	if p.Bank == SHA256 {
		alg = register.HashSHA256
	}
	recorded := map[int][]tcg.Event{}
	for _, e := range log.Events(alg) {
		recorded[int(e.MRIndex())] = append(recorded[int(e.MRIndex())], e)
	}
	for _, n := range p.PCRs {
		var predicted []Event
		for _, e := range p.Events {
			if e.PCR == n {
				predicted = append(predicted, e)
			}
		}
		if len(predicted) != len(recorded[n]) {
			t.Errorf("PCR %d: %d events predicted, %d recorded", n, len(predicted), len(recorded[n]))
			continue
		}
		for i, r := range recorded[n] {
			e := predicted[i]
			if uint32(r.UntrustedType()) != uint32(e.Type) {
				t.Errorf("PCR %d event %d: type %s predicted, %s recorded", n, i, e.Type, r.UntrustedType())
			}
			if !slices.Equal(r.ReplayedDigest(), e.Digest) {
				t.Errorf("PCR %d event %d (%s): digest %x predicted, %x recorded", n, i, e.Description, e.Digest, r.ReplayedDigest())
			}
			if e.Type != EVIPL && e.Data != nil && !slices.Equal(r.RawData(), e.Data) {
				t.Errorf("PCR %d event %d (%s): other data recorded", n, i, e.Description)
			}
		}
	}
}

// TestGoldenWithoutSecureBoot shows that the variables matter: without them the
// signed disk gives the PCR 7 that every machine with Secure Boot off has, and
// the kernel's own event in PCR 4.
func TestGoldenWithoutSecureBoot(t *testing.T) {
	p, err := Disk(t.Context(), openDisk(t, testenv.GoldenDisk(t, "sbA252")), Options{})
	if err != nil {
		t.Fatal(err)
	}
	const off = "98441c7f7625d10058c47683aec486ce311c633235eb555593a7ee791121e3578ae72d04ecef661f272d59058b77af35"
	if got := hex.EncodeToString(p.Value(7)); got != off {
		t.Errorf("PCR 7 with Secure Boot off is predicted as %s, want %s", got, off)
	}
	if len(p.Images) != 2 || !strings.HasSuffix(p.Images[1].Path, "#.linux") {
		t.Errorf("boot chain %+v, want the UKI and its kernel", p.Images)
	}
}
