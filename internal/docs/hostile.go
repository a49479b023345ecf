package main

import (
	"fmt"
	"strings"

	"github.com/org/attestable-image-action/internal/hostile"
)

// hostilePage lists the inputs that boot --hostile tries.
func hostilePage() string {
	var b strings.Builder
	b.WriteString(notice)
	b.WriteString(`# Hostile inputs

A machine takes more from outside than its disk: EFI variables, strings of the
hypervisor, disks that somebody attaches, keys on the serial line. What a bound PCR
records of it shows. The rest must have no effect, or somebody else steers the machine
while every verdict holds.

` + "`boot --hostile`" + ` boots a disk under each input of this list and compares it with a boot
without any. Bound are the PCRs that identify the image: 2, 4, 12 and 13, and with
Secure Boot 7, 12 and 13.

| result | what it says | exit status |
|---|---|---|
| no effect | nothing was seen of the input, and no bound PCR changed | 0 |
| measured | a bound PCR changed, so that nobody trusts the machine | 0 |
| stopped | the image did not come up, and nothing else was seen; who can do that can switch the machine off, too | 0 |
| inherent | there was an effect, as in every virtual machine, of something that the hypervisor gives, which an instance has to trust anyway | 0 |
| not tried | the input could not be given here, and why: **nothing is known of it** | 0 |
| **OPEN** | an effect, and no bound PCR changed: a weakness of severity high | 1 |

An effect is a text that comes about only when something decodes, reads or runs the
input (on the serial line, or in the guest's memory, so that the image needs neither
console nor shell), or that the guest writes to a disk or line which is no business of
its. It is a test and no proof: what leaves no such sign is not seen. Inputs that do not
exclude each other share a boot, and are tried apart when it differs.

The hypervisor on EC2 is AWS's, whom an instance has to trust; its inputs are tried all
the same, because an image that needs none of them is safe elsewhere, too. A crash
kernel and kexec have no input but through what is listed here.

`)
	fmt.Fprintf(&b, "The %d inputs, with their `--hostile-input` and who chooses them on EC2:\n\n| input | what it is | who chooses it |\n|---|---|---|\n", len(hostile.All()))
	for _, input := range hostile.All() {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", input.ID, strings.ReplaceAll(input.Name, "|", `\|`), input.From)
	}
	return b.String()
}
