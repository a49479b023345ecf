#!/bin/bash
# KIWI calls this outside of the image, in the directory of the image's root,
# when the disk is complete but for its boot path:
#
#   edit_boot_install.sh DISK ROOT_PARTITION
#
# It leaves KIWI's unified kernel image alone on the EFI system partition, at the
# path that firmware starts. The root hash stays where KIWI put it, in
# /etc/veritytab of the initrd: Amazon Linux has the program that opens the root
# with it (dracut-kiwi-verity), and no ukify to make the image anew.
set -euo pipefail

root_partition=$2
esp=${root_partition%p*}p1

case $(uname -m) in
    x86_64) boot=BOOTX64.EFI ;;
    aarch64) boot=BOOTAA64.EFI ;;
    *) echo "edit_boot_install.sh: no boot path is known for $(uname -m)" >&2; exit 1 ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/esp"
mount "$esp" "$work/esp"
cp "$work/esp/EFI/Linux/kiwi.efi" "$work/$boot"
# KIWI still has the partition mounted elsewhere. It is made anew below, so it
# must not be mounted anywhere.
number=$(mountpoint --fs-devno "$work/esp")
awk -v number="$number" '$3 == number && $5 !~ "^/run/" { print $5 }' /proc/self/mountinfo | tac |
    while read -r directory; do umount "$directory"; done

# An image whose initrd does not open the root by its hash must not come about.
objcopy --output-target=binary --only-section=.initrd "$work/$boot" "$work/initrd"
zstd --decompress --stdout "$work/initrd" | cpio --quiet --extract --to-stdout etc/veritytab > "$work/veritytab"
read -r _ _ _ roothash _ < "$work/veritytab"
if ! [[ $roothash =~ ^[0-9a-f]{64}$ ]]; then
    echo "edit_boot_install.sh: the initrd's veritytab has no root hash: $(cat "$work/veritytab")" >&2
    exit 1
fi

# The partition is made anew, so that nothing is left in it of what was there: the
# boot loader, its configuration and its random seed.
export MTOOLS_SKIP_CHECK=1
mkfs.vfat -F 32 -n EFI --invariant "$esp" > /dev/null
mmd -i "$esp" ::/EFI ::/EFI/BOOT
touch --date="@${SOURCE_DATE_EPOCH:-315532800}" "$work/$boot"
mcopy -m -i "$esp" "$work/$boot" "::/EFI/BOOT/$boot"
sync "$esp"
