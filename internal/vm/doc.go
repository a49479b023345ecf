// Package vm boots a disk under QEMU with UEFI firmware (OVMF or AAVMF) and a
// software TPM (swtpm), and reports what the boot recorded: every digest that
// was extended into a PCR, in order and per bank, the firmware's event log, and
// the PCRs when the firmware handed over to the operating system and at the
// end.
//
// The guest need not take part. A proxy stands between QEMU and swtpm, sees
// each TPM command, and asks the TPM for its PCRs between two of them. The
// event log is found in the guest's memory, and taken only when it replays to
// exactly what the TPM was told: guest memory alone proves nothing.
//
// The disk is never written to, and nothing is left behind: the guest's memory
// and its firmware variables are files without a name, writes to the disk go to
// a temporary overlay, and QEMU and swtpm die with this process.
//
// NitroTPM, put between guest and TPM, answers for attestation documents as EC2
// does, with documents that say that they are emulated.
//
// It is not a general virtual machine manager: one disk, one serial line, no
// display, and of a network only ports that are forwarded.
//
// Specifications: TCG PC Client Platform Firmware Profile 1.06 (event log,
// sections 3 and 10), TPM 2.0 Library part 3 (commands), QEMU's and swtpm's TPM
// emulator control protocol (swtpm_ioctls(3)), UEFI PI 1.8 volume 3 section 3
// and edk2's authenticated variable format (the variable store).
package vm
