#!/bin/bash
# Runs inside the image's root after the packages are installed.
set -euo pipefail

# Nobody logs in: no password, no shell on any console, no rescue shell.
for file in /etc/passwd /etc/shadow; do
  if [ -e "$file" ]; then sed -i 's/^root:[^:]*:/root:*:/' "$file"; fi
done
sed -i 's,^\(root:.*\):[^:]*$,\1:/usr/sbin/nologin,' /etc/passwd
systemctl mask getty.target getty@.service getty-static.service autovt@.service serial-getty@.service \
  console-getty.service container-getty@.service debug-shell.service \
  emergency.service emergency.target rescue.service rescue.target ctrl-alt-del.target

# Nothing makes units of what comes from outside: of options for systemd, of disks,
# consoles and firmware's variables.
mkdir -p /etc/systemd/system-generators
for generator in bless-boot debug factory-reset getty gpt-auto hibernate-resume import rc-local run ssh \
  system-update sysv tpm2; do
  ln -sf /dev/null "/etc/systemd/system-generators/systemd-$generator-generator"
done
systemctl mask systemd-pstore.service systemd-hibernate-clear.service

# Nothing that waits for a first boot, writes to the disk, or updates packages.
systemctl mask systemd-firstboot.service systemd-boot-random-seed.service systemd-boot-update.service \
  systemd-random-seed.service systemd-machine-id-commit.service \
  apt-daily.timer apt-daily.service apt-daily-upgrade.timer apt-daily-upgrade.service dpkg-db-backup.timer \
  e2scrub_all.timer e2scrub_reap.service fstrim.timer

systemctl enable systemd-networkd.service attestable-image-demo.service
systemctl disable systemd-networkd-wait-online.service

# Groups that files under /usr ask for, as the attestation service does.
systemd-sysusers

# Nobody becomes root by a program either.
find / -xdev -type f -perm /6000 -exec chmod ug-s {} +

# Otherwise ldconfig and others would run at each boot: /etc and /var are older
# than /usr in an overlay that starts empty.
touch /etc/.updated /var/.updated

# The package manager's state is of no use in a read-only root.
apt-get clean
rm -rf /var/lib/apt/lists/* /var/cache/debconf/*-old /var/log/*.log /var/log/apt
