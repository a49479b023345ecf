package kiwi

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestIdentifyImage(t *testing.T) {
	const id, registry = "sha256:" + sumA, "sha256:" + sumB
	label := `"Config":{"Labels":{"org.opencontainers.image.base.name":"debian:1"}}`
	for _, tc := range []struct {
		name, image, answer string
		want                Builder
	}{
		{"made here", "attestable-image-builder:1", `[{"Id":"` + id + `","RepoDigests":[],` + label + `}]`, Builder{ID: id, Base: "debian:1"}},
		{"podman", "builder", `[{"Id":"` + sumA + `"}]`, Builder{ID: id}},
		{"pulled", "ghcr.io/a/b:1", `[{"Id":"` + id + `","RepoDigests":["ghcr.io/a/b@` + registry + `"]}]`, Builder{Digest: registry}},
		{"named by digest", "ghcr.io/a/b@" + registry, `[{"Id":"` + id + `","RepoDigests":["ghcr.io/a/b@` + registry + `","c/d@` + id + `"]}]`, Builder{Digest: registry}},
		{"made here and pushed", "ghcr.io/a/b@" + registry, `[{"Id":"` + id + `","RepoDigests":["ghcr.io/a/b@` + registry + `"],` + label + `}]`, Builder{Digest: registry, Base: "debian:1"}},
		// containerd's store gives an image that was made here a digest of its own.
		{"made here, containerd", "builder:1", `[{"Id":"` + id + `","RepoDigests":["builder@` + registry + `"],` + label + `}]`, Builder{ID: id, Base: "debian:1"}},
		{"made here of nothing known, containerd", "attestable-image-builder:1", `[{"Id":"` + id + `","RepoDigests":["attestable-image-builder@` + registry + `"]}]`, Builder{ID: id}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.want.Image = tc.image
			if got, err := identifyImage(tc.answer, tc.image); err != nil || !reflect.DeepEqual(*got, tc.want) {
				t.Errorf("it is %+v (%v), want %+v", got, err, tc.want)
			}
		})
	}
	for _, answer := range []string{"", "[]", "[{}]", "{", "[{},{}]", strings.Repeat(" ", maxInspectBytes+1)} {
		if _, err := identifyImage(answer, "x"); err == nil {
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
	if keys, err := parseBuilderPackages([]byte("gpg-pubkey d832c631-6515c85e (none)\n")); err != nil || keys[0].Architecture != "(none)" {
		t.Errorf("rpm's keys are %v (%v)", keys, err)
	}
	for _, list := range []string{
		"apt 3.0.4\n", "apt 3.0.4 amd64 more\n", strings.Repeat("a b c\n", maxBuilderPackages+1),
		"TOKEN=s3cret s3cret s3cret\n", "a\x00s3cret 1 amd64\n", "a 1 s3cret/\n", strings.Repeat("a", 256) + " 1 amd64\n",
	} {
		if _, err := parseBuilderPackages([]byte(list)); err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%.20q: %v", list, err)
		}
	}
	if got, err := kiwiVersion("KIWI (next generation) version 10.3.9\n"); err != nil || got != "10.3.9" {
		t.Errorf("KIWI's version is %q (%v)", got, err)
	}
	for _, text := range []string{"", "version s3cret", "version 10", "version 1.2.3\x00s3cret", "version " + strings.Repeat("1.", 9) + "1"} {
		if got, err := kiwiVersion(text); err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("KIWI's version of %q is %q (%v)", text, got, err)
		}
	}
	b := &Builder{Image: "a", Digest: "sha256:" + sumA, KIWI: "10.3.9", Packages: packages, Inputs: Inputs{SourceDateEpoch: 1764000000}}
	var again Builder
	if err := json.Unmarshal(b.format(), &again); err != nil || !reflect.DeepEqual(again.Inputs, b.Inputs) || !slices.Equal(again.Packages, packages) {
		t.Errorf("read again it is %+v (%v)", again, err)
	}
}
