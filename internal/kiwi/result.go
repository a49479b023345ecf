package kiwi

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/org/attestable-image-action/internal/lazyregexp"
	"github.com/org/attestable-image-action/internal/strictjson"
)

// maxResultBytes bounds kiwi.result.json, which is about 1 KiB.
const maxResultBytes = 1 << 20

// resultDir is the directory that KIWI writes to, as the container sees it.
const resultDir = "/output/build"

// maxResults bounds KIWI's results, of which there are ten.
const maxResults = 64

var (
	resultKey  = lazyregexp.New(`^[a-z0-9_]{1,64}$`)
	resultName = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9._+:~-]{0,254}$`)
)

// ownResults are files that a build itself puts beside KIWI's results.
var ownResults = []string{"builder.json", "kiwi.log", LockName}

// parseResult reads kiwi.result.json, where KIWI lists what it made in resultDir,
// and returns the file names without the directory, by key.
func parseResult(content []byte) (map[string]string, error) {
	var entries map[string]struct {
		Filename string `json:"filename"`
	}
	if err := strictjson.Unmarshal(content, &entries); err != nil {
		return nil, fmt.Errorf("read KIWI's result file kiwi.result.json: %w", err)
	}
	if len(entries) > maxResults {
		return nil, fmt.Errorf("read KIWI's result file kiwi.result.json: it lists more than %d results", maxResults)
	}
	files := map[string]string{}
	for key, entry := range entries {
		if !resultKey().MatchString(key) {
			return nil, errors.New("read KIWI's result file kiwi.result.json: what a result is called has to be a word")
		}
		name, ok := strings.CutPrefix(path.Clean(entry.Filename), resultDir+"/")
		if !ok || !resultName().MatchString(name) || slices.Contains(ownResults, name) {
			return nil, fmt.Errorf("read KIWI's result file kiwi.result.json: the %s is not a file in %s that a result can be", key, resultDir)
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
