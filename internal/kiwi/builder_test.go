package kiwi

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestDownloadKeepsPasswords holds that no error shows the password of a private
// package index.
func TestDownloadKeepsPasswords(t *testing.T) {
	const name = "kiwi-1.2.3.tar.gz"
	for what, tc := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"refused":      {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, "answers 403 Forbidden"},
		"not listed":   {func(http.ResponseWriter, *http.Request) {}, "does not list " + name},
		"another file": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, `<a href="%s">`, name) }, "and not 00"},
		"too long":     {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, maxIndexBytes+1)) }, "it is larger than"},
		"broken":       {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "look up KIWI's source"},
	} {
		t.Run(what, func(t *testing.T) {
			server := httptest.NewServer(tc.answer)
			defer server.Close()
			t.Setenv("PIP_INDEX_URL", strings.Replace(server.URL, "://", "://me:s3cret@", 1)+"/simple/")
			_, err := new(builder).download(t.Context(), name, "00")
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("error %v, want one about %q without the password", err, tc.want)
			}
		})
	}
}
