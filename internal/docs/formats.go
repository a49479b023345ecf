package main

import (
	_ "embed"
	"errors"
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"text/template"

	"go.yaml.in/yaml/v3"
)

// formatsText is docs/reference/formats.md but for what the code says.
//
//go:embed formats.md.tmpl
var formatsText string

// formatsPage is docs/reference/formats.md. Its template has functions that read the
// code: const and fields take a name as "internal/artifact.Type", schema a file.
func formatsPage(root string) (string, error) {
	code := source{root: root, packages: map[string][]*ast.File{}}
	page, err := template.New("formats.md").Funcs(template.FuncMap{
		"const": code.constant, "fields": code.fields, "schema": code.schema,
	}).Parse(formatsText)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString(notice)
	if err := page.Execute(&b, nil); err != nil {
		return "", err
	}
	return b.String(), nil
}

// source is the code of this module, read and not compiled.
type source struct {
	root     string
	packages map[string][]*ast.File // by directory
}

func (s source) files(dir string) ([]*ast.File, error) {
	if files, ok := s.packages[dir]; ok {
		return files, nil
	}
	paths, err := filepath.Glob(filepath.Join(s.root, filepath.FromSlash(dir), "*.go"))
	if err != nil {
		return nil, err
	}
	var files []*ast.File
	set := token.NewFileSet()
	for _, p := range paths {
		if strings.HasSuffix(p, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(set, p, nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	s.packages[dir] = files
	return files, nil
}

// declared finds the value of a constant, or the type of a name.
func (s source) declared(name string) (ast.Expr, error) {
	dir, name := path.Split(name)
	base, name, _ := strings.Cut(name, ".")
	files, err := s.files(dir + base)
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		for _, decl := range file.Decls {
			group, ok := decl.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, spec := range group.Specs {
				switch spec := spec.(type) {
				case *ast.ValueSpec:
					for i, ident := range spec.Names {
						if ident.Name == name && group.Tok == token.CONST && i < len(spec.Values) {
							return spec.Values[i], nil
						}
					}
				case *ast.TypeSpec:
					if spec.Name.Name == name {
						return spec.Type, nil
					}
				}
			}
		}
	}
	return nil, fmt.Errorf("there is no %s in %s", name, dir+base)
}

// constant is the value of a constant.
func (s source) constant(name string) (string, error) {
	expr, err := s.declared(name)
	if err != nil {
		return "", err
	}
	value, err := s.evaluate(strings.TrimSuffix(name, path.Ext(name)), expr)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	if value.Kind() == constant.String {
		return constant.StringVal(value), nil
	}
	return value.ExactString(), nil
}

// evaluate computes what constants of this module are written as: literals, sums,
// shifts, conversions, and names of the same package.
func (s source) evaluate(dir string, expr ast.Expr) (constant.Value, error) {
	switch e := expr.(type) {
	case *ast.BasicLit:
		return constant.MakeFromLiteral(e.Value, e.Kind, 0), nil
	case *ast.ParenExpr:
		return s.evaluate(dir, e.X)
	case *ast.CallExpr:
		if len(e.Args) == 1 {
			return s.evaluate(dir, e.Args[0])
		}
	case *ast.Ident:
		named, err := s.declared(dir + "." + e.Name)
		if err != nil {
			return nil, err
		}
		return s.evaluate(dir, named)
	case *ast.BinaryExpr:
		x, err := s.evaluate(dir, e.X)
		if err != nil {
			return nil, err
		}
		y, err := s.evaluate(dir, e.Y)
		if err != nil {
			return nil, err
		}
		if e.Op == token.SHL {
			if n, ok := constant.Uint64Val(y); ok && n < 64 {
				return constant.Shift(x, e.Op, uint(n)), nil
			}
		}
		return constant.BinaryOp(x, e.Op, y), nil
	}
	return nil, errors.New("its value is not written in a way that is understood here")
}

// fields is a table of what the JSON form of a struct has.
func (s source) fields(name string) (string, error) {
	var b strings.Builder
	b.WriteString("| member | type | what it is |\n|---|---|---|\n")
	if err := s.writeFields(&b, name); err != nil {
		return "", err
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

func (s source) writeFields(b *strings.Builder, name string) error {
	expr, err := s.declared(name)
	if err != nil {
		return err
	}
	structure, ok := expr.(*ast.StructType)
	if !ok {
		return fmt.Errorf("%s is no struct", name)
	}
	for _, field := range structure.Fields.List {
		tag := ""
		if field.Tag != nil {
			unquoted, err := strconv.Unquote(field.Tag.Value)
			if err != nil {
				return err
			}
			tag = reflect.StructTag(unquoted).Get("json")
		}
		if tag == "-" {
			continue
		}
		if len(field.Names) == 0 {
			embedded, ok := field.Type.(*ast.SelectorExpr)
			if !ok {
				return fmt.Errorf("%s: an embedded field that is not understood here", name)
			}
			if err := s.writeFields(b, "internal/"+fmt.Sprint(embedded.X)+"."+embedded.Sel.Name); err != nil {
				return err
			}
			continue
		}
		renamed, rest, _ := strings.Cut(tag, ",")
		text := strings.TrimSpace(field.Doc.Text() + field.Comment.Text())
		text = strings.TrimSuffix(strings.Join(strings.Fields(text), " "), ".")
		if len(field.Names) == 1 {
			text = strings.TrimPrefix(text, field.Names[0].Name+" is ")
		}
		if strings.Contains(rest, "omitempty") {
			text = strings.TrimPrefix(text+"; may be absent", "; ")
		}
		for _, ident := range field.Names {
			if !ident.IsExported() {
				continue
			}
			member := renamed
			if member == "" {
				member = ident.Name
			}
			fmt.Fprintf(b, "| `%s` | %s | %s |\n", member, jsonType(field.Type), markdown(text))
		}
	}
	return nil
}

// jsonType says what a Go type is in JSON.
func jsonType(expr ast.Expr) string {
	switch e := expr.(type) {
	case *ast.StarExpr:
		return jsonType(e.X)
	case *ast.ArrayType:
		if element, ok := e.Elt.(*ast.Ident); ok && element.Name == "byte" {
			return "base64"
		}
		return "list of " + jsonType(e.Elt)
	case *ast.MapType:
		return "object of " + jsonType(e.Value)
	case *ast.SelectorExpr:
		switch name := e.Sel.Name; name {
		case "RawMessage":
			return "any"
		case "Time":
			return "RFC 3339"
		case "Bank":
			return "string"
		default:
			return "`" + name + "`"
		}
	case *ast.Ident:
		switch name := e.Name; {
		case name == "string", name == "Severity", name == "Bank":
			return "string"
		case name == "bool":
			return "boolean"
		case strings.HasPrefix(name, "int"), strings.HasPrefix(name, "uint"):
			return "number"
		default:
			return "`" + name + "`"
		}
	}
	return "object"
}

// schema is a table of the members that a JSON Schema describes.
func (s source) schema(file string) (string, error) {
	content, err := fs.ReadFile(os.DirFS(s.root), file)
	if err != nil {
		return "", err
	}
	// JSON is YAML, and YAML's nodes keep their order.
	var document yaml.Node
	if err := yaml.Unmarshal(content, &document); err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	var b strings.Builder
	b.WriteString("| member | needed | what it is |\n|---|---|---|\n")
	writeMembers(&b, document.Content[0], "")
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// member returns a member of a YAML mapping, nil when it has none of this name.
func memberOf(node *yaml.Node, name string) *yaml.Node {
	for i := 0; node != nil && i+1 < len(node.Content); i += 2 {
		if node.Content[i].Value == name {
			return node.Content[i+1]
		}
	}
	return nil
}

func writeMembers(b *strings.Builder, schema *yaml.Node, prefix string) {
	required := map[string]bool{}
	if list := memberOf(schema, "required"); list != nil {
		for _, name := range list.Content {
			required[name.Value] = true
		}
	}
	for _, kind := range []string{"properties", "patternProperties"} {
		list := memberOf(schema, kind)
		for i := 0; list != nil && i+1 < len(list.Content); i += 2 {
			name, what := list.Content[i].Value, list.Content[i+1]
			if kind == "patternProperties" {
				name = strings.Trim(name, "^$")
			}
			need := ""
			if required[name] {
				need = "yes"
			}
			text := ""
			if described := memberOf(what, "description"); described != nil {
				text = described.Value
			}
			if choices := memberOf(what, "enum"); choices != nil {
				var values []string
				for _, choice := range choices.Content {
					values = append(values, choice.Value)
				}
				text = strings.TrimSpace(text + " One of " + strings.Join(values, ", ") + ".")
			}
			fmt.Fprintf(b, "| %s | %s | %s |\n", cell(prefix+name), need, markdown(text))
			if items := memberOf(what, "items"); items != nil {
				writeMembers(b, items, prefix+name+"[].")
			}
			writeMembers(b, what, prefix+name+".")
		}
	}
}
