// Package hostile boots a disk under inputs that a machine takes from outside, and
// finds those that have an effect while every PCR that identifies the image stays as
// it is.
//
// The inputs are one table, All. Each is put into a boot with a sign that shows when
// something took it: a text that comes about only when the input is decoded or run,
// looked for on the serial line and in the guest's memory, or a disk that the guest
// writes to. So neither a shell nor a console of the image has to help. Inputs that
// do not exclude each other share a boot; when a boot's PCRs or its end differ, the
// inputs in it are halved until it is known which one did it.
//
// What was looked for and not seen had no effect that is known of. It is a test, no
// proof.
package hostile
