// Command attestable-image builds, measures, publishes and verifies attestable
// virtual-machine images.
package main

import (
	"context"
	"embed"
	"os"
	"os/signal"
	"syscall"

	"github.com/org/attestable-image-action/internal/cli"
)

//go:embed all:kiwi-templates
var templates embed.FS

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := cli.Main(ctx, os.Args[1:], templates)
	stop()
	os.Exit(status)
}
