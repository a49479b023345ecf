package measure

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"
	"testing/iotest"

	"github.com/org/attestable-image-action/internal/testenv"
)

func TestHashing(t *testing.T) {
	content := make([]byte, 3*hashingPiece+12345)
	chacha := rand.NewChaCha8([32]byte{1})
	_, _ = chacha.Read(content)
	lengths := []int{0, 1, hashingPiece - 1, hashingPiece, hashingPiece + 1, 2 * hashingPiece, len(content)}
	h := newHashing(t.Context())
	defer h.close()
	type pair struct{ d256, d384 *pendingDigest }
	var all []pair
	for _, n := range lengths {
		all = append(all, pair{
			h.start(crypto.SHA256, bytes.NewReader(content[:n]), int64(n)),
			// Readers may give less than they are asked for, and the end with the last.
			h.start(crypto.SHA384, iotest.DataErrReader(iotest.HalfReader(bytes.NewReader(content[:n]))), int64(n)),
		})
	}
	for i, n := range lengths {
		got256, err256 := all[i].d256.wait()
		got384, err384 := all[i].d384.wait()
		want256, want384 := sha256.Sum256(content[:n]), sha512.Sum384(content[:n])
		if err := errors.Join(err256, err384); err != nil || !bytes.Equal(got256, want256[:]) || !bytes.Equal(got384, want384[:]) {
			t.Errorf("%d bytes: digests %x and %x, %v; want %x and %x", n, got256, got384, err, want256, want384)
		}
	}
}

// TestHashingFails has readers that end early, in the middle of a piece, and say
// so or not: it must not pass for the end.
func TestHashingFails(t *testing.T) {
	h := newHashing(t.Context())
	for name, test := range map[string]struct {
		r    io.Reader
		want error
	}{
		"cut off": {io.MultiReader(bytes.NewReader(make([]byte, 1000)), iotest.ErrReader(io.ErrUnexpectedEOF)), io.ErrUnexpectedEOF},
		"short":   {bytes.NewReader(make([]byte, 999)), io.ErrUnexpectedEOF},
		"long":    {bytes.NewReader(make([]byte, 1001)), io.ErrUnexpectedEOF},
		"wrapped": {io.MultiReader(bytes.NewReader(make([]byte, 1000)), iotest.ErrReader(fmt.Errorf("read file: %w", io.EOF))), io.EOF},
		"broken":  {iotest.ErrReader(iotest.ErrTimeout), iotest.ErrTimeout},
	} {
		if sum, err := h.start(crypto.SHA384, test.r, 1000).wait(); !errors.Is(err, test.want) || sum != nil {
			t.Errorf("%s: %x, %v, want %v", name, sum, err, test.want)
		}
	}
	good := h.start(crypto.SHA384, bytes.NewReader(nil), 0)
	if _, err := good.wait(); err != nil {
		t.Errorf("after failures: %v", err)
	}
	h.close()
}

// endless is a reader that never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestHashingCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	h := newHashing(ctx)
	var all []*pendingDigest
	for range 2 * runtime.GOMAXPROCS(0) {
		all = append(all, h.start(crypto.SHA384, endless{}, 1))
	}
	cancel()
	for _, d := range all {
		if _, err := d.wait(); !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want that the context ended", err)
		}
	}
	h.close() // returns when no worker is left

	h = newHashing(t.Context())
	d := h.start(crypto.SHA384, endless{}, 1)
	h.close()
	if _, err := d.wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("closed: %v, want that the context ended", err)
	}
}

// TestFilesFailInOrder has a chain in which two images cannot be read, and one
// is no unified kernel image: the first in the order of the boot is named,
// however long the others take.
func TestFilesFailInOrder(t *testing.T) {
	first, second := testenv.UKI(0x8664, "257"), testenv.UKI(0x8664, "257")
	for range 20 {
		_, err := Files(t.Context(), []EFIFile{
			{"first.efi", &shrunk{first, 2000}, int64(len(first))},
			{"second.efi", &shrunk{second, 1500}, int64(len(second))},
			{"third.efi", bytes.NewReader(nil), 0},
		}, Options{})
		const want = "measure third.efi: first.efi: take Authenticode digest: unexpected EOF"
		if err == nil || err.Error() != want {
			t.Fatalf("error is %v, want %s", err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Files(ctx, []EFIFile{{"uki.efi", bytes.NewReader(first), int64(len(first))}}, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// shrunk is a file of which only the headers and some bytes are left.
type shrunk struct {
	content []byte
	left    int
}

func (s *shrunk) ReadAt(p []byte, off int64) (int, error) {
	if int(off)+len(p) <= 0x400 { // what ParseImage reads
		return bytes.NewReader(s.content).ReadAt(p, off)
	}
	return bytes.NewReader(s.content[:s.left]).ReadAt(p, off)
}

// TestNeededDigests shows that leaving digests out changes no PCR.
func TestNeededDigests(t *testing.T) {
	uki := testenv.UKI(0x8664, "257")
	file := []EFIFile{{"uki.efi", bytes.NewReader(uki), int64(len(uki))}}
	all, err := Files(t.Context(), file, Options{})
	if err != nil {
		t.Fatal(err)
	}
	needed, err := Files(t.Context(), file, Options{NeededDigests: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, pcr := range DefaultPCRs {
		if !bytes.Equal(all.Value(pcr), needed.Value(pcr)) {
			t.Errorf("PCR %d differs: %x and %x", pcr, all.Value(pcr), needed.Value(pcr))
		}
	}
	for i := range all.Images {
		if all.Images[i].SHA256 == nil || needed.Images[i].SHA256 != nil || !bytes.Equal(all.Images[i].SHA384, needed.Images[i].SHA384) {
			t.Errorf("image %d has the digests %x and %x, or %x and %x", i,
				all.Images[i].SHA256, all.Images[i].SHA384, needed.Images[i].SHA256, needed.Images[i].SHA384)
		}
	}
	none, err := Files(t.Context(), file, Options{PCRs: []int{11}, NeededDigests: true})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(none.Value(11), all.Value(11)) || none.Images[0].SHA384 != nil {
		t.Errorf("with PCR 11 alone it is %x, and the image has the digest %x", none.Value(11), none.Images[0].SHA384)
	}
}
