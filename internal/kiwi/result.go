package kiwi

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/org/attestable-image-action/internal/strictjson"
)

// maxResultBytes bounds kiwi.result.json, which is about 1 KiB.
const maxResultBytes = 1 << 20

// resultDir is the directory that KIWI writes to, as the container sees it.
const resultDir = "/output/build"

// parseResult reads kiwi.result.json, where KIWI lists what it made in resultDir,
// and returns the file names without the directory, by key.
func parseResult(content []byte) (map[string]string, error) {
	var entries map[string]struct {
		Filename string `json:"filename"`
	}
	if err := strictjson.Unmarshal(content, &entries); err != nil {
		return nil, fmt.Errorf("read KIWI's result file kiwi.result.json: %w", err)
	}
	files := map[string]string{}
	for key, entry := range entries {
		name, ok := strings.CutPrefix(path.Clean(entry.Filename), resultDir+"/")
		if !ok || strings.Contains(name, "/") || name == "" {
			return nil, fmt.Errorf("read KIWI's result file kiwi.result.json: %q of %s is not a file in %s", entry.Filename, key, resultDir)
		}
		files[key] = name
	}
	return files, nil
}

// diskFile returns the file name of the raw disk among KIWI's results.
func diskFile(files map[string]string) (string, error) {
	name, ok := files["disk_image"]
	if !ok {
		made := strings.Join(slices.Sorted(maps.Keys(files)), ", ")
		if made == "" {
			made = "nothing"
		}
		return "", fmt.Errorf("the description makes no disk (KIWI made %s): its type has to be image=\"oem\"", made)
	}
	if !strings.HasSuffix(name, ".raw") {
		return "", errors.New("the description makes " + name + ", and a raw disk is needed: remove format= from its type")
	}
	return name, nil
}
