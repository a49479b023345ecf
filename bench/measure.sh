#!/usr/bin/env bash
# Measures `measure`, the command that predicts PCRs from a disk, beside
#
#   - openssl dgst -sha384 of the unified kernel image alone, which is the least
#     that can be read and hashed for PCR 4;
#   - nitro-tpm-pcr-compute on the extracted image, which gives PCR 4, 7 and 12
#     (left out when scripts/rust-tools has not built it).
#
# The disks are sparse, SIZE long (default 10G): one with the image of
# testdata/golden, one with an image like the `debian` template's, which has
# INITRD MiB (default 30) of initrd. All run in turn, RUNS times (default 15); the
# medians count. Then memory at several sizes, and the digest of the whole disk,
# once each.
#
#   bench/measure.sh
#
# BIN is the command that is measured (default bin/attestable-image).
set -euo pipefail
cd "$(dirname "$0")/.."
out=out/bench
mkdir -p "$out"
bin=${BIN:-bin/attestable-image}
runs=${RUNS:-15}
cache=${ATTESTABLE_IMAGE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/attestable-image}
PATH=$PATH:/usr/sbin:/sbin:$cache/tools

for tool in jq mcopy mkfs.vfat objcopy objdump openssl sgdisk sha256sum zstd /usr/bin/time "$bin"; do
  if ! command -v "$tool" >/dev/null; then
    echo "bench/measure.sh: $tool is missing: run scripts/setup and make build, or install it" >&2
    exit 1
  fi
done
peer=$(command -v nitro-tpm-pcr-compute || true)
[ -n "$peer" ] || echo "bench/measure.sh: without nitro-tpm-pcr-compute: run scripts/rust-tools to build it" >&2

# shellcheck source=bench/images.sh
. bench/images.sh
# shellcheck source=bench/turns.sh
. bench/turns.sh

# row LABEL RSS: the median, beside those of the peers.
row() {
  awk -v label="$1" -v t="$(median "$1")" -v o="$(median openssl)" -v n="$([ -z "$peer" ] || median peer)" -v rss="$2" 'BEGIN {
    printf "%-44s %8.1f ms %8.2fx", label, t, t / o
    if (n != "") printf " %8.2fx", t / n; else printf " %9s", "-"
    printf " %9s MiB RSS\n", rss }'
}

# compare LABEL UKI DISK
compare() {
  local uki=$2 disk=$3 i
  printf '\n%s: image of %.1f MiB on a disk of %d MiB; %d cores, %d runs\n' "$1" \
    "$(stat -c %s "$uki" | awk '{ print $1 / 1048576 }')" $(($(stat -c %s "$disk") >> 20)) "$(nproc)" "$runs"
  if [ -n "$peer" ] && ! cmp <("$peer" --image "$uki" | jq -S .Measurements) \
    <("$bin" measure --quiet --pcr=4,7,12 --format=json --disk-digest=false "$disk" | jq -S .Measurements); then
    echo "bench/measure.sh: the two predict different values" >&2
    exit 1
  fi
  : > "$out/times"
  for i in $(seq 0 "$runs"); do
    [ "$i" != 1 ] || : > "$out/times" # the first round warmed the page cache
    once "measure (the default PCRs)" "$bin" measure "$disk"
    once openssl openssl dgst -sha384 "$uki"
    once "measure --pcr 4,7,12" "$bin" measure --pcr=4,7,12 "$disk"
    [ -z "$peer" ] || once peer "$peer" --image "$uki"
    once "measure --format=json --disk-digest=false" "$bin" measure --format=json --disk-digest=false "$disk"
  done
  printf '%-44s %11s %9s %9s\n' "" "" "openssl" "peer"
  row "measure (the default PCRs)" "$(memory "$bin" measure "$disk")"
  row "measure --pcr 4,7,12" "$(memory "$bin" measure --pcr=4,7,12 "$disk")"
  row "measure --format=json --disk-digest=false" "$(memory "$bin" measure --format=json --disk-digest=false "$disk")"
  awk -v t="$(median openssl)" 'BEGIN { printf "%-44s %8.1f ms\n", "openssl dgst -sha384 of the image", t }'
  [ -z "$peer" ] || awk -v t="$(median peer)" -v o="$(median openssl)" 'BEGIN { printf "%-44s %8.1f ms %8.2fx\n", "nitro-tpm-pcr-compute of the image", t, t / o }'
}

size=${SIZE:-10G}
trap 'rm -f "$out/golden.disk" "$out/template.disk" "$out/large.disk"' EXIT
golden "$out/golden.efi"
head -c "${INITRD:-30}M" /dev/urandom > "$out/initrd"
rebuild "$out/golden.efi" "$out/template.efi" initrd="$out/initrd"
rm "$out/initrd"
disk "$out/golden.efi" "$size" "$out/golden.disk"
disk "$out/template.efi" "$size" "$out/template.disk"
compare "golden" "$out/golden.efi" "$out/golden.disk"
compare "like the template" "$out/template.efi" "$out/template.disk"

printf '\nmemory of measure, image like the template\n'
for length in 10G 20G 200G; do
  disk "$out/template.efi" "$length" "$out/large.disk"
  printf '%-44s %32s %9s MiB RSS\n' "a disk of $length" "" "$(memory "$bin" measure "$out/large.disk")"
done

[ "${WHOLE:-1}" = 1 ] || exit 0
printf '\nthe whole disk of %s, golden\n' "$size"
: > "$out/times"
once "measure --format=json" "$bin" measure --format=json "$out/golden.disk"
once sha256sum sha256sum "$out/golden.disk"
awk -v t="$(median "measure --format=json")" -v o="$(median sha256sum)" -v rss="$(memory "$bin" measure --format=json "$out/golden.disk")" 'BEGIN {
  printf "%-44s %8.1f s  %8.2fx %19s MiB RSS\n%-44s %8.1f s\n", "measure --format=json", t / 1000, t / o, rss, "sha256sum", o / 1000 }'
