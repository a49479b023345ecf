// Package sbom lists what is installed on a raw disk: the software bill of
// materials of an image, as SPDX 2.3 or CycloneDX 1.6, both in JSON.
//
// It reads the package databases of the root file system, dpkg's (deb-status in
// dpkg(1)) and rpm's (SQLite and ndb), as they lie on the disk, without mounting it
// and without the package managers. Licences come from what the packages themselves
// say: Debian's machine-readable copyright files (copyright format 1.0, also called
// DEP-5) and the licence tag of rpm. What a package does not say in a form that a
// program can read is NOASSERTION, and a licence that SPDX's list does not have is a
// LicenseRef with the name and the text that the image has; nothing is guessed.
//
// A list that is silently short is worse than none: a database that cannot be read
// whole, one of a kind that is not known, or none at all, is an error.
//
// Not listed is what came into the image without a package: files of an overlay, or
// modules of a language's own package manager.
package sbom
