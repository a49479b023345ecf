// Command client talks to an instance only after the instance proved which image it
// booted, and only over the connection that the proof is bound to.
//
// It imports the public package nitrotpm and the standard library, and is meant to be
// copied: attested is all that a program needs which asks such a service.
//
//	client -measurements measurements.json -path /v1/measurements https://HOST:8443
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/org/attestable-image-action/nitrotpm"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("client", flag.ContinueOnError)
	var generations, roots []string
	add := func(list *[]string) func(string) error {
		return func(value string) error { *list = append(*list, value); return nil }
	}
	flags.Func("measurements", "measurements.json of the image, in `FILE`: what `attestable-image verify artifact` verified; may be repeated, for a rolling update", add(&generations))
	flags.Func("root", "`FILE` with the root of an emulated NitroTPM, in PEM, instead of that of AWS", add(&roots))
	path := flags.String("path", "/healthz", "`PATH` to get from the instance when it is what it should be")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 || len(generations) == 0 {
		return errors.New("give the URL of the instance, and -measurements at least once")
	}
	policy := nitrotpm.Policy{MaxAge: time.Minute}
	for _, name := range generations {
		reference, err := readReference(name)
		if err != nil {
			return err
		}
		policy.Accept = append(policy.Accept, reference)
	}
	for _, name := range roots {
		pem, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		root, err := nitrotpm.ParseRoot(pem)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		policy.Roots = append(policy.Roots, root)
	}

	client, verdict, err := attested(ctx, flags.Arg(0), policy)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "the instance runs %s\n", verdict.Generation)
	target, err := url.JoinPath(flags.Arg(0), *path)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s", target, response.Status)
	}
	_, err = io.Copy(stdout, io.LimitReader(response.Body, 1<<20))
	return err
}

// readReference reads which PCRs an image has. Which it should have is to be verified
// before: a file that anybody could have written proves nothing.
func readReference(name string) (nitrotpm.Reference, error) {
	content, err := os.ReadFile(name)
	if err != nil {
		return nitrotpm.Reference{}, err
	}
	var document struct {
		Measurements map[string]string
	}
	if err := json.Unmarshal(content, &document); err != nil {
		return nitrotpm.Reference{}, fmt.Errorf("%s: %w", name, err)
	}
	reference := nitrotpm.Reference{Name: name, PCRs: make(map[int][]byte)}
	// 4 is the boot chain with the command line inside it, 2 what firmware loaded
	// before it, 12 and 13 what came from outside.
	for _, n := range nitrotpm.IdentityPCRs(false) {
		if reference.PCRs[n], err = hex.DecodeString(document.Measurements[fmt.Sprintf("PCR%d", n)]); err != nil || len(reference.PCRs[n]) != nitrotpm.PCRSize {
			return nitrotpm.Reference{}, fmt.Errorf("%s: it has no PCR %d of the SHA-384 bank", name, n)
		}
	}
	return reference, nil
}

// attested asks the service at base (https://HOST:PORT) for a document with a fresh
// nonce, and holds it against policy. The client that it returns speaks to nobody but
// the holder of the key that the document names, and that key never left the instance.
// Nothing was sent to the instance before it proved itself but the nonce.
func attested(ctx context.Context, base string, policy nitrotpm.Policy) (*http.Client, *nitrotpm.Verdict, error) {
	if !strings.HasPrefix(base, "https://") {
		return nil, nil, fmt.Errorf("%q is not a URL as https://HOST:PORT", base)
	}
	endpoint, err := url.JoinPath(base, "v1/attestation")
	if err != nil {
		return nil, nil, err
	}
	policy.Nonce = make([]byte, 32)
	if _, err := rand.Read(policy.Nonce); err != nil {
		return nil, nil, err
	}
	question, err := json.Marshal(map[string][]byte{"nonce": policy.Nonce})
	if err != nil {
		return nil, nil, err
	}

	// One key for everything: that of the first session, which the document has to
	// vouch for. Certificate authorities have no say.
	var key []byte
	client := &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{
			MinVersion:         tls.VersionTLS13,
			InsecureSkipVerify: true, //nolint:gosec // VerifyConnection does it
			VerifyConnection: func(state tls.ConnectionState) error {
				shown := state.PeerCertificates[0].RawSubjectPublicKeyInfo
				if key == nil {
					key = shown
				}
				if subtle.ConstantTimeCompare(key, shown) != 1 {
					return errors.New("the instance shows another key than the one that is attested")
				}
				return nil
			},
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}

	request, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, bytes.NewReader(question))
	if err != nil {
		return nil, nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, nitrotpm.MaxDocument+1))
	if err != nil {
		return nil, nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("ask the instance for a document: %s: %.200q", response.Status, answer)
	}
	document, err := nitrotpm.Parse(answer)
	if err != nil {
		return nil, nil, err
	}
	policy.PublicKey = response.TLS.PeerCertificates[0].RawSubjectPublicKeyInfo
	verdict, err := policy.Verify(document)
	if err != nil {
		return nil, nil, err
	}
	return client, verdict, nil
}
