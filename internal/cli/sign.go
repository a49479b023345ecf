package cli

import (
	"cmp"
	"context"
	"crypto"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/efi"
	"github.com/org/attestable-image-action/internal/gha"
	"github.com/org/attestable-image-action/internal/measure"
)

// signFlags are the flags of sign.
type signFlags struct {
	key, cert  string
	createKeys string
	uefiData   string
	variables  string
	format     string
	predict    predictFlags

	identityIsNew bool
}

func newSignCommand(a *app) *cobra.Command {
	var f signFlags
	cmd := &cobra.Command{
		Use:   "sign DISK",
		Short: "Sign the unified kernel image on a disk for Secure Boot",
		Long: `Sign the unified kernel image on a raw disk in place (and systemd-boot, where it
stands in front), write the Secure Boot variables that firmware needs, and predict
the PCRs of the signed disk.

The key is RSA of 2048 to 4096 bits: a PEM file, an open file descriptor (fd:N),
or a key in AWS KMS (awskms:ID, ARN or alias). It is never an argument itself.
An image that has an intact signature by the same certificate is left as it is;
other signatures stay beside the new one. The file is written beside the old one
and then put in its place, so the EFI system partition needs room for both.

The variables PK, KEK, db and dbx are those given as files; or those of the
identity of --create-keys; or, with neither, PK, KEK and db each hold the
certificate. In every case the same variables give the same PCR 7, whatever the
image is: keep them, and a key policy that names PCR 7 keeps working.

--create-keys makes an identity when its directory is empty or missing, and uses
it when it is there. It never overwrites one. With --key, the key of db is the
one given, and the identity gets its certificate.

--uefi-data writes the variables in AWS's form: the base64 text that EC2's
RegisterImage takes as UefiData (aws ec2 register-image --uefi-data).`,
		Example: `  attestable-image sign --create-keys keys image.raw
  attestable-image sign --key db.key --cert db.crt --uefi-data uefi-data.aws image.raw
  attestable-image sign --key fd:3 --cert db.crt image.raw 3< <(pass show db-key)
  attestable-image sign --key awskms:alias/secure-boot --create-keys keys image.raw
  attestable-image sign --key db.key --cert db.crt --PK PK.esl --KEK KEK.esl --db db.esl image.raw`,
		Args: oneArg("the raw disk to sign"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.format != "table" && f.format != "json" {
				return usagef("--format: there is no format %q: give table or json", f.format)
			}
			doc, err := a.sign(cmd.Context(), &f, args[0])
			if err != nil {
				return err
			}
			if f.format == "json" {
				out, err := doc.Marshal()
				if err != nil {
					return err
				}
				_, err = a.stdout.Write(out)
				return err
			}
			printMeasurements(a.stdout, doc)
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.key, "key", "", "RSA key to sign with: PEM `FILE`, fd:N, or awskms:ID")
	flags.StringVar(&f.cert, "cert", "", "certificate of that key: PEM or DER `FILE`, or fd:N; certificates of issuers may follow in it")
	flags.StringVar(&f.createKeys, "create-keys", "", "`DIR` with the Secure Boot identity to use; it is made when it is empty or missing")
	flags.StringVar(&f.uefiData, "uefi-data", "", "write the variables to `FILE` as AWS's variable store, in base64")
	flags.StringVar(&f.variables, "variables-output", "", "write the variables into `DIR` as PK.esl, KEK.esl, db.esl and dbx.esl")
	flags.StringVar(&f.format, "format", "table", "table for people, or json for programs")
	f.predict.add(cmd)
	return cmd
}

// sign signs the disk at path and returns the measurements of the result.
func (a *app) sign(ctx context.Context, f *signFlags, path string) (*measure.Document, error) {
	o, err := f.predict.optionsWithoutVariables()
	if err != nil {
		return nil, err
	}
	signer, err := f.signer(ctx)
	if err != nil {
		return nil, err
	}
	if o.SecureBoot, err = f.chooseVariables(signer); err != nil {
		return nil, err
	}
	store, err := awsVariables(o.SecureBoot)
	if err != nil && f.uefiData != "" {
		return nil, err
	}
	d, err := disk.OpenWritable(path)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	images, err := signDisk(ctx, d, signer, o)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", path, err)
	}
	a.reportSigned(f, signer, images)
	if err := f.writeVariables(o.SecureBoot, store); err != nil {
		return nil, err
	}
	p, err := measure.Disk(ctx, d, o)
	if err != nil {
		return nil, fmt.Errorf("%s is signed, but its PCRs cannot all be predicted: %w", path, err)
	}
	return p.Document(), nil
}

// reportSigned says to people what was done.
func (a *app) reportSigned(f *signFlags, signer *efi.Signer, images []signedImage) {
	if a.quiet {
		return
	}
	if f.identityIsNew {
		fmt.Fprintf(a.stderr, "made a Secure Boot identity in %s: keep it, and keep its keys secret; PCR 7 stays the same as long as it is used\n", f.createKeys)
	}
	subject := signer.Certificate().Subject
	for _, image := range images {
		if image.already {
			fmt.Fprintf(a.stderr, "%s was already signed by %q and is left as it is\n", image.path, subject)
		} else {
			fmt.Fprintf(a.stderr, "signed %s by %q (%s)\n", image.path, subject, formatBytes(image.size))
		}
	}
}

// signer opens key and certificate, and makes the identity that --create-keys
// asks for.
func (f *signFlags) signer(ctx context.Context) (*efi.Signer, error) {
	switch {
	case f.createKeys != "" && f.cert != "":
		return nil, usagef("--create-keys makes the certificate, or has it: leave out --cert")
	case f.key == "" && f.createKeys == "":
		return nil, usagef("give the key to sign with by --key and --cert, or a Secure Boot identity by --create-keys; if a secret was meant to be here, it is empty")
	case f.key != "" && f.createKeys == "" && f.cert == "":
		return nil, usagef("give the key's certificate by --cert, or a directory to make one in by --create-keys")
	}
	var key crypto.Signer
	var err error
	if f.key != "" {
		if key, err = openSignKey(ctx, f.key); err != nil {
			return nil, err
		}
	}
	cert := f.cert
	if f.createKeys != "" {
		if key != nil {
			// Before a certificate is made for a key that firmware cannot use.
			if err := efi.CheckKey(key.Public()); err != nil {
				return nil, err
			}
		}
		if f.identityIsNew, err = openIdentity(f.createKeys, key); err != nil {
			return nil, err
		}
		cert = filepath.Join(f.createKeys, "db.crt")
		if key == nil {
			if key, err = openSignKey(ctx, filepath.Join(f.createKeys, "db.key")); err != nil {
				return nil, err
			}
		}
	}
	certificates, err := readCertificates(cert)
	if err != nil {
		return nil, err
	}
	return efi.NewSigner(key, certificates...)
}

// chooseVariables decides which variables the disk is signed for.
func (f *signFlags) chooseVariables(signer *efi.Signer) (measure.SecureBoot, error) {
	given, err := f.predict.readVariables()
	if err != nil {
		return given, err
	}
	if given.PK != nil || given.KEK != nil || given.DB != nil {
		return given, checkVariables(given)
	}
	s := derivedVariables(signer.Certificate())
	if f.createKeys != "" {
		identity := predictFlags{
			pk:  filepath.Join(f.createKeys, "PK.esl"),
			kek: filepath.Join(f.createKeys, "KEK.esl"),
			db:  filepath.Join(f.createKeys, "db.esl"),
		}
		if s, err = identity.readVariables(); err != nil {
			return s, err
		}
	}
	s.DBX = given.DBX
	return s, nil
}

// writeVariables writes the files that --variables-output and --uefi-data name,
// and the step outputs that lead to them.
func (f *signFlags) writeVariables(s measure.SecureBoot, store []byte) error {
	if f.variables != "" {
		if err := os.MkdirAll(f.variables, 0o755); err != nil { //nolint:gosec // certificates are public
			return fmt.Errorf("write Secure Boot variables: %w", err)
		}
		for _, v := range []struct {
			name string
			data []byte
		}{{"PK", s.PK}, {"KEK", s.KEK}, {"db", s.DB}, {"dbx", s.DBX}} {
			if len(v.data) == 0 {
				continue
			}
			path := filepath.Join(f.variables, v.name+".esl")
			if err := os.WriteFile(path, v.data, 0o644); err != nil { //nolint:gosec // certificates are public
				return fmt.Errorf("write Secure Boot variable %s: %w", v.name, err)
			}
			if err := gha.SetOutput(v.name, path); err != nil {
				return err
			}
		}
	}
	if f.uefiData != "" {
		if err := os.WriteFile(f.uefiData, store, 0o644); err != nil { //nolint:gosec // certificates are public
			return fmt.Errorf("write the variable store for AWS: %w", err)
		}
		return gha.SetOutput("uefi-data", f.uefiData)
	}
	return nil
}

// signedImage is an image of the boot chain, with its signature.
type signedImage struct {
	path    string // on the EFI system partition
	content io.ReaderAt
	size    int64 // bytes, with the signature
	already bool  // nothing had to be done
}

// signDisk signs what is loaded from a disk on the way to its kernel, add-ons
// first. It changes nothing unless all of it will run with the variables.
func signDisk(ctx context.Context, d *disk.Disk, signer *efi.Signer, o measure.Options) ([]signedImage, error) {
	chain, err := measure.FindBootChain(ctx, d, o.Arch)
	if err != nil {
		return nil, err
	}
	// What is loaded last must be the unified kernel image: its add-ons go first,
	// since the order changes nothing in who lets them run.
	chainFiles := slices.Clone(chain.Files)
	slices.SortStableFunc(chainFiles, func(a, b measure.BootFile) int {
		switch {
		case a.Addon == b.Addon:
			return 0
		case a.Addon:
			return -1
		}
		return 1
	})
	if last := chainFiles[len(chainFiles)-1]; last.Stub == 0 {
		return nil, fmt.Errorf("%s is started with an initrd and options that no signature covers: make a unified kernel image of it", last.Path)
	}
	images := make([]signedImage, 0, len(chainFiles))
	files := make([]measure.EFIFile, 0, len(chainFiles))
	for _, f := range chainFiles {
		image, err := signFile(f, signer)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Path, err)
		}
		images = append(images, *image)
		files = append(files, measure.EFIFile{Path: f.Path, R: image.content, Size: image.size})
	}
	if _, err := measure.Files(ctx, files, measure.Options{PCRs: []int{7}, SecureBoot: o.SecureBoot}); err != nil {
		return nil, fmt.Errorf("nothing was changed: %w", err)
	}
	// The largest comes first: where it has room, so have the others after it.
	bySize := slices.Clone(images)
	slices.SortStableFunc(bySize, func(a, b signedImage) int { return cmp.Compare(b.size, a.size) })
	for _, image := range bySize {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if image.already {
			continue
		}
		if err := d.ReplaceFile(chain.ESP, image.path, io.NewSectionReader(image.content, 0, image.size), image.size); err != nil {
			return nil, err
		}
	}
	return images, checkOnDisk(ctx, d, o.Arch, signer)
}

// signFile signs one image, unless the signer did before.
func signFile(f measure.BootFile, signer *efi.Signer) (*signedImage, error) {
	image, err := efi.ParseImage(f.File, f.File.Size())
	if err != nil {
		return nil, err
	}
	already, err := image.SignedBy(signer.Certificate())
	if err != nil {
		return nil, err
	}
	if already {
		return &signedImage{f.Path, f.File, f.File.Size(), true}, nil
	}
	signed, err := signer.Sign(image)
	if err != nil {
		return nil, err
	}
	return &signedImage{f.Path, signed, signed.Size(), false}, nil
}

// checkOnDisk reads back what was written.
func checkOnDisk(ctx context.Context, d *disk.Disk, arch string, signer *efi.Signer) error {
	chain, err := measure.FindBootChain(ctx, d, arch)
	if err != nil {
		return err
	}
	for _, f := range chain.Files {
		intact := false
		image, err := efi.ParseImage(f.File, f.File.Size())
		if err == nil {
			intact, err = image.SignedBy(signer.Certificate())
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
		if !intact {
			return fmt.Errorf("%s reads back otherwise than it was written: the disk or the file system below it is failing", f.Path)
		}
	}
	return nil
}
