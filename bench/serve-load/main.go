// Command serve-load is what bench/serve.sh measures the service with.
//
//	serve-load tpm SWTPM ADDRESS ROOT   an emulated NitroTPM in front of swtpm
//	serve-load peer ADDRESS KIND PROGRAM DEVICE
//	                                    the service that starts a process for each request
//	serve-load load [flags] URL         many requests, and what became of them
//
// Each says in its own file what it does.
package main

import (
	"fmt"
	"os"
)

func main() {
	commands := map[string]func([]string) error{"tpm": runTPM, "peer": runPeer, "load": runLoad}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: serve-load tpm|peer|load ...")
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "serve-load %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}
