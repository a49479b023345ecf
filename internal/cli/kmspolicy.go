package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/gha"
	"github.com/org/attestable-image-action/internal/kmspolicy"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/nitrotpm"
)

// kmsPolicyFlags are the flags of kms-policy beside those that say whose
// artifact it must be.
type kmsPolicyFlags struct {
	format                             string
	pcrs                               string
	without                            []int
	account                            string
	principals, encrypters, roles      []string
	administrators, mayEncrypt, mayUse []kmspolicy.Principal
}

func newKMSPolicyCommand(a *app) *cobra.Command {
	var f kmsPolicyFlags
	var v verifyFlags
	cmd := &cobra.Command{
		Use:   "kms-policy REF | FILE...",
		Short: "Print the AWS KMS key policy that lets only these images use a key",
		Long: `Print what an AWS KMS key policy needs so that only an instance that booted one
of the given images can use the key.

A REF is an artifact in a registry or in an OCI layout (oci:DIR). It is verified
first, as verify artifact does and with the same flags, and its attested
measurements are taken. A FILE is a measurements document, as measure --format
json prints it: nothing vouches for it. What ends in .json, or begins with /, ./
or ../, is a FILE.

Several of them stand side by side, for the time of a rolling update: each may
use the key, and no mixture of them. Conditions share a block only where that
says the same.

With Secure Boot off, PCR 2, 4, 12 and 13 are bound; with Secure Boot on, 7, 12
and 13: the key then stays usable for every later image by the same signer. --pcr
binds others, as --pcr 4,7,12,13 for this one image of this signer. Of those that
identify an image, 2 and 13 can be left out by name: PCR 2 shows drivers that
firmware loads, and an instance type with an option ROM may have another value.

  --format conditions   the Condition element, one for each statement (default)
  --format policy       a whole key policy, for PutKeyPolicy and CreateKey
  --format terraform    the same as Terraform: policy document and key

A whole policy needs administrators (--account for those whom the account's IAM
policies let, --principal for one), and the role of the instances (--role).
Administrators cannot use the key: but who may PutKeyPolicy can write another
policy.`,
		Example: `  attestable-image kms-policy ghcr.io/owner/image:v1 --repo owner/image
  attestable-image kms-policy ghcr.io/owner/image:v1 ghcr.io/owner/image:v2 --repo owner/image \
      --format policy --principal arn:aws:iam::111122223333:role/key-admin --role arn:aws:iam::111122223333:role/image
  attestable-image kms-policy --format terraform --account 111122223333 \
      --role arn:aws:iam::111122223333:role/image measurements.json`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 || slices.Contains(args, "") {
				return usagef("give the artifacts that may use the key, or files of measurements")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.kmsPolicy(cmd.Context(), &f, &v, args)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.format, "format", "conditions", "conditions, policy or terraform")
	flags.StringVar(&f.pcrs, "pcr", "", "PCRs to bind, a `LIST` separated by commas (default "+listOf(nitrotpm.IdentityPCRs(false))+", or with Secure Boot "+listOf(nitrotpm.IdentityPCRs(true))+")")
	flags.IntSliceVar(&f.without, "without-pcr", nil, withoutPCRHelp)
	flags.StringVar(&f.account, "account", "", "AWS account whose IAM policies say who administers the key, a `NUMBER`")
	flags.StringArrayVar(&f.principals, "principal", nil, "`ARN` of a role or user that administers the key; again for another")
	flags.StringArrayVar(&f.roles, "role", nil, "`ARN` of the role of the instances that may use the key; again for another")
	flags.StringArrayVar(&f.encrypters, "encrypt-principal", nil, "`ARN` of a role or user that may encrypt with the key, without attestation; again for another")
	v.add(flags)
	flags.BoolVar(&v.remeasure, "remeasure", false, "fetch the disk, check it, and predict its PCRs again")
	flags.StringVar(&v.predict.pk, "PK", "", "with --remeasure, for Secure Boot: platform key, `FILE` as measure takes it")
	flags.StringVar(&v.predict.kek, "KEK", "", "with --remeasure, for Secure Boot: key exchange keys, `FILE` as measure takes it")
	flags.StringVar(&v.predict.db, "db", "", "with --remeasure, for Secure Boot: allowed signers and digests, `FILE` as measure takes it")
	flags.StringVar(&v.predict.dbx, "dbx", "", "with --remeasure, for Secure Boot: forbidden signers and digests, `FILE` as measure takes it")
	v.format = "table" // of the verdict, on standard error
	return cmd
}

func (a *app) kmsPolicy(ctx context.Context, f *kmsPolicyFlags, v *verifyFlags, args []string) error {
	if err := f.parse(); err != nil {
		return usageError{err}
	}
	var pcrs []int
	var err error
	if f.pcrs != "" {
		if pcrs, err = parsePCRs("--pcr", f.pcrs); err != nil {
			return usageError{err}
		}
	}
	if err := checkWithout(f.without); err != nil {
		return err
	}
	if err := checkVerifies(v, args); err != nil {
		return err
	}
	var generations []kmspolicy.Generation
	for _, arg := range args {
		var g kmspolicy.Generation
		if isFile(arg) {
			g, err = a.unattestedGeneration(arg)
		} else {
			g, err = a.attestedGeneration(ctx, v, arg, "no policy is printed: ")
		}
		if err != nil {
			return err
		}
		generations = append(generations, g)
	}
	conditions, err := kmspolicy.Bind(generations, pcrs, f.without)
	if err != nil {
		return err
	}
	policy := kmspolicy.KeyPolicy{
		Administrators: f.administrators, Encrypters: f.mayEncrypt, Users: f.mayUse, Conditions: conditions, Generations: generations,
	}
	var out []byte
	switch f.format {
	case "policy":
		out, err = policy.JSON()
	case "terraform":
		out, err = policy.Terraform()
	default:
		out, err = conditionBlocks(conditions)
	}
	if err != nil {
		return err
	}
	if _, err := a.stdout.Write(out); err != nil {
		return err
	}
	if a.quiet {
		return nil
	}
	for _, n := range f.without {
		fmt.Fprintf(a.stderr, "note: PCR %d was left out: the key may be used whatever it is\n", n)
	}
	switch {
	case f.format != "conditions":
		fmt.Fprintln(a.stderr, "note: the administrators cannot use the key, and whoever may PutKeyPolicy can change that: keep this permission as you would keep the key")
	case len(conditions) > 1:
		fmt.Fprintf(a.stderr, "note: these are %d conditions: each belongs into a statement of its own, for one block that held all would also let in mixtures; --format policy writes the statements\n", len(conditions))
	}
	return nil
}

// conditionBlocks prints each condition on its own, indented.
func conditionBlocks(conditions []kmspolicy.Condition) ([]byte, error) {
	var out []byte
	for _, c := range conditions {
		block, err := json.MarshalIndent(c, "", "  ")
		if err != nil {
			return nil, fmt.Errorf("write KMS conditions: %w", err)
		}
		out = append(append(out, block...), '\n')
	}
	return out, nil
}

// parse reads the flags, and says what is missing.
func (f *kmsPolicyFlags) parse() error {
	if !slices.Contains([]string{"conditions", "policy", "terraform"}, f.format) {
		return fmt.Errorf("--format: there is no format %q: give conditions, policy or terraform", f.format)
	}
	for _, list := range []struct {
		flag string
		arns []string
		into *[]kmspolicy.Principal
	}{{"principal", f.principals, &f.administrators}, {"encrypt-principal", f.encrypters, &f.mayEncrypt}, {"role", f.roles, &f.mayUse}} {
		for _, arn := range list.arns {
			p, err := kmspolicy.ParsePrincipal(arn)
			if err != nil {
				return fmt.Errorf("--%s: %w", list.flag, err)
			}
			*list.into = append(*list.into, p)
		}
	}
	if f.account != "" {
		partition := "aws"
		if len(f.mayUse) > 0 {
			partition = f.mayUse[0].Partition
		}
		root, err := kmspolicy.AccountRoot(partition, f.account)
		if err != nil {
			return fmt.Errorf("--account: %w", err)
		}
		f.administrators = append(f.administrators, root)
	}
	named := len(f.administrators)+len(f.mayEncrypt)+len(f.mayUse) > 0
	switch {
	case f.format == "conditions" && named:
		return fmt.Errorf("a condition names nobody: leave out --account, --principal, --encrypt-principal and --role, or give --format policy or terraform")
	case f.format != "conditions" && len(f.administrators) == 0:
		return fmt.Errorf("a key policy needs somebody who may change it: give --account or --principal")
	case f.format != "conditions" && len(f.mayUse) == 0:
		return fmt.Errorf("a key policy needs somebody who may use the key: give the role of the instances in --role")
	}
	return nil
}

// withoutPCRHelp is of --without-pcr.
const withoutPCRHelp = "PCR that identifies an image and is left out all the same, `N`: 2 (drivers; instance types with an option ROM) or 13 (extensions); may be repeated"

// checkWithout reads --without-pcr.
func checkWithout(without []int) error {
	for _, n := range without {
		if !measure.MayLack(n) {
			return usagef("--without-pcr: PCR %d cannot be left out: only 2 and 13 can", n)
		}
	}
	return nil
}

// isFile tells a FILE from a REF by how it is written, not by what is there: a
// file that somebody put into the working directory never takes the place of an
// artifact that was to be verified.
func isFile(arg string) bool {
	if strings.HasPrefix(arg, "oci:") {
		return false
	}
	return strings.HasSuffix(arg, ".json") || filepath.IsAbs(arg) || strings.HasPrefix(arg, "./") || strings.HasPrefix(arg, "../")
}

// checkVerifies refuses flags that ask for more than happens: a script that says
// whose artifact it must be, and hands over a file, would take it for verified.
func checkVerifies(v *verifyFlags, args []string) error {
	if !slices.ContainsFunc(args, isFile) || slices.ContainsFunc(args, func(arg string) bool { return !isFile(arg) }) {
		return nil
	}
	if !reflect.DeepEqual(*v, verifyFlags{bundleFrom: "auto", format: v.format}) {
		return usagef("%s is a file, and nobody signed a file: give the artifact's reference, or leave out the flags that say who must have signed", args[0])
	}
	return nil
}

// attestedGeneration verifies an artifact and takes its measurements. When it does
// not verify, the sentence that says so begins with consequence.
func (a *app) attestedGeneration(ctx context.Context, v *verifyFlags, reference, consequence string) (kmspolicy.Generation, error) {
	var g kmspolicy.Generation
	if _, err := artifact.ParseReference(reference); err != nil {
		if _, missing := os.Stat(reference); missing == nil {
			return g, usagef("%w; to mean the file of this name, write ./%s", err, reference)
		}
		return g, usageError{err}
	}
	image, verdict, err := v.verify(ctx, reference)
	if err != nil {
		return g, err
	}
	var again *measure.Document
	if _, failed := verdict.Failed(); v.remeasure && !failed {
		var checks []attest.Check
		if checks, again, err = a.remeasure(ctx, *v, image, verdict.Measurements); err != nil {
			return g, err
		}
		verdict.Checks = append(verdict.Checks, checks...)
	}
	if failed, bad := verdict.Failed(); bad {
		fmt.Fprint(a.stderr, verdictTable(image.Reference, verdict, a.width()))
		sentence := consequence + fmt.Sprintf("%s does not verify: %s: expected %s, found %s", image.Reference, failed.Name, printable(failed.Expected), printable(failed.Found))
		fmt.Fprintf(a.stderr, "Error: %s\n", sentence)
		gha.Error(a.stderr, "attestable-image", sentence)
		return g, errDoesNotVerify
	}
	g.Name = image.Reference.String()
	if g.Document, err = measure.ParseDocument(verdict.Measurements); err != nil {
		return g, fmt.Errorf("%s: %w", g.Name, err)
	}
	if again != nil {
		// What was not predicted when the artifact was made.
		for _, n := range measure.IdentityPCRs {
			if g.Document.PCR(n) == "" && again.PCR(n) != "" {
				g.Document.Measurements.PCRs[n] = again.PCR(n)
			}
		}
	}
	if !a.quiet {
		fmt.Fprintf(a.stderr, "verified %s: %d checks hold\n", g.Name, len(verdict.Checks))
	}
	return g, nil
}

// unattestedGeneration reads a measurements document from a file.
func (a *app) unattestedGeneration(path string) (kmspolicy.Generation, error) {
	g := kmspolicy.Generation{Name: path}
	content, err := readBounded(path, maxMeasurements)
	if err != nil {
		return g, fmt.Errorf("read measurements: %w", err)
	}
	if g.Document, err = measure.ParseDocument(content); err != nil {
		return g, fmt.Errorf("%s: %w", path, err)
	}
	fmt.Fprintf(a.stderr, "note: nothing vouches for %s: the result is as good as where the file comes from\n", printable(path))
	return g, nil
}

// kmsConditions is the Condition element for one document as compact JSON, which
// is what the action's output has.
func kmsConditions(doc *measure.Document) (string, error) {
	conditions, err := kmspolicy.Bind([]kmspolicy.Generation{{Name: "the image", Document: doc}}, nil, nil)
	if err != nil {
		return "", err
	}
	out, err := json.Marshal(conditions[0])
	if err != nil {
		return "", fmt.Errorf("write KMS conditions: %w", err)
	}
	return string(out), nil
}
