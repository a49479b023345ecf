package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"time"
)

// runPeer is the design that the service is compared with: POST /v1/attestation
// starts a program, and answers with what it prints. KIND is whose program it is:
// aws (nitro-tpm-attest) or ours (attestable-image attestation-document). TLS is as
// the service has it. The device has one user at a time, so processes do not run
// beside each other; two of AWS's could not, since they would take the same handles.
func runPeer(args []string) error {
	if len(args) != 4 || args[1] != "aws" && args[1] != "ours" {
		return errors.New("usage: serve-load peer ADDRESS aws|ours PROGRAM DEVICE")
	}
	address, kind, program, device := args[0], args[1], args[2], args[3]
	certificate, err := newCertificate()
	if err != nil {
		return err
	}
	var tpm sync.Mutex
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/attestation", func(w http.ResponseWriter, r *http.Request) {
		var request struct{ Nonce []byte }
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 8<<10)).Decode(&request); err != nil {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		tpm.Lock()
		defer tpm.Unlock()
		var out, errs bytes.Buffer
		cmd := exec.CommandContext(r.Context(), program, "attestation-document", "--device", device, "--nonce", hex.EncodeToString(request.Nonce)) //nolint:gosec // a program of whoever measures
		if kind == "aws" {
			// It takes a nonce from a file only.
			file, err := os.CreateTemp("", "nonce")
			if err == nil {
				defer os.Remove(file.Name())
				_, err = file.Write(request.Nonce)
				err = errors.Join(err, file.Close())
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			cmd = exec.CommandContext(r.Context(), program, "--nonce", file.Name()) //nolint:gosec // likewise
			cmd.Env = append(os.Environ(), "TPM_DEVICE="+device)
		}
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil {
			log.Printf("%v: %s", err, errs.Bytes())
			http.Error(w, "no document", http.StatusBadGateway)
			return
		}
		_, _ = w.Write(out.Bytes())
	})
	server := &http.Server{
		Addr: address, Handler: mux, ReadHeaderTimeout: 5 * time.Second,
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}, // HTTP/1.1, as the service
		ErrorLog:     log.New(io.Discard, "", 0),                               // the script connects to see whether it listens
		TLSConfig:    &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate}},
	}
	return server.ListenAndServeTLS("", "")
}

func newCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a TLS key: %w", err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a TLS key: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
