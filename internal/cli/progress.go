package cli

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// progress reports how far long work has come: a bar on a terminal, a plain
// line every few seconds elsewhere, nothing with --quiet.
type progress struct {
	bar   *progressbar.ProgressBar
	w     io.Writer
	label string
	done  int64
	total int64
	start time.Time
	last  time.Time
}

// plainInterval is the time between two plain progress lines.
const plainInterval = 10 * time.Second

// newProgress starts a progress report over total bytes; a total of -1 means
// that the amount is not known.
func (a *app) newProgress(label string, total int64) *progress {
	now := time.Now()
	switch f, ok := a.stderr.(*os.File); {
	case a.quiet:
		return &progress{w: io.Discard, label: label, total: total, start: now, last: now}
	case ok && term.IsTerminal(int(f.Fd())):
		return &progress{bar: progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(a.stderr),
			progressbar.OptionSetDescription(label),
			progressbar.OptionShowBytes(true),
			progressbar.OptionFullWidth(),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionClearOnFinish(),
		)}
	}
	return &progress{w: a.stderr, label: label, total: total, start: now, last: now}
}

// add reports n more bytes. It is not safe for concurrent use.
func (p *progress) add(n int64) {
	if p.bar != nil {
		_ = p.bar.Add64(n) // a bar that cannot be drawn is no reason to stop
		return
	}
	p.done += n
	if time.Since(p.last) < plainInterval {
		return
	}
	p.last = time.Now()
	fmt.Fprintln(p.w, p.line(p.last.Sub(p.start)))
}

// line tells what is done after a time, at which rate, and the time left.
func (p *progress) line(after time.Duration) string {
	rate := int64(float64(p.done) / max(after.Seconds(), 0.001)) // bytes a second
	if p.total <= 0 {
		return fmt.Sprintf("%s: %s, %s/s", p.label, formatBytes(p.done), formatBytes(rate))
	}
	line := fmt.Sprintf("%s: %s of %s (%d%%), %s/s", p.label, formatBytes(p.done), formatBytes(p.total), p.done*100/p.total, formatBytes(rate))
	if left := p.total - p.done; rate > 0 && left > 0 {
		line += fmt.Sprintf(", %s left", (time.Duration(left/rate) * time.Second).Round(time.Second))
	}
	return line
}

// finish ends the report.
func (p *progress) finish() {
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}

// formatBytes prints a size in binary units: "29.4 MiB".
func formatBytes(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, suffix := float64(n)/unit, "KiB"
	for _, next := range []string{"MiB", "GiB", "TiB", "PiB", "EiB"} {
		if value < unit {
			break
		}
		value, suffix = value/unit, next
	}
	return fmt.Sprintf("%.1f %s", value, suffix)
}
