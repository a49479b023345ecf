package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/org/attestable-image-action/internal/cli"
)

// manual returns the manual pages by their names, in the macros of man(7).
func manual(root string) (map[string]string, error) {
	command, err := cli.Command(os.DirFS(root))
	if err != nil {
		return nil, err
	}
	pages := map[string]string{command.Name() + ".1": mainPage(command)}
	for _, cmd := range described(command) {
		pages[manName(cmd)+".1"] = manPage(cmd)
	}
	return pages, nil
}

// manName is the name of a command's page: attestable-image-verify-artifact.
func manName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// roff escapes text for man(7): hyphens stay hyphens, and no line is a macro.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}

// manHead begins a page. It has no date: the same source makes the same pages.
func manHead(name, short string) string {
	return fmt.Sprintf(".TH \"%s\" \"1\" \"\" \"attestable\\-image\" \"User Commands\"\n.SH NAME\n%s \\- %s\n", roff(strings.ToUpper(name)), roff(name), roff(short))
}

func manText(b *strings.Builder, help string) {
	for i, p := range paragraphs(help) {
		if i > 0 {
			b.WriteString(".PP\n")
		}
		if p.verbatim {
			fmt.Fprintf(b, ".RS 4\n.nf\n%s\n.fi\n.RE\n", roff(p.text))
			continue
		}
		fmt.Fprintf(b, "%s\n", roff(p.text))
	}
}

func manOptions(b *strings.Builder, list []option) {
	for _, o := range list {
		fmt.Fprintf(b, ".TP\n\\fB%s\\fR", roff(o.name))
		if o.value != "" {
			fmt.Fprintf(b, " \\fI%s\\fR", roff(o.value))
		}
		meaning := o.meaning
		if o.standard != "" {
			meaning += " (default " + o.standard + ")"
		}
		fmt.Fprintf(b, "\n%s\n", roff(meaning))
	}
}

const manStatus = `.SH EXIT STATUS
.TP
.B 0
done, and true
.TP
.B 1
it failed, or does not verify
.TP
.B 2
the command line is wrong
`

func manPage(cmd *cobra.Command) string {
	var b strings.Builder
	b.WriteString(manHead(manName(cmd), cmd.Short))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n\\fB%s\\fR", roff(cmd.CommandPath()))
	if _, arguments, ok := strings.Cut(cmd.Use, " "); ok {
		b.WriteString(" " + roff(arguments))
	}
	b.WriteString(" [\\fIflags\\fR]\n.SH DESCRIPTION\n")
	manText(&b, cmd.Long)
	b.WriteString(".SH OPTIONS\n")
	manOptions(&b, options(cmd.LocalNonPersistentFlags()))
	manOptions(&b, options(cmd.Root().PersistentFlags()))
	if cmd.Example != "" {
		fmt.Fprintf(&b, ".SH EXAMPLES\n.nf\n%s\n.fi\n", roff(outdent(strings.Split(cmd.Example, "\n"))))
	}
	b.WriteString(manStatus)
	fmt.Fprintf(&b, ".SH SEE ALSO\n.BR %s (1)\n", roff(cmd.Root().Name()))
	return b.String()
}

func mainPage(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString(manHead(root.Name(), root.Short))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n\\fB%s\\fR \\fIcommand\\fR [\\fIarguments\\fR] [\\fIflags\\fR]\n.SH DESCRIPTION\n", roff(root.Name()))
	manText(&b, root.Long)
	b.WriteString(".SH COMMANDS\n")
	for _, cmd := range described(root) {
		fmt.Fprintf(&b, ".TP\n.BR %s (1)\n%s\n", roff(manName(cmd)), roff(cmd.Short))
	}
	b.WriteString(".SH OPTIONS\n")
	manOptions(&b, options(root.PersistentFlags()))
	b.WriteString(manStatus)
	return b.String()
}
