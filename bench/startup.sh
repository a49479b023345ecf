#!/usr/bin/env bash
# How long the action takes from `uses:` to a program that it may run, each way in turn:
#   a release's binary, fetched from a server on this machine and verified by gh with the
#     trust root of a local Sigstore (on a runner add the transfer of what is printed, and
#     gh's of Sigstore's trust roots, some requests of a few kilobytes);
#   built from source with Go's build cache and modules there,
#   with the modules alone, as a job has them that restores a cache of modules,
#   and with neither, as on a fresh runner: the modules come from the Go module proxy.
# Prints seconds and ratios to the first. Three rounds, the shortest of each.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${ROUNDS:-3}
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
PATH=$PATH:/usr/sbin:$(scripts/tools --path)

seconds() { # of a command
  local began=$EPOCHREALTIME
  "$@" > "$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
  awk -v a="$began" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.2f\n", b - a }'
}
# The tests' own clock: of scripts/action-binary alone, without the servers' start.
released() {
  ATTESTABLE_IMAGE_STARTUP_BINARY=$work/released go test -count=1 -v -run '^TestReleasedBinary$/^genuine$' ./internal/e2e > "$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
  sed -n 's/.*action-binary took \([0-9.]*\) s.*/\1/p' "$work/log"
}
modules() { GOCACHE=$(mktemp -d -p "$work") seconds scripts/action-binary "$work/attestable-image"; }
nothing() { GOCACHE=$(mktemp -d -p "$work") GOMODCACHE=$(mktemp -d -p "$work") seconds scripts/action-binary "$work/attestable-image"; }
cached() { seconds scripts/action-binary "$work/attestable-image"; }

scripts/action-binary "$work/attestable-image" > "$work/log" # what is measured as cached is there
scripts/release-binary linux amd64 0.0.0 "$(printf '0%.0s' {1..40})" "$work/released"
declare -A best
for ((i = 0; i < rounds; i++)); do
  for way in released cached modules nothing; do
    took=$($way)
    best[$way]=$(printf '%s\n%s\n' "${best[$way]:-$took}" "$took" | sort --numeric-sort | head -n 1)
    echo "round $((i + 1)): $way $took s" >&2
  done
done
echo "a binary of a release has $(stat --format=%s "$work/released") bytes"
for way in released cached modules nothing; do
  awk -v way="$way" -v s="${best[$way]}" -v r="${best[released]}" 'BEGIN { printf "%-10s %7.2f s  %6.1f\n", way, s, s / r }'
done
