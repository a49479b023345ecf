package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/gha"
)

// attestationStore is a place where attestations are kept.
type attestationStore struct {
	name string
	// fetch reads what it holds of the artifact, of the given predicates.
	fetch func(ctx context.Context, predicates []string) ([]attest.Candidate, error)
	// put adds attestations, and returns where each of them is.
	put func(ctx context.Context, attestations []*attestation) ([]string, error)
	// again is where what it holds already can be seen.
	again string
}

// gitHubName is the store whose numbers the action hands on.
const gitHubName = "GitHub"

// stores are the places for the attestations of an artifact, in the order in
// which they are filled.
func (j *job) stores(ctx context.Context, f attestFlags, ref artifact.Reference) ([]attestationStore, error) {
	var stores []attestationStore
	if j.repository != "" {
		stores = append(stores, attestationStore{
			name:  gitHubName,
			again: j.page(""),
			fetch: func(ctx context.Context, _ []string) ([]attest.Candidate, error) {
				return j.github.Bundles(ctx, j.repository, ref.Digest.Hex)
			},
			put: func(ctx context.Context, attestations []*attestation) ([]string, error) {
				var places []string
				for _, a := range attestations {
					id, err := j.github.Store(ctx, j.repository, a.bundle)
					if err != nil {
						return nil, err
					}
					a.id = id
					places = append(places, j.page(id))
				}
				return places, nil
			},
		})
	}
	if f.rebuilt != "" {
		return stores, nil // the place of the artifact is somebody else's
	}
	beside := attestationStore{
		name:  "the registry",
		again: "beside " + ref.String(),
		fetch: func(ctx context.Context, predicates []string) ([]attest.Candidate, error) {
			return fetchReferrers(ctx, ref, predicates)
		},
		put: func(ctx context.Context, attestations []*attestation) ([]string, error) {
			referrers := make([]artifact.Referrer, len(attestations))
			for i, a := range attestations {
				referrers[i] = artifact.Referrer{Blob: a.bundle, Annotations: attest.Annotations(a.predicateType, time.Now())}
			}
			digests, err := artifact.PutReferrers(ctx, ref, attest.BundleMediaType, referrers)
			if err != nil {
				return nil, fmt.Errorf("store the attestations beside the artifact: %w", err)
			}
			var places []string
			for _, digest := range digests {
				places = append(places, ref.WithDigest(digest).String())
			}
			return places, nil
		},
	}
	if ref.IsLayout() {
		beside.name = "the layout"
	}
	stores = append(stores, beside)
	if f.release != "" {
		release, err := j.releaseStore(ctx, f.release, ref)
		if err != nil {
			return nil, err
		}
		stores = append(stores, release)
	}
	return stores, nil
}

// page is GitHub's page of an attestation, or of all where the number is unknown.
func (j *job) page(id string) string {
	all := j.host.Server + "/" + j.repository + "/attestations"
	if id == "" {
		return all
	}
	return all + "/" + id
}

// releaseStore is a file among the assets of the release with a tag.
func (j *job) releaseStore(ctx context.Context, tag string, ref artifact.Reference) (attestationStore, error) {
	name := fmt.Sprintf("attestations-%.12s.jsonl", ref.Digest.Hex)
	file, err := j.github.ReleaseFile(ctx, j.repository, tag, name)
	if err != nil {
		return attestationStore{}, err
	}
	place := j.host.Server + "/" + j.repository + "/releases/tag/" + tag + " (" + name + ")"
	return attestationStore{
		name:  "the release " + tag,
		again: place,
		fetch: func(context.Context, []string) ([]attest.Candidate, error) { return file.Candidates() },
		put: func(ctx context.Context, attestations []*attestation) ([]string, error) {
			bundles := make([][]byte, len(attestations))
			for i, a := range attestations {
				bundles[i] = a.bundle
			}
			if err := file.Add(ctx, bundles...); err != nil {
				return nil, err
			}
			return slices.Repeat([]string{place}, len(attestations)), nil
		},
	}, nil
}

// findExisting looks in every store for attestations that say the same already,
// whatever run made them, and takes over their bundles.
func (j *job) findExisting(ctx context.Context, stores []attestationStore, attestations []*attestation) error {
	predicates := make([]string, len(attestations))
	for i, a := range attestations {
		predicates[i] = a.predicateType
		a.stored = make([]bool, len(stores))
	}
	for i, store := range stores {
		candidates, err := store.fetch(ctx, predicates)
		if err != nil {
			return fmt.Errorf("look for attestations that are stored already: %w", err)
		}
		for _, a := range attestations {
			if bundle, ok := j.signer.Existing(candidates, a.statement, j.author); ok {
				a.stored[i] = true
				if a.bundle == nil {
					a.bundle, a.reused = bundle, true
				}
			}
		}
	}
	return nil
}

// sign signs those that no store has.
func (j *job) sign(ctx context.Context, attestations []*attestation) error {
	var missing []*attestation
	var statements []*attest.Statement
	for _, a := range attestations {
		if a.bundle == nil {
			missing = append(missing, a)
			statements = append(statements, a.statement)
		}
	}
	bundles, err := j.signer.SignAll(ctx, statements)
	if err != nil {
		return err
	}
	for i, a := range missing {
		a.bundle = bundles[i]
	}
	return nil
}

// storeBundles fills the stores with what each of them lacks, and prints where
// each attestation is. A run that ended in between is completed by the next one.
func (a *app) storeBundles(ctx context.Context, stores []attestationStore, attestations []*attestation) error {
	places := make([][]string, len(attestations))
	for i, store := range stores {
		var lacking []*attestation
		var indices []int
		for n, made := range attestations {
			if made.stored[i] {
				places[n] = append(places[n], store.again+" (already there)")
			} else {
				lacking, indices = append(lacking, made), append(indices, n)
			}
		}
		if len(lacking) == 0 {
			continue
		}
		at, err := store.put(ctx, lacking)
		if err != nil {
			// Of the first store, too: one of two may be there, or the answer was lost.
			return fmt.Errorf("%w; what was stored before stays: run this again, and only what lacks is stored", err)
		}
		for k, n := range indices {
			places[n] = append(places[n], at[k])
		}
	}
	var out strings.Builder
	for n, made := range attestations {
		fmt.Fprintf(&out, "%s\n", made.predicateType)
		for _, place := range places[n] {
			fmt.Fprintf(&out, "  %s\n", place)
		}
	}
	_, err := fmt.Fprint(a.stdout, out.String())
	return err
}

// outputs tells later steps where the measurements attestation is on GitHub. Of
// one that was there already GitHub does not say the number.
func (j *job) outputs(attestations []*attestation) error {
	if j.repository == "" {
		return nil
	}
	for _, a := range attestations {
		if a.predicateType != attest.PredicateMeasurements {
			continue
		}
		return errors.Join(gha.SetOutput("attestation-id", a.id), gha.SetOutput("attestation-url", j.page(a.id)))
	}
	return nil
}

// record makes a storage record of an artifact in a registry. It is nothing that
// anybody verifies: that it fails is worth a warning.
func (a *app) record(ctx context.Context, j *job, ref artifact.Reference, version string) error {
	if j.repository == "" || ref.IsLayout() {
		return nil
	}
	ids, err := j.github.Record(ctx, j.repository, attest.StorageRecord{
		Name: ref.Place(), Digest: ref.Digest.String(), Version: version, Registry: "https://" + ref.Host(),
	})
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		fmt.Fprintf(a.stderr, "Warning: %s\n", sentence(err))
		gha.Warning(a.stderr, "attestable-image", sentence(err))
		return nil
	}
	return gha.SetOutput("storage-record-ids", strings.Join(ids, ","))
}
