package testenv

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sigstore/sigstore-go/pkg/root"
)

// trillianPrograms are what the logs of the public deployment need besides
// scripts/tools' usual programs: scripts/sigstore-matrix installs them.
var trillianPrograms = []string{
	"mariadbd", "mariadb", "trillian_log_server", "trillian_log_signer", "createtree", "ct_server", "rekor-server",
}

// trillian is Google's verifiable log on a database of its own, in which each
// tree is a log of somebody.
type trillian struct {
	rpcPort int
}

// startTrillian starts MariaDB, and Trillian's server and signer on it.
func startTrillian(h Host) (*trillian, error) {
	paths, err := programs(append(trillianPrograms, "trillian.sql")...)
	if err != nil {
		return nil, err
	}
	database, err := startMariaDB(h, paths)
	if err != nil {
		return nil, err
	}
	t := new(trillian)
	err = startOnPorts(h, "trillian-log-server", 2, func(ports []int) (*exec.Cmd, string) {
		t.rpcPort = ports[0]
		return exec.Command(paths["trillian_log_server"], "--mysql_uri="+database, "--quota_system=noop", "--tree_gc=false",
			"--rpc_endpoint="+loopback(ports[0]), "--http_endpoint="+loopback(ports[1])), "http://" + loopback(ports[1]) + "/healthz"
	})
	if err != nil {
		return nil, err
	}
	err = startOnPorts(h, "trillian-log-signer", 2, func(ports []int) (*exec.Cmd, string) {
		return exec.Command(paths["trillian_log_signer"], "--mysql_uri="+database, "--quota_system=noop", "--force_master",
			"--sequencer_interval=100ms", "--rpc_endpoint="+loopback(ports[0]), "--http_endpoint="+loopback(ports[1])), "http://" + loopback(ports[1]) + "/healthz"
	})
	return t, err
}

func loopback(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

// programs returns the paths of programs, or files beside them, by their names.
func programs(names ...string) (map[string]string, error) {
	paths := make(map[string]string)
	for _, name := range names {
		path, err := Program(name)
		if err != nil {
			return nil, fmt.Errorf("%w, and scripts/tools --heavy", err)
		}
		paths[name] = path
	}
	return paths, nil
}

// nobody is the user and group that MariaDB has where the tests run as root,
// as whom it refuses to run.
const nobody = 65534

// startMariaDB starts a database server on an empty directory, without users
// and without a port, and returns the address of its only database, which has
// Trillian's tables, in the form of Go's driver.
func startMariaDB(h Host, paths map[string]string) (string, error) {
	// Not h.TempDir: a socket's path has at most 107 bytes, and nobody must get there.
	dir, err := os.MkdirTemp("", "mariadb")
	if err != nil {
		return "", err
	}
	h.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "socket")
	cmd := exec.Command(paths["mariadbd"], "--no-defaults", "--datadir="+dir, "--socket="+socket, "--pid-file="+filepath.Join(dir, "pid"),
		"--skip-networking", "--skip-grant-tables", "--skip-log-bin",
		// It need not outlive a power failure.
		"--innodb-flush-log-at-trx-commit=0", "--innodb-flush-method=nosync", "--innodb-doublewrite=0", "--innodb-buffer-pool-size=32M")
	if os.Getuid() == 0 {
		if err := os.Chown(dir, nobody, nobody); err != nil {
			return "", err
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	s, err := startServer(h, "mariadbd", cmd)
	if err != nil {
		return "", err
	}
	tables, err := os.ReadFile(paths["trillian.sql"])
	if err != nil {
		return "", err
	}
	deadline := time.Now().Add(readyTimeout)
	for {
		client := exec.Command(paths["mariadb"], "--no-defaults", "--socket="+socket)
		client.Stdin = strings.NewReader("CREATE DATABASE trillian; USE trillian;\n" + string(tables))
		out, err := client.CombinedOutput()
		if err == nil {
			return "root@unix(" + socket + ")/trillian", nil
		}
		_, absent := os.Stat(socket)
		select {
		case <-s.done:
			return "", fmt.Errorf("mariadbd ended while it was starting:\n%s", s.tail())
		case <-time.After(50 * time.Millisecond):
		}
		if absent == nil && !bytes.Contains(out, []byte("Can't connect")) || time.Now().After(deadline) {
			return "", fmt.Errorf("make Trillian's tables: %w: %s\n%s", err, out, s.tail())
		}
	}
}

// newTree makes a log and returns its number.
func (t *trillian) newTree() (string, error) {
	path, err := Program("createtree")
	if err != nil {
		return "", err
	}
	var stderr bytes.Buffer
	cmd := exec.Command(path, "--admin_server="+loopback(t.rpcPort))
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("make a tree in Trillian: %w: %s", err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), nil
}

// logKey makes the key of a log, and the log as a trust root names it, without
// its URL. Its ID is the SHA-256 of the key (RFC 6962, section 3.2).
func logKey() (*ecdsa.PrivateKey, *root.TransparencyLog, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, nil, err
	}
	id := sha256.Sum256(der)
	return key, &root.TransparencyLog{
		ID:                  id[:],
		ValidityPeriodStart: time.Now().Add(-time.Hour),
		HashFunc:            crypto.SHA256,
		PublicKey:           key.Public(),
		SignatureHashFunc:   crypto.SHA256,
	}, nil
}

// startCTLog starts a certificate transparency log for what is issued under top.
func (t *trillian) startCTLog(h Host, top *x509.Certificate) (*root.TransparencyLog, error) {
	tree, err := t.newTree()
	if err != nil {
		return nil, err
	}
	key, log, err := logKey()
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	var escaped strings.Builder // bytes in protocol buffers' text format
	for _, b := range der {
		fmt.Fprintf(&escaped, `\%03o`, b)
	}
	dir := h.TempDir()
	roots, configuration := filepath.Join(dir, "roots.pem"), filepath.Join(dir, "ct.cfg")
	if err := errors.Join(
		os.WriteFile(roots, certificatePEM(top), 0o600),
		os.WriteFile(configuration, fmt.Appendf(nil, "config {\n  log_id: %s\n  prefix: \"ct\"\n  roots_pem_file: %q\n  ext_key_usages: \"CodeSigning\"\n"+
			"  private_key {\n    [type.googleapis.com/keyspb.PrivateKey] { der: \"%s\" }\n  }\n}\n", tree, roots, escaped.String()), 0o600),
	); err != nil {
		return nil, fmt.Errorf("write the files of the CT log: %w", err)
	}
	path, err := Program("ct_server")
	if err != nil {
		return nil, err
	}
	return log, startOnPorts(h, "ct-server", 1, func(ports []int) (*exec.Cmd, string) {
		log.BaseURL = "http://" + loopback(ports[0]) + "/ct"
		return exec.Command(path, "--log_config="+configuration, "--log_rpc_server="+loopback(t.rpcPort),
			"--http_endpoint="+loopback(ports[0])), log.BaseURL + "/ct/v1/get-sth"
	})
}

// startRekorV1 starts a Rekor v1.
func (t *trillian) startRekorV1(h Host) (*root.TransparencyLog, error) {
	tree, err := t.newTree()
	if err != nil {
		return nil, err
	}
	key, log, err := logKey()
	if err != nil {
		return nil, err
	}
	encoded, err := keyPEM(key)
	if err != nil {
		return nil, err
	}
	keyFile := filepath.Join(h.TempDir(), "rekor-v1.pem")
	if err := os.WriteFile(keyFile, encoded, 0o600); err != nil {
		return nil, fmt.Errorf("write Rekor's key: %w", err)
	}
	path, err := Program("rekor-server")
	if err != nil {
		return nil, err
	}
	return log, startOnPorts(h, "rekor-server", 1, func(ports []int) (*exec.Cmd, string) {
		log.BaseURL = "http://" + loopback(ports[0])
		return exec.Command(path, "serve", "--rekor_server.address=127.0.0.1", "--port="+strconv.Itoa(ports[0]), "--rekor_server.hostname=127.0.0.1",
			"--rekor_server.signer="+keyFile, "--trillian_log_server.address=127.0.0.1", "--trillian_log_server.port="+strconv.Itoa(t.rpcPort),
			"--trillian_log_server.tlog_id="+tree, "--enable_retrieve_api=false",
			"--enabled_api_endpoints=getLogInfo,getPublicKey,getLogProof,createLogEntry,getLogEntryByIndex,getLogEntryByUUID,searchLogQuery",
		), log.BaseURL + "/api/v1/log"
	})
}

// hexID is what a trust root's maps of logs have as a key.
func hexID(log *root.TransparencyLog) string { return hex.EncodeToString(log.ID) }
