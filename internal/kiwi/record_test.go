package kiwi

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestImageDigest(t *testing.T) {
	const id, registry = "sha256:" + sumA, "sha256:" + sumB
	for _, tc := range []struct{ name, image, answer, want, base string }{
		{"made here", "attestable-image-builder:1", `[{"Id":"` + id + `","RepoDigests":[],"Config":{"Labels":{"org.opencontainers.image.base.name":"debian:1"}}}]`, id, "debian:1"},
		{"podman", "builder", `[{"Id":"` + sumA + `"}]`, id, ""},
		{"pulled", "ghcr.io/a/b:1", `[{"Id":"` + id + `","RepoDigests":["ghcr.io/a/b@` + registry + `"]}]`, registry, ""},
		{"named by digest", "ghcr.io/a/b@" + registry, `[{"Id":"` + id + `","RepoDigests":["ghcr.io/a/b@` + registry + `","c/d@` + id + `"]}]`, registry, ""},
		// containerd's store gives an image that was made here a digest of its own.
		{"made here, containerd", "builder:1", `[{"Id":"` + id + `","RepoDigests":["builder@` + registry + `"],"Config":{"Labels":{"org.opencontainers.image.base.name":"debian:1"}}}]`, id, "debian:1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			digest, base, err := imageDigest(tc.answer, tc.image)
			if err != nil || digest != tc.want || base != tc.base {
				t.Errorf("it is %s on %q (%v), want %s", digest, base, err, tc.want)
			}
		})
	}
	for _, answer := range []string{"", "[]", "[{}]", "{", "[{},{}]", strings.Repeat(" ", maxInspectBytes+1)} {
		if _, _, err := imageDigest(answer, "x"); err == nil {
			t.Errorf("%.20q is taken", answer)
		}
	}
}

func TestBuilderPackages(t *testing.T) {
	packages, err := parseBuilderPackages([]byte("apt 3.0.4 amd64\nbash 5.2 amd64\n"))
	want := []BuilderPackage{{"apt", "3.0.4", "amd64"}, {"bash", "5.2", "amd64"}}
	if err != nil || !slices.Equal(packages, want) {
		t.Errorf("packages are %v (%v)", packages, err)
	}
	for _, list := range []string{"apt 3.0.4\n", "apt 3.0.4 amd64 more\n", strings.Repeat("a b c\n", maxBuilderPackages+1)} {
		if _, err := parseBuilderPackages([]byte(list)); err == nil {
			t.Errorf("%.20q is taken", list)
		}
	}
	if got := kiwiVersion("KIWI (next generation) version 10.3.9\n"); got != "10.3.9" {
		t.Errorf("KIWI's version is %q", got)
	}
	b := &Builder{Image: "a", Digest: "sha256:" + sumA, KIWI: "10.3.9", Packages: packages, Inputs: Inputs{SourceDateEpoch: 1764000000}}
	var again Builder
	if err := json.Unmarshal(b.format(), &again); err != nil || !reflect.DeepEqual(again.Inputs, b.Inputs) || !slices.Equal(again.Packages, packages) {
		t.Errorf("read again it is %+v (%v)", again, err)
	}
}
