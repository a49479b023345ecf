package kiwi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// templateNames are the templates that come with attestable-image.
var templateNames = []string{"al2023", "debian", "ubuntu"}

func TestTemplates(t *testing.T) {
	got, err := Templates(os.DirFS(filepath.Join("..", "..", "kiwi-templates")))
	if err != nil || !slices.Equal(got, templateNames) {
		t.Errorf("templates %q: %v", got, err)
	}
}

// checked is what testdata/check.py says of a description.
type checked struct {
	Name  string `json:"name"`
	Wrong string `json:"wrong"` // "ok", or why KIWI refuses it
	Made  struct {
		Manager      string   `json:"manager"`
		Packages     []string `json:"packages"`
		Bootstrap    []string `json:"bootstrap"`
		Ignored      []string `json:"ignored"`
		Options      string   `json:"options"` // of the kernel
		Repositories []struct {
			Alias      string `json:"alias"`
			Path       string `json:"path"`
			Suite      string `json:"suite"`
			SourceType string `json:"sourcetype"`
			Signed     bool   `json:"signed"`
		} `json:"repositories"`
	} `json:"made"`
}

// aliases lists the repositories as KIWI has them: alias, path, suite, source type.
func (c checked) aliases() []string {
	var all []string
	for _, r := range c.Made.Repositories {
		all = append(all, strings.Join(strings.Fields(r.Alias+" "+r.Path+" "+r.Suite+" "+r.SourceType), " "))
	}
	return all
}

// checkByKIWI lets the builder's KIWI check descriptions for an architecture, by
// name, as it does before a build.
func checkByKIWI(t *testing.T, architecture string, descriptions map[string]Options) map[string]checked {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: the first builder image takes minutes")
	}
	e, err := findEngine(t.Context())
	// testenv.Missing, which an internal test of a package that testenv imports
	// cannot call.
	if errors.Is(err, ErrNoEngine) && os.Getenv("ATTESTABLE_IMAGE_REQUIRE") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	sources, err := ParsePackageSources(os.Getenv("ATTESTABLE_IMAGE_PACKAGE_SOURCE"))
	if err != nil {
		t.Fatal(err)
	}
	debian := os.DirFS(filepath.Join("..", "..", "kiwi-templates", "debian"))
	image, err := (&Options{Description: debian, PackageSources: sources, Log: io.Discard}).builderImage(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	script, err := filepath.Abs(filepath.Join("testdata", "check.py"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	args := []string{
		"run", "--rm", "--network", "none", "--security-opt", "label=disable", "--entrypoint", "python3",
		"--mount", bind(dir, "/descriptions", true), "--mount", bind(script, "/check.py", true),
		image, "/check.py", architecture,
	}
	for name, o := range descriptions {
		o.Source, o.Embedded = name, true
		if _, err := o.stage(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		args = append(args, "/descriptions/"+name)
	}
	output, err := e.command(t.Context(), args...).Output()
	if err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	results := map[string]checked{}
	for line := range strings.Lines(string(output)) {
		var c checked
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		results[c.Name] = c
	}
	if len(results) != len(descriptions) {
		t.Fatalf("%d descriptions are checked of %d: %s", len(results), len(descriptions), output)
	}
	return results
}

// TestTemplatesByKIWI lets KIWI check each template for both architectures, as it
// is and with package sources in place of its own.
func TestTemplatesByKIWI(t *testing.T) {
	read := func(name string) fs.FS { return os.DirFS(filepath.Join("..", "..", "kiwi-templates", name)) }
	sources := func(text string) []PackageSource {
		parsed, err := ParsePackageSources(text)
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	const release = "https://cdn.amazonlinux.com/al2023/core/mirrors/2023.12.20260713/$basearch/mirror.list"
	descriptions := map[string]Options{
		"renamed-al2023": {Description: read("al2023"), Name: "other", Version: "7.8.9"},
		"release-al2023": {Description: read("al2023"), PackageSources: sources(release)},
		"mirror-al2023":  {Description: read("al2023"), PackageSources: sources("https://mirror.example/al2023/x86_64")},
		"local-al2023":   {Description: read("al2023"), PackageSources: sources("/srv/al2023")},
		"mirror-ubuntu":  {Description: read("ubuntu"), PackageSources: sources("http://mirror.example/ubuntu\nhttp://mirror.example/ubuntu resolute-updates")},
		"broken-schema":  {Description: broken(t, read("al2023"), "<timezone>UTC</timezone>", "<timezones>UTC</timezones>")},
		"broken-overlay": {Description: broken(t, read("al2023"), `<package name="dracut-kiwi-overlay"/>`, "")},
	}
	for _, name := range templateNames {
		descriptions[name] = Options{Description: read(name)}
	}
	for architecture, hosts := range map[string][2]string{
		"x86_64": {"http://archive.ubuntu.com/ubuntu", "linux-image-cloud-amd64"}, "aarch64": {"http://ports.ubuntu.com/ubuntu-ports", "linux-image-cloud-arm64"},
	} {
		t.Run(architecture, func(t *testing.T) {
			results := checkByKIWI(t, architecture, descriptions)
			for name, want := range map[string]string{
				"broken-schema": "KiwiDescriptionInvalid", "broken-overlay": "KiwiRuntimeError",
			} {
				if got := results[name].Wrong; !strings.HasPrefix(got, want) {
					t.Errorf("%s: KIWI says %q, want %s", name, got, want)
				}
				delete(results, name)
			}
			for name, result := range results {
				if result.Wrong != "ok" {
					t.Errorf("KIWI refuses %s: %s", name, result.Wrong)
				}
			}
			for name, want := range map[string][]string{
				"al2023":         {"amazonlinux https://cdn.amazonlinux.com/al2023/core/mirrors/latest/$basearch/mirror.list mirrorlist"},
				"release-al2023": {"package-source-1 " + release + " mirrorlist"},
				"mirror-al2023":  {"package-source-1 https://mirror.example/al2023/x86_64"},
				"local-al2023":   {"package-source-1 dir:///run/attestable-image/repositories/0"},
				"mirror-ubuntu": {
					"package-source-1 http://mirror.example/ubuntu resolute", "package-source-2 http://mirror.example/ubuntu resolute-updates",
					"builder dir:///usr/lib/attestable-image/packages",
				},
			} {
				if got := results[name].aliases(); !slices.Equal(got, want) {
					t.Errorf("%s: the repositories are %q, want %q", name, got, want)
				}
			}
			if got := results["ubuntu"].Made.Repositories[0].Path; got != hosts[0] {
				t.Errorf("ubuntu's packages come from %s, want %s", got, hosts[0])
			}
			if !slices.Contains(results["debian"].Made.Packages, hosts[1]) {
				t.Errorf("debian's packages are %q, want %s among them", results["debian"].Made.Packages, hosts[1])
			}
			for _, name := range templateNames {
				checkTemplate(t, results[name])
			}
		})
	}
}

// checkTemplate looks for what every template has in common.
func checkTemplate(t *testing.T, c checked) {
	t.Helper()
	for _, option := range []string{
		"panic=-1", "rd.shell=0", "rd.emergency=poweroff", "systemd.gpt_auto=0", "systemd.import_credentials=no",
		"efi=noruntime", "sysctl.kernel.sysrq=0",
		"lockdown=integrity", "module.sig_enforce=1",
	} {
		if !slices.Contains(strings.Fields(c.Made.Options), option) {
			t.Errorf("%s: the kernel's options are %q, without %s", c.Name, c.Made.Options, option)
		}
	}
	for _, r := range c.Made.Repositories {
		if !r.Signed && r.Alias != "builder" {
			t.Errorf("%s: packages from %s need no signature", c.Name, r.Path)
		}
	}
	ways := []string{"openssh-server", "amazon-ssm-agent", "cloud-init", "cloud-init-cfg-ec2", "ec2-instance-connect"}
	for _, way := range ways {
		if slices.Contains(c.Made.Packages, way) || slices.Contains(c.Made.Bootstrap, way) {
			t.Errorf("%s has the package %s", c.Name, way)
		}
		// Debian's and Ubuntu's packages bring none of these; dnf may, for what
		// another one recommends.
		if c.Made.Manager != "apt" && !slices.Contains(c.Made.Ignored, way) {
			t.Errorf("%s does not keep %s out", c.Name, way)
		}
	}
}

// broken is a description with a text of its config.xml replaced.
func broken(t *testing.T, description fs.FS, from, to string) fs.FS {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, description); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "config.xml")
	config, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	edited := strings.ReplaceAll(string(config), from, to)
	if edited == string(config) {
		t.Fatalf("%s is not in config.xml", from)
	}
	if err := os.WriteFile(path, []byte(edited), 0o600); err != nil {
		t.Fatal(err)
	}
	return os.DirFS(dir)
}

// TestTemplatesAgree holds that the templates are closed in the same way: a file
// that several have is the same in each, but for those named here.
func TestTemplatesAgree(t *testing.T) {
	own := map[string]bool{
		"Dockerfile": true, "README.md": true, "config.xml": true, "config.sh": true,
		"edit_boot_install.sh": true, "root/etc/dracut.conf.d/10-attestable-image.conf": true,
	}
	content := map[string][]byte{}
	for _, name := range templateNames {
		err := fs.WalkDir(os.DirFS(filepath.Join("..", "..", "kiwi-templates", name)), ".", func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || own[path] {
				return err
			}
			got, err := os.ReadFile(filepath.Join("..", "..", "kiwi-templates", name, path))
			if want, known := content[path]; known && !bytes.Equal(got, want) {
				t.Errorf("%s of %s differs from that of another template", path, name)
			}
			content[path] = got
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// Debian's and Ubuntu's boot path is one.
	for _, path := range []string{"edit_boot_install.sh", "config.sh"} {
		debian, err := os.ReadFile(filepath.Join("..", "..", "kiwi-templates", "debian", path))
		if err != nil {
			t.Fatal(err)
		}
		ubuntu, err := os.ReadFile(filepath.Join("..", "..", "kiwi-templates", "ubuntu", path))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(debian, ubuntu) {
			t.Errorf("%s of ubuntu differs from debian's", path)
		}
	}
}
