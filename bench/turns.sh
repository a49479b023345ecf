# shellcheck shell=bash
# shellcheck disable=SC2154 # $out is the caller's
# Functions that run commands in turn and tell the medians. To be sourced; $out is
# where they work.

# once LABEL COMMAND...: runs it; the wall time goes to $out/times.
once() {
  local label=$1 begin end
  shift
  begin=${EPOCHREALTIME/[.,]/}
  "$@" > "$out/stdout" 2> "$out/stderr" || { cat "$out/stdout" "$out/stderr" >&2; exit 1; }
  end=${EPOCHREALTIME/[.,]/}
  printf '%s\t%d\n' "$label" $((end - begin)) >> "$out/times"
}

# median LABEL: in ms.
median() {
  awk -F '\t' -v label="$1" '$1 == label { print $2 }' "$out/times" | sort -n |
    awk '{ v[NR] = $1 } END { print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 / 1000 }'
}

# memory COMMAND...: the most that was resident, in MiB.
memory() {
  /usr/bin/time -o "$out/rss" -f %M "$@" > "$out/stdout" 2> "$out/stderr" ||
    { cat "$out/stdout" "$out/stderr" >&2; exit 1; }
  awk '{ printf "%.1f", $1 / 1024 }' "$out/rss"
}
