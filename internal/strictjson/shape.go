package strictjson

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// shape is what a value is read into, as far as the names of its members go.
// The nil shape takes anything.
type shape struct {
	members  map[string]below  // of an object, by name
	spelling map[string]string // from what a name is taken for to the name
	elements below             // of a list or a map
	keyed    bool              // it is a map
	later    bool              // it is Raw
}

// Raw is JSON inside other JSON that is not checked with it, but by whoever reads
// it: what one of many others said must not spoil the rest.
type Raw []byte

// UnmarshalJSON implements json.Unmarshaler.
func (r *Raw) UnmarshalJSON(data []byte) error {
	*r = bytes.Clone(data)
	return nil
}

// below is the shape of what lies in a value. It is asked when it is needed: a
// type may contain itself.
type below func() *shape

func (s *shape) isMap() bool { return s != nil && s.keyed }

func (s *shape) element() *shape {
	if s == nil || s.elements == nil {
		return nil
	}
	return s.elements()
}

// member is the shape of the member with a name.
func (s *shape) member(name string, closed bool) (*shape, error) {
	if s == nil || s.members == nil {
		return s.element(), nil
	}
	if below, known := s.members[name]; known {
		return below(), nil
	}
	if right, known := s.spelling[fold(name)]; known {
		return nil, fmt.Errorf("member %s is not spelt %q, and only some readers take it for that", quote(name), right)
	}
	if closed {
		return nil, fmt.Errorf("member %s is not known", quote(name))
	}
	return nil, nil //nolint:nilnil // documented
}

func (s *shape) add(name string, below below, alsoSpelt ...string) {
	s.members[name] = below
	for _, spelt := range append(alsoSpelt, name) {
		s.spelling[fold(spelt)] = name
	}
}

var (
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()

	shapes sync.Map // of structs, by reflect.Type
)

// shapeOf is the shape of what encoding/json reads into a type. A type that
// reads itself takes anything here.
func shapeOf(t reflect.Type) *shape {
	for t != nil && t.Kind() == reflect.Pointer {
		if t.Implements(jsonUnmarshaler) || t.Implements(textUnmarshaler) {
			return nil
		}
		t = t.Elem()
	}
	if t == reflect.TypeFor[Raw]() {
		return &shape{later: true}
	}
	if t == nil || reflect.PointerTo(t).Implements(jsonUnmarshaler) || reflect.PointerTo(t).Implements(textUnmarshaler) {
		return nil
	}
	switch t.Kind() {
	case reflect.Slice, reflect.Array, reflect.Map:
		return &shape{elements: func() *shape { return shapeOf(t.Elem()) }, keyed: t.Kind() == reflect.Map}
	case reflect.Struct:
		if known, ok := shapes.Load(t); ok {
			return known.(*shape) //nolint:forcetypeassert // nothing else is stored
		}
		s := &shape{members: map[string]below{}, spelling: map[string]string{}}
		s.addFields(t)
		shapes.Store(t, s)
		return s
	default:
		return nil
	}
}

func (s *shape) addFields(t reflect.Type) {
	for field := range t.Fields() {
		tag := field.Tag.Get("json")
		name, _, _ := strings.Cut(tag, ",")
		if tag == "-" || !field.IsExported() && !field.Anonymous {
			continue
		}
		if field.Anonymous && name == "" {
			embedded := field.Type
			if embedded.Kind() == reflect.Pointer {
				embedded = embedded.Elem()
			}
			if embedded.Kind() == reflect.Struct {
				s.addFields(embedded)
				continue
			}
		}
		if name == "" {
			name = field.Name
		}
		s.add(name, func() *shape { return shapeOf(field.Type) })
	}
}

// CheckMessage is Check for the JSON form of a protobuf message, in which
// protojson takes the names of the .proto file, too, and others do not:
// dsse_envelope for dsseEnvelope.
func CheckMessage(data []byte, message proto.Message) error {
	return check(data, shapeOfMessage(message.ProtoReflect().Descriptor()), false)
}

func shapeOfMessage(message protoreflect.MessageDescriptor) *shape {
	s := &shape{members: map[string]below{}, spelling: map[string]string{}}
	for i := range message.Fields().Len() {
		field := message.Fields().Get(i)
		s.add(field.JSONName(), func() *shape { return shapeOfField(field) }, field.TextName())
	}
	return s
}

func shapeOfField(field protoreflect.FieldDescriptor) *shape {
	of := func(message protoreflect.MessageDescriptor) *shape {
		if message == nil || message.FullName().Parent() == "google.protobuf" {
			return nil // a scalar, or a type with a form of its own
		}
		return shapeOfMessage(message)
	}
	switch {
	case field.IsMap():
		return &shape{elements: func() *shape { return of(field.MapValue().Message()) }, keyed: true}
	case field.IsList():
		return &shape{elements: func() *shape { return of(field.Message()) }}
	}
	return of(field.Message())
}
