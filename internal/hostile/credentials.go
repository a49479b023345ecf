package hostile

import "fmt"

// credential is a system credential (systemd.system-credentials(7)) that some program
// of the image obeys. Its content may hold one %s: a quoted text that appears on the
// console when it was obeyed.
type credential struct{ id, name, content string }

var credentials = []credential{
	{"tmpfiles", "tmpfiles.extra", "w /dev/console - - - - %s\n"},
	{"unit-dropin", "systemd.unit-dropin.sysinit.target", "[Unit]\nWants=hostile.service\n"},
	{"extra-unit", "systemd.extra-unit.hostile.service", "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo %s >/dev/console'\n"},
	{"sysctl", "sysctl.extra", "kernel.sysrq = 1\n# %s\n"},
	{"sysusers", "sysusers.extra", "u hostile - \"%s\" / /bin/sh\n"},
	{"fstab", "fstab.extra", "tmpfs /etc/hostile tmpfs mode=755 # %s\n"},
	{"password-hash", "passwd.hashed-password.root", "$6$hostile$%s"},
	{"password-plain", "passwd.plaintext-password.root", "%s"},
	{"root-shell", "passwd.shell.root", "/bin/%s"},
	{"ssh-key", "ssh.authorized_keys.root", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI %s\n"},
	{"ssh-vsock-key", "ssh.ephemeral-authorized_keys-all", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI %s\n"},
	{"ssh-listen", "ssh.listen", "0.0.0.0:2222 # %s"},
	{"getty", "getty.ttys.serial", "ttyS0 %s"},
	{"notify", "vmm.notify_socket", "vsock-stream:2:%s"},
	{"journal-forward", "journal.forward_to_socket", "vsock:2:%s"},
	{"import", "import.pull", "raw:http://127.0.0.1/%s"},
	{"issue", "login.issue", "%s\n"},
	{"hosts", "network.hosts", "127.0.0.9 %s\n"},
	{"dns", "network.dns", "%s"},
	{"network", "network.network.01-hostile", "[Match]\nType=ether\n[Network]\nDescription=%s\nAddress=192.0.2.9/24\n"},
	{"link", "network.link.01-hostile", "[Match]\nType=ether\n[Link]\nDescription=%s\n"},
	{"udev", "udev.rules.01-hostile", "ACTION==\"add\", RUN+=\"/bin/sh -c 'echo %s >/dev/console'\"\n"},
	{"hostname", "system.hostname", "%s"},
	{"machine-id", "system.machine_id", "0123456789abcdef0123456789abcdef%s"},
	{"user", "userdb.user.hostile", "{\"userName\":\"hostile\",\"realName\":\"%s\",\"disposition\":\"regular\"}"},
	{"home", "home.create.hostile", "{\"userName\":\"hostile\",\"realName\":\"%s\"}"},
	{"firstboot", "firstboot.timezone", "Hostile/%s"},
	{"vconsole", "vconsole.keymap", "%s"},
	{"any", "hostile.credential", "%s"},
}

// byCredentials are the credentials through both of the hypervisor's channels. A
// credential that systemd imports is an effect, whoever reads it then.
func byCredentials() []Input {
	inputs := make([]Input, 0, 2*len(credentials))
	for _, c := range credentials {
		inputs = append(inputs, Input{
			ID: "smbios-credential-" + c.id, Name: "SMBIOS type 11: io.systemd.credential " + c.name, From: Hypervisor, Excludes: "credential " + c.name,
			put: func(s *setup) error {
				// Only a program that decodes it has this text.
				imported := s.shows(s.mark("imported"), "systemd imported the credential")
				if c.obeyed() {
					s.shows(s.mark("obeyed"), "the credential was obeyed")
				}
				s.smbios("io.systemd.credential.binary:" + c.name + "=" + encoded(c.text(s, imported)))
				return nil
			},
		})
	}
	for _, c := range credentials {
		inputs = append(inputs, Input{
			ID: "fw-cfg-credential-" + c.id, Name: "QEMU fw_cfg: opt/io.systemd.credentials/" + c.name, From: Hypervisor, Excludes: "credential " + c.name,
			put: func(s *setup) error {
				// A file of fw_cfg is in the guest's memory only when the guest reads it.
				path, err := s.file([]byte(c.text(s, s.shows(s.mark("imported"), "systemd imported the credential"))))
				if c.obeyed() {
					s.shows(s.mark("obeyed"), "the credential was obeyed")
				}
				s.arguments("-fw_cfg", "name=opt/io.systemd.credentials/"+c.name+",file="+path)
				return err
			},
		})
	}
	return inputs
}

// obeyed says whether the console tells that the credential was obeyed.
func (c credential) obeyed() bool {
	return c.id == "tmpfiles" || c.id == "extra-unit" || c.id == "udev"
}

func (c credential) text(s *setup, imported string) string {
	switch {
	case c.id == "unit-dropin":
		return c.content + "# " + imported + "\n"
	case c.obeyed():
		return "# " + imported + "\n" + fmt.Sprintf(c.content, quoted(s.mark("obeyed")))
	}
	return fmt.Sprintf(c.content, imported)
}
