// Command docs writes what documentation can be derived from the code: the pages of
// docs/reference, and with -man the manual pages of attestable-image.
//
//	go run ./internal/docs
//	go run ./internal/docs -man DIR
//
// It runs in the repository's root.
package main

//go:generate go run . -C ../..

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/org/attestable-image-action/internal/cli"
)

// notice begins each page.
const notice = "<!-- Made from the code by `make docs`: change that, and make it anew. -->\n\n"

func main() {
	root := flag.String("C", ".", "repository's root")
	man := flag.String("man", "", "write manual pages into this directory instead")
	flag.Parse()
	if err := write(*root, *man); err != nil {
		fmt.Fprintf(os.Stderr, "docs: %v\n", err)
		os.Exit(1)
	}
}

func write(root, man string) error {
	dir, files, err := filepath.Join(root, "docs", "reference"), map[string]string(nil), error(nil)
	if man != "" {
		dir = man
		files, err = manual(root)
	} else {
		files, err = reference(root)
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // for everybody to read
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil { //nolint:gosec // likewise
			return err
		}
	}
	return nil
}

// reference returns the pages of docs/reference by their names.
func reference(root string) (map[string]string, error) {
	command, err := cli.Command(os.DirFS(root))
	if err != nil {
		return nil, err
	}
	actions, err := actionsPage(root)
	if err != nil {
		return nil, err
	}
	formats, err := formatsPage(root)
	if err != nil {
		return nil, err
	}
	return map[string]string{"commands.md": commandsPage(command), "actions.md": actions, "formats.md": formats, "hostile-inputs.md": hostilePage()}, nil
}
