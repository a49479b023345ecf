package server

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
)

// firstActivated is the first descriptor that systemd passes (sd_listen_fds(3)).
const firstActivated = 3

// Activated returns the socket that systemd passes to this process; nil when it
// passes none. It takes it out of the environment, so that no child finds it.
func Activated() (net.Listener, error) {
	pid, count := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	if count == "" || pid != strconv.Itoa(os.Getpid()) {
		return nil, nil //nolint:nilnil // no socket is no error
	}
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(name)
	}
	if count != "1" {
		return nil, fmt.Errorf("take the socket from systemd: %s are passed, and one is needed", count)
	}
	file := os.NewFile(firstActivated, "systemd")
	if file == nil {
		return nil, errors.New("take the socket from systemd: there is none")
	}
	defer file.Close()
	listener, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("take the socket from systemd: %w", err)
	}
	return listener, nil
}
