package cli

import (
	"strings"
	"testing"
)

func TestKMSConditions(t *testing.T) {
	pcrs := map[int]string{4: "aa", 7: "bb", 12: "cc"}
	for _, tc := range []struct {
		name       string
		pcrs       map[int]string
		secureBoot bool
		want, err  string
	}{
		{name: "standard boot binds 4 and 12", pcrs: pcrs,
			want: `{"StringEqualsIgnoreCase":{"kms:RecipientAttestation:NitroTPMPCR12":"cc","kms:RecipientAttestation:NitroTPMPCR4":"aa"}}`},
		{name: "Secure Boot binds 7 and 12", pcrs: pcrs, secureBoot: true,
			want: `{"StringEqualsIgnoreCase":{"kms:RecipientAttestation:NitroTPMPCR12":"cc","kms:RecipientAttestation:NitroTPMPCR7":"bb"}}`},
		{name: "never without PCR 12", pcrs: map[int]string{4: "aa", 7: "bb"}, err: "PCR 12 is not among the measurements"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := kmsConditions(tc.pcrs, tc.secureBoot)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("error %v, want one about %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}
