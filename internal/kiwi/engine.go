package kiwi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// engine is a container engine that answers: docker, or podman in its place.
type engine struct {
	name        string // docker or podman
	program     string // path
	hostNetwork bool   // it has no network of its own for containers
}

// answerTimeout bounds short questions to an engine.
const answerTimeout = 30 * time.Second

// ErrNoEngine is what a build ends with where neither docker nor podman answers.
var ErrNoEngine = errors.New("no container engine answers")

// findEngine looks for docker, and for podman where docker is missing or does
// not answer.
func findEngine(ctx context.Context) (*engine, error) {
	var why []string
	for _, candidate := range []struct {
		name string
		ask  []string
	}{
		{"docker", []string{"version", "--format", "{{.Server.Version}}"}},
		{"podman", []string{"info", "--format", "{{.Host.Security.Rootless}}"}},
	} {
		program, err := exec.LookPath(candidate.name)
		if err != nil {
			why = append(why, candidate.name+" is not installed")
			continue
		}
		e := &engine{name: candidate.name, program: program}
		answer, err := e.ask(ctx, candidate.ask...)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			why = append(why, fmt.Sprintf("%s does not answer (%v)", candidate.name, err))
		case e.rootless(ctx, answer):
			why = append(why, candidate.name+" runs without root, and loop devices need it")
		default:
			e.hostNetwork = e.name == "docker" && e.withoutBridge(ctx)
			return e, nil
		}
	}
	return nil, fmt.Errorf("%w: %s; KIWI runs in a container, so install and start docker", ErrNoEngine, strings.Join(why, ", "))
}

// rootless reports whether an engine's containers have no more rights than an
// ordinary user.
func (e *engine) rootless(ctx context.Context, answer string) bool {
	if e.name == "podman" {
		return strings.TrimSpace(answer) == "true"
	}
	options, err := e.ask(ctx, "info", "--format", "{{.SecurityOptions}}")
	return err == nil && strings.Contains(options, "name=rootless")
}

// withoutBridge reports whether docker was started without its default network.
func (e *engine) withoutBridge(ctx context.Context) bool {
	networks, err := e.ask(ctx, "network", "ls", "--format", "{{.Name}}")
	if err != nil {
		return false
	}
	for name := range strings.Lines(networks) {
		if strings.TrimSpace(name) == "bridge" {
			return false
		}
	}
	return true
}

// network returns the options that give a container of run or build a network.
func (e *engine) network() []string {
	if e.hostNetwork {
		return []string{"--network", "host"}
	}
	return nil
}

// command prepares a call of the engine. The terminal's signals do not reach
// it: it ends when this program says so.
func (e *engine) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, e.program, args...) //nolint:gosec // the engine is the program to run
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// docker's builder would ask git about the directory that it is given.
	cmd.Env = append(os.Environ(), "DOCKER_CLI_HINTS=false", "BUILDX_GIT_INFO=false", "BUILDX_GIT_LABELS=false")
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// ask calls the engine and returns what it answers on standard output. The error
// is the engine's own last line.
func (e *engine) ask(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := e.command(ctx, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return "", fmt.Errorf("no answer within %s", answerTimeout)
		}
		if line := lastLine(stderr.String()); line != "" {
			return "", errors.New(line)
		}
		return "", err
	}
	return stdout.String(), nil
}

// lastLine returns the last line of text that is not empty.
func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

// proxies are the settings of HTTP proxies that a container needs as much as
// this process does.
func proxies() []string {
	var set []string
	for _, name := range []string{"http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY"} {
		if os.Getenv(name) != "" {
			set = append(set, name)
		}
	}
	return set
}
