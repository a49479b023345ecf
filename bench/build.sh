#!/usr/bin/env bash
# Measures what it costs that a build is reproducible: `build` beside KIWI NG itself,
# in the same container image with the same rights, on the same description, but
# without anything that makes it reproducible. Both run in turn, RUNS times (default
# 3); the medians count, of the wall time, and of the time that processors worked for
# the command and in its containers, which others on the machine disturb less.
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
trap 'rm -rf "$out/plain" "$out/reproducible" "$out/description" "$out/tools" "$out/shim"' EXIT

# Every container is put into one cgroup, which counts what its processors do.
docker=$(command -v docker)
case $(docker info --format '{{.CgroupDriver}}') in
  systemd) group=attestablebench.slice ;;
  *) group=/attestablebench ;;
esac
rm -rf "$out/shim"
mkdir -p "$out/shim"
cat > "$out/shim/docker" <<SHIM
#!/usr/bin/env bash
case \${1-} in
  create | run) set -- "\$1" --cgroup-parent "$group" "\${@:2}" ;;
esac
exec "$docker" "\$@"
SHIM
chmod +x "$out/shim/docker"
PATH=$out/shim:$PATH

# contained: the time of processors in the cgroup so far, in ms.
contained() {
  local dir
  for dir in /sys/fs/cgroup /sys/fs/cgroup/cpuacct; do
    if [ -e "$dir/$group/cpu.stat" ] && grep -q ^usage_usec "$dir/$group/cpu.stat"; then
      awk '$1 == "usage_usec" { printf "%d", $2 / 1000 }' "$dir/$group/cpu.stat"
      return
    elif [ -e "$dir/$group/cpuacct.usage" ]; then
      awk '{ printf "%d", $1 / 1000000 }' "$dir/$group/cpuacct.usage"
      return
    fi
  done
  echo 0
}

# turn LABEL COMMAND: once, with the time of processors as LABEL-cpu, in ms.
turn() {
  local begin used own
  begin=$(contained)
  TIMEFORMAT='%U %S'
  { time once "$@" 2>&3; } 3>&2 2> "$out/own"
  own=$(awk '{ printf "%d", 1000 * ($1 + $2) }' "$out/own")
  used=$(($(contained) - begin))
  printf '%s-cpu\t%d000\n' "$1" $((own + used)) >> "$out/times"
}

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
  turn plain plain
  turn reproducible reproducible
done
show() {
  printf '%-10s  KIWI NG alone %7.1f s   build %7.1f s   ratio %5.2f\n' "$1" \
    "$(median "plain$2" | awk '{ print $1 / 1000 }')" "$(median "reproducible$2" | awk '{ print $1 / 1000 }')" \
    "$(awk -v a="$(median "reproducible$2")" -v b="$(median "plain$2")" 'BEGIN { print a / b }')"
}
show 'wall' ''
show 'processors' -cpu
