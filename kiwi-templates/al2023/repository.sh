#!/bin/bash
# KIWI calls this with the file of each package repository that it makes for dnf:
# packages have to be signed with Amazon Linux's key, which the builder's own base
# brings.
#
#   repository.sh FILE
set -euo pipefail
echo "gpgkey=file:///etc/pki/rpm-gpg/RPM-GPG-KEY-amazon-linux-2023" >> "$1"
