package cms

import (
	"errors"
	"fmt"
)

// Identifier octets of the elements that occur (X.690, section 8.1.2), with the bit
// that says constructed.
const (
	tagInteger           = 0x02
	tagOctetString       = 0x04
	tagNull              = 0x05
	tagOID               = 0x06
	tagSequence          = 0x30
	tagSet               = 0x31
	tagContext0Primitive = 0x80
	tagContext0          = 0xa0
	tagContext1          = 0xa1

	constructed = 0x20
)

const (
	// maxDepth bounds how deep elements are nested; a message of KMS has ten.
	maxDepth = 16
	// maxChildren bounds the elements in one other: parts of the content.
	maxChildren = 64
)

// element is one of BER.
type element struct {
	tag      byte
	content  []byte    // of a primitive one
	children []element // of a constructed one
}

// readElement reads the element at the beginning of b and returns what follows it.
func readElement(b []byte, depth int) (e element, rest []byte, err error) {
	if depth == 0 {
		return e, nil, fmt.Errorf("elements are nested deeper than %d", maxDepth)
	}
	if len(b) < 2 {
		return e, nil, errors.New("it ends before an element does")
	}
	e.tag, b = b[0], b[1:]
	if e.tag&0x1f == 0x1f {
		return e, nil, fmt.Errorf("an element has a tag of several bytes (%#x), which none has here", e.tag)
	}
	length, b, err := readLength(b)
	if err != nil {
		return e, nil, err
	}
	if length < 0 {
		if e.tag&constructed == 0 {
			return e, nil, fmt.Errorf("the element %#x is primitive and has an indefinite length", e.tag)
		}
		rest, err = e.readChildren(b, true, depth-1)
		return e, rest, err
	}
	if length > len(b) {
		return e, nil, fmt.Errorf("the element %#x has %d bytes, and %d are left", e.tag, length, len(b))
	}
	content, rest := b[:length], b[length:]
	if e.tag&constructed == 0 {
		e.content = content
		return e, rest, nil
	}
	_, err = e.readChildren(content, false, depth-1)
	return e, rest, err
}

// readChildren reads elements up to the end of b, or up to end-of-contents (X.690,
// section 8.1.5), and returns what follows.
func (e *element) readChildren(b []byte, indefinite bool, depth int) (rest []byte, err error) {
	for {
		switch {
		case indefinite && len(b) >= 2 && b[0] == 0 && b[1] == 0:
			return b[2:], nil
		case !indefinite && len(b) == 0:
			return nil, nil
		case len(e.children) == maxChildren:
			return nil, fmt.Errorf("the element %#x has more than %d others in it", e.tag, maxChildren)
		}
		var child element
		if child, b, err = readElement(b, depth); err != nil {
			return nil, err
		}
		e.children = append(e.children, child)
	}
}

// readLength reads length octets (X.690, section 8.1.3); -1 is an indefinite length.
func readLength(b []byte) (length int, rest []byte, err error) {
	first, b := b[0], b[1:]
	switch {
	case first < 0x80:
		return int(first), b, nil
	case first == 0x80:
		return -1, b, nil
	}
	n := int(first & 0x7f)
	if n > 4 {
		return 0, nil, fmt.Errorf("a length has %d bytes, more than 4", n)
	}
	if len(b) < n {
		return 0, nil, errors.New("it ends before a length does")
	}

	var value uint32
	for _, octet := range b[:n] {
		value = value<<8 | uint32(octet)
	}
	if value > MaxMessage {
		return 0, nil, fmt.Errorf("a length is %d bytes, more than %d", value, MaxMessage)
	}
	return int(value), b[n:], nil
}

// members demands an element with a tag, and in it exactly those with the tags that
// follow.
func (e element) members(name string, tag byte, tags ...byte) ([]element, error) {
	if e.tag != tag {
		return nil, fmt.Errorf("%s has the tag %#x and not %#x", name, e.tag, tag)
	}
	if len(e.children) != len(tags) {
		return nil, fmt.Errorf("%s has %d elements and not %d", name, len(e.children), len(tags))
	}
	for i, want := range tags {
		if got := e.children[i].tag; got != want {
			return nil, fmt.Errorf("%s: element %d has the tag %#x and not %#x", name, i, got, want)
		}
	}
	return e.children, nil
}

// encode writes an element of definite length.
func encode(tag byte, content ...[]byte) []byte {
	var body []byte
	for _, c := range content {
		body = append(body, c...)
	}
	out := []byte{tag}
	switch n := len(body); {
	case n < 0x80:
		out = append(out, byte(n))
	case n < 0x100:
		out = append(out, 0x81, byte(n))
	default:
		out = append(out, 0x82, byte(n>>8), byte(n))
	}
	return append(out, body...)
}

// indefinite writes a constructed element of indefinite length.
func indefinite(tag byte, content ...[]byte) []byte {
	out := []byte{tag, 0x80}
	for _, c := range content {
		out = append(out, c...)
	}
	return append(out, 0, 0)
}
