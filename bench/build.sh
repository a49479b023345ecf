#!/usr/bin/env bash
# Measures what it costs that a build is reproducible: `build` beside KIWI NG itself,
# in the same container image with the same rights, on the same description, but
# without anything that makes it reproducible. Both run in turn, RUNS times (default
# 3); the medians of the wall time count.
#
#   bench/build.sh
#
# BIN is the command that is measured (default bin/attestable-image).
# ATTESTABLE_IMAGE_PACKAGE_SOURCE has no effect: both use the template's sources.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-bin/attestable-image}
runs=${RUNS:-3}
out=$PWD/out/bench
if [ ! -x "$bin" ]; then
  echo "bench/build.sh: $bin is missing: run make build" >&2
  exit 1
fi
mkdir -p "$out"
rm -f "$out/times"
# shellcheck source=bench/turns.sh
. bench/turns.sh
trap 'rm -rf "$out/plain" "$out/reproducible" "$out/description" "$out/tools"' EXIT

rm -rf "$out/description" "$out/tools"
cp -R kiwi-templates/debian "$out/description"
chmod -R u=rwX,go=rX "$out/description"
mkdir -p "$out/tools"
cp internal/kiwi/container/{mount.vfat,umount.tmpfs} "$out/tools/"
cat > "$out/tools/plain" <<'PLAIN'
#!/bin/bash
set -euo pipefail
mount -o remount,rw /sys
install --directory --mode=0700 /root/.gnupg
mkdir -p /var/cache/kiwi/apt-get/trusted.gpg.d /output/temporary
ln -sf ../trusted.gpg /var/cache/kiwi/apt-get/trusted.gpg.d/kiwi.gpg
kiwi-ng --logfile /output/kiwi.log --temp-dir /output/temporary \
    system build --description /description --target-dir /output/build
rm -rf --one-file-system /output/build/build /output/temporary
PLAIN
chmod +x "$out/tools/plain"

reproducible() {
  rm -rf "$out/reproducible"
  "$bin" build --description "$out/description" --output "$out/reproducible"
}

# plain: what the build's own container gets, and nothing more.
plain() {
  local more=() file
  rm -rf "$out/plain"
  mkdir -p "$out/plain"
  if ! grep -qw vfat /proc/filesystems; then
    for file in mount.vfat umount.tmpfs; do more+=(--volume "$out/tools/$file:/usr/sbin/$file:ro"); done
    more+=(--env SYSTEMD_RELAX_ESP_CHECKS=1)
  fi
  docker network inspect bridge > /dev/null 2>&1 || more+=(--network host)
  docker run --rm --cap-add SYS_ADMIN --security-opt apparmor=unconfined --volume /dev:/dev \
    --device-cgroup-rule 'b 7:* rmw' --device-cgroup-rule 'b 259:* rmw' --device-cgroup-rule 'c 10:237 rmw' \
    --volume "$out/plain:/output" --volume "$out/description:/description:ro" --volume "$out/tools/plain:/plain:ro" \
    --env INITRD=No "${more[@]}" --entrypoint /plain "$image"
}

# The first build makes the builder image, and is not counted.
reproducible > "$out/stdout" 2> "$out/stderr" || { tail -n 5 "$out/stderr" >&2; exit 1; }
image=$(sed -n 's/^  "Image": "\(.*\)",$/\1/p' "$out/reproducible/builder.json")
for _ in $(seq "$runs"); do
  once plain plain
  once reproducible reproducible
done
printf 'KIWI NG alone  %8.1f s\nbuild          %8.1f s\nratio          %8.2f\n' \
  "$(median plain | awk '{ print $1 / 1000 }')" "$(median reproducible | awk '{ print $1 / 1000 }')" \
  "$(awk -v a="$(median reproducible)" -v b="$(median plain)" 'BEGIN { print a / b }')"
