package kmspolicy

import (
	"fmt"
	"strings"

	"github.com/org/attestable-image-action/internal/lazyregexp"
)

// Principal is an IAM identity in an account: a role, a user, or the account.
type Principal struct {
	Partition string // "aws", "aws-cn", "aws-us-gov", …
	Account   string // 12 digits
	Resource  string // "role/PATH/NAME", "user/PATH/NAME" or "root"
}

var (
	accountPattern = lazyregexp.New(`^[0-9]{12}$`)
	// principalPattern is an ARN of the IAM User Guide, "IAM identifiers": names
	// have letters, digits and +=,.@_-, and a path has slashes between words.
	principalPattern = lazyregexp.New(`^arn:(aws[a-z-]{0,20}):iam::([0-9]{12}):((?:role|user)/[\w+=,.@/-]{1,576}|root)$`)
)

// ParsePrincipal parses the ARN of a role, a user or an account's root. There
// are no wildcards: a principal is one that somebody made.
func ParsePrincipal(arn string) (Principal, error) {
	m := principalPattern().FindStringSubmatch(arn)
	if m == nil {
		return Principal{}, fmt.Errorf("%q is no ARN of an IAM role or user, such as arn:aws:iam::111122223333:role/NAME", arn)
	}
	return Principal{Partition: m[1], Account: m[2], Resource: m[3]}, nil
}

// AccountRoot is the principal that stands for an account: whom its IAM policies
// allow something, the key policy allows it, too, as far as it names the action.
func AccountRoot(partition, account string) (Principal, error) {
	if !accountPattern().MatchString(account) {
		return Principal{}, fmt.Errorf("%q is no AWS account: its number has 12 digits", account)
	}
	return Principal{Partition: partition, Account: account, Resource: "root"}, nil
}

// String is the principal's ARN.
func (p Principal) String() string {
	return "arn:" + p.Partition + ":iam::" + p.Account + ":" + p.Resource
}

// IsRole reports whether it is a role, which is what an instance profile has.
func (p Principal) IsRole() bool { return strings.HasPrefix(p.Resource, "role/") }
