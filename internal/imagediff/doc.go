// Package imagediff says what changed between two images, by meaning: packages,
// files, the kernel command line, the boot chain, partitions, dm-verity, the PCRs
// with the events that made them change, and what an audit finds.
//
// It reads raw disks through the readers of the packages below it, and with their
// bounds; nothing is mounted or unpacked. Both root file systems are walked at the
// same time, file by file; a file's content is read only where nothing cheaper tells
// whether it changed. What could not be compared is said. Two disks that differ in a
// byte never give an empty report.
//
// Documents compares two measurements documents in the same way, without the disks.
//
// It judges nothing: whether a change was wanted is for its reader to say.
package imagediff
