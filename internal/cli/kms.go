package cli

import (
	"encoding/json"
	"fmt"
)

// kmsConditions returns, as compact JSON, the Condition block of an AWS KMS key
// policy that lets only an instance with these PCRs use the key. pcrs maps a
// PCR's number to its value in lower-case hex.
//
// With Secure Boot off, PCR 4 alone would not do: systemd-stub then takes a
// command line from outside the UKI, which only PCR 12 records. With Secure
// Boot on, the policy in PCR 7 says which keys may sign an image, so that a new
// image with the same keys keeps the key; PCR 12 is bound there too, since a
// credential on the ESP is not covered by the signature.
func kmsConditions(pcrs map[int]string, secureBoot bool) (string, error) {
	bound := []int{4, 12}
	if secureBoot {
		bound = []int{7, 12}
	}
	values := map[string]string{}
	for _, n := range bound {
		value, ok := pcrs[n]
		if !ok {
			return "", fmt.Errorf("make KMS conditions: PCR %d is not among the measurements, and a policy without it would be unsafe: measure with --pcr including %d", n, n)
		}
		values[fmt.Sprintf("kms:RecipientAttestation:NitroTPMPCR%d", n)] = value
	}
	out, err := json.Marshal(map[string]map[string]string{"StringEqualsIgnoreCase": values})
	if err != nil {
		return "", fmt.Errorf("make KMS conditions: %w", err)
	}
	return string(out), nil
}
