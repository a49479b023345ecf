#!/usr/bin/env bash
# Measures `inspect`, which recomputes the hash tree of the root file system, says
# what covers each byte, and looks for what the image leaves open, beside
# `veritysetup verify` of the same root file system, which recomputes the tree.
#
# The roots are erofs with files that do not compress: of the `debian` template's
# size (300 MiB), and of ROOT MiB (default 1536). Both run in turn, RUNS times
# (default 7); the medians count. Then the memory for file systems with FILES files
# (default 200,000) and one of 4 GiB.
#
#   bench/inspect.sh
#
# BIN is the command that is measured (default bin/attestable-image).
set -euo pipefail
cd "$(dirname "$0")/.."
out=out/bench
mkdir -p "$out"
bin=${BIN:-bin/attestable-image}
runs=${RUNS:-7}
PATH=$PATH:/usr/sbin:/sbin

for tool in mcopy mke2fs mkfs.erofs mkfs.vfat mksquashfs objcopy objdump sgdisk veritysetup zstd /usr/bin/time "$bin"; do
  if ! command -v "$tool" >/dev/null; then
    echo "bench/inspect.sh: $tool is missing: run scripts/setup and make build, or install it" >&2
    exit 1
  fi
done
# shellcheck source=bench/images.sh
. bench/images.sh
# shellcheck source=bench/turns.sh
. bench/turns.sh

# tree DIR: what makes a root of a directory.
tree() {
  mkdir -p "$1/etc" "$1/usr/lib/systemd" "$1/usr/share/data"
  printf 'root:x:0:0:root:/root:/usr/sbin/nologin\n' > "$1/etc/passwd"
  printf 'ID=bench\n' > "$1/etc/os-release"
  printf '#!/bin/sh\n' > "$1/usr/lib/systemd/systemd"
  chmod 755 "$1/usr/lib/systemd/systemd"
}

# bootable ROOT DISK: puts a hash tree behind the file system, and both on a disk
# whose kernel command line has the root hash, which goes to $hash; the tree begins
# at $offset.
bootable() {
  local root=$1 new=$2
  offset=$(stat -c %s "$root")
  hash=$(veritysetup format --hash-offset="$offset" "$root" "$root" | awk '/^Root hash:/ { print $3 }')
  printf 'console=ttyS0 roothash=%s systemd.verity_root_options=hash-offset=%d,panic-on-corruption\0' "$hash" "$offset" > "$out/cmdline"
  rebuild "$out/golden.efi" "$out/verity.efi" cmdline="$out/cmdline"
  disk "$out/verity.efi" $(($(stat -c %s "$root") + (256 << 20))) "$new" "$root"
  rm "$out/cmdline" "$out/verity.efi"
}

trap 'rm -rf "$out/tree" "$out/root" "$out/root.disk" "$out/golden.efi"' EXIT
golden "$out/golden.efi"
for mib in 300 "${ROOT:-1536}"; do
  rm -rf "$out/tree" "$out/root"
  tree "$out/tree"
  head -c "${mib}M" /dev/urandom | split -b 1M -a 4 - "$out/tree/usr/share/data/"
  mkfs.erofs --quiet "$out/root" "$out/tree" > /dev/null
  bootable "$out/root" "$out/root.disk"
  printf '\nroot file system of %d MiB; %d cores, %d runs\n' "$((offset >> 20))" "$(nproc)" "$runs"
  "$bin" inspect "$out/root.disk" > "$out/inspection"
  grep -q '^  every block is as the root hash says$' "$out/inspection"
  : > "$out/times"
  for i in $(seq 0 "$runs"); do
    [ "$i" != 1 ] || : > "$out/times" # the first round warmed the page cache
    once inspect "$bin" inspect "$out/root.disk"
    once veritysetup veritysetup verify --hash-offset="$offset" "$out/root" "$out/root" "$hash"
  done
  awk -v t="$(median inspect)" -v v="$(median veritysetup)" -v rss="$(memory "$bin" inspect "$out/root.disk")" \
    -v peer="$(memory veritysetup verify --hash-offset="$offset" "$out/root" "$out/root" "$hash")" 'BEGIN {
    printf "%-44s %8.0f ms %8.2fx %9s MiB RSS\n", "inspect", t, t / v, rss
    printf "%-44s %8.0f ms %9s %9s MiB RSS\n", "veritysetup verify", v, "", peer }'
done

files=${FILES:-200000}
printf '\nmemory of inspect, %d files and one of 4 GiB\n' "$files"
rm -rf "$out/tree"
tree "$out/tree"
(cd "$out/tree/usr/share/data" && seq "$files" | awk '{ d = int($1 / 1000); if (d != last) { system("mkdir -p " d); last = d } f = d "/" $1; print $1 > f; close(f) }' last=-1)
truncate -s 4G "$out/tree/usr/share/large"
for kind in erofs ext4 squashfs; do
  rm -f "$out/root"
  case $kind in
    erofs) mkfs.erofs --quiet "$out/root" "$out/tree" > /dev/null ;;
    ext4) truncate -s 8G "$out/root" && mke2fs -q -t ext4 -N $((files + 10000)) -d "$out/tree" "$out/root" ;;
    squashfs) mksquashfs "$out/tree" "$out/root" -quiet -no-progress > /dev/null && truncate -s %4096 "$out/root" ;;
  esac
  bootable "$out/root" "$out/root.disk"
  : > "$out/times"
  once "$kind" "$bin" inspect "$out/root.disk"
  printf '%-44s %8.0f ms %19s MiB RSS\n' "$kind, $((offset >> 20)) MiB" "$(median "$kind")" "$(memory "$bin" inspect "$out/root.disk")"
done
