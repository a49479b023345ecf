package attest

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"

	"github.com/org/attestable-image-action/internal/strictjson"
)

// BuildTypeGitHub is GitHub's own build type for workflows.
const BuildTypeGitHub = "https://actions.github.io/buildtypes/workflow/v1"

// BuildTypeLocal is the build type of what a local trust root signs: whoever
// ran the command, with nobody to confirm it.
const BuildTypeLocal = "https://github.com/org/attestable-image-action/buildtypes/local/v1"

// provenance is the part of SLSA provenance v1 that GitHub fills, in its order.
type provenance struct {
	BuildDefinition buildDefinition `json:"buildDefinition"`
	RunDetails      runDetails      `json:"runDetails"`
}

type buildDefinition struct {
	BuildType            string               `json:"buildType"`
	ExternalParameters   externalParameters   `json:"externalParameters"`
	InternalParameters   *internalParameters  `json:"internalParameters,omitempty"`
	ResolvedDependencies []resourceDescriptor `json:"resolvedDependencies,omitempty"`
}

type externalParameters struct {
	Workflow *workflow `json:"workflow,omitempty"`
}

type workflow struct {
	Ref        string `json:"ref"`        // refs/heads/main
	Repository string `json:"repository"` // https://github.com/OWNER/REPO
	Path       string `json:"path"`       // .github/workflows/image.yml
}

type internalParameters struct {
	GitHub gitHubParameters `json:"github"`
}

type gitHubParameters struct {
	EventName         string `json:"event_name"`
	RepositoryID      string `json:"repository_id"`
	RepositoryOwnerID string `json:"repository_owner_id"`
	RunnerEnvironment string `json:"runner_environment"`
}

type resourceDescriptor struct {
	Name   string            `json:"name,omitempty"`
	URI    string            `json:"uri,omitempty"`
	Digest map[string]string `json:"digest,omitempty"`
}

type runDetails struct {
	Builder  builder      `json:"builder"`
	Metadata *runMetadata `json:"metadata,omitempty"`
}

type builder struct {
	ID string `json:"id"`
}

type runMetadata struct {
	InvocationID string `json:"invocationId"`
}

// Provenance is the predicate for the job that the claims describe, on the
// GitHub at server (https://github.com).
func (c *Claims) Provenance(server string) ([]byte, error) {
	repository := server + "/" + c.Repository
	path, _, _ := strings.Cut(strings.TrimPrefix(c.WorkflowRef, c.Repository+"/"), "@")
	return json.Marshal(provenance{
		BuildDefinition: buildDefinition{
			BuildType:          BuildTypeGitHub,
			ExternalParameters: externalParameters{Workflow: &workflow{Ref: c.Ref, Repository: repository, Path: path}},
			InternalParameters: &internalParameters{GitHub: gitHubParameters{
				EventName:         c.EventName,
				RepositoryID:      c.RepositoryID,
				RepositoryOwnerID: c.RepositoryOwnerID,
				RunnerEnvironment: c.RunnerEnvironment,
			}},
			ResolvedDependencies: []resourceDescriptor{{
				URI:    "git+" + repository + "@" + c.Ref,
				Digest: map[string]string{"gitCommit": c.SHA},
			}},
		},
		RunDetails: runDetails{
			Builder:  builder{ID: server + "/" + c.JobWorkflowRef},
			Metadata: &runMetadata{InvocationID: repository + "/actions/runs/" + c.RunID + "/attempts/" + c.RunAttempt},
		},
	})
}

// LocalProvenance is the predicate for what a local trust root signs.
func LocalProvenance() ([]byte, error) {
	return json.Marshal(provenance{
		BuildDefinition: buildDefinition{BuildType: BuildTypeLocal},
		RunDetails:      runDetails{Builder: builder{ID: LocalIdentity}},
	})
}

// Dependency is something that an artifact was built with or from.
type Dependency struct {
	Name   string // what it is to the build
	URI    string // where it is, "" when it is nowhere
	SHA256 string // lower-case hex, "" when it is not known
}

// AddDependencies returns a provenance predicate with more of resolvedDependencies,
// behind those that it has: the first one is the source, as GitHub has it.
func AddDependencies(predicate []byte, dependencies []Dependency) ([]byte, error) {
	if len(dependencies) == 0 {
		return predicate, nil
	}
	var p provenance
	if err := strictjson.Unmarshal(predicate, &p); err != nil {
		return nil, fmt.Errorf("read the provenance: %w", err)
	}
	for _, d := range dependencies {
		r := resourceDescriptor{Name: d.Name, URI: d.URI}
		if d.SHA256 != "" {
			r.Digest = map[string]string{"sha256": d.SHA256}
		}
		p.BuildDefinition.ResolvedDependencies = append(p.BuildDefinition.ResolvedDependencies, r)
	}
	return json.Marshal(p)
}

// difference is one thing of which two sources say different things.
type difference struct{ what, expected, found string }

func (d difference) String() string {
	return fmt.Sprintf("%s is %q where the certificate says %q", d.what, d.found, d.expected)
}

// contradictions compares a provenance predicate with what Fulcio certified of
// the same job. The predicate is the signer's own word: only where both agree
// does it say more than the certificate.
func contradictions(predicate []byte, c certificate.Summary) ([]difference, error) {
	var p provenance
	if err := strictjson.Unmarshal(predicate, &p); err != nil {
		return nil, fmt.Errorf("read the provenance: %w", err)
	}
	var found []difference
	check := func(what, expected, actual string) {
		if expected != actual {
			found = append(found, difference{what, expected, actual})
		}
	}
	if c.Issuer == LocalIssuer {
		check("buildType", BuildTypeLocal, p.BuildDefinition.BuildType)
		check("builder.id", c.SubjectAlternativeName, p.RunDetails.Builder.ID)
		return found, nil
	}
	w, parameters, metadata := workflow{}, internalParameters{}, runMetadata{}
	if p.BuildDefinition.ExternalParameters.Workflow != nil {
		w = *p.BuildDefinition.ExternalParameters.Workflow
	}
	if p.BuildDefinition.InternalParameters != nil {
		parameters = *p.BuildDefinition.InternalParameters
	}
	if p.RunDetails.Metadata != nil {
		metadata = *p.RunDetails.Metadata
	}
	check("buildType", BuildTypeGitHub, p.BuildDefinition.BuildType)
	check("workflow.repository", c.SourceRepositoryURI, w.Repository)
	check("workflow.ref", c.SourceRepositoryRef, w.Ref)
	config, _, _ := strings.Cut(c.BuildConfigURI, "@")
	check("workflow.path", strings.TrimPrefix(config, c.SourceRepositoryURI+"/"), w.Path)
	check("event_name", c.BuildTrigger, parameters.GitHub.EventName)
	check("repository_id", c.SourceRepositoryIdentifier, parameters.GitHub.RepositoryID)
	check("repository_owner_id", c.SourceRepositoryOwnerIdentifier, parameters.GitHub.RepositoryOwnerID)
	check("runner_environment", c.RunnerEnvironment, parameters.GitHub.RunnerEnvironment)
	check("builder.id", c.BuildSignerURI, p.RunDetails.Builder.ID)
	check("invocationId", c.RunInvocationURI, metadata.InvocationID)
	source := resourceDescriptor{}
	if len(p.BuildDefinition.ResolvedDependencies) > 0 {
		source = p.BuildDefinition.ResolvedDependencies[0]
	}
	check("resolvedDependencies.uri", "git+"+c.SourceRepositoryURI+"@"+c.SourceRepositoryRef, source.URI)
	check("gitCommit", c.SourceRepositoryDigest, source.Digest["gitCommit"])
	return found, nil
}
