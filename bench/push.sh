#!/usr/bin/env bash
# Measures push and pull: wall time, and the most memory that was resident,
# beside what a person would do with zstd and oras, against a registry on
# loopback.
#
#   bench/push.sh [DISK]
#
# Without DISK, an ext4 file system of SIZE (default 10G) that holds the files
# under FILES (default /usr/lib) is made once in out/bench. BIN is the command
# that is measured (default bin/attestable-image).
set -euo pipefail
cd "$(dirname "$0")/.."
out=out/bench
mkdir -p "$out"
bin=${BIN:-bin/attestable-image}
cache=${ATTESTABLE_IMAGE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/attestable-image}
PATH=$cache/tools:$PATH

for tool in registry oras zstd mke2fs jq /usr/bin/time; do
  if ! command -v "$tool" >/dev/null; then
    echo "bench/push.sh: $tool is missing: run scripts/setup, or install it" >&2
    exit 1
  fi
done

disk=${1:-$out/disk.raw}
if [ $# -eq 0 ] && [ ! -e "$disk" ]; then
  mke2fs -q -t ext4 -d "${FILES:-/usr/lib}" "$disk" "${SIZE:-10G}"
fi
# Warm, so that all are measured without the machine's own storage.
sum=$(sha256sum "$disk" | cut -d ' ' -f 1)
size=$(stat -c %s "$disk")
zero=$(printf '%096d' 0)
printf '{"Measurements":{"HashAlgorithm":"SHA384","PCR4":"%s","PCR7":"%s","PCR12":"%s"},"SchemaVersion":1,"Disk":{"SHA256":"%s","Size":%d}}\n' \
  "$zero" "$zero" "$zero" "$sum" "$size" > "$out/measurements.json"

port=$((20000 + RANDOM % 20000))
storage=$(mktemp -d "$out/registry.XXXXXX")
cat > "$storage/config.yml" <<YAML
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $PWD/$storage}}
http: {addr: 127.0.0.1:$port}
YAML
OTEL_TRACES_EXPORTER=none registry serve "$storage/config.yml" 2> "$storage/log" &
registry=$!
trap 'kill "$registry"; wait "$registry" 2>/dev/null || true; rm -rf "$storage" "$out/pulled" "$out/disk.raw.zst"' EXIT
until (exec 3<> "/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
  kill -0 "$registry"
  sleep 0.1
done
repository=127.0.0.1:$port/bench/image

# measure LABEL COMMAND...: one row. The time of a pipeline is that of bash.
measure() {
  local label=$1
  shift
  /usr/bin/time -o "$out/time" -f '%e %M %U %S' "$@" > "$out/stdout" 2> "$out/stderr" ||
    { cat "$out/stdout" "$out/stderr" >&2; exit 1; }
  awk -v label="$label" -v size="$size" '{ printf "%-34s %8.2f s %9.1f MiB/s %8.1f MiB RSS %8.2f s CPU\n", label, $1, size / 1048576 / $1, $2 / 1024, $3 + $4 }' "$out/time"
}

printf 'disk: %s, %d MiB, %d MiB of them stored; %d cores\n' "$disk" $((size >> 20)) $(($(stat -c %b "$disk") >> 11)) "$(nproc)"
measure "push" "$bin" -q push --measurements="$out/measurements.json" --name=disk "$disk" "$repository:ours"
ours=$(oras manifest fetch --plain-http "$repository:ours" | jq '.layers[0].size')
measure "pull" "$bin" -q pull --output="$out/pulled" "$repository:ours"
cmp "$disk" "$out/pulled/disk.raw"
rm -rf "$out/pulled"
measure "by hand: sha256sum" sha256sum "$disk"
# oras needs a file with a digest, and so the compressed disk
# is written and read again.
# shellcheck disable=SC2016 # expanded by the inner bash
measure "by hand: zstd -3 and oras push" bash -c 'zstd -q -f -3 -T0 "$1" -o "$2/disk.raw.zst" && cd "$2" && oras push --plain-http --no-tty "$3:theirs" disk.raw.zst' \
  bash "$disk" "$out" "$repository"
theirs=$(stat -c %s "$out/disk.raw.zst")
awk -v size="$size" -v ours="$ours" -v theirs="$theirs" 'BEGIN {
  printf "compressed: push %.1f MiB (1:%.2f), zstd -3 %.1f MiB (1:%.2f)\n", ours / 1048576, size / ours, theirs / 1048576, size / theirs }'
