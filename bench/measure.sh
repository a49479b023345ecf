#!/usr/bin/env bash
# Measures `measure`: wall time, bytes read, and the most memory that was
# resident, beside programs that only read and hash the same disk, in turn: on a
# golden disk, and on the same disk grown to SIZE (default 20G) without a byte
# more in it.
#
#   bench/measure.sh [DISK]
#
# RUNS (default 5) is how often each runs on the disk as it is; the least time
# counts. On the grown disk each runs once. BIN is the command that is measured
# (default bin/attestable-image).
set -euo pipefail
cd "$(dirname "$0")/.."
out=out/bench
mkdir -p "$out"
bin=${BIN:-bin/attestable-image}
runs=${RUNS:-5}

for tool in sgdisk openssl sha256sum zstd /usr/bin/time "$bin"; do
  if ! command -v "$tool" >/dev/null; then
    echo "bench/measure.sh: $tool is missing: run scripts/setup and make build, or install it" >&2
    exit 1
  fi
done

disk=${1:-}
if [ -z "$disk" ]; then
  disk=$out/stub257.raw
  zstd -dc --long=31 testdata/golden/disks.tar.zst | tar -xSO stub257.raw > "$out/stub257.full"
  cp --sparse=always "$out/stub257.full" "$disk"
  rm "$out/stub257.full"
fi
grown=$out/grown.raw
trap 'rm -f "$grown"' EXIT
cp --sparse=always "$disk" "$grown"
truncate -s "${SIZE:-20G}" "$grown"
# The backup of the partition table belongs at the end.
sgdisk --move-second-header "$grown" > "$out/sgdisk.log"

# run N LABEL COMMAND...: the least wall time of N runs, in seconds, and the most
# memory, in KiB, to $out/best.
run() {
  local n=$1
  shift
  rm -f "$out/times"
  for _ in $(seq "$n"); do
    /usr/bin/time -a -o "$out/times" -f '%e %M' "$@" > "$out/stdout" 2> "$out/stderr" ||
      { cat "$out/stdout" "$out/stderr" >&2; exit 1; }
  done
  awk 'NR == 1 || $1 < t { t = $1 } $2 > m { m = $2 } END { print t, m }' "$out/times" > "$out/best"
}

# row LABEL READ: prints $out/best beside the first row's time.
row() {
  awk -v label="$1" -v read="$2" -v base="$base" '{
    printf "%-38s %8.2f s %8.1fx %14s %9.1f MiB RSS\n", label, $1, $1 / base, read, $2 / 1024 }' "$out/best"
}

measure() {
  local n=$1 file=$2 size
  size=$(stat -c %s "$file")
  printf '\n%s: %d MiB, %d MiB of them stored; %d cores\n' "$file" $((size >> 20)) $(($(stat -c %b "$file") >> 11)) "$(nproc)"
  cat "$file" > /dev/null # warm, so that all are measured without the machine's storage
  run "$n" "$bin" measure "$file"
  read -r base _ < "$out/best"
  [ "$base" != 0.00 ] || base=0.01
  row "measure" "$(sed -n 's/^read \(.*\) of .*/\1/p' "$out/stderr")"
  run "$n" "$bin" measure --format=json "$file"
  row "measure --format=json (disk's digest)" "stored bytes"
  run "$n" openssl dgst -sha384 "$file"
  row "openssl dgst -sha384" "all"
  run "$n" sha256sum "$file"
  row "sha256sum" "all"
}

measure "$runs" "$disk"
measure 1 "$grown"
