package testenv

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Proxy is an HTTP proxy that answers in the name of other hosts: a client
// that is told to use it, and to trust its CA, finds stand-ins under genuine
// https names. A name that is not mapped is refused, so nothing gets out.
type Proxy struct {
	URL    string // http://127.0.0.1:PORT
	CAFile string // PEM

	ca       *certificate
	conns    *connListener
	mu       sync.Mutex
	handlers map[string]http.Handler // by host name
	refused  []string
}

// startProxy starts a proxy that knows no name yet.
func startProxy(h Host) (*Proxy, error) {
	ca, err := newCertificate(&x509.Certificate{
		Subject:               pkix.Name{CommonName: "attestable-image test proxy"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("make the proxy's CA: %w", err)
	}
	p := &Proxy{
		CAFile:   filepath.Join(h.TempDir(), "proxy-ca.pem"),
		ca:       ca,
		conns:    newConnListener(),
		handlers: make(map[string]http.Handler),
	}
	if err := os.WriteFile(p.CAFile, ca.pem(), 0o644); err != nil { //nolint:gosec // a certificate is public
		return nil, fmt.Errorf("write the proxy's CA: %w", err)
	}
	inner := &http.Server{
		Handler:           http.HandlerFunc(p.answer),
		TLSConfig:         &tls.Config{GetCertificate: p.certificateFor, MinVersion: tls.VersionTLS12},
		ReadHeaderTimeout: time.Minute,
	}
	go func() { _ = inner.ServeTLS(p.conns, "", "") }() // returns when closed
	h.Cleanup(func() { _ = inner.Close() })
	p.URL = serve(h, http.HandlerFunc(p.connect))
	return p, nil
}

// Map lets handler answer for https://host.
func (p *Proxy) Map(host string, handler http.Handler) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handlers[host] = handler
}

// Env makes a program use the proxy. Go programs never use one for loopback.
func (p *Proxy) Env() []string {
	return []string{
		"HTTPS_PROXY=" + p.URL, "https_proxy=" + p.URL, "NO_PROXY=127.0.0.1,localhost", "no_proxy=127.0.0.1,localhost",
		"SSL_CERT_FILE=" + p.CAFile, "SSL_CERT_DIR=/nonexistent",
	}
}

// Refused lists the hosts that clients asked for in vain.
func (p *Proxy) Refused() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.refused...)
}

func (p *Proxy) handlerFor(host string) http.Handler {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	handler := p.handlers[strings.ToLower(host)]
	if handler == nil {
		p.refused = append(p.refused, host)
	}
	return handler
}

// connect takes over the connection of a CONNECT request and hands it to the
// TLS server behind the proxy.
func (p *Proxy) connect(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect || p.handlerFor(r.Host) == nil {
		http.Error(w, "this proxy does not know "+r.Host, http.StatusForbidden)
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		_ = conn.Close()
		return
	}
	p.conns.offer(&bufferedConn{Conn: conn, r: buffered.Reader})
}

func (p *Proxy) answer(w http.ResponseWriter, r *http.Request) {
	handler := p.handlerFor(r.Host)
	if handler == nil {
		http.Error(w, "this proxy does not know "+r.Host, http.StatusMisdirectedRequest)
		return
	}
	handler.ServeHTTP(w, r)
}

func (p *Proxy) certificateFor(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	leaf, err := newCertificate(&x509.Certificate{
		Subject:     pkix.Name{CommonName: hello.ServerName},
		DNSNames:    []string{hello.ServerName},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, p.ca)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.cert.Raw}, PrivateKey: leaf.key, Leaf: leaf.cert}, nil
}

// bufferedConn is a connection of which some bytes were read ahead.
type bufferedConn struct {
	net.Conn
	r io.Reader
}

func (c *bufferedConn) Read(b []byte) (int, error) { return c.r.Read(b) }

// connListener is a net.Listener of connections that came another way.
type connListener struct {
	conns  chan net.Conn
	closed chan struct{}
	close  sync.Once
}

func newConnListener() *connListener {
	return &connListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *connListener) offer(c net.Conn) {
	select {
	case l.conns <- c:
	case <-l.closed:
		_ = c.Close()
	}
}

func (l *connListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *connListener) Close() error {
	l.close.Do(func() { close(l.closed) })
	return nil
}

func (l *connListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

// certificate is an X.509 certificate with its key.
type certificate struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newCertificate signs template (whose serial number and validity it sets) by
// parent, or by itself without one.
func newCertificate(template *x509.Certificate, parent *certificate) (*certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().Add(7 * 24 * time.Hour)
	c := &certificate{key: key}
	signer := parent
	if parent == nil {
		signer = &certificate{cert: template, key: key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer.cert, key.Public(), signer.key)
	if err != nil {
		return nil, err
	}
	if c.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *certificate) pem() []byte { return certificatePEM(c.cert) }

func certificatePEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// keyPEM is the key as PKCS#8.
func keyPEM(key any) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// parseCertificates reads all certificates of a PEM file's content.
func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate found")
	}
	return certs, nil
}
