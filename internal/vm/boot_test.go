package vm

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
)

// TestBootGolden boots the golden disks and finds what other boots of them
// recorded: every PCR in both banks at the hand-over, and the same event log.
func TestBootGolden(t *testing.T) {
	if testing.Short() {
		t.Skip("booting the golden disks is slow")
	}
	testenv.Tool(t, "qemu-system-x86_64")
	testenv.Tool(t, "swtpm")
	golden := filepath.Join(testenv.Root(t), "testdata/golden")
	var want map[string]struct {
		SHA384, SHA256 map[string]string
		SecureBoot     map[string]string
	}
	content, err := os.ReadFile(filepath.Join(golden, "golden.json"))
	if err == nil {
		err = json.Unmarshal(content, &want)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"stub257", "sbA252"} {
		t.Run(name, func(t *testing.T) {
			o := Options{
				Disk: testenv.GoldenDisk(t, name), TimeLimit: 3 * time.Minute,
				SerialLog: filepath.Join(t.TempDir(), "serial.log"),
			}
			for variable, into := range map[string]*[]byte{
				"PK": &o.SecureBoot.PK, "KEK": &o.SecureBoot.KEK, "db": &o.SecureBoot.DB, "dbx": &o.SecureBoot.DBX,
			} {
				if file := want[name].SecureBoot[variable]; file != "" {
					if *into, err = os.ReadFile(filepath.Join(golden, file)); err != nil {
						t.Fatal(err)
					}
				}
			}
			result, err := Boot(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			for bank, values := range map[measure.Bank]map[string]string{measure.SHA384: want[name].SHA384, measure.SHA256: want[name].SHA256} {
				for n, value := range values {
					number, err := strconv.Atoi(n)
					if err != nil {
						t.Fatal(err)
					}
					if got := hex.EncodeToString(result.AtHandOver[bank][number]); got != value {
						t.Errorf("%s PCR %s is %s at the hand-over, want %s", bank, n, got, value)
					}
				}
			}
			if result.Explained != result.HandOver {
				t.Errorf("the event log explains %d of %d extensions", result.Explained, result.HandOver)
			}
			log, err := os.ReadFile(filepath.Join(golden, name+".eventlog"))
			if err != nil {
				t.Fatal(err)
			}
			recorded, err := parseLog(log)
			if err != nil {
				t.Fatal(err)
			}
			for _, pcr := range []int{4, 5, 7, 11} {
				a, b := ofPCR(result.Events, pcr), ofPCR(recorded, pcr)
				if len(a) != len(b) {
					t.Errorf("PCR %d: %d events, want %d", pcr, len(a), len(b))
					continue
				}
				for i := range a {
					if a[i].Type != b[i].Type || !bytes.Equal(a[i].Digests[measure.SHA384], b[i].Digests[measure.SHA384]) {
						t.Errorf("PCR %d event %d: type %#x digest %x, want %#x %x", pcr, i,
							a[i].Type, a[i].Digests[measure.SHA384], b[i].Type, b[i].Digests[measure.SHA384])
					}
				}
			}
		})
	}
}

// parseLog reads a whole event log.
func parseLog(b []byte) ([]Event, error) {
	reader, err := newLogReader(b)
	if err != nil {
		return nil, err
	}
	var events []Event
	for {
		event, err := reader.next()
		if err != nil {
			return events, nil
		}
		events = append(events, event)
	}
}

func ofPCR(events []Event, pcr int) (found []Event) {
	for _, e := range events {
		if e.PCR == pcr && e.Type != evNoAction {
			found = append(found, e)
		}
	}
	return found
}
