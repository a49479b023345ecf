// Package gha speaks with the GitHub Actions runner: step outputs, the step
// summary, annotations, log groups, masks, and the tokens of the job. Outside
// of Actions nothing is written anywhere.
//
// It follows GitHub's "Workflow commands for GitHub Actions" and "OpenID
// Connect reference".
package gha

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/sethvargo/go-githubactions"
)

// outputDelimiter ends a value in the file of outputs; go-githubactions uses
// this one for every value.
const outputDelimiter = "_GitHubActionsFileCommandDelimeter_"

// Enabled reports whether this process is a step of a workflow's job.
func Enabled() bool { return os.Getenv("GITHUB_ACTIONS") == "true" }

// SetOutput sets an output of the step to value, which may have many lines. It
// does nothing outside of Actions.
func SetOutput(name, value string) error {
	if !Enabled() {
		return nil
	}
	if strings.Contains(value, outputDelimiter) || strings.ContainsAny(name, "\r\n<=") || name == "" {
		return fmt.Errorf("set the step's output %q: the name or the value would forge other outputs", name)
	}
	if os.Getenv("GITHUB_OUTPUT") == "" {
		return fmt.Errorf("set the step's output %q: GITHUB_OUTPUT is not set: run the command in a step, not in a container that hides the runner's files", name)
	}
	if err := caught(func() { githubactions.New(githubactions.WithWriter(io.Discard)).SetOutput(name, value) }); err != nil {
		return fmt.Errorf("set the step's output %q: %w", name, err)
	}
	return nil
}

// maxSummary is what GitHub takes as one step's summary, in bytes.
const maxSummary = 1 << 20

// AddSummary adds Markdown to the step's summary. It does nothing outside of
// Actions.
func AddSummary(markdown string) error {
	if !Enabled() {
		return nil
	}
	if len(markdown) > maxSummary {
		return fmt.Errorf("write the step's summary: it has %d bytes, and GitHub takes %d", len(markdown), maxSummary)
	}
	if os.Getenv("GITHUB_STEP_SUMMARY") == "" {
		return errors.New("write the step's summary: GITHUB_STEP_SUMMARY is not set: run the command in a step, not in a container that hides the runner's files")
	}
	if err := caught(func() { githubactions.New(githubactions.WithWriter(io.Discard)).AddStepSummary(markdown) }); err != nil {
		return fmt.Errorf("write the step's summary: %w", err)
	}
	return nil
}

// Group folds what is printed to w until end is called, on Actions; elsewhere
// the title is a line of its own. It is for the output of other programs: the
// runner takes nothing in it for a command, also none of this package's.
func Group(w io.Writer, title string) (end func()) {
	if !Enabled() {
		fmt.Fprintln(w, title)
		return func() {}
	}
	// A log that cannot be written is no reason to stop, so nothing is
	// reported here or below.
	command(w, func(a *githubactions.Action) { a.Group(title) })
	resume := strings.ToLower(rand.Text()) // nobody else can know it
	fmt.Fprintf(w, "::stop-commands::%s\n", resume)
	return func() {
		fmt.Fprintf(w, "::%s::\n", resume)
		command(w, func(a *githubactions.Action) { a.EndGroup() })
	}
}

// Place is a line of a file that an annotation is about. The zero Place is none.
type Place struct {
	File string // relative to the top of the repository, with slashes
	Line int    // from 1; 0 when the file as a whole is meant
}

// Error prints an annotation that shows on the run's page as an error. It does
// nothing outside of Actions.
func Error(w io.Writer, title, message string) { ErrorAt(w, Place{}, title, message) }

// ErrorAt is Error that also shows at a place in the files of the commit.
func ErrorAt(w io.Writer, at Place, title, message string) {
	command(w, func(a *githubactions.Action) {
		a.WithFieldsMap(fields(title, at)).Errorf("%s", message)
	})
}

// Warning is Error for a warning.
func Warning(w io.Writer, title, message string) { WarningAt(w, Place{}, title, message) }

// WarningAt is ErrorAt for a warning.
func WarningAt(w io.Writer, at Place, title, message string) {
	command(w, func(a *githubactions.Action) {
		a.WithFieldsMap(fields(title, at)).Warningf("%s", message)
	})
}

// fields are the properties of an annotation.
func fields(title string, at Place) map[string]string {
	fields := map[string]string{"title": title}
	if at.File != "" {
		fields["file"] = at.File
		if at.Line > 0 {
			fields["line"] = strconv.Itoa(at.Line)
		}
	}
	return fields
}

// Token is the token for GitHub's API and for ghcr.io, or "" when there is
// none: that of the job, or one that a person exported.
func Token() string {
	for _, name := range []string{"GITHUB_TOKEN", "INPUT_GITHUB-TOKEN", "ATTESTABLE_IMAGE_GITHUB_TOKEN", "GH_TOKEN"} {
		if token := strings.TrimSpace(os.Getenv(name)); token != "" {
			return token
		}
	}
	return ""
}

// command issues a workflow command on w, on Actions only.
func command(w io.Writer, issue func(*githubactions.Action)) {
	if !Enabled() {
		return
	}
	_ = caught(func() { issue(githubactions.New(githubactions.WithWriter(w))) }) // the log is gone, and with it who would read of it
}

// caught calls f and returns what it panicked with: that is how
// go-githubactions reports that it cannot write.
func caught(f func()) (err error) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case error:
			err = p
		default:
			panic(p)
		}
	}()
	f()
	return nil
}
