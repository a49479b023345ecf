package cli

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/org/attestable-image-action/internal/awskms"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/nsm"
	"github.com/org/attestable-image-action/nitrotpm"
)

// decryptTime is how long kms-decrypt may take with all its tries: a unit that needs
// the secret should rather be started again than hang.
const decryptTime = 2 * time.Minute

func newKMSDecryptCommand(a *app) *cobra.Command {
	var ciphertext, output, device string
	var pairs []string
	var sealed awskms.Sealed
	cmd := &cobra.Command{
		Use:   "kms-decrypt --key-id KEY --ciphertext FILE",
		Short: "Inside the instance: have AWS KMS release a secret to it, and to nobody else",
		Long: `Have AWS KMS decrypt a secret for this instance. KMS gets an attestation document
of the instance's NitroTPM with the request, compares its PCRs with the conditions of
the key's policy (kms-policy prints one), and encrypts the answer to a key that is
made here for this one call and that the document vouches for. Nobody on the way
reads the secret, and whoever has the role's credentials outside such an instance
does not get it.

The ciphertext is what Encrypt returned, in binary: at most 6144 bytes. It is no
secret and can be a part of the image. --key-id says which key it must be; without
that, who can exchange the ciphertext could have KMS decrypt another secret with a
key of his own.

The secret goes to standard output, or with --output into a file that only this user
can read; put it where nothing is written to a disk, such as /run. It is never
logged: standard output that is a terminal or the journal is refused.

Credentials come from where AWS's tools take them: in an instance, its role. The
region is that of the key's ARN, or --region, or what is configured.`,
		Example: `  aws kms encrypt --key-id alias/image --plaintext fileb://secret --query CiphertextBlob --output text | base64 -d > secret.kms
  attestable-image kms-decrypt --key-id arn:aws:kms:eu-central-1:111122223333:key/1234abcd-… --ciphertext secret.kms -o /run/app/secret`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("%q is one argument too many: kms-decrypt takes flags only", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case ciphertext == "":
				return usagef("give the encrypted secret in --ciphertext")
			case sealed.KeyID == "":
				return usagef("say in --key-id which key it must be that the secret is encrypted with")
			}
			for _, pair := range pairs {
				name, value, ok := strings.Cut(pair, "=")
				if _, twice := sealed.Context[name]; !ok || name == "" || twice {
					return usagef("--encryption-context: %q is not NAME=VALUE with a NAME of its own", pair)
				}
				if sealed.Context == nil {
					sealed.Context = map[string]string{}
				}
				sealed.Context[name] = value
			}
			if output == "" {
				if err := mayCarrySecret(a.stdout); err != nil {
					return err
				}
			}
			var err error
			if sealed.Ciphertext, err = readBounded(ciphertext, awskms.MaxCiphertext); err != nil {
				return fmt.Errorf("read the ciphertext: %w", err)
			}
			secret, err := a.kmsDecrypt(cmd.Context(), sealed, device)
			if err != nil {
				return err
			}
			if output != "" {
				return writeSecret(output, secret)
			}
			_, err = a.stdout.Write(secret)
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&ciphertext, "ciphertext", "", "`FILE` of the encrypted secret, binary")
	flags.StringVar(&sealed.KeyID, "key-id", "", "`KEY` that it must be encrypted with: ARN, identifier or alias/NAME")
	flags.StringArrayVar(&pairs, "encryption-context", nil, "`NAME=VALUE` of the encryption context that it was encrypted with; again for another")
	flags.StringVar(&sealed.Region, "region", "", "AWS `REGION` of the key (default that of its ARN, or what is configured)")
	flags.StringVarP(&output, "output", "o", "", "`FILE` for the secret, which only this user can read (default standard output)")
	flags.StringVar(&device, "device", "", "the TPM's device (default /dev/tpmrm0, or /dev/tpm0)")
	return cmd
}

// kmsDecrypt has a secret decrypted, and says of a refusal what the instance's PCRs
// are: who wrote the key's policy needs them to see why.
func (a *app) kmsDecrypt(ctx context.Context, sealed awskms.Sealed, device string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, decryptTime)
	defer cancel()
	var attestation []byte
	secret, err := awskms.Decrypt(ctx, sealed, func(ctx context.Context, publicKey []byte) (document []byte, err error) {
		attestation, err = a.attestationDocument(ctx, device, nsm.Request{PublicKey: publicKey})
		return attestation, err
	})
	if errors.Is(err, awskms.ErrAccessDenied) && !a.quiet {
		if d, parsed := nitrotpm.Parse(attestation); parsed == nil {
			for _, n := range measure.IdentityPCRs {
				fmt.Fprintf(a.stderr, "note: PCR %d of this instance is %s\n", n, hex.EncodeToString(d.PCRs[n]))
			}
		}
	}
	return secret, err
}

// mayCarrySecret refuses a standard output that people or logs read: a terminal, or
// the journal, into which systemd leads the output of a unit unless it is told
// otherwise (systemd.exec(5), $JOURNAL_STREAM).
func mayCarrySecret(stdout io.Writer) error {
	file, ok := stdout.(*os.File)
	if !ok {
		return nil
	}
	if term.IsTerminal(int(file.Fd())) {
		return usagef("standard output is a terminal: give --output FILE, or pipe the secret to where it is needed")
	}
	if info, err := file.Stat(); err == nil && isJournal(info, os.Getenv("JOURNAL_STREAM")) {
		return usagef("standard output is the journal, and a secret does not belong there: give --output FILE")
	}
	return nil
}

// isJournal says whether a file is the one of $JOURNAL_STREAM, "DEVICE:INODE".
func isJournal(info fs.FileInfo, stream string) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stream != "" && stream == fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}

// writeSecret writes a file that only this user can read, at once or not at all.
func writeSecret(path string, secret []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return fmt.Errorf("write the secret: %w", err)
	}
	defer os.Remove(f.Name()) // which fails once it is renamed
	_, err = f.Write(secret)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write the secret: %w", err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("write the secret: %w", err)
	}
	return nil
}
