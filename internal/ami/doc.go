// Package ami makes Amazon Machine Images of verified artifacts: it streams the
// disk from the registry into an EBS snapshot, registers the snapshot as an
// attestable AMI (UEFI, TPM 2.0, IMDSv2), shares it, does the same in further
// regions, and removes AMIs with their snapshots.
//
// It follows the EBS direct APIs (StartSnapshot, PutSnapshotBlock,
// CompleteSnapshot) and the EC2 API (RegisterImage and what surrounds it). It
// does not verify attestations: NewImage takes the measurements that somebody
// verified, and holds the disk against them before a snapshot is completed.
//
// What it made is known by its tags, here called ours: docs/decisions tells how
// what a killed run left behind is told from what another run is writing.
package ami

// BlockSize is the size of a block of the EBS direct APIs, in bytes.
const BlockSize = 512 << 10

// maxDisk is the largest volume of EBS, in bytes: 64 TiB.
const maxDisk = 64 << 40

// Keys of tags. Those up to tagFamily are on AMIs and on snapshots; the last
// three are on snapshots only, and belong to the run that makes one.
const (
	tagPrefix     = "attestable-image:"
	tagDigest     = tagPrefix + "digest"     // of the artifact's manifest, sha256:<hex>
	tagArtifact   = tagPrefix + "artifact"   // REPOSITORY@sha256:<hex>
	tagRepository = tagPrefix + "repository" // URL that it was built from
	tagCommit     = tagPrefix + "commit"     // hex
	tagWorkflow   = tagPrefix + "workflow"   // URL of the signing workflow, @REF
	tagPCR        = tagPrefix + "pcr"        // with the number: lower-case hex, SHA-384
	tagFamily     = tagPrefix + "family"     // the AMIs that replace each other

	tagRun   = tagPrefix + "run"   // token of the run, random hex
	tagOwner = tagPrefix + "owner" // the process: see owner
	tagAlive = tagPrefix + "alive" // RFC 3339 of the run's last sign of life, or aliveDone
)
