"""JSON Schemas of Python types that are as strict as the readers of these types.

msgspec and Pydantic describe some types more loosely than they read them: a ``datetime`` as any string, ``bytes``
without their encoding, the keys of ``dict[int, str]`` as any text. A model constrained by such a schema writes values
that are refused afterwards. The functions here add what is missing, by formats of which the server has patterns,
and raise BadRequest with the name of a Python type for which no schema is strict enough.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import msgspec.inspect as mi

from ollama_nb.errors import BadRequest

JsonSchema = dict[str, Any]

_INTEGER_KEY = "^-?(?:0|[1-9][0-9]{0,17})$"
_DAYS_AND_TIME = "^P(?:[0-9]+D)?(?:T[0-9HMS]+)?$"  # msgspec reads no weeks, months and years


def refused(name: str, reason: str) -> BadRequest:
    return BadRequest(f"`{name}` cannot be the type of an answer: {reason}")


def msgspec_schema(wanted: Any) -> JsonSchema:
    """The strict schema of a type that msgspec reads. Raises TypeError for other types, and BadRequest."""
    schema = msgspec.json.schema(wanted)
    _Msgspec(schema.get("$defs", {})).tighten(mi.type_info(wanted), schema)
    return schema


class _Msgspec:
    """Follows a type and its schema together. ``parts`` are the definitions of the schema, each visited once."""

    def __init__(self, parts: Mapping[str, JsonSchema]) -> None:
        self._parts = parts
        self._seen: set[str] = set()

    def tighten(self, kind: mi.Type, schema: JsonSchema) -> None:
        while isinstance(kind, mi.Metadata):
            kind = kind.type
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            if name not in self._seen:
                self._seen.add(name)
                self.tighten(kind, self._parts[name])
            return
        match kind:
            case mi.DateTimeType(tz=False):
                schema["format"] = "partial-date-time"
            case mi.DateTimeType():
                schema["format"] = "date-time"
            case mi.TimeType(tz=False):
                schema["format"] = "partial-time"
            case mi.TimeType():
                schema["format"] = "time"
            case mi.TimeDeltaType():
                schema["pattern"] = _DAYS_AND_TIME
            case mi.BytesType() | mi.ByteArrayType() | mi.MemoryViewType():
                _base64(kind, schema)
            case mi.CollectionType():
                _drop_uniqueness(schema, "items" in schema)
                self._tighten_all([(kind.item_type, schema.get("items"))])
            case mi.TupleType():
                self._tighten_all(zip(kind.item_types, schema.get("prefixItems", []), strict=False))
            case mi.DictType():
                self._tighten_all([(kind.value_type, schema.get("additionalProperties"))])
                _limit_keys(schema, _msgspec_keys(kind.key_type))
            case mi.UnionType():
                self._union(kind, schema)
            case mi.StructType() | mi.DataclassType() | mi.TypedDictType() | mi.NamedTupleType():
                self._fields(kind, schema)

    def _tighten_all(self, pairs: Iterable[tuple[mi.Type, Any]]) -> None:
        for kind, schema in pairs:
            if isinstance(schema, dict):
                self.tighten(kind, schema)

    def _union(self, union: mi.UnionType, schema: JsonSchema) -> None:
        """Structs come last, two or more in a list of their own; only ``None`` follows."""
        bare = [_bare(kind) for kind in union.types]
        structs = [kind for kind in bare if isinstance(kind, mi.StructType) and not kind.array_like]
        others = [kind for kind in bare if kind not in structs and not isinstance(kind, mi.NoneType)]
        options = schema["anyOf"]
        if len(structs) == len(options) and not others:
            return self._tighten_all(zip(structs, options, strict=True))
        self._tighten_all(zip(others, options, strict=False))
        rest = options[len(others)] if structs else {}
        self._tighten_all(zip(structs, rest.get("anyOf", [rest]), strict=False))
        return None

    def _fields(self, kind: Any, schema: JsonSchema) -> None:
        parts = schema.get("properties", schema.get("prefixItems"))
        if isinstance(parts, list):
            fields = parts[len(parts) - len(kind.fields) :]  # after the tag of a struct
            self._tighten_all(zip((field.type for field in kind.fields), fields, strict=False))
        elif isinstance(parts, dict):
            names = [getattr(field, "encode_name", field.name) for field in kind.fields]
            self._tighten_all((field.type, parts.get(name)) for field, name in zip(kind.fields, names, strict=True))


def _bare(kind: mi.Type) -> mi.Type:
    while isinstance(kind, mi.Metadata):
        kind = kind.type
    return kind


def _base64(kind: Any, schema: JsonSchema) -> None:
    if kind.min_length or kind.max_length is not None:
        raise refused("bytes", "a model cannot count the bytes behind base64; leave the lengths out")
    schema.pop("contentEncoding", None)
    schema["format"] = "base64"


def _drop_uniqueness(schema: JsonSchema, typed: bool) -> None:
    """Let a list become a set: readers drop what is there twice. ``typed``: the type of the items is known."""
    if not schema.pop("uniqueItems", False):
        return
    if schema.get("minItems", 0) > 1:
        raise refused("set", "a minimum length above 1 cannot be kept, because a model may repeat items; use a list")
    if not typed:
        raise refused("set", "the type of its items is missing, such as `set[str]`; lists cannot be in a set")


def _msgspec_keys(kind: mi.Type) -> Any:
    """The texts of the keys, a pattern for them, None for any text. Raises BadRequest for other types."""
    match _bare(kind):
        case mi.StrType(min_length=None, max_length=None, pattern=None) | mi.AnyType():
            return None
        case mi.StrType(min_length=None, max_length=None, pattern=str() as pattern):
            return pattern
        case mi.IntType(ge=None, gt=None, le=None, lt=None, multiple_of=None):
            return _INTEGER_KEY
        case mi.LiteralType(values=values) if all(isinstance(value, str) for value in values):
            return list(values)
        case mi.EnumType(cls=cls) if all(isinstance(member.value, str) for member in cls):
            return [member.value for member in cls]
    raise refused("dict", "its keys can be `str`, `int`, a `Literal` of strings or an Enum of strings")


def _limit_keys(schema: JsonSchema, keys: Any) -> None:
    schema.pop("propertyNames", None)
    if keys is None:
        return
    pattern = keys if isinstance(keys, str) else f"^(?:{'|'.join(map(re.escape, keys))})$"
    schema["patternProperties"] = {pattern: schema.get("additionalProperties", {})}
    schema["additionalProperties"] = False


# Pydantic


def pydantic_schema(model: Any) -> JsonSchema:
    """The strict schema of a Pydantic model. Raises BadRequest for a type that has none."""
    from pydantic.errors import PydanticUserError

    try:
        found: JsonSchema = model.model_json_schema(schema_generator=_generator())
    except PydanticUserError as error:
        reason = error.message.splitlines()[0]
        raise BadRequest(f"`{getattr(model, '__name__', model)}` cannot be the type of an answer: {reason}") from None
    return found


_TEMPORAL_BOUNDS = ("le", "ge", "lt", "gt", "now_op")
_REFUSED_VALIDATORS = {
    "PathType": ("FilePath, DirectoryPath or NewPath", "the model does not know your files; use `Path`"),
    "PaymentCardNumber": ("PaymentCardNumber", "a model cannot compute its check digit; use `str`"),
    "import_string": ("ImportString", "the model does not know your modules; use `str`"),
    "EncodedStr": ("Base64Str", "a model cannot know which base64 is text; use `Base64Bytes`"),
}
_REFUSED_FORMATS = {
    "file-path": "FilePath",
    "directory-path": "DirectoryPath",
    "regex": "Pattern",
    "json-string": "Json",
    "name-email": "NameEmail",
}
_BYTE_SIZE = "^\\s*(\\d*\\.?\\d+)\\s*(\\w+)?"


@functools.cache
def _generator() -> type:
    from pydantic.json_schema import GenerateJsonSchema

    class StrictJsonSchema(GenerateJsonSchema):
        """Pydantic's own schemas, with the rules of its readers that they leave out."""

        def generate(self, schema: Any, mode: Any = "validation") -> JsonSchema:
            found: JsonSchema = _without_loose_formats(super().generate(schema, mode))
            return found

        def date_schema(self, schema: Any) -> JsonSchema:
            return _unbounded("date", schema, super().date_schema(schema))

        def time_schema(self, schema: Any) -> JsonSchema:
            found = _unbounded("time", schema, super().time_schema(schema))
            return {**found, "format": "partial-time"} if schema.get("tz_constraint") == "naive" else found

        def datetime_schema(self, schema: Any) -> JsonSchema:
            found = _unbounded("datetime", schema, super().datetime_schema(schema))
            return {**found, "format": "partial-date-time"} if schema.get("tz_constraint") == "naive" else found

        def timedelta_schema(self, schema: Any) -> JsonSchema:
            return _unbounded("timedelta", schema, super().timedelta_schema(schema))

        def decimal_schema(self, schema: Any) -> JsonSchema:
            return _decimal(schema)

        def complex_schema(self, schema: Any) -> JsonSchema:
            raise refused("complex", "JSON has no complex numbers; use two floats")

        def bytes_schema(self, schema: Any) -> JsonSchema:
            found = super().bytes_schema(schema)
            if self._config.val_json_bytes != "utf8":
                raise refused("bytes", "only models with `val_json_bytes='utf8'` are supported")
            if "minLength" in found or "maxLength" in found:
                found["pattern"] = "^[ -~]*$"  # characters that are one byte each
            return {key: value for key, value in found.items() if key != "format"}

        def str_schema(self, schema: Any) -> JsonSchema:
            found = super().str_schema(schema)
            stripped = schema.get("strip_whitespace") or self._config.str_strip_whitespace
            if stripped and ("minLength" in found or "pattern" in found):
                found["allOf"] = [{"pattern": "^[^\\s](?:.*[^\\s])?$"}]
            return found

        def url_schema(self, schema: Any) -> JsonSchema:
            return _url(schema, super().url_schema(schema))

        def multi_host_url_schema(self, schema: Any) -> JsonSchema:
            return _url(schema, {**super().multi_host_url_schema(schema), "format": "uri"})

        def set_schema(self, schema: Any) -> JsonSchema:
            found = super().set_schema(schema)
            _drop_uniqueness(found, bool(found.get("items")))
            return found

        def frozenset_schema(self, schema: Any) -> JsonSchema:
            found = super().frozenset_schema(schema)
            _drop_uniqueness(found, bool(found.get("items")))
            return found

        def dict_schema(self, schema: Any) -> JsonSchema:
            return self._with_keys(schema, super().dict_schema(schema))

        def ordered_dict_schema(self, schema: Any) -> JsonSchema:
            return self._with_keys(schema, super().ordered_dict_schema(schema))

        def counter_schema(self, schema: Any) -> JsonSchema:
            return self._with_keys(schema, super().counter_schema(schema))

        def _with_keys(self, schema: Any, found: JsonSchema) -> JsonSchema:
            _limit_keys(found, _pydantic_keys(schema.get("keys_schema", {}), found.get("propertyNames", {})))
            return found

        def generate_inner(self, schema: Any) -> JsonSchema:
            _refuse_validator(schema)
            return super().generate_inner(schema)

    return StrictJsonSchema


def _unbounded(name: str, schema: Mapping[str, Any], found: JsonSchema) -> JsonSchema:
    if any(schema.get(key) is not None for key in _TEMPORAL_BOUNDS):
        raise refused(name, "bounds of dates and times cannot be kept; check them afterwards")
    if isinstance(schema.get("tz_constraint"), int):
        raise refused(name, "a certain time zone cannot be kept; use AwareDatetime")
    return found


def _decimal(schema: Mapping[str, Any]) -> JsonSchema:
    """A text without bounds, else a number: its bounds can then be kept."""
    keywords = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
    found = {keywords[key]: float(schema[key]) for key in keywords if schema.get(key) is not None}
    if schema.get("multiple_of") is not None:
        found["multipleOf"] = float(schema["multiple_of"])
    places, digits = schema.get("decimal_places"), schema.get("max_digits")
    if not found and places is None and digits is None:
        return {"type": "string", "format": "decimal"}
    if digits is not None:
        places = min(2, digits - 1) if places is None else places
        most = float(10 ** (digits - places))
        found.setdefault("exclusiveMaximum", most)
        found.setdefault("exclusiveMinimum", -most)
    if places is not None and "multipleOf" not in found:
        found["multipleOf"] = round(10.0**-places, places) if places else 1
    return {"type": "number", **found}


def _url(schema: Mapping[str, Any], found: JsonSchema) -> JsonSchema:
    schemes = schema.get("allowed_schemes")
    return {**found, "pattern": f"^(?:{'|'.join(map(re.escape, schemes))})://"} if schemes else found


def _pydantic_keys(keys: Mapping[str, Any], names: Mapping[str, Any]) -> Any:
    kind = keys.get("type", "any")
    texts = names.get("enum") or ([names["const"]] if "const" in names else [])
    if texts and all(isinstance(text, str) for text in texts):
        return texts
    if kind in ("any", "str") and not names:
        return None
    if kind == "str" and set(names) == {"pattern"}:
        return names["pattern"]
    if kind == "int" and not set(keys) & {"le", "ge", "lt", "gt", "multiple_of"}:
        return _INTEGER_KEY
    raise refused("dict", "its keys can be `str`, `int` or a `Literal` of strings")


def _refuse_validator(schema: Mapping[str, Any]) -> None:
    """Refuse Pydantic's own types whose validators no schema expresses; a user's validators are their own matter."""
    found = schema.get("function")
    function = found.get("function") if isinstance(found, dict) else found
    owner = getattr(function, "__qualname__", "").partition(".")[0]
    if str(getattr(function, "__module__", "")).startswith("pydantic.") and owner in _REFUSED_VALIDATORS:
        raise refused(*_REFUSED_VALIDATORS[owner])


def _without_loose_formats(part: Any) -> Any:
    """Refuse formats that stand for types with more rules, and let a ByteSize be a number."""
    if isinstance(part, list):
        return [_without_loose_formats(value) for value in part if not _is_byte_size(value)]
    if not isinstance(part, dict):
        return part
    format = part.get("format")
    if isinstance(format, str) and format in _REFUSED_FORMATS:
        raise refused(_REFUSED_FORMATS[format], "JSON Schema cannot express which texts it accepts; use `str`")
    if part.get("contentMediaType") == "application/json":
        raise refused("Json", "the model would write JSON within JSON; use the type itself")
    return {key: _without_loose_formats(value) for key, value in part.items()}


def _is_byte_size(part: Any) -> bool:
    return isinstance(part, dict) and part.get("pattern") == _BYTE_SIZE
