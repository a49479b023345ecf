// Evaluates requests against an IAM policy of the caller. Standard input is JSON: policy,
// account, principal, and requests with action, resource and context. Standard output is a
// list with what becomes of each: Allowed, ImplicitlyDenied, ExplicitlyDenied, or an error.
const { runSimulation } = require("@cloud-copilot/iam-simulate");

async function main() {
  const { policy, account, principal, requests } = JSON.parse(require("fs").readFileSync(0, "utf8"));
  const results = [];
  for (const { action, resource, context } of requests) {
    const answer = await runSimulation(
      {
        request: { action, principal, resource: { resource, accountId: account }, contextVariables: context },
        identityPolicies: [{ name: "policy", policy }],
        serviceControlPolicies: [],
        resourceControlPolicies: [],
      },
      {},
    );
    // What IAM has no such key for is not in the request, as Strict (the default) has it.
    results.push(answer.resultType === "error" ? "error: " + JSON.stringify(answer.errors) : answer.overallResult);
  }
  console.log(JSON.stringify(results));
}

main();
