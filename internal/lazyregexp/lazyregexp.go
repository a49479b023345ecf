// Package lazyregexp compiles regular expressions when they are first used. One
// that is compiled when its package is initialized makes every command start
// later, also those that never use it; all of them together took a fifth of what
// the quick commands take to start.
package lazyregexp

import (
	"regexp"
	"sync"
)

// New returns a function that gives the expression (RE2 syntax), compiled at its
// first call. As with regexp.MustCompile, one that is wrong is a mistake in the
// program, and that call panics.
func New(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}
