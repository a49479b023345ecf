// Package kiwi builds a raw disk with KIWI NG in a container: from a template
// or a description directory of the user's, with files laid over it.
//
// The container gets CAP_SYS_ADMIN and some loop devices, never --privileged.
// What a host's kernel lacks is detected and stood in for. An interrupted build
// leaves no container, loop device or mount behind.
//
// It is not a front end for all of KIWI: it builds descriptions whose type makes
// a disk. KIWI's own documentation, https://osinside.github.io/kiwi/, says what a
// description holds; this package reads no more of it than the name, the version
// and the repositories, which its callers may replace.
package kiwi
