package testenv

import (
	"fmt"
	"os/exec"
	"testing"
)

// StartAWS starts a stand-in for AWS (moto) and points AWS's SDK to it by the
// environment, with credentials that are good for nothing else.
func StartAWS(t testing.TB) {
	t.Helper()
	program := Tool(t, "moto_server")
	var url string
	err := startOnPorts(t, "moto_server", 1, func(ports []int) (*exec.Cmd, string) {
		url = fmt.Sprintf("http://127.0.0.1:%d", ports[0])
		return exec.Command(program, "-H", "127.0.0.1", "-p", fmt.Sprint(ports[0])), url + "/moto-api/data.json"
	})
	if err != nil {
		t.Fatal(err)
	}
	useAWS(t, url)
}

// useAWS points AWS's SDK to a stand-in.
func useAWS(t testing.TB, url string) {
	t.Helper()
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL": url, "AWS_REGION": "eu-central-1",
		"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_SESSION_TOKEN": "",
		"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_PROFILE": "",
		"AWS_EC2_METADATA_DISABLED": "true",
	} {
		t.Setenv(name, value)
	}
}
