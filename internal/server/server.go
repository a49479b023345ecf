package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/google/go-tpm/tpm2/transport"

	"github.com/org/attestable-image-action/internal/nsm"
)

// Config is how to serve.
type Config struct {
	// OpenTPM opens the TPM for one request. It waits while another program has it,
	// until ctx is done.
	OpenTPM func(ctx context.Context) (transport.TPMCloser, error)
	// Measurements is the measurements document of the image, in JSON; nil where
	// the image has none.
	Measurements []byte
	// Log receives a record for each request. Nothing that a caller sent is in it.
	Log *slog.Logger
	// Rate is how many documents a second are made, Burst how many at once; 0
	// means 20 and 40.
	Rate  float64
	Burst int
	// Queue is how many requests may wait for the TPM, and Connections how many
	// connections are open at once; 0 means 32 and 512.
	Queue       int
	Connections int
}

// Limits of a request.
const (
	maxBody       = 8 << 10 // of a request, in bytes
	maxHeader     = 8 << 10
	headerTime    = 5 * time.Second  // to send the header
	bodyTime      = 10 * time.Second // to send all
	answerTime    = 60 * time.Second // for all, from the header on
	idleTime      = 5 * time.Second  // between two requests: who waits holds a connection
	tpmTime       = 30 * time.Second // to wait for the TPM, and for what stands before in the queue
	shutdownTime  = 15 * time.Second // for requests under way when the service ends
	minNonce      = 16               // bytes: less could be guessed, or come twice
	maxNonce      = 512
	retryAfter    = "1" // seconds
	mediaDocument = `application/cose; cose-type="cose-sign1"`
)

// Server answers requests. It is safe for concurrent use.
type Server struct {
	config      Config
	certificate tls.Certificate
	publicKey   []byte // of the TLS key: SubjectPublicKeyInfo in DER
	rate        *bucket
	queue       chan struct{} // requests that have the TPM or wait for it
	tpm         chan struct{} // of one: who has the TPM
	attester    nsm.Attester  // of who has the TPM
	handler     http.Handler
}

// New makes a server with a TLS key of its own.
func New(config Config) (*Server, error) {
	if config.OpenTPM == nil || config.Log == nil {
		return nil, errors.New("make the service: it needs a TPM and a log")
	}
	if config.Rate == 0 {
		config.Rate, config.Burst = 20, 40
	}
	if config.Queue == 0 {
		config.Queue = 32
	}
	if config.Connections == 0 {
		config.Connections = 512
	}
	if config.Rate < 0 || config.Burst < 1 || config.Queue < 1 || config.Connections < 1 {
		return nil, errors.New("make the service: rate, burst, queue and connections are positive")
	}
	certificate, spki, err := newIdentity()
	if err != nil {
		return nil, err
	}
	s := &Server{
		config: config, certificate: certificate, publicKey: spki, rate: newBucket(config.Rate, config.Burst),
		queue: make(chan struct{}, config.Queue), tpm: make(chan struct{}, 1),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/attestation", s.attestation)
	mux.HandleFunc("GET /v1/measurements", s.measurements)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, "text/plain; charset=utf-8", []byte("ok\n")) })
	s.handler = s.logged(mux)
	return s, nil
}

// PublicKey is what every document has in public_key.
func (s *Server) PublicKey() []byte { return s.publicKey }

// Serve answers on a listener until ctx is done, and then lets what is under way
// come to its end.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: headerTime,
		ReadTimeout:       bodyTime,
		WriteTimeout:      answerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.config.Log.Handler(), slog.LevelDebug),
		// HTTP/1.1 only: a connection is a request at a time, so the bound on
		// connections is one on requests.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	listener = tls.NewListener(newLimitListener(listener, s.config.Connections), &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{s.certificate}, NextProtos: []string{"http/1.1"},
	})
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
	defer cancel()
	err := server.Shutdown(last)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close()
	}
	if served := <-ended; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	if err != nil {
		return fmt.Errorf("end the service: %w", err)
	}
	return nil
}

// logged writes a record for each request.
func (s *Server) logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		recorded := &recorder{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(recorded, r)
		level := slog.LevelInfo
		if recorded.err != nil {
			level = slog.LevelError
		}
		attributes := []any{"status", recorded.status, "duration", time.Since(began), "remote", r.RemoteAddr}
		if r.Pattern != "" { // one of the service's own; the caller's path is not logged
			attributes = append(attributes, "request", r.Pattern)
		}
		if recorded.err != nil {
			attributes = append(attributes, "error", recorded.err)
		}
		s.config.Log.Log(r.Context(), level, "request", attributes...)
	})
}

// recorder remembers what was answered, for the log.
type recorder struct {
	http.ResponseWriter
	status int
	err    error
}

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
