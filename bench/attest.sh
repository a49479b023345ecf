#!/usr/bin/env bash
# Measures `attest` and `verify artifact` beside cosign and gh, on the same servers
# in the same run: Fulcio, a timestamp authority, Rekor v2 and a registry on
# loopback (bench/sigstore).
#
#   - From a digest to its stored attestations: attest, which signs two statements
#     and stores them with GitHub and in the registry, beside `cosign attest`,
#     once for each of the same two statements, which stores in the registry only.
#     gh cannot attest.
#   - Cold verification without a network but for the registry's manifest: a
#     process of its own each time, trust root and bundles from files. Ours checks
#     both attestations and compares them with what is in the artifact; gh and
#     cosign check one at a time: cosign takes its bundle from the registry.
#
#   bench/attest.sh
#
# All run in turn, RUNS times (default 15); the medians count. BIN is the command
# that is measured (default bin/attestable-image).
set -euo pipefail
cd "$(dirname "$0")/.."
out=$PWD/out/bench
mkdir -p "$out"
bin=$(realpath -m "${BIN:-bin/attestable-image}")
runs=${RUNS:-15}
PATH=$(scripts/tools --path):$PATH
for tool in cosign gh jq curl fulcio timestamp-server rekor-server-posix /usr/bin/time "$bin"; do
  if ! command -v "$tool" >/dev/null; then
    echo "bench/attest.sh: $tool is missing: run scripts/setup, scripts/tools and make build, or install it" >&2
    exit 1
  fi
done
go build -o "$out/sigstore" ./bench/sigstore
# shellcheck source=bench/turns.sh
. bench/turns.sh

scratch=$(mktemp -d "$out/attest.XXXXXX")
mkfifo "$scratch/hold"
"$out/sigstore" "$scratch/env" < "$scratch/hold" &
servers=$!
exec 9> "$scratch/hold"
trap 'exec 9>&-; wait "$servers" || true; rm -rf "$scratch"' EXIT
until [ -e "$scratch/env" ]; do
  kill -0 "$servers"
  sleep 0.1
done
# The job's variables are for those who need them alone.
job() {
  (
    # shellcheck disable=SC1091 # written by bench/sigstore
    . "$scratch/env"
    export RUNNER_TEMP=$scratch GITHUB_OUTPUT=$scratch/output
    "$@"
  )
}
# shellcheck disable=SC1090 # likewise
eval "$(grep -E '^export (REGISTRY|ISSUER|IDENTITY|REPOSITORY|TRUSTED_ROOT|TRUSTED_ROOT_LINES|SIGNING_CONFIG)=' "$scratch/env")"
export HOME=$scratch/home XDG_CONFIG_HOME=$scratch/home XDG_CACHE_HOME=$scratch/home GH_NO_UPDATE_NOTIFIER=1
mkdir -p "$HOME"

head -c 1M /dev/urandom > "$scratch/disk.raw"
zero=$(printf '%096d' 0)
printf '{"Measurements":{"HashAlgorithm":"SHA384","PCR4":"%s","PCR7":"%s","PCR12":"%s"},"SchemaVersion":1,"Disk":{"SHA256":"%s","Size":%d}}\n' \
  "$zero" "$zero" "$zero" "$(sha256sum "$scratch/disk.raw" | cut -d ' ' -f 1)" $((1 << 20)) > "$scratch/measurements.json"

# push VERSION: an artifact that nobody attested yet.
push() {
  "$bin" -q push --measurements="$scratch/measurements.json" --version="$1" "$scratch/disk.raw" "$REGISTRY/octo-org/image:$1"
}
provenance=https://slsa.dev/provenance/v1
measurements=https://github.com/org/attestable-image-action/measurements/v1

ours_attest() {
  job "$bin" -q attest --signing-config="$SIGNING_CONFIG" --trusted-root="$TRUSTED_ROOT" --bundle-output="$scratch/bundles.jsonl" "$1"
}
# The same two statements, one after the other: it makes one at a time.
cosign_attest() {
  local type
  for type in provenance measurements; do
    cosign attest --yes --signing-config="$SIGNING_CONFIG" --trusted-root="$TRUSTED_ROOT" \
      --identity-token="$scratch/token" --predicate="$scratch/$type.json" --type="${!type}" "$1" || return
  done
}
token() {
  # shellcheck disable=SC2016 # the job's variables
  job bash -c 'curl -fsS -H "Authorization: Bearer $ACTIONS_ID_TOKEN_REQUEST_TOKEN" "$ACTIONS_ID_TOKEN_REQUEST_URL&audience=sigstore"' |
    jq -j .value > "$scratch/token" # with a line feed it is no header
}
ours_verify() {
  "$bin" verify artifact "$artifact" --bundle="$scratch/bundles.jsonl" --trusted-root="$TRUSTED_ROOT" --repo="$REPOSITORY" --cert-oidc-issuer="$ISSUER"
}
gh_verify() {
  GH_FORCE_TTY=120 gh attestation verify "oci://$artifact" --bundle="$scratch/$1.bundle.json" --custom-trusted-root="$TRUSTED_ROOT_LINES" \
    --repo="$REPOSITORY" --cert-oidc-issuer="$ISSUER" --predicate-type="${!1}"
}
gh_verify_both() { gh_verify provenance && gh_verify measurements; }
cosign_verify() {
  cosign verify-attestation "$artifact" --trusted-root="$TRUSTED_ROOT" --certificate-identity="$IDENTITY" --certificate-oidc-issuer="$ISSUER" \
    --type="${!1}" --insecure-ignore-sct
}
cosign_verify_both() { cosign_verify provenance && cosign_verify measurements; }

# What the others verify, and attest again.
artifact=$(push v0)
ours_attest "$artifact" > "$scratch/log"
for type in provenance measurements; do
  while read -r line; do
    statement=$(jq -r .dsseEnvelope.payload <<< "$line" | base64 -d)
    if [ "$(jq -r .predicateType <<< "$statement")" = "${!type}" ]; then
      printf '%s\n' "$line" > "$scratch/$type.bundle.json"
      jq -c .predicate <<< "$statement" > "$scratch/$type.json"
    fi
  done < "$scratch/bundles.jsonl"
done
cp "$scratch/bundles.jsonl" "$scratch/verified.jsonl"

: > "$out/times"
for i in $(seq 0 "$runs"); do
  [ "$i" != 1 ] || : > "$out/times" # the first round warmed the page cache
  rm -f "$scratch/bundles.jsonl"
  once "attest" ours_attest "$(push "ours-$i")"
  token
  once "cosign attest, twice" cosign_attest "$(push "cosign-$i")"
  cp "$scratch/verified.jsonl" "$scratch/bundles.jsonl"
  once "verify artifact" ours_verify
  once "gh attestation verify, one" gh_verify provenance
  once "gh attestation verify, both" gh_verify_both
  once "cosign verify-attestation, one" cosign_verify provenance
  once "cosign verify-attestation, both" cosign_verify_both
done

# row LABEL RSS PEER...: the median, and its ratio to peers.
row() {
  local label=$1 rss=$2 peer
  shift 2
  awk -v label="$label" -v t="$(median "$label")" -v rss="$rss" 'BEGIN { printf "%-34s %8.1f ms %8s MiB RSS", label, t, rss }'
  for peer in "$@"; do
    awk -v t="$(median "$label")" -v p="$(median "$peer")" -v peer="$peer" 'BEGIN { printf "; %.2f of %s", t / p, peer }'
  done
  echo
}
# memory takes programs, not functions.
export -f ours_verify gh_verify cosign_verify
export bin scratch artifact provenance measurements
printf '%d cores, %d runs\n' "$(nproc)" "$runs"
row "attest" - "cosign attest, twice"
row "cosign attest, twice" -
row "verify artifact" "$(memory bash -c ours_verify)" "gh attestation verify, one" "gh attestation verify, both" "cosign verify-attestation, one" "cosign verify-attestation, both"
row "gh attestation verify, one" "$(memory bash -c 'gh_verify provenance')"
row "gh attestation verify, both" -
row "cosign verify-attestation, one" "$(memory bash -c 'cosign_verify provenance')"
row "cosign verify-attestation, both" -
