package kiwi

import (
	"regexp"
	"sync"
)

// lazyPattern compiles an expression when it is first used: all of them together
// would make every command start later, the quick ones noticeably.
func lazyPattern(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}
