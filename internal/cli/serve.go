package cli

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/spf13/cobra"

	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/server"
)

func newServeCommand(a *app) *cobra.Command {
	var listen, measurements, device string
	config := server.Config{}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Inside the instance: prove to clients over HTTPS which image it booted",
		Long: `Serve attestation documents of this instance's NitroTPM over HTTPS; verify
instance is the client.

  POST /v1/attestation    {"nonce": "…", "user_data": "…"}, both in base64
  GET  /v1/measurements   the file of --measurements
  GET  /healthz

The TLS key is made at start and stays in memory. Its public key is public_key in
each document: the session of a client that finds it there ends in this instance.
A caller cannot have a public_key of its own in a document, since AWS KMS would
encrypt to it whatever this instance may decrypt.

A socket that systemd passes is used instead of --listen. The log goes to standard
error, one JSON object a line.`,
		Example: `  attestable-image serve --listen :8443
  attestable-image serve --measurements /usr/share/image/measurements.json`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("%q is one argument too many: serve takes flags only", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if config.Rate <= 0 || config.Burst < 1 || config.Queue < 1 || config.Connections < 1 {
				return usagef("--rate, --burst, --queue and --connections are positive numbers")
			}
			if measurements != "" {
				content, err := readBounded(measurements, maxMeasurements)
				if err != nil {
					return fmt.Errorf("read measurements: %w", err)
				}
				if _, err := measure.ParseDocument(content); err != nil {
					return fmt.Errorf("%s: %w", measurements, err)
				}
				config.Measurements = content
			}
			config.OpenTPM = func(ctx context.Context) (transport.TPMCloser, error) { return a.openTPM(ctx, device) }
			config.Log = slog.New(slog.NewJSONHandler(a.stderr, nil))
			listener, err := server.Activated()
			if err != nil {
				return err
			}
			if listener == nil {
				var c net.ListenConfig
				if listener, err = c.Listen(cmd.Context(), "tcp", listen); err != nil {
					return fmt.Errorf("serve: %w", err)
				}
			}
			s, err := server.New(config)
			if err != nil {
				return err
			}
			config.Log.Info("serving", "address", listener.Addr().String(), "public_key", hex.EncodeToString(s.PublicKey()))
			return s.Serve(cmd.Context(), listener)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&listen, "listen", ":8443", "`ADDRESS` to listen on, unless systemd passes a socket")
	flags.StringVar(&measurements, "measurements", "", "`FILE` to answer GET /v1/measurements with")
	flags.StringVar(&device, "device", "", "the TPM's device (default /dev/tpmrm0, or /dev/tpm0)")
	flags.Float64Var(&config.Rate, "rate", 20, "how many documents a second are made at most")
	flags.IntVar(&config.Burst, "burst", 40, "how many documents may be asked for at once before --rate counts")
	flags.IntVar(&config.Queue, "queue", 32, "how many requests may wait for the TPM")
	flags.IntVar(&config.Connections, "connections", 512, "how many connections may be open")
	return cmd
}
