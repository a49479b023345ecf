package vm

import "time"

// A guest is idle when its serial line was silent for idleSilence and it used less
// than a share of idleShare of one processor meanwhile. A guest that waits uses a
// few hundredths under TCG, one that boots uses all that it is given. One that has
// not said what is awaited may be waiting for a device, and is given longer.
const (
	idleTick    = time.Second
	idleSilence = 8 * time.Second
	idleAwaited = time.Minute
	idleShare   = 0.2
	// Where the use of the processor cannot be read, silence alone must do.
	silenceAlone = time.Minute
)

// idleness watches whether anything happens in a guest.
type idleness struct {
	m      *machine
	ticker *time.Ticker
	tick   <-chan time.Time // nil unless the boot ends when the guest is idle
	used   []time.Duration  // of the processors, at each tick
}

func newIdleness(m *machine) *idleness {
	i := &idleness{m: m}
	if m.o.UntilIdle {
		i.ticker = time.NewTicker(idleTick)
		i.tick = i.ticker.C
	}
	return i
}

func (i *idleness) stop() {
	if i.ticker != nil {
		i.ticker.Stop()
	}
}

// now says whether the guest is idle. It is called once a tick.
func (i *idleness) now() bool {
	silence := i.m.serial.silence()
	used, err := processorTime(i.m.qemu.cmd.Process.Pid)
	if err != nil {
		return silence >= silenceAlone
	}
	i.used = append(i.used, used)
	quiet := idleSilence
	if i.m.o.Until != nil && !i.m.reached {
		quiet = idleAwaited
	}
	ticks := int(quiet / idleTick)
	if len(i.used) <= ticks || silence < quiet {
		return false
	}
	return float64(used-i.used[len(i.used)-1-ticks]) < idleShare*float64(quiet)
}
