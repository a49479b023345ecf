package lazyregexp

import "testing"

func TestNew(t *testing.T) {
	digits := New(`^[0-9]+$`)
	if !digits().MatchString("2026") || digits().MatchString("x") {
		t.Error("it does not match what its expression says")
	}
	if first, second := digits(), digits(); first != second {
		t.Error("it is compiled at each call")
	}
	wrong := New(`(`) // no panic before it is used
	defer func() {
		if recover() == nil {
			t.Error("an expression that is wrong makes no panic")
		}
	}()
	wrong()
}
