package vm

import "errors"

// SecureBoot are the contents of the Secure Boot variables: each a sequence of
// EFI_SIGNATURE_LISTs (UEFI 2.10, section 32.4.1), or empty.
type SecureBoot struct {
	PK, KEK, DB, DBX []byte
}

func (s SecureBoot) enroll(store []byte) ([]byte, error) {
	if s.PK == nil {
		return store, nil
	}
	return nil, errors.New("not yet")
}
