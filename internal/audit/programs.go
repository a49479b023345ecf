package audit

import (
	"path"
	"strings"

	"github.com/org/attestable-image-action/internal/lazyregexp"
)

// program is a program that lets somebody in or does somebody's bidding.
type program struct {
	// enabled is the rule when a unit starts it, installed the one when it is only
	// there; "" for none.
	enabled, installed string
}

// remote reports whether it lets somebody in from elsewhere.
func (p program) remote() bool {
	return p.enabled == "sshd-enabled" || p.enabled == "remote-shell-enabled" || p.enabled == "ssm-agent-enabled"
}

// programs are by the names of their files, wherever they lie.
var programs = map[string]program{
	"sshd":               {"sshd-enabled", "sshd-installed"},
	"amazon-ssm-agent":   {"ssm-agent-enabled", "ssm-agent-installed"},
	"ssm-agent-worker":   {"ssm-agent-enabled", "ssm-agent-installed"},
	"ssm-session-worker": {"ssm-agent-enabled", "ssm-agent-installed"},
	"cloud-init":         {"cloud-init-enabled", "cloud-init-installed"},
	"coreos-cloudinit":   {"cloud-init-enabled", "cloud-init-installed"},
	"ignition":           {"cloud-init-enabled", "cloud-init-installed"},
	"afterburn":          {"cloud-init-enabled", "cloud-init-installed"},

	"eic_run_authorized_keys": {"ec2-instance-connect-installed", "ec2-instance-connect-installed"},
	"agetty":                  {"getty-enabled", ""},
	"getty":                   {"getty-enabled", ""},
	"mingetty":                {"getty-enabled", ""},
	"fgetty":                  {"getty-enabled", ""},
	"ngetty":                  {"getty-enabled", ""},
	"mgetty":                  {"getty-enabled", ""},
	"login":                   {"getty-enabled", ""},
	"kmscon":                  {"getty-enabled", ""},
}

func init() { //nolint:gochecknoinits // two lists that have one meaning each
	for _, name := range []string{
		"dropbear", "dropbearmulti", "tinysshd", "in.telnetd", "telnetd", "utelnetd", "in.rshd", "rshd", "in.rlogind", "rlogind", "in.rexecd", "rexecd",
		"cockpit-ws", "cockpit-tls", "ttyd", "gotty", "shellinaboxd", "wetty", "xrdp", "x11vnc", "Xvnc", "vncserver", "tigervncserver", "wayvnc",
		"mosh-server", "etserver", "webmin", "teleport", "tailscaled", "code-server", "guacd", "conserver", "ser2net", "sslh", "lsh", "lshd", "bore", "ngrok",
	} {
		programs[name] = program{"remote-shell-enabled", "remote-shell-installed"}
	}
	for _, name := range []string{
		"codedeploy-agent", "cfn-hup", "amazon-ecs-agent", "ecs-agent", "puppet", "salt-minion", "chef-client", "ansible-pull", "qemu-ga", "vmtoolsd",
		"waagent", "google_guest_agent", "osqueryd", "nomad", "kubelet",
	} {
		programs[name] = program{"remote-management", ""}
	}
	for _, name := range []string{
		"snapd", "unattended-upgrade", "unattended-upgrades", "dnf-automatic", "yum-cron", "packagekitd", "rpm-ostreed", "rauc", "swupd", "update_engine",
		"systemd-sysupdate", "apt.systemd.daily",
	} {
		programs[name] = program{"self-update", ""}
	}
	for _, name := range []string{"kdumpctl", "kdump-config", "kdump"} {
		programs[name] = program{"kdump", ""}
	}
	for _, name := range []string{"hibinit-agent", "ec2hibernatepolicy"} {
		programs[name] = program{"hibernation", ""}
	}
}

// shells are programs that do what they are told.
var shells = map[string]bool{
	"sh": true, "bash": true, "dash": true, "ash": true, "zsh": true, "ksh": true, "fish": true, "busybox": true, "sulogin": true, "toybox": true,
	"rbash": true, "csh": true, "tcsh": true, "mksh": true, "nu": true,
}

// interpreters would, set-uid, give their user's rights to everybody.
var interpreters = lazyregexp.New(`^(python[0-9.]*|perl[0-9.]*|ruby[0-9.]*|lua[0-9.]*|node|php[0-9.]*|awk|gawk|mawk|nawk|find|vi|vim|vim\..*|nano|ed|emacs|cp|mv|dd|tee|install|env|nice|xargs|tar|gdb|strace|less|more|chmod|chown|setpriv|nsenter|unshare|openssl|curl|wget|socat|nc|ncat|docker|systemctl|systemd-run|make|rsync|zip|git)$`)

var (
	// assignments, flags and wrappers may stand before a program in a line.
	word        = lazyregexp.New(`[^\s"'=;&|(){}<>]+`)
	autologin   = lazyregexp.New(`(^|[\s"'=])(--au[a-z]*|-[a-zA-Z8]*a)([\s=]|\w|$)`)
	loginAs     = lazyregexp.New(`(^|[\s"'])-f\s+\S`)
	skipLogin   = lazyregexp.New(`(^|[\s"'])(-n|--skip-login|-l|--login-program)([\s=]|$)`)
	onATerminal = lazyregexp.New(`^(tty|tty-force|tty-fail)$`)
)

// mentions calls found for every program of the list that a command line names,
// whatever stands before it: a path, a shell, a wrapper.
func mentions(command string, found func(name string, p program)) {
	for _, w := range word().FindAllString(command, -1) {
		name := strings.TrimLeft(w, "-@:+!")
		if p, ok := programs[path.Base(name)]; ok {
			found(name, p)
		}
	}
}
