package ami

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// run is one call of Register. Its snapshots bear its token.
type run struct {
	token string // 16 bytes in hex
	owner string // the process
	began string // its first sign of life
}

func newRun() *run {
	token := make([]byte, 16)
	_, _ = rand.Read(token) // never fails: crypto/rand
	return &run{token: hex.EncodeToString(token), owner: thisProcess(), began: aliveNow()}
}

// clientToken makes AWS do once what is asked twice in this run for the same
// purpose. It is another one in every run: after what it made was deleted, AWS
// would still answer with that.
func (r *run) clientToken(purpose string) string {
	sum := sha256.Sum256([]byte(r.token + " " + purpose))
	return hex.EncodeToString(sum[:]) // 64 characters, the most that AWS takes
}

// thisProcess names a process among all that ever ran: a digest of boot and PID
// namespace, the process's number, and its start in clock ticks since the boot.
// It is "" where that cannot be told.
func thisProcess() string {
	machine := machineID()
	start := startOf(os.Getpid())
	if machine == "" || start == "" {
		return ""
	}
	return fmt.Sprintf("%s/%d/%s", machine, os.Getpid(), start)
}

func machineID() string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	namespace, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return ""
	}
	sum := sha256.Sum256([]byte(string(boot) + namespace))
	return hex.EncodeToString(sum[:8])
}

// startOf reads the start time of a process (proc(5), /proc/pid/stat, field 22),
// or "" when there is no such process, or only what is left of one.
func startOf(pid int) string {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	// The name in parentheses may have spaces and parentheses.
	end := strings.LastIndexByte(string(stat), ')')
	fields := strings.Fields(string(stat[end+1:]))
	if end < 0 || len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return ""
	}
	return fields[19]
}

// isDead tells whether the process that owner names has surely ended: it was one
// of this machine and is not there any more. Of others that cannot be told.
func isDead(owner string) bool {
	parts := strings.Split(owner, "/")
	if len(parts) != 3 || parts[0] != machineID() || parts[0] == "" {
		return false
	}
	pid, err := strconv.Atoi(parts[1])
	return err == nil && pid > 0 && startOf(pid) != parts[2]
}

// Signs of life are times, or aliveDone on a snapshot that an AMI was made of.
const aliveDone = "done"

func aliveNow() string { return time.Now().UTC().Format(time.RFC3339Nano) }

// isLongAgo tells whether a sign of life is so old that no difference between
// two clocks explains it: AWS refuses signatures of clocks that are wrong by 15
// minutes.
func isLongAgo(alive string) bool {
	at, err := time.Parse(time.RFC3339Nano, alive)
	return err == nil && time.Since(at) > time.Hour
}
