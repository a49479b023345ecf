package kiwi

import (
	"bytes"
	"io"
	"os"
	"slices"
	"strings"
	"unicode"

	"github.com/org/attestable-image-action/internal/lazyregexp"
)

// KIWI writes records "[ LEVEL   ]: HH:MM:SS | text", whose text may have more
// lines, and a progress bar that is drawn over itself with carriage returns.
var (
	logRecord   = lazyregexp.New(`^\[ ([A-Z]+) +\]: [0-9:]{8} \| ?(.*)$`)
	progressBar = lazyregexp.New(`\[ [A-Z]+ +\]: Processing: \[[# ]*\] [0-9]+%`)
	errorClass  = lazyregexp.New(`^(?:Kiwi[A-Za-z]+: )+`)
	schemaError = lazyregexp.New(`^(?:--> )?[^ ]*?:[0-9]+:[0-9]+:ERROR:(?:RELAXNGV|SCHEMATRONV|PARSER):[A-Z_]+: (.*)$`)
	// ECMA-48: control sequences (5.4), and control strings such as a terminal's title (5.6).
	escapes = lazyregexp.New("\x1b\\[[0-?]*[ -/]*[@-~]|\x1b[\\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\\\)?|\x1b.?")
	// What programs under KIWI begin a line with when it tells why they failed.
	telling = lazyregexp.New(`(?i)^(?:E: |Err(?:or)?:|fatal|dracut\[[EF]\]|mkfs|.*\b(?:error|failed|cannot|can't|unable|no such|not found|denied|no space|unmet|depends:|invalid)\b)`)
)

// Bounds of what is read and told of a log, in bytes and lines.
const (
	maxLogTail     = 4 << 20
	maxReasonLines = 6
	maxReasonLine  = 300
)

// liveLog passes on KIWI's log line by line, without its progress bars, and
// keeps the end of it.
type liveLog struct {
	w       io.Writer
	pending []byte
	tail    []byte
}

// tailSize is how much of the end a liveLog keeps, in bytes.
const tailSize = 16 << 10

func (l *liveLog) Write(p []byte) (int, error) {
	l.pending = append(l.pending, p...)
	for {
		end := bytes.IndexByte(l.pending, '\n')
		if end < 0 {
			break
		}
		l.line(l.pending[:end])
		l.pending = l.pending[end+1:]
	}
	// A line that never ends is passed on in pieces.
	if len(l.pending) > maxLogTail {
		l.line(l.pending)
		l.pending = nil
	}
	return len(p), nil
}

func (l *liveLog) line(line []byte) {
	line = escapes().ReplaceAll(progressBar().ReplaceAll(line, nil), nil)
	// A carriage return goes back to the start of the line; what it draws over
	// is of no use in a log.
	line = bytes.Trim(line, "\r")
	if i := bytes.LastIndexByte(line, '\r'); i >= 0 {
		line = line[i+1:]
	}
	line = bytes.Map(shown, bytes.ToValidUTF8(line, []byte("\uFFFD")))
	if len(bytes.TrimSpace(line)) == 0 {
		return
	}
	line = append(line, '\n')
	_, _ = l.w.Write(line) // a log that cannot be shown is no reason to stop
	l.tail = append(l.tail, line...)
	if over := len(l.tail) - tailSize; over > 0 {
		l.tail = l.tail[over:]
	}
}

// shown leaves out what steers a terminal, or the direction of writing: who wrote the
// description writes the log, too.
func shown(r rune) rune {
	if r == '\t' || unicode.IsGraphic(r) {
		return r
	}
	return -1
}

// close passes on a last line that has no end.
func (l *liveLog) close() {
	if len(l.pending) > 0 {
		l.line(l.pending)
		l.pending = nil
	}
}

// record is one message of KIWI's log.
type record struct {
	level string
	lines []string
}

// readRecords splits a log into messages. Lines in front of the first one make
// up a message without a level.
func readRecords(log string) []record {
	var records []record
	for line := range strings.Lines(log) {
		line = strings.TrimRight(line, "\r\n")
		if m := logRecord().FindStringSubmatch(line); m != nil {
			records = append(records, record{m[1], []string{m[2]}})
			continue
		}
		if len(records) == 0 {
			records = append(records, record{})
		}
		last := &records[len(records)-1]
		last.lines = append(last.lines, line)
	}
	return records
}

// Reason returns why a build failed, from KIWI's log: the lines that tell it,
// joined by "; ". It is "" when the log has no error.
func Reason(log string) string {
	records := readRecords(log)
	for _, r := range slices.Backward(records) {
		if r.level != "ERROR" && r.level != "CRITICAL" {
			continue
		}
		if strings.Contains(r.lines[0], "KiwiDescriptionInvalid") {
			if lines := schemaErrors(records); len(lines) > 0 {
				return "the description does not follow KIWI's schema: " + join(lines)
			}
		}
		return errorReason(r.lines)
	}
	return ""
}

// schemaErrors returns what KIWI's validation found. The line numbers are left
// out: they are those of a copy that KIWI converted.
func schemaErrors(records []record) []string {
	var found []string
	for _, r := range records {
		if r.level == "DEBUG" {
			continue
		}
		for _, line := range r.lines {
			if m := schemaError().FindStringSubmatch(line); m != nil {
				found = append(found, m[1])
			}
		}
	}
	return found
}

// errorReason returns the lines of an error message that tell most. KIWI's are
// "Class: program: stderr: …, stdout: …", of which apt and dracut tell the reason
// on one side or the other, in the middle of much else.
func errorReason(lines []string) string {
	var clean []string
	for _, line := range lines {
		if line = strings.TrimSpace(line); line != "" {
			clean = append(clean, line)
		}
	}
	if len(clean) == 0 {
		return ""
	}
	clean[0] = errorClass().ReplaceAllString(clean[0], "")
	program := ""
	if before, after, ok := strings.Cut(clean[0], ": stderr: "); ok && !strings.ContainsAny(before, " \t") {
		program, clean[0] = before, after
	}
	var stderr, stdout []string
	side := &stderr
	for _, line := range clean {
		before, after, ok := strings.Cut(line, ", stdout: ")
		if !ok {
			before, after, ok = strings.Cut(line, ", stdout:")
		}
		if !ok {
			*side = append(*side, line)
			continue
		}
		if before != "" {
			*side = append(*side, before)
		}
		side = &stdout
		if after != "" {
			*side = append(*side, after)
		}
	}
	reason := tellingLines(stderr)
	if reason == nil {
		reason = tellingLines(stdout)
	}
	if reason == nil { // nothing looks like a reason: the end is likeliest to be one
		all := append(silent(stderr), silent(stdout)...)
		reason = all[max(0, len(all)-maxReasonLines):]
	}
	if program != "" && len(reason) > 0 {
		return program + ": " + join(reason)
	}
	return join(reason)
}

// silent leaves out the lines that say that there is no output.
func silent(lines []string) []string {
	var kept []string
	for _, line := range lines {
		if !strings.HasPrefix(line, "(no output on ") {
			kept = append(kept, line)
		}
	}
	return kept
}

// tellingLines returns the lines that programs tell a failure with: those that
// are marked as errors, if there are any, or else those that read as one.
func tellingLines(lines []string) []string {
	var marked, reading []string
	for _, line := range silent(lines) {
		switch {
		case strings.HasPrefix(line, "E: "), strings.HasPrefix(line, "ERROR: "), strings.HasPrefix(line, "dracut[E]: "), strings.HasPrefix(line, "dracut[F]: "):
			marked = append(marked, line)
		case telling().MatchString(line) && !strings.HasPrefix(line, "dracut["):
			reading = append(reading, line)
		}
	}
	if marked != nil {
		return marked
	}
	return reading
}

// join makes one sentence of lines: the first ones, each cut to a length.
func join(lines []string) string {
	var kept []string
	seen := map[string]bool{}
	for _, line := range lines {
		line = strings.Join(strings.Fields(line), " ")
		if len(line) > maxReasonLine {
			line = strings.ToValidUTF8(line[:maxReasonLine], "") + "…"
		}
		if line == "" || seen[line] {
			continue
		}
		seen[line] = true
		if len(kept) == maxReasonLines {
			kept = append(kept, "…")
			break
		}
		kept = append(kept, strings.TrimRight(line, ".;"))
	}
	return strings.Join(kept, "; ")
}

// readTail returns at most the last maxLogTail bytes of a file.
func readTail(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", err
	}
	if over := info.Size() - maxLogTail; over > 0 {
		if _, err := file.Seek(over, io.SeekStart); err != nil {
			return "", err
		}
	}
	content, err := io.ReadAll(io.LimitReader(file, maxLogTail))
	return string(content), err
}
