// Records what Go's text/template makes of the cases in cases.json, into outputs.json beside it.
//
//	cd tests/golden/gotemplate && go run record.go
//
// Roots: a case's "data" names a root map; with "chat" true its Messages and Tools become typed values with the fields,
// methods and printed forms that Ollama's templates see.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"strings"
	"text/template"
)

type testCase struct {
	Name     string
	Template string
	Data     string
	Chat     bool
}

type caseFile struct {
	Data  map[string]json.RawMessage
	Cases []testCase
}

type outcome struct {
	Output *string `json:"output,omitempty"`
	Stage  string  `json:"stage,omitempty"`
	Error  string  `json:"error,omitempty"`
}

func toJSON(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(data)
}

// Typed values

type arguments map[string]any

func (a arguments) String() string { return toJSON(map[string]any(a)) }

type callFunction struct {
	Index     int
	Name      string
	Arguments arguments
}

type call struct {
	ID       string
	Function callFunction
}

type message struct {
	Role       string
	Content    string
	Thinking   string
	Images     [][]byte
	ToolCalls  []call
	ToolName   string
	ToolCallID string
}

type typeNames []string

func (t typeNames) String() string {
	if len(t) == 1 {
		return t[0]
	}
	return fmt.Sprintf("%v", []string(t))
}

func (t typeNames) MarshalJSON() ([]byte, error) {
	if len(t) == 1 {
		return json.Marshal(t[0])
	}
	return json.Marshal([]string(t))
}

func (t *typeNames) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*t = typeNames{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(t))
}

type properties map[string]property

func (p properties) String() string { return toJSON(map[string]property(p)) }

type property struct {
	AnyOf       []property `json:"anyOf,omitempty"`
	Type        typeNames  `json:"type,omitempty"`
	Items       any        `json:"items,omitempty"`
	Description string     `json:"description,omitempty"`
	Enum        []any      `json:"enum,omitempty"`
	Properties  properties `json:"properties,omitempty"`
	Required    []string   `json:"required,omitempty"`
}

func (p property) ToTypeScriptType() string {
	var names []string
	for _, other := range p.AnyOf {
		names = append(names, other.ToTypeScriptType())
	}
	if len(names) == 0 {
		words := map[string]string{
			"string": "string", "number": "number", "integer": "number", "boolean": "boolean",
			"array": "any[]", "object": "Record<string, any>", "null": "null",
		}
		for _, name := range p.Type {
			word, known := words[name]
			if !known {
				word = "any"
			}
			names = append(names, word)
		}
	}
	if len(names) == 0 {
		return "any"
	}
	return strings.Join(names, " | ")
}

type parameters struct {
	Type       string     `json:"type"`
	Defs       any        `json:"$defs,omitempty"`
	Items      any        `json:"items,omitempty"`
	Required   []string   `json:"required,omitempty"`
	Properties properties `json:"properties"`
}

func (p parameters) String() string { return toJSON(p) }

type function struct {
	Name        string     `json:"name"`
	Description string     `json:"description,omitempty"`
	Parameters  parameters `json:"parameters"`
}

func (f function) String() string { return toJSON(f) }

type tool struct {
	Type     string   `json:"type"`
	Items    any      `json:"items,omitempty"`
	Function function `json:"function"`
}

func (t tool) String() string { return toJSON(t) }

type tools []tool

func (t tools) String() string { return toJSON([]tool(t)) }

// Roots

// number keeps whole numbers whole.
func numbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if whole, err := v.Int64(); err == nil {
			return int(whole)
		}
		float, _ := v.Float64()
		return float
	case map[string]any:
		for key, item := range v {
			v[key] = numbers(item)
		}
	case []any:
		for at, item := range v {
			v[at] = numbers(item)
		}
	}
	return v
}

func root(c testCase, text json.RawMessage) map[string]any {
	data := map[string]any{}
	if text != nil {
		decoder := json.NewDecoder(bytes.NewReader(text))
		decoder.UseNumber()
		must(decoder.Decode(&data))
	}
	data = numbers(data).(map[string]any)
	if !c.Chat {
		return data
	}
	var typed struct {
		Messages []*message
		Tools    tools
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	must(decoder.Decode(&typed))
	for _, m := range typed.Messages {
		for _, c := range m.ToolCalls {
			numbers(map[string]any(c.Function.Arguments))
		}
	}
	data["Messages"] = typed.Messages
	data["Tools"] = typed.Tools
	return data
}

func run(c testCase, text json.RawMessage) outcome {
	functions := template.FuncMap{
		"json":             toJSON,
		"currentDate":      func(...string) string { return "2026-01-02" },
		"yesterdayDate":    func(...string) string { return "2026-01-01" },
		"toTypeScriptType": func(v any) string { return typeScript(v) },
	}
	parsed, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(c.Template)
	if err != nil {
		return outcome{Stage: "parse", Error: err.Error()}
	}
	var out strings.Builder
	if err := parsed.Execute(&out, root(c, text)); err != nil {
		return outcome{Stage: "execute", Error: err.Error()}
	}
	made := out.String()
	return outcome{Output: &made}
}

func typeScript(v any) string {
	switch v := v.(type) {
	case property:
		return v.ToTypeScriptType()
	case *property:
		return v.ToTypeScriptType()
	}
	return "any"
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	text, err := os.ReadFile("cases.json")
	must(err)
	var file caseFile
	must(json.Unmarshal(text, &file))
	outcomes := map[string]outcome{}
	for _, c := range file.Cases {
		if _, twice := outcomes[c.Name]; twice {
			panic("two cases are named " + c.Name)
		}
		outcomes[c.Name] = run(c, file.Data[c.Data])
	}
	names := make([]string, 0, len(outcomes))
	for name := range outcomes {
		names = append(names, name)
	}
	sort.Strings(names)
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	must(encoder.Encode(outcomes))
	must(os.WriteFile("outputs.json", out.Bytes(), 0o644))
	fmt.Println(len(names), "cases")
}
