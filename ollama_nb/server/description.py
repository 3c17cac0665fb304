"""The description of the REST API: ``docs/openapi.yaml`` as JSON, and as a page that people read.

The file is parsed once, on the first request for one of the two. The page is one HTML document without scripts, which
loads nothing else, so that it also works offline and below Jupyter's content security policy.
"""

from __future__ import annotations

import functools
import html
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Schema = Mapping[str, Any]
Document = Mapping[str, Any]

POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'"
"""Content-Security-Policy of the page."""

METHODS = ("get", "head", "post", "put", "patch", "delete")
_ADDRESS = "\0address\0"  # stands for the server's address in the page
_KEY = "\0key\0"  # stands for the header with the key in curl commands
_KEY_HEADER = ' -H "Authorization: Bearer $OLLAMA_API_KEY"'
_SHORT = 88  # characters of JSON that stay on one line
_PACKAGED = Path(__file__).with_name("openapi.yaml")
_IN_CHECKOUT = Path(__file__).parents[2] / "docs" / "openapi.yaml"


@functools.cache
def load() -> Document:
    """The description as a JSON value. Slow the first time (about 0.2 s): call it in a worker thread."""
    import yaml  # only these two routes need it

    source = _PACKAGED if _PACKAGED.exists() else _IN_CHECKOUT
    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class OwnKeysFirst(base):  # type: ignore[misc]
        """Puts the fields that a schema merges in (``<<``) after its own ones, as a reader of the page expects."""

        def flatten_mapping(self, node: Any) -> None:
            own = [pair for pair in node.value if pair[0].tag != "tag:yaml.org,2002:merge"]
            super().flatten_mapping(node)
            names = {key.value for key, _ in own}
            node.value = own + [pair for pair in node.value if pair[0].value not in names]

    found: dict[str, Any] = yaml.load(source.read_text("utf-8"), Loader=OwnKeysFirst)
    # These hold only what other parts of the file refer to by YAML anchors.
    return {name: value for name, value in found.items() if not name.startswith("x-")}


def as_json(prefix: str) -> bytes:
    """The description for a server whose routes are below the path ``prefix``."""
    servers = [{"url": prefix or "/", "description": "This server"}]
    return json.dumps({**load(), "servers": servers}, ensure_ascii=False, separators=(",", ":")).encode()


def page(address: str, *, with_key: bool) -> bytes:
    """The description as HTML; its curl commands call the server at ``address``, ``with_key`` with a key."""
    text = _page().replace(_ADDRESS, html.escape(address)).replace(_KEY, html.escape(_KEY_HEADER if with_key else ""))
    return text.encode()


def operations(document: Document) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Method in capitals, path and operation of every route, in the order of the file."""
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                shared = item.get("parameters", [])
                yield (
                    method.upper(),
                    path,
                    {**item[method], "parameters": [*shared, *item[method].get("parameters", [])]},
                )


def resolve(document: Document, value: Any) -> Any:
    """The value itself, or what its ``$ref`` refers to."""
    while isinstance(value, Mapping) and "$ref" in value:
        name = value["$ref"].removeprefix("#/")
        value = functools.reduce(lambda at, key: at[key], name.split("/"), document)
    return value


@functools.cache
def _page() -> str:
    document = load()
    routes = list(operations(document))
    info = document["info"]
    sections, menu = [], []
    for tag in document["tags"]:
        own = [route for route in routes if tag["name"] in route[2]["tags"]]
        anchor = _anchor("tag", tag["name"])
        menu.append(f'<a class="tag" href="#{anchor}">{_text(tag["name"])}</a>' + "".join(map(_menu_line, own)))
        head = f'<h2 id="{anchor}">{_text(tag["name"])}</h2>{_markdown(tag.get("description", ""))}'
        sections.append(head + "".join(_operation(document, *route) for route in own))
    named, in_place = document["components"]["schemas"].items(), _in_place(routes)
    schemas = "".join(_named_schema(name, found) for name, found in named if name not in in_place)
    menu.append('<a class="tag" href="#schemas">Objects</a>')
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(info['title'])}: REST API</title><style>{_STYLE}</style></head><body>"
        f"<nav>{''.join(menu)}</nav><main><h1>{_text(info['title'])}: REST API</h1>"
        f'<p class="at">This server: <code>{_ADDRESS}</code> · as JSON: <a href="openapi.json">openapi.json</a></p>'
        f"{_markdown(info['description'])}{''.join(sections)}"
        f'<h2 id="schemas">Objects</h2><p>Objects that several routes share.</p>{schemas}</main></body></html>'
    )


def _in_place(routes: list[tuple[str, str, Mapping[str, Any]]]) -> set[str]:
    """The names of the schemas of request bodies, whose fields are shown with their route."""
    bodies = (route[2].get("requestBody", {}).get("content", {}) for route in routes)
    return {media["schema"].get("$ref", "").rpartition("/")[2] for body in bodies for media in body.values()}


def _menu_line(route: tuple[str, str, Mapping[str, Any]]) -> str:
    method, path, operation = route
    return f'<a href="#{operation["operationId"]}"><b class="{method}">{method}</b> {_text(path)}</a>'


def _operation(document: Document, method: str, path: str, operation: Mapping[str, Any]) -> str:
    anchor = operation["operationId"]
    old = ' <span class="old">older form</span>' if operation.get("deprecated") else ""
    parts = [
        f'<section><h3 id="{anchor}"><a class="self" href="#{anchor}" title="Link to this route">'
        f'<b class="{method}">{method}</b> <code>{_text(path)}</code></a></h3>'
        f'<p class="summary">{_text(operation["summary"])}{old}</p>',
        _markdown(operation.get("description", "")),
    ]
    parameters = [resolve(document, parameter) for parameter in operation["parameters"]]
    if parameters:
        parts.append(_table("Parameters", (_parameter_row(parameter) for parameter in parameters)))
    body = operation.get("requestBody", {}).get("content", {})
    for kind, media in body.items():
        parts.append(_body("Request", kind, resolve(document, media["schema"])))
    parts += [
        "".join(_curl(method, path, parameters, body)),
        _responses(document, operation["responses"]),
        "</section>",
    ]
    return "".join(parts)


def _parameter_row(parameter: Mapping[str, Any]) -> str:
    place = {"path": "in the path", "query": "in the query", "header": "header"}[parameter["in"]]
    return _row(parameter["name"], parameter["schema"], parameter.get("description", ""), place)


def _body(title: str, kind: str, schema: Schema) -> str:
    """A body: its content type, and its fields or the object that it is."""
    head = f"{title} <code>{_text(kind)}</code>"
    if "properties" in schema:
        return _table(head, _field_rows(schema))
    detail = f" {schema['description']}" if schema.get("description") else ""
    return f'<p class="body">{head}: {_type(schema)}{_inline(detail)}</p>{_alternatives(schema)}'


def _alternatives(schema: Schema) -> str:
    """A table for each object without a name among which a value can be chosen."""
    objects = [option for option in schema.get("anyOf", ()) if "properties" in option]
    return "".join(_table("One of these:" if at == 0 else "or", _field_rows(o)) for at, o in enumerate(objects))


def _responses(document: Document, responses: Mapping[str, Any]) -> str:
    parts, failures = [], []
    errors: dict[str, None] = {}
    for status in sorted(responses):
        response = resolve(document, responses[status])
        content = response.get("content", {})
        if status >= "400" and "application/json" in content:
            failures.append(f'<b title="{_text(response["description"])}">{status}</b>')
            errors[_type(content["application/json"]["schema"])] = None
            continue
        parts.append(f'<p class="body"><b class="status">{status}</b> {_inline(response["description"])}</p>')
        parts += [_body("", kind, media.get("schema", {})) for kind, media in content.items()]
    if failures:
        parts.append(f'<p class="body">Errors: {", ".join(failures)} as {" or ".join(errors)}</p>')
    return f'<div class="replies">{"".join(parts)}</div>'


def _named_schema(name: str, schema: Schema) -> str:
    anchor = _anchor("schema", name)
    head = f'<section><h3 id="{anchor}"><a class="self" href="#{anchor}"><code>{_text(name)}</code></a></h3>'
    described = _markdown(schema.get("description", ""))
    if "properties" in schema:
        return f"{head}{described}{_table('', _field_rows(schema))}</section>"
    return f'{head}<p class="body">{_type(schema)}</p>{described}{_alternatives(schema)}</section>'


def _field_rows(schema: Schema, above: str = "") -> Iterator[str]:
    """One row per field; the fields of objects that have no name of their own follow with the path to them."""
    required = schema.get("required", [])
    for name, field in schema["properties"].items():
        note = "required" if name in required else "older form" if field.get("deprecated") else ""
        yield _row(above + name, field, field.get("description", ""), note)
        inner = field.get("items", field)
        if isinstance(inner, Mapping) and "properties" in inner:
            yield from _field_rows(inner, f"{above}{name}{'[]' if inner is not field else ''}.")


def _row(name: str, schema: Schema, description: str, note: str) -> str:
    default = f" <span>default <code>{_text(_json(schema['default']))}</code></span>" if "default" in schema else ""
    noted = f' <span class="note">{note}</span>' if note else ""
    return (
        f"<tr><td><code>{_text(name)}</code>{noted}</td><td>{_type(schema)}{default}</td>"
        f"<td>{_inline(description)}</td></tr>"
    )


def _table(title: str, rows: Iterator[str]) -> str:
    caption = f"<caption>{title}</caption>" if title else ""
    head = "<thead><tr><th>Field</th><th>Type</th><th>Description</th></tr></thead>"
    return f'<div class="wide"><table>{caption}{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _type(schema: Schema) -> str:
    """The type of a value in words, as HTML."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#{_anchor("schema", name)}">{_text(name)}</a>'
    for word, joint in (("anyOf", " or "), ("oneOf", " or "), ("allOf", " and ")):
        if word in schema:
            return joint.join(dict.fromkeys(map(_type, schema[word])))
    if "const" in schema:
        return f"<code>{_text(_json(schema['const']))}</code>"
    if "enum" in schema:
        return " or ".join(f"<code>{_text(_json(value))}</code>" for value in schema["enum"])
    kinds = schema.get("type", "any value")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return " or ".join(_kind(kind, schema) for kind in kinds) + _limits(schema)


def _kind(kind: str, schema: Schema) -> str:
    if kind == "array" and "items" in schema:
        return f"array of {_type(schema['items'])}"
    if kind == "string" and schema.get("contentEncoding") == "base64":
        return "base64"
    if kind == "string" and schema.get("format") == "date-time":
        return "time (RFC 3339)"
    return _text(kind)


def _limits(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None and high is None:
        return ""
    return (
        f", {low} to {high}"
        if None not in (low, high)
        else f", at least {low}"
        if high is None
        else f", at most {high}"
    )


def _curl(method: str, path: str, parameters: list[Any], body: Mapping[str, Any]) -> Iterator[str]:
    """A command for each example of the request; one without a body if the route takes none."""
    for parameter in parameters:
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", str(parameter.get("example", "…")))
    flags = {"GET": "", "POST": "" if body else " -X POST", "HEAD": " -I"}.get(method, f" -X {method}")
    command = f"curl{flags} {_ADDRESS}{path}{_KEY}"
    if not body:
        yield f"<pre>{html.escape(command, quote=False)}</pre>"
    for kind, media in body.items():
        for example in media.get("examples", {"": {}}).values():
            title = f"<figcaption>{_text(example['summary'])}</figcaption>" if "summary" in example else ""
            text = html.escape(command + _data(kind, example.get("value")), quote=False)
            yield f"<figure>{title}<pre>{text}</pre></figure>"


def _data(kind: str, value: Any) -> str:
    if kind == "application/octet-stream":
        return " --data-binary @FILE"
    if kind == "multipart/form-data":
        return "".join(f" -F {name}={field}" for name, field in (value or {}).items())
    one_line = json.dumps(value, ensure_ascii=False)
    text = one_line if len(one_line) <= _SHORT else json.dumps(value, ensure_ascii=False, indent=2)
    return " -d '" + text.replace("'", "'\\''") + "'"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _anchor(kind: str, name: str) -> str:
    return f"{kind}-{name.replace(' ', '-')}"


def _text(text: str) -> str:
    return html.escape(text)


def _inline(text: str) -> str:
    """Markdown of one paragraph, without the paragraph."""
    return _markdown(text).strip().removeprefix("<p>").removesuffix("</p>")


def _markdown(text: str) -> str:
    return str(_renderer()(text)) if text else ""


@functools.cache
def _renderer() -> Any:
    import mistune  # only the page needs it

    return mistune.create_markdown(escape=True, plugins=["table"])


_STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --dim: #59636e; --back: #fff; --panel: #f6f8fa; --line: #d1d9e0;
  --link: #0550ae; --get: #1a7f37; --post: #0550ae; --delete: #cf222e }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --dim: #9198a1; --back: #0d1117; --panel: #161b22;
  --line: #30363d; --link: #79c0ff; --get: #56d364; --post: #79c0ff; --delete: #ff7b72 } }
* { box-sizing: border-box }
body { margin: 0; display: flex; font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back) }
nav { position: sticky; top: 0; height: 100vh; overflow-y: auto; flex: 0 0 20rem; padding: 1rem;
  font-size: .8125rem; background: var(--panel); border-right: 1px solid var(--line) }
nav a { display: block; padding: .1rem 0; color: var(--text); text-decoration: none; overflow-wrap: anywhere }
nav a:hover { text-decoration: underline }
nav .tag { margin-top: .75rem; font-weight: 600 }
nav b { display: inline-block; width: 3.4rem; font-size: .6875rem }
main { flex: 1; min-width: 0; max-width: 60rem; padding: 1.5rem 2rem 6rem }
h1 { font-size: 1.75rem; margin: 0 0 .5rem } h2 { margin: 3rem 0 .5rem; padding-bottom: .25rem;
  border-bottom: 1px solid var(--line) } h3 { margin: 0; font-size: 1.0625rem }
section { margin: 1.5rem 0; padding-top: .75rem; border-top: 1px solid var(--line) }
a { color: var(--link) } .self { color: inherit; text-decoration: none } .self:hover { text-decoration: underline }
code, pre { font: .875em/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
code { background: var(--panel); padding: .1em .3em; border-radius: 4px; overflow-wrap: anywhere }
h3 code { background: none; padding: 0; font-size: 1em }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: .75rem; margin: .5rem 0;
  overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8125rem }
figure { margin: .75rem 0 } figcaption { font-size: .875rem; color: var(--dim) }
.GET, .HEAD { color: var(--get) } .POST { color: var(--post) } .DELETE { color: var(--delete) }
.summary { margin: .25rem 0; font-weight: 600 } .body { margin: .5rem 0 }
.at, .old, .note, caption { color: var(--dim) }
.old, .note { font-weight: 400; font-size: .8125rem; white-space: nowrap } .replies { margin-top: 1rem }
.wide { overflow-x: auto; margin: .75rem 0 }
table { border-collapse: collapse; width: 100%; font-size: .875rem } caption { text-align: left; padding: .25rem 0 }
th, td { text-align: left; vertical-align: top; padding: .3rem .5rem; border: 1px solid var(--line) }
th { background: var(--panel) } td span { color: var(--dim); font-size: .8125rem }
td:first-child code { white-space: nowrap } td:nth-child(2) { min-width: 9rem; max-width: 16rem }
td:nth-child(3) { min-width: 14rem }
@media (max-width: 50rem) { body { display: block } nav { position: static; height: auto; max-height: 40vh;
  border-right: 0; border-bottom: 1px solid var(--line) } main { padding: 1rem } }
"""
