# shellcheck shell=bash
# shellcheck disable=SC2154 # $out is the caller's
# Functions that make the benchmarks' own disks, with public tools, from the
# unified kernel image of a disk of testdata/golden. To be sourced; $out is where
# they work.

# golden UKI: the unified kernel image of a disk that was booted.
golden() {
  zstd -dc testdata/golden/disks.tar.zst | tar -xSO stub257.raw > "$out/golden.raw"
  mcopy -n -o -i "$out/golden.raw@@1M" ::EFI/BOOT/BOOTX64.EFI "$1"
  rm "$out/golden.raw"
}

# rebuild UKI NEW [NAME=FILE...]: the same with other sections .NAME.
rebuild() {
  local uki=$1 new=$2 section file end arguments=()
  shift 2
  for section in osrel cmdline initrd linux; do
    objcopy -O binary --only-section=".$section" "$uki" "$out/section.$section"
  done
  for file in "$@"; do
    cp "${file#*=}" "$out/section.${file%%=*}"
  done
  objcopy -R .osrel -R .cmdline -R .initrd -R .linux "$uki" "$out/stub.efi"
  # Behind the stub's last section, on pages of their own.
  end=$((($(objdump -h "$out/stub.efi" | awk '/^ +[0-9]+ \./ { end = "0x" $4 "+0x" $3 } END { print end }') + 0xfff) & ~0xfff))
  for section in osrel cmdline initrd linux; do
    arguments+=(--add-section ".$section=$out/section.$section" --change-section-vma ".$section=$(printf '%#x' "$end")")
    end=$(((end + $(stat -c %s "$out/section.$section") + 0xfff) & ~0xfff))
  done
  objcopy "${arguments[@]}" "$out/stub.efi" "$new"
  rm "$out"/section.* "$out/stub.efi"
}

# disk UKI SIZE NEW [ROOT]: a sparse disk that boots it, with a second partition
# whose content is the file ROOT.
disk() {
  local uki=$1 size=$2 new=$3 root=${4-} partitions=()
  rm -f "$new" "$out/esp"
  truncate -s 128M "$out/esp"
  mkfs.vfat -F 32 "$out/esp" > /dev/null
  mmd -i "$out/esp" ::EFI ::EFI/BOOT
  mcopy -i "$out/esp" "$uki" ::EFI/BOOT/BOOTX64.EFI
  truncate -s "$size" "$new"
  partitions=(--new=1:2048:+128M --typecode=1:ef00)
  [ -z "$root" ] || partitions+=(--new=2:0:+$(($(stat -c %s "$root") / 1024 + 1))K --typecode=2:8304)
  sgdisk "${partitions[@]}" "$new" > /dev/null
  dd if="$out/esp" of="$new" bs=1M seek=1 conv=notrunc,sparse status=none
  [ -z "$root" ] || dd if="$root" of="$new" bs=1M seek=129 conv=notrunc,sparse status=none
  rm "$out/esp"
}
