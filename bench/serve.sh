#!/usr/bin/env bash
# Measures `serve` on one core, in front of an emulated NitroTPM with a real swtpm
# behind it on another core, beside the design with a process for each request: a
# handler that starts AWS's nitro-tpm-attest (where scripts/rust-tools built it), and
# one that starts our attestation-document. Each request has a TLS connection of its
# own. All run in turn, ROUNDS times (default 5) for TURN seconds (default 8), with one
# client and with eight; latencies are those of all rounds together.
#
#   bench/serve.sh
#
# Printed beside the requests a second are the processor time of service and
# started processes, which is all that is theirs, and the time that the TPM worked,
# which on an instance is another. The TPM's device is a pseudo-terminal, which tells
# AWS's program that a response has ended only after 100 ms, three times a document:
# 0.3 s are taken off each of its times, and off those of the documents that its
# client waited for.
#
#   bench/serve.sh soak [DOCUMENTS [REFUSED]]
#
# asks one service for DOCUMENTS (default 100,000), and at the same time REFUSED times
# (default 40,000) for what it refuses, and prints what it holds: resident memory, the heap after each
# collection, open files; goroutines at the end; and what is left in the TPM. Exit
# status 1 says that one of them grew, or that something is left. Then 10,000 clients
# come at once to a service with the limits that it has by itself.
#
# BIN is the command that is measured (default bin/attestable-image).
set -euo pipefail
cd "$(dirname "$0")/.."
out=out/bench/serve
rm -rf "$out"
mkdir -p "$out"
bin=${BIN:-bin/attestable-image}
rounds=${ROUNDS:-5}
seconds=${TURN:-8}
cache=${ATTESTABLE_IMAGE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/attestable-image}
PATH=$cache/tools:$PATH

for tool in swtpm curl taskset "$bin"; do
  if ! command -v "$tool" > /dev/null; then
    echo "bench/serve.sh: $tool is missing: run scripts/setup and make build, or install it" >&2
    exit 1
  fi
done
if [ "$(nproc)" -lt 2 ]; then
  echo "bench/serve.sh: one core for the service and one for the TPM are needed; this machine has $(nproc)" >&2
  exit 1
fi
go build -o "$out/serve-load" ./bench/serve-load

started=()
stop() {
  kill -KILL "${started[@]}" 2> /dev/null || true
  wait "${started[@]}" 2> /dev/null || true
}

port=$((20000 + RANDOM % 20000))
control=127.0.0.1:$port
state=$(mktemp -d "${TMPDIR:-/tmp}/serve.XXXXXX") # a socket's path must be short
trap 'stop; rm -rf "$state"' EXIT
taskset -c 1 swtpm socket --tpm2 --tpmstate "dir=$state" --server "type=unixio,path=$state/s" --flags not-need-init,startup-clear &
started+=($!)
until [ -S "$state/s" ]; do sleep 0.05; done
taskset -c 1 "$out/serve-load" tpm "$state/s" "$control" "$out/root.pem" > "$out/devices" &
started+=($!)
until curl -sf -o /dev/null "http://$control/left"; do
  kill -0 "${started[@]}"
  sleep 0.05
done
{ read -r device; read -r slow_device; } < "$out/devices"

# listening PORT: waits until a service listens.
listening() {
  until (exec 3<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null; do
    kill -0 "${started[-1]}"
    sleep 0.05
  done
}

# serve PORT: the real service, with limits that nobody reaches; $pid is its process.
unlimited=(--rate 1000000 --burst 1000000 --queue 10000 --connections 10000)
serve() {
  GODEBUG=${debug:-} taskset -c 0 "$bin" serve --listen "127.0.0.1:$1" --device "$device" "${unlimited[@]}" 2> "$out/serve.$1.log" &
  pid=$!
  started+=("$pid")
  listening "$1"
}

# cpu PID: seconds of processor time of a process and of those that it waited for.
cpu() { sed 's/.*) //' "/proc/$1/stat" | awk -v hz="$(getconf CLK_TCK)" '{ print ($12 + $13 + $14 + $15) / hz }'; }

# busy: seconds that the TPM worked since busy was asked last.
busy() { curl -sf "http://$control/busy" | tee "$out/busy" | awk '$1 == "all" { print $2 }'; }

# left: what of ours is in the TPM.
left() { curl -sf "http://$control/left" | awk '{ n[$1]++ } END { printf "%d NV indices, %d sessions, %d objects\n", n["index"], n["session"] + n["saved-session"], n["object"] }'; }

soak() {
  local documents=$1 refused=$2 limit=2 # MiB
  local debug=gctrace=1
  serve $((port + 1))
  local url=https://127.0.0.1:$((port + 1)) log=$out/serve.$((port + 1)).log
  "$out/serve-load" load -count 100 -root "$out/root.pem" "$url" > /dev/null
  rss() { awk '/^VmRSS/ { printf "%.1f", $2 / 1024 }' "/proc/$pid/status"; }
  files() { find "/proc/$pid/fd" -mindepth 1 | wc -l; }
  # The heap that was alive after the last collection, in MiB.
  heap() { grep -ao '^gc [0-9]*.*' "$log" | tail -1 | sed -E 's/.* [0-9]+->[0-9]+->([0-9]+) MB.*/\1/'; }
  local files_before begin
  sleep 6 # idle connections are closed
  files_before=$(files)
  begin=$EPOCHSECONDS
  taskset -c 1 "$out/serve-load" load -clients 4 -count "$documents" -root "$out/root.pem" "$url" > "$out/soak.document" &
  local asking=$!
  local kinds=(short-nonce public-key large not-json) loads=()
  for kind in "${kinds[@]}"; do
    taskset -c 1 "$out/serve-load" load -kind "$kind" -clients 1 -count $((refused / 4)) -pause 10ms "$url" > "$out/soak.$kind" &
    loads+=($!)
  done
  local load
  printf '%8s %9s %12s %10s %6s\n' seconds requests 'RSS (MiB)' 'heap (MiB)' files
  : > "$out/soak.samples"
  while kill -0 "$asking" "${loads[@]}" 2> /dev/null; do
    sleep "${SAMPLE:-10}"
    kill -0 "$pid" # the service is there
    printf '%8d %9d %12s %10s %6d\n' $((EPOCHSECONDS - begin)) "$(grep -ac '"msg":"request"' "$log")" "$(rss)" "$(heap)" "$(files)" | tee -a "$out/soak.samples"
  done
  local failed=0
  for load in "$asking" "${loads[@]}"; do
    wait "$load" || failed=1
  done
  for kind in document "${kinds[@]}"; do
    read -r answered wrong verified passed < "$out/soak.$kind"
    printf '%-12s %7d answered, %d not, in %.0f s; %d verified\n' "$kind" "$answered" "$wrong" "$passed" "$verified"
    [ "$wrong" = 0 ] || failed=1
  done
  sleep 6
  local files_after goroutines
  files_after=$(files)
  printf 'open files: %d before, %d after\n' "$files_before" "$files_after"
  [ "$files_after" -le "$files_before" ] || failed=1
  # Resident memory in the last fifth against the second: the first warms up.
  awk -v limit="$limit" '{ n++; v[n] = $3 } END {
    if (n < 10) { print "too few samples to tell of memory"; exit 1 }
    for (i = 1; i <= n; i++) { f = int((i - 1) * 5 / n); if (v[i] > m[f]) m[f] = v[i] }
    printf "resident memory: at most %.1f MiB in the second fifth of the time, %.1f MiB in the last\n", m[1], m[4]
    exit m[4] > m[1] + limit }' "$out/soak.samples" || failed=1
  # What a process holds that did nearly nothing, and this one: SIGQUIT lists them.
  local goroutines
  quit "$log"
  goroutines=$listed
  serve $((port + 2))
  "$out/serve-load" load -count 1 "https://127.0.0.1:$((port + 2))" > /dev/null
  sleep 6
  quit "$out/serve.$((port + 2)).log"
  printf 'goroutines: %d after one request, %d after all\n' "$listed" "$goroutines"
  [ "$goroutines" -le "$listed" ] || failed=1
  unlimited=()
  serve $((port + 3))
  printf 'at once, with the limits of the service:\n'
  taskset -c 1 "$out/serve-load" load -kind document-or-not -clients 10000 -count 10000 "https://127.0.0.1:$((port + 3))" > "$out/soak.flood" || failed=1
  read -r answered wrong _ passed < "$out/soak.flood"
  printf '%-12s %7d answered, %d closed, %d neither, in %.0f s; at most %s MiB resident\n' 10000 "$answered" \
    $((10000 - answered - wrong)) "$wrong" "$passed" \
    "$(awk '/^VmHWM/ { printf "%.1f", $2 / 1024 }' "/proc/$pid/status")"
  [ "$wrong" = 0 ] || failed=1
  "$out/serve-load" load -count 1 "https://127.0.0.1:$((port + 3))" > /dev/null || failed=1
  local inside
  inside=$(left)
  printf 'left in the TPM: %s\n' "$inside"
  [ "$inside" = "0 NV indices, 0 sessions, 0 objects" ] || failed=1
  if [ "$failed" != 0 ]; then
    echo "bench/serve.sh: memory is not flat, or something is left" >&2
    exit 1
  fi
}

# quit LOG: ends the service; $listed is how many goroutines it had besides the
# runtime's own.
quit() {
  kill -QUIT "$pid"
  wait "$pid" 2> /dev/null || true
  listed=$(grep -a '^goroutine [1-9]' "$1" | grep -vcE '\[(GC|force gc|finalizer|cleanup)')
}

# measure NAME CLIENTS URL PID: one turn; latencies go to $out/NAME.CLIENTS, and
# "ANSWERED FAILED VERIFIED SECONDS CPU BUSY" to $out/NAME.CLIENTS.runs.
measure() {
  local name=$1 clients=$2 url=$3 process=$4 before
  busy > /dev/null
  before=$(cpu "$process")
  taskset -c 1 "$out/serve-load" load -clients "$clients" -for "${seconds}s" -root "$out/root.pem" -latencies "$out/$name.$clients" "$url" > "$out/turn"
  printf '%s %s %s\n' "$(cat "$out/turn")" "$(awk -v a="$(cpu "$process")" -v b="$before" 'BEGIN { print a - b }')" "$(busy)" >> "$out/$name.$clients.runs"
  cp "$out/busy" "$out/$name.$clients.busy"
}

# row NAME CLIENTS LABEL LESS: LESS is what is taken off for each document, in seconds.
# A client of several waits for the others' documents, too.
row() {
  sort -n "$out/$1.$2" | awk -v less="$4" -v clients="$2" '{ v[NR] = $1 / 1000 - less * 1000 * clients }
    END { printf "%.2f %.2f\n", v[int((NR + 1) / 2)], v[int(NR * 0.99 + 0.999999)] }' > "$out/percentiles"
  awk -v label="$3" -v clients="$2" -v less="$4" -v percentiles="$(cat "$out/percentiles")" '
    { n += $1; failed += $2; verified += $3; t += $4 - $1 * less; cpu += $5; busy += $6 }
    END {
      split(percentiles, p, " ")
      printf "%-40s %8.1f/s %9.2f ms %9.2f ms %9.2f ms %9.2f ms %6d %5d\n", label, n / t, p[1], p[2], cpu / n * 1000, busy / n * 1000, n, failed
      print n / t, p[1], p[2], cpu / n > "'"$out/$1.$2.result"'" }' "$out/$1.$2.runs"
}

if [ "${1:-}" = soak ]; then
  soak "${2:-100000}" "${3:-40000}"
  exit
fi

serve $((port + 1))
names=(serve) labels=("serve") urls=("https://127.0.0.1:$((port + 1))") pids=("$pid") less=(0)
peer() { # NAME KIND PROGRAM DEVICE LESS LABEL
  local at=$((port + 2 + ${#names[@]}))
  taskset -c 0 "$out/serve-load" peer "127.0.0.1:$at" "$2" "$3" "$4" &
  started+=($!)
  names+=("$1") labels+=("$6") urls+=("https://127.0.0.1:$at") pids+=($!) less+=("$5")
  listening "$at"
}
if attest=$(command -v nitro-tpm-attest); then
  peer aws aws "$attest" "$slow_device" 0.3 "a process each: nitro-tpm-attest"
else
  echo "bench/serve.sh: nitro-tpm-attest is not there (scripts/rust-tools nitro-tpm-attest): without it" >&2
fi
peer ours ours "$bin" "$device" 0 "a process each: attestation-document"

for i in $(seq 0 "$rounds"); do
  for clients in 1 8; do
    for k in "${!names[@]}"; do
      if [ "$i" = 0 ]; then # warms up
        [ "$clients" = 1 ] || continue
        "$out/serve-load" load -count 3 -root "$out/root.pem" "${urls[$k]}" > /dev/null
        continue
      fi
      measure "${names[$k]}" "$clients" "${urls[$k]}" "${pids[$k]}"
    done
  done
done

printf '%d rounds of %d s; one core for each service, another for TPM and clients\n' "$rounds" "$seconds"
for clients in 1 8; do
  printf '\n%-40s %10s %12s %12s %12s %12s %6s %5s\n' "$clients at once" documents p50 p99 'CPU each' 'TPM each' n wrong
  for k in "${!names[@]}"; do
    row "${names[$k]}" "$clients" "${labels[$k]}" "${less[$k]}"
  done
  for k in "${!names[@]}"; do
    [ "$k" != 0 ] || continue
    paste -d ' ' "$out/serve.$clients.result" "$out/${names[$k]}.$clients.result" | awk -v label="${labels[$k]}" '{
      printf "ratio to %s: documents %.1f, p50 %.3f, p99 %.3f, CPU %.3f\n", label, $1 / $5, $2 / $6, $3 / $7, $4 / $8 }'
  done
done
# What the service can do where the TPM is not asked: requests that it refuses.
printf '\n'
for keep in "" -keep; do
  before=$(cpu "${pids[0]}")
  # shellcheck disable=SC2086 # nothing, or a flag
  taskset -c 1 "$out/serve-load" load -kind short-nonce -clients 8 -for "${seconds}s" $keep "${urls[0]}" > "$out/turn"
  awk -v cpu="$(cpu "${pids[0]}")" -v before="$before" -v label="serve, refused before the TPM${keep:+, connections kept}" '{
    printf "%-60s %8.0f/s %9.3f ms CPU each\n", label, $1 / $4, (cpu - before) / $1 * 1000 }' "$out/turn"
done
printf 'left in the TPM: %s\n' "$(left)"
