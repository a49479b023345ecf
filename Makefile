# attestable-image: the commands that a developer and a newcomer need.
#   make demo   build, measure, publish, attest, verify and boot an image
#   make test   every test, with all the real parts they run beside
# Both set up what is missing on a fresh Debian or Ubuntu machine with Go.

SHELL := /bin/bash
TOOLS := $(shell scripts/tools --path)
FUZZTIME ?= 20s

.PHONY: all build demo test check lint fuzz bench docs man setup tools clean

all: build

build:
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags='-s -w' -o bin/attestable-image .

setup:
	scripts/setup

tools:
	scripts/tools
	scripts/python-tools

demo: setup build
	scripts/demo

# The quick half: formatting, static analysis, and the tests that need only Go.
check: tools
	scripts/check

# Every test. A test whose real part is missing fails here instead of skipping.
test: setup check
	scripts/node-tools
	ATTESTABLE_IMAGE_REQUIRE=1 PATH="$(TOOLS):$$PATH:/usr/sbin:/sbin" go test -timeout 60m ./...

lint: tools
	$(TOOLS)/golangci-lint run ./...

# Every fuzz target for FUZZTIME each.
fuzz:
	scripts/fuzz $(FUZZTIME)

bench:
	go test -run '^$$' -bench . -benchmem ./...

# The pages of docs/reference, which a test holds against the code.
docs:
	go run ./internal/docs

# The manual pages, in out/man.
man:
	go run ./internal/docs -man out/man

clean:
	rm -rf bin out
