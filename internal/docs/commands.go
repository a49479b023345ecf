package main

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// described are the commands of a tree that have a description, in its order:
// those that do something themselves, without help and shells' completion.
func described(root *cobra.Command) []*cobra.Command {
	var list []*cobra.Command
	for _, cmd := range root.Commands() {
		if !cmd.IsAvailableCommand() {
			continue
		}
		if cmd.HasSubCommands() {
			list = append(list, described(cmd)...)
			continue
		}
		list = append(list, cmd)
	}
	return list
}

// usageLine is the command with its arguments, which options come after.
func usageLine(cmd *cobra.Command) string {
	if cmd.HasParent() {
		return cmd.Parent().CommandPath() + " " + cmd.Use
	}
	return cmd.Use
}

// option is a flag as a page tells it.
type option struct {
	name, value, standard, meaning string
}

// options are the flags that a command has of its own, sorted.
func options(flags *pflag.FlagSet) []option {
	var list []option
	flags.VisitAll(func(flag *pflag.Flag) {
		if flag.Name == "help" || flag.Hidden {
			return
		}
		o := option{name: "--" + flag.Name}
		if flag.Shorthand != "" {
			o.name = "-" + flag.Shorthand + ", " + o.name
		}
		o.value, o.meaning = pflag.UnquoteUsage(flag)
		switch flag.DefValue {
		case "", "false", "0", "[]", "0s":
		default:
			o.standard = flag.DefValue
		}
		list = append(list, o)
	})
	return list
}

// paragraph is a part of a help text between blank lines: words, or lines that keep
// their form since all of them are indented.
type paragraph struct {
	text     string
	verbatim bool
}

func paragraphs(help string) []paragraph {
	var list []paragraph
	for part := range strings.SplitSeq(strings.TrimRight(help, "\n"), "\n\n") {
		if part = strings.Trim(part, "\n"); part == "" {
			continue
		}
		verbatim := true
		lines := strings.Split(part, "\n")
		for _, line := range lines {
			verbatim = verbatim && strings.HasPrefix(line, "  ")
		}
		if !verbatim {
			list = append(list, paragraph{text: part})
			continue
		}
		list = append(list, paragraph{text: outdent(lines), verbatim: true})
	}
	return list
}

// outdent takes the two spaces off that begin each line of an example.
func outdent(lines []string) string {
	out := make([]string, 0, len(lines))
	for _, line := range lines {
		out = append(out, strings.TrimPrefix(line, "  "))
	}
	return strings.Join(out, "\n")
}

var (
	markdownSpecial = strings.NewReplacer(`\`, `\\`, "`", "\\`", "*", `\*`, "_", `\_`, "<", `\<`, "[", `\[`, "]", `\]`, "|", `\|`)
	longFlag        = regexp.MustCompile(`(^|[\s(])(--[A-Za-z][A-Za-z-]*[A-Za-z])`)
)

// markdown is plain text as Markdown, with flags as code.
func markdown(text string) string {
	var out strings.Builder
	last := 0
	for _, at := range longFlag.FindAllStringSubmatchIndex(text, -1) {
		out.WriteString(markdownSpecial.Replace(text[last:at[4]]))
		fmt.Fprintf(&out, "`%s`", text[at[4]:at[5]])
		last = at[5]
	}
	out.WriteString(markdownSpecial.Replace(text[last:]))
	return out.String()
}

// cell is a word of a program in a table.
func cell(text string) string {
	if text == "" {
		return ""
	}
	return "`" + strings.ReplaceAll(text, "|", `\|`) + "`"
}

// anchor is the one that GitHub gives a heading of letters, spaces and hyphens.
func anchor(heading string) string { return strings.ReplaceAll(strings.ToLower(heading), " ", "-") }

// commandsPage is docs/reference/commands.md.
func commandsPage(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString(notice + "# Commands\n\n")
	writeParagraphs(&b, root.Long)
	b.WriteString("| command | what it does |\n|---|---|\n")
	commands := described(root)
	for _, cmd := range commands {
		name := strings.TrimPrefix(cmd.CommandPath(), root.Name()+" ")
		fmt.Fprintf(&b, "| [`%s`](#%s) | %s |\n", name, anchor(name), markdown(cmd.Short))
	}
	b.WriteString("\nEvery command has `--help`, and:\n\n")
	writeOptions(&b, options(root.PersistentFlags()))
	for _, cmd := range commands {
		fmt.Fprintf(&b, "\n## %s\n\n%s.\n\n", strings.TrimPrefix(cmd.CommandPath(), root.Name()+" "), markdown(cmd.Short))
		fmt.Fprintf(&b, "```text\n%s [flags]\n```\n\n", usageLine(cmd))
		writeParagraphs(&b, cmd.Long)
		if cmd.Example != "" {
			fmt.Fprintf(&b, "```sh\n%s\n```\n\n", outdent(strings.Split(cmd.Example, "\n")))
		}
		writeOptions(&b, options(cmd.LocalNonPersistentFlags()))
	}
	b.WriteString(`
## completion

Prints what makes a shell complete commands, flags and their values: ` + "`completion bash`,\n`completion zsh`, `completion fish` or `completion powershell`; each has `--help`" + ` that says
where it goes.

`)
	b.WriteString("```sh\nsource <(attestable-image completion bash)\n```\n\n" + environment)
	return b.String()
}

// environment tells the variables that the program reads by itself.
// TestEnvironmentIsTold compares it with the code.
const environment = `## Environment

| variable | what it does |
|---|---|
| ` + "`SOURCE_DATE_EPOCH`" + ` | time of an image, an artifact and a bill of materials, in seconds since 1970 |
| ` + "`ATTESTABLE_IMAGE_CACHE`" + ` | directory for what is kept between builds (default: ` + "`attestable-image`" + ` in the user's cache) |
| ` + "`ATTESTABLE_IMAGE_TIMES`" + ` | file to which each command adds how long it took, a line of JSON; the actions summarize it |
| ` + "`GITHUB_TOKEN`, `ATTESTABLE_IMAGE_GITHUB_TOKEN`, `GH_TOKEN`" + ` | token for GitHub and ghcr.io, the first that is set; it goes to the GitHub that the job runs on, outside of a job to GH_HOST or else github.com, and nowhere else |
| ` + "`GH_HOST`" + ` | host of GitHub that the token is of, outside of a job; github.com without it |
| ` + "`GIT_CEILING_DIRECTORIES`" + ` | directories that the search for a work tree of git does not go up into, as for git |
| ` + "`GITHUB_SERVER_URL`, `GITHUB_API_URL`" + ` | the GitHub that is meant when nothing names one |
| ` + "`COLUMNS`" + ` | width of tables, when standard output is no terminal |
| ` + "`PIP_INDEX_URL`" + ` | where KIWI NG's source is fetched from for the builder |
| ` + "`JOURNAL_STREAM`, `LISTEN_FDS`, `LISTEN_PID`" + ` | of systemd: whether standard output is the journal, which gets no secret; the socket of ` + "`serve`" + ` |
| ` + "`GITHUB_ACTIONS`" + ` and others that begin with GITHUB, RUNNER, ACTIONS or INPUT | of a job of GitHub Actions: outputs, summary, identity |

Credentials of registries are those of ` + "`docker login`" + ` (` + "`DOCKER_CONFIG`" + `), those of AWS the
ones that AWS's tools take; HTTPS_PROXY and NO_PROXY are heeded.
`

func writeParagraphs(b *strings.Builder, help string) {
	for _, p := range paragraphs(help) {
		if p.verbatim {
			fmt.Fprintf(b, "```text\n%s\n```\n\n", p.text)
			continue
		}
		fmt.Fprintf(b, "%s\n\n", markdown(p.text))
	}
}

func writeOptions(b *strings.Builder, list []option) {
	if len(list) == 0 {
		b.WriteString("It has no flags.\n")
		return
	}
	b.WriteString("| flag | value | default | meaning |\n|---|---|---|---|\n")
	for _, o := range list {
		fmt.Fprintf(b, "| %s | %s | %s | %s |\n", cell(o.name), cell(o.value), cell(o.standard), markdown(o.meaning))
	}
}
