package audit

import (
	"encoding/binary"
	"errors"
	"strings"
)

// A boot configuration lies behind an initrd (Linux,
// Documentation/admin-guide/bootconfig.rst). When the command line has bootconfig,
// or the kernel was made so, its keys below kernel become options of the kernel,
// in front of the command line, and those below init become arguments of init.

const (
	bootConfigMagic = "#BOOTCONFIG\n"
	bootConfigMax   = 32 << 10 // bytes that the kernel takes
	bootConfigDepth = 16       // keys in each other, likewise
	// bootConfigKey has the characters of keys, and the dot between them.
	bootConfigKey = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
)

// bootConfig finds a boot configuration at the end of a part of an initrd, and
// what the part has in front of it, in bytes.
func bootConfig(p initrdPart) (config []byte, rest int64) {
	const header = 8 // size and check sum
	for padding := range int64(4) {
		at := p.size - padding - int64(len(bootConfigMagic)) - header
		if at < 0 {
			break
		}
		tail := make([]byte, header+len(bootConfigMagic))
		if n, _ := p.r.ReadAt(tail, at); n < len(tail) || string(tail[header:]) != bootConfigMagic {
			continue
		}
		size := int64(binary.LittleEndian.Uint32(tail))
		if size > bootConfigMax || size > at {
			break
		}
		config = make([]byte, size)
		if n, _ := p.r.ReadAt(config, at-size); n < len(config) {
			break
		}
		sum := uint32(0)
		for _, b := range config {
			sum += uint32(b)
		}
		if sum != binary.LittleEndian.Uint32(tail[4:]) {
			break // the kernel leaves it where it is, and stumbles over it
		}
		return config, at - size
	}
	return nil, p.size
}

var errBootConfig = errors.New("the boot configuration is not as the kernel describes the format")

// bootConfigWords are the words that a boot configuration adds to the command
// lines of the kernel and of init.
func bootConfigWords(config []byte) ([]string, error) {
	text, _, _ := strings.Cut(string(config), "\x00")
	var words, open []string
	add := func(key, value string, assigned bool) {
		full := strings.Join(append(append([]string(nil), open...), key), ".")
		_, name, ok := strings.Cut(full, ".")
		if root := strings.TrimSuffix(full, "."+name); !ok || root != "kernel" && root != "init" {
			return
		}
		if assigned {
			name += "=" + value
		}
		words = append(words, name)
	}
	for {
		text = strings.TrimLeft(text, " \t\r\n;")
		switch {
		case text == "":
			if len(open) > 0 {
				return nil, errBootConfig
			}
			return words, nil
		case text[0] == '#':
			_, text, _ = strings.Cut(text, "\n")
			continue
		case text[0] == '}':
			if len(open) == 0 {
				return nil, errBootConfig
			}
			open, text = open[:len(open)-1], text[1:]
			continue
		}
		end := len(text) - len(strings.TrimLeft(text, bootConfigKey))
		if end == 0 {
			return nil, errBootConfig
		}
		key := text[:end]
		text = strings.TrimLeft(text[end:], " \t\r")
		switch {
		case strings.HasPrefix(text, "{"):
			if open, text = append(open, key), text[1:]; len(open) > bootConfigDepth {
				return nil, errBootConfig
			}
		case strings.HasPrefix(text, "="), strings.HasPrefix(text, "+="), strings.HasPrefix(text, ":="):
			text = text[strings.IndexByte(text, '=')+1:]
			for more := true; more; {
				var value string
				var err error
				if value, text, more, err = bootConfigValue(text); err != nil {
					return nil, err
				}
				add(key, value, true)
			}
		default:
			add(key, "", false)
		}
	}
}

// bootConfigValue takes a value; more says that a comma follows.
func bootConfigValue(text string) (value, rest string, more bool, err error) {
	text = strings.TrimLeft(text, " \t\r")
	if text != "" && (text[0] == '"' || text[0] == '\'') {
		var closed bool
		if value, rest, closed = strings.Cut(text[1:], text[:1]); !closed {
			return "", "", false, errBootConfig
		}
		rest = strings.TrimLeft(rest, " \t\r")
		if rest != "" && !strings.ContainsRune(",;\n#}", rune(rest[0])) {
			return "", "", false, errBootConfig
		}
	} else {
		end := strings.IndexAny(text, ",;\n#}")
		if end < 0 {
			end = len(text)
		}
		value, rest = strings.TrimSpace(text[:end]), text[end:]
	}
	if strings.HasPrefix(rest, ",") {
		return value, strings.TrimLeft(rest[1:], " \t\r\n"), true, nil
	}
	return value, rest, false, nil
}
