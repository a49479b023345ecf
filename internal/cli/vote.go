package cli

import (
	"context"
	"slices"

	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/attest"
)

// maxBuilders bounds the builders that can be named: GitHub is asked about each.
const maxBuilders = 50

// voting reports whether builders beside the signer are asked for.
func (f *verifyFlags) voting() bool { return len(f.builders) > 0 || f.requireBuilders != 0 }

// namedBuilders reads --builder.
func (f *verifyFlags) namedBuilders() ([]attest.Builder, error) {
	if len(f.builders) > maxBuilders {
		return nil, usagef("there are more than %d of --builder", maxBuilders)
	}
	builders := make([]attest.Builder, len(f.builders))
	for i, text := range f.builders {
		var err error
		if builders[i], err = attest.ParseBuilder(text); err != nil {
			return nil, usageError{err}
		}
	}
	return builders, nil
}

// vote counts the builders that attest what the verdict says is attested. Each keeps
// its attestations with its own repository, unless somebody put them beside the
// artifact or into the file.
func (f *verifyFlags) vote(ctx context.Context, trust *attest.Trust, expected attest.Expectation, verdict *attest.Verdict, ref artifact.Reference) error {
	required := f.requireBuilders
	if required == 0 {
		required = 1 + len(f.builders)
	}
	builders, err := f.namedBuilders()
	if err != nil {
		return err
	}
	sources, err := f.sources(ref, expected)
	if err != nil {
		return err
	}
	// With the signer's repository GitHub keeps what the signer said.
	sources = slices.DeleteFunc(sources, func(s attest.Source) bool { return s.Name == gitHubName })
	own := func(b attest.Builder) []attest.Source {
		if f.bundle != "" || f.bundleFrom == "registry" {
			return nil
		}
		return []attest.Source{{
			Name: gitHubName,
			Fetch: func(ctx context.Context) ([]attest.Candidate, error) {
				return gitHubAt(expected.Host).Bundles(ctx, b.Repository, ref.Digest.Hex)
			},
		}}
	}
	return verdict.Vote(ctx, trust, expected, ref.Digest.Hex, required, builders, sources, own)
}
