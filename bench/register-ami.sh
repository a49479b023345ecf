#!/usr/bin/env bash
# Measures register-ami beside what a person would do with oras, zstd and
# coldsnap: from a registry on loopback to a snapshot in a sink on loopback that
# speaks the EBS direct APIs (bench/ebs-sink). Prints wall time, peak memory,
# bytes written to local disk and requests, and their ratios.
#
#   bench/register-ami.sh [DISK]
#
# Without DISK, a disk of SIZE (default 8G) with a partition table and one ext4
# partition that holds the directories FILES (default: as much of /usr as makes
# 1.5 GiB) is made once in out/bench. RUNS (default 3) is how often each runs, in
# turn; the least time counts. LATENCY (default 0) is what the sink lets every
# block take besides its transfer, such as 20ms. BIN is the command that is
# measured (default bin/attestable-image).
set -euo pipefail
cd "$(dirname "$0")/.."
out=out/bench
mkdir -p "$out"
bin=${BIN:-bin/attestable-image}
runs=${RUNS:-3}
cache=${ATTESTABLE_IMAGE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/attestable-image}
coldsnap_version=0.12.0
coldsnap=$cache/coldsnap-$coldsnap_version/bin/coldsnap
PATH=$cache/tools:$PATH

for tool in registry oras zstd mke2fs sgdisk jq curl /usr/bin/time "$bin"; do
  if ! command -v "$tool" >/dev/null; then
    echo "bench/register-ami.sh: $tool is missing: run scripts/setup, scripts/tools and make build, or install it" >&2
    exit 1
  fi
done
if [ ! -x "$coldsnap" ]; then
  if ! command -v cargo >/dev/null; then
    echo "bench/register-ami.sh: neither coldsnap $coldsnap_version nor cargo is here to build it: install Rust" >&2
    exit 1
  fi
  echo "building coldsnap $coldsnap_version" >&2
  cargo install --quiet --locked --root "$cache/coldsnap-$coldsnap_version" "coldsnap@$coldsnap_version"
fi
go build -o "$out/ebs-sink" ./bench/ebs-sink

disk=${1:-$out/ami.raw}
if [ $# -eq 0 ] && [ ! -e "$disk" ]; then
  size=$(numfmt --from=iec "${SIZE:-8G}")
  tree=$out/tree
  mkdir -p "$tree"
  if [ -n "${FILES:-}" ]; then
    cp -a "$FILES" "$tree/"
  else
    # Files of /usr in the order of their names, until it is enough.
    (cd /usr && find . -xdev -type f -printf '%s %p\0' | sort -z -k 2 |
      awk -v RS='\0' -v ORS='\0' '{ n += $1; if (n > 1500 * 1048576) exit; sub(/^[0-9]+ /, ""); print }' |
      tar -c --null -T - ) | tar -x -C "$tree"
  fi
  truncate -s "$size" "$disk.part"
  sgdisk --clear --new=1:2048:0 "$disk.part" > "$out/sgdisk.log"
  mke2fs -q -F -t ext4 -E offset=1048576 -d "$tree" "$disk.part" "$(((size - (2 << 20)) / 1024))k"
  rm -rf "$tree"
  mv "$disk.part" "$disk"
fi
sum=$(sha256sum "$disk" | cut -d ' ' -f 1)
size=$(stat -c %s "$disk")
zero=$(printf '%096d' 0)
printf '{"Measurements":{"HashAlgorithm":"SHA384","PCR4":"%s","PCR7":"%s","PCR12":"%s"},"SchemaVersion":1,"Architecture":"x86_64","Disk":{"SHA256":"%s","Size":%d}}\n' \
  "$zero" "$zero" "$zero" "$sum" "$size" > "$out/measurements.json"

port=$((20000 + RANDOM % 20000))
scratch=$(mktemp -d "$out/ami.XXXXXX")
cat > "$scratch/config.yml" <<YAML
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $PWD/$scratch/registry}}
http: {addr: 127.0.0.1:$port}
YAML
OTEL_TRACES_EXPORTER=none registry serve "$scratch/config.yml" 2> "$scratch/registry.log" &
registry=$!
sink_port=$((port + 1))
"$out/ebs-sink" -latency "${LATENCY:-0}" "127.0.0.1:$sink_port" 2> "$scratch/sink.log" &
sink=$!
trap 'kill "$registry" "$sink"; wait "$registry" "$sink" 2>/dev/null || true; rm -rf "$scratch"' EXIT
for p in "$port" "$sink_port"; do
  until (exec 3<> "/dev/tcp/127.0.0.1/$p") 2>/dev/null; do
    kill -0 "$registry" "$sink"
    sleep 0.1
  done
done
endpoint=http://127.0.0.1:$sink_port
export AWS_ENDPOINT_URL=$endpoint AWS_REGION=eu-central-1 AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test \
  AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null AWS_EC2_METADATA_DISABLED=true

artifact=$("$bin" -q push --measurements="$out/measurements.json" --name=disk "$disk" "127.0.0.1:$port/bench/image:v1")
"$bin" -q attest --local-trust="$scratch/trust" "$artifact" > "$scratch/attest.log" 2>&1

# measure NAME COMMAND...: the best run so far to $out/NAME.best, as "SECONDS
# KIB BLOCKS CPU REQUESTS"; BLOCKS are of 512 bytes, written to file systems.
measure() {
  local name=$1
  shift
  curl -s "$endpoint/counts" > "$scratch/counts" # forgets what was before
  /usr/bin/time -o "$scratch/time" -f '%e %M %O %U %S' "$@" > "$scratch/stdout" 2> "$scratch/stderr" ||
    { cat "$scratch/stdout" "$scratch/stderr" >&2; exit 1; }
  curl -s "$endpoint/counts" > "$scratch/counts"
  local requests
  requests=$(awk '$2 ~ /^(StartSnapshot|PutSnapshotBlock|CompleteSnapshot)$/ { n += $1 } END { print n + 0 }' "$scratch/counts")
  awk -v requests="$requests" '{ print $1, $2, $3, $4 + $5, requests }' "$scratch/time" >> "$out/$name.runs"
  sort -n "$out/$name.runs" | head -1 > "$out/$name.best"
}

row() {
  awk -v label="$2" '{ printf "%-42s %7.2f s %8.1f MiB RSS %9.1f MiB written %7d EBS requests %7.2f s CPU\n", label, $1, $2 / 1024, $3 / 2048, $5, $4 }' "$out/$1.best"
}

rm -f "$out"/{ours,pull,zstd,coldsnap,theirs}.{runs,best}
for _ in $(seq "$runs"); do
  measure ours "$bin" -q register-ami --local-trust="$scratch/trust" "$artifact"
  measure pull oras pull --plain-http --no-tty --output "$scratch/pulled" "$artifact"
  measure zstd zstd -q -f -d "$scratch/pulled/disk.raw.zst" -o "$scratch/pulled/disk.raw"
  cmp "$disk" "$scratch/pulled/disk.raw"
  measure coldsnap "$coldsnap" --endpoint "$endpoint" upload --no-progress "$scratch/pulled/disk.raw"
  rm -rf "$scratch/pulled"
done
cat "$out"/{pull,zstd,coldsnap}.best |
  awk '{ t += $1; if ($2 > m) m = $2; w += $3; c += $4; r += $5 } END { print t, m, w, c, r }' > "$out/theirs.best"

printf 'disk: %s, %d MiB, %d MiB of them stored; artifact layer %d MiB; block latency %s; %d cores\n' "$disk" $((size >> 20)) \
  $(($(stat -c %b "$disk") >> 11)) "$(oras manifest fetch --plain-http "$artifact" | jq '.layers[0].size / 1048576 | floor')" "${LATENCY:-0}" "$(nproc)"
row ours "register-ami"
row pull "  oras pull"
row zstd "  zstd -d"
row coldsnap "  coldsnap upload $coldsnap_version"
row theirs "oras pull, zstd -d, coldsnap upload"
paste -d ' ' "$out/ours.best" "$out/theirs.best" | awk '{
  printf "ratio: wall time %.2f, peak memory %.2f, requests %.3f; written %.1f against %.1f MiB\n", $1 / $6, $2 / $7, $5 / $10, $3 / 2048, $8 / 2048 }'
