package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/org/attestable-image-action/nitrotpm"
)

// kinds of requests, and the statuses that answer them.
var kinds = map[string]struct {
	statuses []int
	body     func(nonce []byte) []byte
}{
	"document": {[]int{200}, good},
	// A document, or the word that too much is asked for.
	"document-or-not": {[]int{200, 429, 503}, good},
	"short-nonce":     {[]int{400}, func(nonce []byte) []byte { return good(nonce[:15]) }},
	"public-key": {[]int{400}, func(nonce []byte) []byte {
		return mustMarshal(map[string][]byte{"nonce": nonce, "public_key": nonce})
	}},
	"large":    {[]int{413}, func([]byte) []byte { return bytes.Repeat([]byte{' '}, 9000) }},
	"not-json": {[]int{400}, func(nonce []byte) []byte { return nonce }},
}

func good(nonce []byte) []byte { return mustMarshal(map[string][]byte{"nonce": nonce}) }

func mustMarshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // a map of bytes has a JSON
	}
	return b
}

// load is one measurement.
type load struct {
	url       string
	kind      string
	policy    *nitrotpm.Policy
	client    *http.Client
	mu        sync.Mutex
	times     []time.Duration // of those that were answered as they ought to be
	failures  map[string]int
	statuses  map[int]int
	verified  int
	completed atomic.Int64
}

// runLoad sends requests of one kind, and prints "ANSWERED FAILED VERIFIED SECONDS".
// Each request has a connection of its own, as those of verify instance have. The
// latencies, from before the connection to the end of the answer, go to a file in
// microseconds, one a line, behind those that are there.
func runLoad(args []string) error {
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	kind := flags.String("kind", "document", "`KIND` of requests: "+strings.Join(slices.Sorted(maps.Keys(kinds)), ", "))
	clients := flags.Int("clients", 1, "how many ask at once")
	duration := flags.Duration("for", 0, "how long; 0 is until -count is reached")
	count := flags.Int("count", 0, "how many requests; 0 is until -for has passed")
	pause := flags.Duration("pause", 0, "between two requests of a client")
	keep := flags.Bool("keep", false, "keep connections")
	root := flags.String("root", "", "`FILE` of the root by which every hundredth document is verified")
	latencies := flags.String("latencies", "", "`FILE` of latencies")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 || kinds[*kind].body == nil || (*duration == 0) == (*count == 0) {
		return errors.New("usage: serve-load load -for TIME|-count N [flags] URL")
	}
	l := &load{url: flags.Arg(0) + "/v1/attestation", kind: *kind, failures: map[string]int{}, statuses: map[int]int{}, client: &http.Client{
		Timeout: 2 * time.Minute,
		Transport: &http.Transport{
			DisableKeepAlives: !*keep, MaxIdleConnsPerHost: *clients,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // the document vouches for the key
		},
	}}
	if *root != "" {
		content, err := os.ReadFile(*root)
		if err != nil {
			return err
		}
		pinned, err := nitrotpm.ParseRoot(content)
		if err != nil {
			return err
		}
		l.policy = &nitrotpm.Policy{Roots: []nitrotpm.Root{pinned}, AnyPCRs: true}
	}
	ctx := context.Background()
	if *duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *duration)
		defer cancel()
	}
	began := time.Now()
	var sent atomic.Int64
	var all sync.WaitGroup
	for range *clients {
		all.Go(func() {
			for ctx.Err() == nil && (*count == 0 || sent.Add(1) <= int64(*count)) {
				l.one()
				if *pause > 0 {
					time.Sleep(*pause)
				}
			}
		})
	}
	all.Wait()
	passed := time.Since(began)
	if len(kinds[*kind].statuses) > 1 {
		log.Print("answers by their status, and with 0 the connections that the service closed: ", l.statuses)
	}
	failed := 0
	for reason, n := range l.failures {
		log.Printf("%d of %s: %s", n, *kind, reason)
		failed += n
	}
	fmt.Printf("%d %d %d %.3f\n", len(l.times), failed, l.verified, passed.Seconds())
	if *latencies == "" {
		return nil
	}
	file, err := os.OpenFile(*latencies, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	for _, d := range l.times {
		fmt.Fprintln(&out, d.Microseconds())
	}
	_, err = file.Write(out.Bytes())
	return errors.Join(err, file.Close())
}

// one sends a request and counts it.
func (l *load) one() {
	nonce := make([]byte, 32)
	_, _ = rand.Read(nonce) // never fails
	began := time.Now()
	status, body, key, err := l.post(kinds[l.kind].body(nonce))
	passed := time.Since(began)
	verified := false
	switch {
	case err != nil:
	case !slices.Contains(kinds[l.kind].statuses, status):
		err = fmt.Errorf("status %d: %.200q", status, body)
	case status == http.StatusOK:
		verified = l.policy != nil && l.completed.Add(1)%100 == 1
		if verified {
			err = l.verify(nonce, body, key)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	// Who overloads a service has to bear that it closes a connection, too.
	if len(kinds[l.kind].statuses) > 1 && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)) {
		l.statuses[0]++
		return
	}
	if err != nil {
		l.failures[err.Error()]++
		return
	}
	l.times = append(l.times, passed)
	l.statuses[status]++
	if verified {
		l.verified++
	}
}

// post returns the key of the TLS session, too.
func (l *load) post(body []byte) (status int, answer, key []byte, err error) {
	response, err := l.client.Post(l.url, "application/json", bytes.NewReader(body))
	if err != nil {
		return 0, nil, nil, err
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(response.Body, nitrotpm.MaxDocument))
	return response.StatusCode, answer, response.TLS.PeerCertificates[0].RawSubjectPublicKeyInfo, err
}

// verify checks a document; the key of the TLS session only where one is in it, as
// the service's documents have it.
func (l *load) verify(nonce, document, key []byte) error {
	d, err := nitrotpm.Parse(document)
	if err != nil {
		return err
	}
	policy := *l.policy
	policy.Nonce = nonce
	if d.PublicKey != nil {
		policy.PublicKey = key
	}
	_, err = policy.Verify(d)
	return err
}
