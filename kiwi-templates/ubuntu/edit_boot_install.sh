#!/bin/bash
# KIWI calls this outside of the image, in the directory of the image's root,
# when the disk is complete but for its boot path:
#
#   edit_boot_install.sh DISK ROOT_PARTITION
#
# KIWI's unified kernel image has verity's root hash in a file of the initrd,
# which needs a program that Debian lacks to open the root. This makes the image
# anew with the root hash on the kernel command line, where systemd reads it, and
# leaves it alone on the EFI system partition, at the path that firmware starts.
set -euo pipefail

root_partition=$2
esp=${root_partition%p*}p1

case $(uname -m) in
    x86_64) stub=linuxx64.efi.stub boot=BOOTX64.EFI ;;
    aarch64) stub=linuxaa64.efi.stub boot=BOOTAA64.EFI ;;
    *) echo "edit_boot_install.sh: no boot path is known for $(uname -m)" >&2; exit 1 ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/esp"
mount "$esp" "$work/esp"
cp "$work/esp/EFI/Linux/kiwi.efi" "$work/kiwi.efi"
# KIWI still has the partition mounted elsewhere. It is made anew below, so it
# must not be mounted anywhere.
number=$(mountpoint --fs-devno "$work/esp")
awk -v number="$number" '$3 == number && $5 !~ "^/run/" { print $5 }' /proc/self/mountinfo | tac |
    while read -r directory; do umount "$directory"; done

section() {
    objcopy --output-target=binary --only-section="$1" "$work/kiwi.efi" "$work/$2"
}
section .linux linux
section .initrd initrd
section .osrel osrel
section .cmdline cmdline

# verityroot DATA HASH ROOTHASH OPTIONS
zstd --decompress --stdout "$work/initrd" | cpio --quiet --extract --to-stdout etc/veritytab > "$work/veritytab"
read -r _ data hash roothash options < "$work/veritytab"
if ! [[ $roothash =~ ^[0-9a-f]{64}$ ]]; then
    echo "edit_boot_install.sh: the initrd's veritytab has no root hash: $(cat "$work/veritytab")" >&2
    exit 1
fi
cmdline=$(tr -d '\0\n' < "$work/cmdline")
cmdline=${cmdline/root=overlay:MAPPER=verityroot/root=overlay:MAPPER=root}
cmdline+=" roothash=$roothash systemd.verity_root_data=$data systemd.verity_root_hash=$hash"
cmdline+=" systemd.verity_root_options=$options,panic-on-corruption"
# The clock of a Graviton instance is read through EFI's runtime services: there they
# stay, and only the file system that shows EFI's variables does not.
if [ "$(uname -m)" = aarch64 ]; then
    cmdline=${cmdline/efi=noruntime/module_blacklist=efivarfs initcall_blacklist=efivarfs_init}
fi

# A second initrd empties the veritytab of the first.
mkdir -p "$work/blank/etc"
: > "$work/blank/etc/veritytab"
touch --date="@${SOURCE_DATE_EPOCH:-0}" "$work/blank/etc/veritytab" "$work/blank/etc"
(cd "$work/blank" && printf '%s\n' etc etc/veritytab |
    cpio --quiet --create --format=newc --reproducible --owner=0:0) > "$work/blank.cpio"

ukify build --stub "usr/lib/systemd/boot/efi/$stub" --linux "$work/linux" \
    --initrd "$work/initrd" --initrd "$work/blank.cpio" --cmdline "$cmdline" \
    --os-release "@$work/osrel" --uname "$(basename lib/modules/*)" --output "$work/$boot"

# The partition is made anew, so that nothing is left in it of what was there: the
# boot loader, its configuration and its random seed.
export MTOOLS_SKIP_CHECK=1
mkfs.vfat -F 32 -n EFI --invariant "$esp" > /dev/null
mmd -i "$esp" ::/EFI ::/EFI/BOOT
touch --date="@${SOURCE_DATE_EPOCH:-315532800}" "$work/$boot"
mcopy -m -i "$esp" "$work/$boot" "::/EFI/BOOT/$boot"
sync "$esp"
