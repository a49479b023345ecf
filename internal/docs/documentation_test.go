package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/org/attestable-image-action/internal/cli"
)

// pages are what is for users, by their paths in the repository.
func pages(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/reference/*.md", "docs/decisions/*.md", "examples/*.md", "kiwi-templates/*/README.md"} {
		paths, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			name, err := filepath.Rel(root, path)
			if err != nil {
				t.Fatal(err)
			}
			all[filepath.ToSlash(name)] = string(content)
		}
	}
	if len(all) < 10 {
		t.Fatalf("there are only %d pages", len(all))
	}
	return all
}

var (
	consoleBlock = regexp.MustCompile("(?s)```console\n(.*?)```")
	shellBlock   = regexp.MustCompile("(?s)```sh\n(.*?)```")
)

// commandLines are the simple commands of a page, as words: those behind the prompt
// of a block of console, and those of a block of sh.
func commandLines(t *testing.T, page string) [][]string {
	t.Helper()
	var list [][]string
	for _, block := range consoleBlock.FindAllStringSubmatch(page, -1) {
		for _, line := range typed(block[1]) {
			list = append(list, simpleCommands(t, line)...)
		}
	}
	for _, block := range shellBlock.FindAllStringSubmatch(page, -1) {
		list = append(list, simpleCommands(t, block[1])...)
	}
	return list
}

// typed are what is typed at the prompt of a console: lines that begin with "$ ", and
// what continues them behind a backslash or inside quotes.
func typed(block string) []string {
	var list []string
	open := false
	for line := range strings.Lines(block) {
		switch {
		case open:
			list[len(list)-1] += line
		case strings.HasPrefix(line, "$ "):
			list = append(list, strings.TrimPrefix(line, "$ "))
		default:
			continue
		}
		last := list[len(list)-1]
		open = strings.HasSuffix(last, "\\\n") || strings.Count(last, `"`)%2 == 1 || strings.Count(last, "'")%2 == 1
	}
	return list
}

// simpleCommands splits what a shell reads into commands of words, without their
// redirections; those of a substitution $(…) come as commands of their own.
func simpleCommands(t *testing.T, text string) [][]string {
	t.Helper()
	var list [][]string
	var words []string
	var word strings.Builder
	inWord := false
	endWord := func() {
		if inWord {
			words = append(words, word.String())
		}
		word.Reset()
		inWord = false
	}
	endCommand := func() {
		endWord()
		if words = withoutRedirections(words); len(words) > 0 {
			list = append(list, words)
		}
		words = nil
	}
	for i := 0; i < len(text); {
		switch c := text[i]; {
		case strings.HasPrefix(text[i:], "\\\n"):
			endWord()
			i += 2
			continue
		case c == '\\' && i+1 < len(text):
			word.WriteByte(text[i+1])
			inWord = true
			i += 2
			continue
		case c == '\'':
			end := strings.IndexByte(text[i+1:], '\'')
			if end < 0 {
				t.Fatalf("a quote does not end: %s", text)
			}
			word.WriteString(text[i+1 : i+1+end])
			inWord = true
			i += end + 2
			continue
		case strings.HasPrefix(text[i:], "$("), strings.HasPrefix(text[i:], "<("):
			end, depth := i+2, 1
			for ; end < len(text) && depth > 0; end++ {
				switch text[end] {
				case '(':
					depth++
				case ')':
					depth--
				}
			}
			if depth > 0 {
				t.Fatalf("a substitution does not end: %s", text)
			}
			list = append(list, simpleCommands(t, text[i+2:end-1])...)
			word.WriteString("SUBSTITUTED")
			inWord = true
			i = end
			continue
		case c == '"':
			// Inside, spaces are part of the word; substitutions are found by going on.
			end := i + 1
			for depth := 0; end < len(text) && (text[end] != '"' || depth > 0); end++ {
				switch text[end] {
				case '(':
					depth++
				case ')':
					depth--
				}
			}
			if end == len(text) {
				t.Fatalf("a quote does not end: %s", text)
			}
			inner := text[i+1 : end]
			for {
				from := strings.Index(inner, "$(")
				if from < 0 {
					break
				}
				to := from + strings.LastIndexByte(inner[from:], ')')
				list = append(list, simpleCommands(t, inner[from+2:to])...)
				inner = inner[:from] + "SUBSTITUTED" + inner[to+1:]
			}
			word.WriteString(inner)
			inWord = true
			i = end + 1
			continue
		case c == '#' && !inWord:
			end := strings.IndexByte(text[i:], '\n')
			if end < 0 {
				end = len(text) - i
			}
			i += end
			continue
		case c == '\n', c == ';', c == '|', c == '&':
			endCommand()
		case c == ' ', c == '\t':
			endWord()
		default:
			word.WriteByte(c)
			inWord = true
		}
		i++
	}
	endCommand()
	return list
}

var (
	redirection = regexp.MustCompile(`^[0-9]*[<>]{1,2}(.*)$`)
	assignment  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=`)
)

// withoutRedirections leaves out redirections, and assignments before the command.
func withoutRedirections(words []string) []string {
	var kept []string
	for i := 0; i < len(words); i++ {
		match := redirection.FindStringSubmatch(words[i])
		switch {
		case match != nil && match[1] == "":
			i++ // the file is the next word
		case match != nil:
		case len(kept) == 0 && assignment.MatchString(words[i]):
		default:
			kept = append(kept, words[i])
		}
	}
	return kept
}

func TestSimpleCommands(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"words", "a b  c", "[[a b c]]"},
		{"a pipe and a file", "a | b > file && c >>file 2>&1", "[[a] [b] [c] [1]]"},
		{"continued", "a \\\n  b", "[[a b]]"},
		{"quotes", `a "b c" 'd e'`, "[[a b c d e]]"},
		{"a substitution", `a "$(b c | d)" $(e (f))`, "[[b c] [d] [e (f)] [a SUBSTITUTED SUBSTITUTED]]"},
		{"a comment", "a # b\nc", "[[a] [c]]"},
		{"an assignment", "A=1 B='x y' c d=e", "[[c d=e]]"},
	} {
		if got := fmt.Sprint(simpleCommands(t, test.text)); got != test.want {
			t.Errorf("%s: %s, not %s", test.name, got, test.want)
		}
	}
}

// parse reads a command line of attestable-image as far as it goes without running it:
// there is the command, it has the flags, their values have the right kind, and it
// takes as many arguments.
func parse(command *cobra.Command, words []string) error {
	cmd, rest, err := command.Find(words)
	if err != nil {
		return err
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	if cmd.HasSubCommands() && cmd.HasParent() {
		return fmt.Errorf("%s needs a command behind it", cmd.CommandPath())
	}
	if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
		return err
	}
	return cmd.ValidateRequiredFlags()
}

func TestParse(t *testing.T) {
	for _, test := range []struct {
		line string
		good bool
	}{
		{"measure image.raw", true},
		{"measure --no-such image.raw", false},
		{"measure", false},
		{"boot image.raw --memory much", false},
		{"verify image.raw", false},
		{"verify artifact oci:x --repo a/b", true},
		{"frobnicate", false},
		{"--help", true},
	} {
		command, err := cli.Command(os.DirFS(root))
		if err != nil {
			t.Fatal(err)
		}
		if err := parse(command, strings.Fields(test.line)); (err == nil) != test.good && !strings.Contains(fmt.Sprint(err), "help requested") {
			t.Errorf("%s: %v", test.line, err)
		}
	}
}

// TestCommandsOfDocumentation holds that every command line of attestable-image in the
// documentation is one, and that what it runs of this repository is there.
func TestCommandsOfDocumentation(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for name, page := range pages(t) {
		for _, words := range commandLines(t, page) {
			program := words[0]
			switch {
			case program == "attestable-image" || program == "bin/attestable-image":
				program = "attestable-image"
				command, err := cli.Command(os.DirFS(root))
				if err != nil {
					t.Fatal(err)
				}
				command.InitDefaultHelpCmd()
				command.InitDefaultCompletionCmd()
				if err := parse(command, words[1:]); err != nil {
					t.Errorf("%s: %s: %v", name, strings.Join(words, " "), err)
				}
			case program == "make":
				for _, target := range words[1:] {
					if !strings.Contains(target, "=") && !strings.Contains("\n"+string(makefile), "\n"+target+":") {
						t.Errorf("%s: %s: the Makefile has no such target", name, strings.Join(words, " "))
					}
				}
			case strings.HasPrefix(program, "scripts/"), strings.HasPrefix(program, "bench/"):
				info, err := os.Stat(filepath.Join(root, program))
				if err != nil || info.Mode()&0o111 == 0 {
					t.Errorf("%s: %s cannot be run: %v", name, program, err)
				}
				program = "script"
			case program == "go" && len(words) > 2 && strings.HasPrefix(words[2], "./"):
				if _, err := os.Stat(filepath.Join(root, words[2])); err != nil {
					t.Errorf("%s: %s: %v", name, strings.Join(words, " "), err)
				}
			}
			seen[program]++
		}
	}
	if seen["attestable-image"] < 40 || seen["make"] < 2 || seen["go"] == 0 {
		t.Errorf("the documentation has only these commands: %v", seen)
	}
}

var (
	heading  = regexp.MustCompile(`(?m)^#{1,6} +(.+?)\s*$`)
	link     = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	anyBlock = regexp.MustCompile("(?s)```.*?```")
	nobodys  = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors are those that GitHub gives the headings of a page.
func anchors(page string) []string {
	var list []string
	for _, match := range heading.FindAllStringSubmatch(anyBlock.ReplaceAllString(page, ""), -1) {
		list = append(list, anchor(nobodys.ReplaceAllString(match[1], "")))
	}
	return list
}

// TestLinks holds that a link within the repository leads to something.
func TestLinks(t *testing.T) {
	all := pages(t)
	for name, page := range all {
		for _, match := range link.FindAllStringSubmatch(anyBlock.ReplaceAllString(page, ""), -1) {
			if strings.Contains(match[1], "://") {
				continue
			}
			target, fragment, _ := strings.Cut(match[1], "#")
			path := name
			if target != "" {
				path = filepath.ToSlash(filepath.Join(filepath.Dir(name), target))
			}
			if _, err := os.Stat(filepath.Join(root, path)); err != nil {
				t.Errorf("%s links to %s: %v", name, match[1], err)
				continue
			}
			linked, isPage := all[path]
			if fragment != "" && isPage && !slices.Contains(anchors(linked), fragment) {
				t.Errorf("%s links to %s, and there is no such heading", name, match[1])
			}
		}
	}
}

// TestMessagesAreSaid holds that the program still says each message of the page on
// troubleshooting: its fixed parts stand in the code.
func TestMessagesAreSaid(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "docs", "troubleshooting.md"))
	if err != nil {
		t.Fatal(err)
	}
	var code strings.Builder
	for _, dir := range []string{"internal", "nitrotpm", "scripts"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, entry os.DirEntry, err error) error {
			if err != nil || entry.IsDir() || strings.HasSuffix(path, "_test.go") {
				return err
			}
			if filepath.Ext(path) != ".go" && dir != "scripts" {
				return nil
			}
			content, err := os.ReadFile(path)
			code.Write(content)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	said := strings.ReplaceAll(code.String(), `\"`, `"`)
	messages := regexp.MustCompile("(?m)^### `(.+)`( \\(of [A-Za-z]+\\))?$").FindAllStringSubmatch(string(page), -1)
	if len(messages) < 40 || len(messages) != strings.Count(string(page), "\n### ") {
		t.Errorf("%d messages are told under %d headings", len(messages), strings.Count(string(page), "\n### "))
	}
	for _, message := range messages {
		if message[2] != "" {
			continue // another program says it
		}
		fixed := 0
		for part := range strings.SplitSeq(message[1], "…") {
			for piece := range strings.SplitSeq(part, ": ") {
				if piece = strings.Trim(piece, " :;,()`"); len(piece) < 8 {
					continue
				}
				fixed += len(piece)
				if !strings.Contains(said, piece) {
					t.Errorf("nothing says %q of %q", piece, message[1])
				}
			}
		}
		if fixed < 14 {
			t.Errorf("%q has no fixed part that could be looked for", message[1])
		}
	}
}
