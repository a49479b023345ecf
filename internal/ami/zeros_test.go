package ami

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// useProvider points AWS's SDK to a provider of credentials such as a container
// has.
func useProvider(t *testing.T, provider http.Handler) {
	t.Helper()
	server := httptest.NewServer(provider)
	t.Cleanup(server.Close)
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", server.URL+"/credentials")
}

func TestZeroPolicy(t *testing.T) {
	disk := testDisk(t)
	head := disk[:headSize]
	omitted := func(p zeroPolicy) string {
		var b strings.Builder
		for start := int64(0); start < diskSize; start += BlockSize {
			end := min(start+BlockSize, diskSize)
			switch {
			case !isZero(disk[start:end]):
				b.WriteByte('d')
			case p.omits(start, end):
				b.WriteByte('-')
			default:
				b.WriteByte('0')
			}
		}
		return b.String()
	}
	damaged := append([]byte(nil), head...)
	damaged[600] ^= 1
	for name, tc := range map[string]struct {
		zeros ZeroBlocks
		head  []byte
		want  string
	}{
		"outside partitions":        {OutsidePartitions, head, "d-ddddd0000000000d-----dd"},
		"write":                     {WriteZeros, head, "d0ddddd0000000000d00000dd"},
		"omit":                      {OmitZeros, head, "d-ddddd----------d-----dd"},
		"damaged table":             {OutsidePartitions, damaged, "d0ddddd0000000000d00000dd"},
		"no table":                  {OutsidePartitions, make([]byte, headSize), "d0ddddd0000000000d00000dd"},
		"table beyond what is read": {OutsidePartitions, head[:1024], "d0ddddd0000000000d00000dd"},
		"nothing":                   {OutsidePartitions, nil, "d0ddddd0000000000d00000dd"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newZeroPolicy(tc.zeros, tc.head, diskSize)
			if got := omitted(p); got != tc.want {
				t.Errorf("%s\nwant %s", got, tc.want)
			}
			if p.why == "" {
				t.Error("it does not say why")
			}
		})
	}
}
