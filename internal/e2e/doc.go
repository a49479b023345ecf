// Package e2e holds the tests that run the whole chain of evidence beside the
// programs that strangers verify it with: gh, cosign, oras and zstd, on real
// servers on loopback, and the action under act as a user's workflow calls it.
package e2e
