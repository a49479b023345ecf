package cli

import (
	"fmt"
	"strings"

	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/measure"
)

// maxToldChecks bounds the checks in a summary.
const maxToldChecks = 200

// verifiedMarkdown is the step summary of what verifies.
func verifiedMarkdown(ref artifact.Reference, verdict *attest.Verdict, doc *measure.Document) string {
	var b strings.Builder
	place := strings.TrimSuffix(ref.String(), "@"+ref.Digest.String())
	fmt.Fprintf(&b, "## Verified: %s\n\n**All %d checks hold.**", code(shorten(place, 100)), len(verdict.Checks))
	origin := verdict.Origin
	var c chart
	before := ""
	if origin.Repository != "" {
		workflow, at, _ := strings.Cut(origin.Workflow, "@")
		fmt.Fprintf(&b, " Built from %s at %s by %s.", code(shorten(origin.Repository, 200)), code(shorten(origin.Commit, 64)), code(shorten(origin.Workflow, 300)))
		server, repository := splitServer(origin.Repository)
		c.node("source", "Source", repository, refName(origin.Ref)+" at "+digestStart(origin.Commit))
		name := strings.TrimPrefix(strings.TrimPrefix(workflow, server), "/")
		name = strings.TrimPrefix(strings.Replace(name, ".github/workflows/", "", 1), repository+"/")
		c.node("identity", "Workflow, which signed", name, refName(at))
		c.edge("source", "identity")
		before = "identity"
	}
	c.node("attestations", "Attestations, verified", fmt.Sprintf("%d checks hold", len(verdict.Checks)))
	c.node("artifact", "OCI artifact", place, digestStart(ref.Digest.String()))
	c.node("pcrs", "PCRs, attested", pcrLines(doc)...)
	c.node("instance", "AMI, instance", "has to have these PCRs")
	if before != "" {
		c.edge(before, "attestations")
	}
	c.edge("attestations", "artifact")
	c.edge("attestations", "pcrs")
	c.later("artifact", "instance")
	c.later("pcrs", "instance")
	c.absent("instance")
	var checks strings.Builder
	checks.WriteString("<details><summary>The checks</summary>\n\n| check | found |\n|---|---|\n")
	for i, check := range verdict.Checks {
		if i == maxToldChecks {
			fmt.Fprintf(&checks, "| and %d more | |\n", len(verdict.Checks)-i)
			break
		}
		fmt.Fprintf(&checks, "| %s | %s |\n", plain(shorten(check.Name, 100)), breakable(shorten(check.Found, 300)))
	}
	checks.WriteString("\n</details>\n")
	return joinSections([]string{b.String() + "\n", c.markdown(), fence("sh", valueLines(doc, ref.String())), checks.String()})
}

// splitServer divides a URL of a repository into that of the server and OWNER/REPO.
func splitServer(repository string) (server, name string) {
	if parts := strings.SplitN(repository, "/", 4); len(parts) == 4 {
		return strings.Join(parts[:3], "/"), parts[3]
	}
	return "", repository
}

// maxDrawnRegions bounds the regions in a chart; the table has all.
const maxDrawnRegions = 4

// markdown is the step summary of register-ami.
func (r *registration) markdown() string {
	var head, table strings.Builder
	first := r.AMIs[0]
	fmt.Fprintf(&head, "## Attestable AMI %s\n\n**Registered in %s**: %s, of %s, which verifies.\n",
		code(first.Name), plural(len(r.AMIs), "region"), plain(shorten(r.Architecture, 40)), code(r.Artifact))
	place, digest, _ := strings.Cut(r.Artifact, "@")
	var c chart
	c.node("artifact", "OCI artifact, verified", place, digestStart(digest))
	for i, placed := range r.AMIs {
		if i == maxDrawnRegions {
			c.node("more", fmt.Sprintf("%d more", len(r.AMIs)-i))
			c.edge("artifact", "more")
			break
		}
		id := "ami" + string(rune('a'+i))
		c.node(id, "AMI in "+placed.Region, placed.ImageID, placed.SnapshotID)
		c.edge("artifact", id)
		c.later(id, "instance")
	}
	c.node("instance", "Instance", "proves what it booted")
	c.absent("instance")
	table.WriteString("| region | AMI | snapshot | |\n|---|---|---|---|\n")
	for _, placed := range r.AMIs {
		state := "registered by this run"
		if placed.Existed {
			state = "was there already"
		}
		fmt.Fprintf(&table, "| %s | %s | %s | %s |\n", plain(placed.Region), code(placed.ImageID), code(placed.SnapshotID), state)
	}
	for _, removed := range r.Removed {
		fmt.Fprintf(&table, "| %s | %s | %s | removed, as older than those to keep |\n", plain(removed.Region), code(removed.ImageID), code(strings.Join(removed.Snapshots, " ")))
	}
	launch := fmt.Sprintf("aws ec2 run-instances --region %s --image-id %s --instance-type INSTANCE_TYPE", quote(first.Region), quote(first.ImageID))
	ask := fmt.Sprintf("attestable-image verify instance https://ADDRESS:8443 --artifact %s --repo OWNER/REPO", quote(r.Artifact))
	return joinSections([]string{
		head.String(), c.markdown(), table.String(),
		"Start an instance, and have it prove what it booted (where the image answers, as with `serve: true`):\n\n" + fence("sh", launch+"\n"+ask),
	})
}
