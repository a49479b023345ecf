// Secret-release stands in for AWS KMS on a laptop, where an instance has an emulated
// NitroTPM that KMS does not believe: it releases a secret to the instance when its
// attestation document satisfies the key policy that kms-policy printed. It is not
// AWS KMS, and keeps nothing safe.
//
//	go run ./examples/secret-release seal -key standin.key SECRET >secret.kms
//	go run ./examples/secret-release serve -key standin.key -policy policy.json -root root.pem
//
// Seal makes what "aws kms encrypt" would make. Serve answers "attestable-image
// kms-decrypt" in the guest. See examples/README.md for the whole flow.
package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/org/attestable-image-action/internal/kmsstandin"
	"github.com/org/attestable-image-action/nitrotpm"
)

// keyARN is the name of the only key. Nobody should take it for one of AWS's.
const keyARN = "arn:aws:kms:us-east-1:000000000000:key/stand-in-and-not-aws"

// maxSecret is the size that KMS encrypts, in bytes.
const maxSecret = 4096

// ciphertextMark begins each ciphertext, and says what it is.
const ciphertextMark = "not by AWS KMS\x00\x01"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintf(os.Stderr, "secret-release: %v\n", err)
		os.Exit(1) //nolint:gocritic // nothing is left to stop
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 || (args[0] != "seal" && args[0] != "serve") {
		return errors.New("give seal or serve, and their flags (-h)")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.SetOutput(stderr)
	keyFile := flags.String("key", "", "file of the stand-in's key; seal makes it where it is missing")
	if args[0] == "seal" {
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		if *keyFile == "" || flags.NArg() != 1 {
			return errors.New("seal: give -key FILE, and the file of the secret")
		}
		ciphertext, err := seal(*keyFile, flags.Arg(0))
		if err != nil {
			return fmt.Errorf("seal: %w", err)
		}
		_, err = stdout.Write(ciphertext)
		return err
	}
	policyFile := flags.String("policy", "", "file of the key policy, as kms-policy --format policy prints it")
	rootFile := flags.String("root", "", "file of the emulated NitroTPM's root, as boot --nitrotpm-root writes it; read at each call")
	listen := flags.String("listen", "127.0.0.1:8200", "address to listen on")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if *keyFile == "" || *policyFile == "" || *rootFile == "" || flags.NArg() > 0 {
		return errors.New("serve: give -key, -policy and -root, and no arguments")
	}
	service, err := newService(*keyFile, *policyFile, *rootFile, stderr)
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	var c net.ListenConfig
	listener, err := c.Listen(ctx, "tcp", *listen)
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	fmt.Fprintf(stderr, "%s: http://%s\nits key: %s\n", kmsstandin.Name, listener.Addr(), keyARN)
	server := &http.Server{Handler: service, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10}
	stopped := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stopped()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// newService is the stand-in with a key, a policy and a root in files.
func newService(keyFile, policyFile, rootFile string, log io.Writer) (*kmsstandin.Service, error) {
	key, err := readKey(keyFile)
	if err != nil {
		return nil, err
	}
	text, err := read(policyFile, 64<<10)
	if err != nil {
		return nil, err
	}
	policy, err := kmsstandin.ParsePolicy(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", policyFile, err)
	}
	return &kmsstandin.Service{
		Policy: policy,
		Roots: func() ([]nitrotpm.Root, error) {
			content, err := read(rootFile, 64<<10)
			if err != nil {
				return nil, err
			}
			root, err := nitrotpm.ParseRoot(content)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", rootFile, err)
			}
			return []nitrotpm.Root{root}, nil
		},
		Decrypt: func(_ context.Context, call kmsstandin.Call) ([]byte, string, error) {
			if call.KeyID != keyARN {
				return nil, "", &kmsstandin.Error{Code: "NotFoundException", Message: "the only key here is " + keyARN}
			}
			plaintext, err := open(key, call.Ciphertext)
			if err != nil || len(call.Context) > 0 {
				return nil, "", &kmsstandin.Error{Code: "InvalidCiphertextException", Message: "the ciphertext was not made with this key, or with another encryption context than none"}
			}
			return plaintext, keyARN, nil
		},
		Log: slog.New(slog.NewTextHandler(log, nil)),
	}, nil
}

// seal encrypts the secret in a file.
func seal(keyFile, secretFile string) ([]byte, error) {
	secret, err := read(secretFile, maxSecret)
	if err != nil {
		return nil, err
	}
	key, err := readKey(keyFile)
	if errors.Is(err, fs.ErrNotExist) {
		key, err = makeKey(keyFile)
	}
	if err != nil {
		return nil, err
	}
	// Without a nonce of its own it draws one, and puts it in front.
	return key.Seal([]byte(ciphertextMark), nil, secret, nil), nil //nolint:gosec // G407: see above
}

func open(key cipher.AEAD, ciphertext []byte) ([]byte, error) {
	rest, ok := strings.CutPrefix(string(ciphertext), ciphertextMark)
	if !ok {
		return nil, errors.New("it is no ciphertext of this stand-in")
	}
	return key.Open(nil, nil, []byte(rest), nil)
}

// readKey reads a key of AES-256 in hex.
func readKey(path string) (cipher.AEAD, error) {
	content, err := read(path, 128)
	if err != nil {
		return nil, err
	}
	raw, err := hex.DecodeString(strings.TrimSpace(string(content)))
	if err != nil || len(raw) != 32 {
		return nil, fmt.Errorf("%s has no key of 32 bytes in hex", path)
	}
	return newAEAD(raw)
}

func makeKey(path string) (cipher.AEAD, error) {
	raw := make([]byte, 32)
	if _, err := rand.Read(raw); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // the file that the user names
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(f, "%x\n", raw)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return newAEAD(raw)
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// read reads a file of at most limit bytes.
func read(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // the file that the user names
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(content)) > limit {
		err = fmt.Errorf("%s is longer than %d bytes", path, limit)
	}
	return content, err
}
