package cli

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/org/attestable-image-action/internal/nsm"
	"github.com/org/attestable-image-action/nitrotpm"
)

// tpmWait is how long a command waits for a TPM that is in use.
const tpmWait = 30 * time.Second

func newAttestationDocumentCommand(a *app) *cobra.Command {
	var userData, nonce, publicKey, output, device string
	cmd := &cobra.Command{
		Use:   "attestation-document",
		Short: "Ask the NitroTPM of this instance for an attestation document",
		Long: `Ask the NitroTPM of this instance for an attestation document: which image it
booted, signed by AWS. The document is binary (COSE_Sign1); verify instance reads
it. It carries what is given here, each at most 1024 bytes.

A nonce is what the one who will verify the document sent: without it a document
proves that the instance was in this state once, and not that it still is. It is
given in hex, or as a file; write ./NAME for a file whose name is hex.

Root, or the device's group, may use the TPM. Nothing is left in it, and nothing
that others keep there is touched.`,
		Example: `  attestable-image attestation-document --nonce 7d9a41… -o document.cbor
  attestable-image attestation-document --public-key key.der | base64`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("%q is one argument too many: attestation-document takes flags only", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f, ok := a.stdout.(*os.File); ok && output == "" && term.IsTerminal(int(f.Fd())) {
				return usagef("a document is binary, and standard output is a terminal: give --output FILE, or pipe it")
			}
			var request nsm.Request
			var err error
			if request.Nonce, err = hexOrFile("nonce", nonce); err != nil {
				return err
			}
			if request.UserData, err = fieldFile("user-data", userData); err != nil {
				return err
			}
			if request.PublicKey, err = fieldFile("public-key", publicKey); err != nil {
				return err
			}
			document, err := a.attestationDocument(cmd.Context(), device, request)
			if err != nil {
				return err
			}
			if output == "" {
				_, err = a.stdout.Write(document)
				return err
			}
			if err := os.WriteFile(output, document, 0o644); err != nil { //nolint:gosec // a document is no secret
				return fmt.Errorf("write the document: %w", err)
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&nonce, "nonce", "", "`HEX|FILE` that the one who verifies sent")
	flags.StringVar(&userData, "user-data", "", "`FILE` to have in the document")
	flags.StringVar(&publicKey, "public-key", "", "`FILE` of a public key to have in the document, as its reader expects it (AWS KMS: RSA in DER)")
	flags.StringVarP(&output, "output", "o", "", "`FILE` to write to (default standard output)")
	flags.StringVar(&device, "device", "", "the TPM's device (default /dev/tpmrm0, or /dev/tpm0)")
	return cmd
}

// attestationDocument gets a document, and looks at it as far as one can who was
// given no policy: a TPM that returns rubbish is found here.
func (a *app) attestationDocument(ctx context.Context, device string, request nsm.Request) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, tpmWait)
	defer cancel()
	tpm, err := a.openTPM(ctx, device)
	if err != nil {
		return nil, err
	}
	defer tpm.Close()
	document, err := nsm.Get(tpm, request)
	if err != nil {
		return nil, err
	}
	if _, err := nitrotpm.Parse(document); err != nil {
		return nil, fmt.Errorf("the NitroTPM returned what is no document: %w", err)
	}
	return document, nil
}

// fieldFile reads what goes into a document; nil for no file.
func fieldFile(flag, path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	content, err := readBounded(path, nitrotpm.MaxField)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	return content, nil
}

// hexOrFile reads bytes in hex, or from a file; nil where nothing is given.
func hexOrFile(flag, value string) ([]byte, error) {
	if value == "" {
		return nil, nil
	}
	if raw, err := hex.DecodeString(value); err == nil {
		if len(raw) > nitrotpm.MaxField {
			return nil, usagef("--%s has %d bytes, more than %d", flag, len(raw), nitrotpm.MaxField)
		}
		return raw, nil
	}
	content, err := fieldFile(flag, value)
	if err != nil && !strings.ContainsAny(value, "./") {
		return nil, usagef("--%s: %q is neither hex nor a file that can be read", flag, value)
	}
	return content, err
}
