// Package strictjson refuses JSON that its readers understand differently.
//
// RFC 8259, section 4, leaves open what an object means that has two members of
// one name: some readers take the first, some the last, and Go's takes names
// that differ in case for one. What is signed must not say two things.
package strictjson

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// Check tells whether data is one JSON value and nothing after it, in which no
// object has two members whose names are the same or differ in case alone.
func Check(data []byte) error {
	// This bounds the nesting, too, which Token does not.
	var whole json.RawMessage
	if err := json.Unmarshal(data, &whole); err != nil {
		return err
	}
	return checkMembers(json.NewDecoder(bytes.NewReader(data)))
}

func checkMembers(d *json.Decoder) error {
	token, err := d.Token()
	if err != nil {
		return err
	}
	delim, ok := token.(json.Delim)
	if !ok {
		return nil
	}
	seen := map[string]bool{}
	for d.More() {
		if delim == '{' {
			token, err := d.Token()
			if err != nil {
				return err
			}
			name := strings.ToLower(strings.ToUpper(fmt.Sprint(token)))
			if seen[name] {
				return fmt.Errorf("member %q stands twice in one object", token)
			}
			seen[name] = true
		}
		if err := checkMembers(d); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}
