"""What a name of the contracts is, found by looking at it: its kind, fields, values, members and signatures, as text.

`contract_table.py` says what they ought to be; `facts_of` says what they are, in the same words.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import inspect
import typing
from typing import Any

import msgspec
import numpy as np

import tensoryard.proto

#: Names that modules give to annotations which the wire reads as plain maps, and what they stand for.
_STANDS_FOR = {
    "_Tools": "list[TextGenerationRequestTool]",
    "_Images": "list[bytes | NDArray[Any]]",
    "_Content": "str | list[MessageContent]",
    "_Role": "Literal['system', 'user', 'assistant', 'tool', 'function', 'root']",
}
_PREFIXES = ("npt.", "np.", "typing.", "numpy.", "collections.abc.")


def facts_of(value: Any) -> dict[str, str]:
    """Every fact about a name, by what it is about."""
    if isinstance(value, typing.TypeVar):
        return _type_variable(value)
    if isinstance(value, str):
        return {"kind": "constant", "value": repr(value)}
    if inspect.isfunction(value):
        return {"kind": "function", "call": signature(value, skip_first=False)}
    if not isinstance(value, type):
        return {"kind": "alias", "is": alias(value)} if _is_alias(value) else _constant(value)
    if issubclass(value, enum.Enum):
        return _enum(value)
    if typing.is_typeddict(value):
        return _typed_dict(value)
    return {**_class_kind(value), **_fields(value), **_members(value)}


def _constant(value: Any) -> dict[str, str]:
    return {"kind": "constant", "value": repr(value)}


def _is_alias(value: Any) -> bool:
    return typing.get_origin(value) is not None


def _type_variable(value: typing.TypeVar) -> dict[str, str]:
    variance = "covariant" if value.__covariant__ else "contravariant" if value.__contravariant__ else "invariant"
    bound = value.__bound__
    return {"kind": "type variable", "bound": alias(bound) if bound is not None else "none", "variance": variance}


def _enum(value: type[enum.Enum]) -> dict[str, str]:
    kind = "str enum" if issubclass(value, str) else "enum"
    values = {f"value {member.name}": repr(member.value) for member in value}
    # Python itself gives a str enum its own __str__.
    return {"kind": kind, **values, **{key: text for key, text in _members(value).items() if key != "method __str__"}}


def _typed_dict(value: Any) -> dict[str, str]:
    keys = inspect.get_annotations(value)
    return {"kind": "typed dict", **{f"key {name}": _text(kind) for name, kind in keys.items()}}


def _class_kind(value: type) -> dict[str, str]:
    facts = {"kind": _kind(value)}
    generic = [base for base in getattr(value, "__orig_bases__", ()) if typing.get_origin(base) is not None]
    parameters = [alias(argument) for base in generic for argument in typing.get_args(base)]
    if parameters:
        facts["parameters"] = ", ".join(parameters)
    inherited = [base.__name__ for base in value.__bases__ if base.__name__ in tensoryard.proto.__all__]
    if inherited:
        facts["extends"] = ", ".join(inherited)
    if issubclass(value, msgspec.Struct):
        config = value.__struct_config__
        words = (
            (f"tag {config.tag!r}", config.tag is not None),
            ("omits defaults", config.omit_defaults),
            ("array", config.array_like),
        )
        if wire := ", ".join(word for word, holds in words if holds):
            facts["wire"] = wire
    return facts


def _kind(value: type) -> str:
    if getattr(value, "_is_protocol", False):
        return "runtime-checkable protocol" if getattr(value, "_is_runtime_protocol", False) else "protocol"
    if issubclass(value, msgspec.Struct):
        words = (("frozen", value.__struct_config__.frozen), ("keyword-only", _keyword_only(value)), ("struct", True))
    elif dataclasses.is_dataclass(value):
        parameters = value.__dataclass_params__
        words = (("frozen", parameters.frozen), ("keyword-only", _keyword_only(value)), ("dataclass", True))
    else:
        words = (("abstract", inspect.isabstract(value)), ("class", True))
    return " ".join(word for word, holds in words if holds)


def _keyword_only(value: type) -> bool:
    parameters = list(inspect.signature(value).parameters.values())
    return bool(parameters) and all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)


def _fields(value: type) -> dict[str, str]:
    """Fields in order, each as `type` when it is required, else as `type = default`."""
    kinds = {name: kind for base in reversed(value.__mro__) for name, kind in inspect.get_annotations(base).items()}
    if issubclass(value, msgspec.Struct):
        found = [(spec.name, _struct_default(spec)) for spec in msgspec.structs.fields(value)]
    elif dataclasses.is_dataclass(value):
        found = [(spec.name, _dataclass_default(spec)) for spec in dataclasses.fields(value)]
    elif value.__init__ is not object.__init__ and not getattr(value, "_is_protocol", False):
        return {"call": signature(value.__init__, skip_first=True)}
    else:
        return {}
    facts = {f"field {name}": _text(kinds[name]) + default for name, default in found}
    parameters = list(inspect.signature(value).parameters)
    return facts if parameters == [name for name, _ in found] else {**facts, "call": signature(value, skip_first=False)}


def _struct_default(spec: msgspec.structs.FieldInfo) -> str:
    if spec.default is not msgspec.NODEFAULT:
        return f" = {shown(spec.default)}"
    return "" if spec.default_factory is msgspec.NODEFAULT else f" = {shown(spec.default_factory())}"


def _dataclass_default(spec: dataclasses.Field[Any]) -> str:
    if spec.default is not dataclasses.MISSING:
        return f" = {shown(spec.default)}"
    return "" if spec.default_factory is dataclasses.MISSING else f" = {shown(spec.default_factory())}"


def shown(value: Any) -> str:
    """A default: plain values as they are, objects of ours by their class."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, np.ndarray):
        return f"array {value.dtype} {value.shape}"
    if isinstance(value, type) or type(value).__module__.startswith("tensoryard"):
        return f"{getattr(value, '__name__', type(value).__name__)}()"
    if isinstance(value, int) and not isinstance(value, bool) and value > 1 << 25:
        return "random"
    return repr(value)


def _members(value: type) -> dict[str, str]:
    """Public attributes, properties and methods of a class and of its bases in this package."""
    facts: dict[str, str] = {}
    fields = {spec.name for spec in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
    fields |= set(getattr(value, "__struct_fields__", ()))
    for base in reversed(value.__mro__):
        if not base.__module__.startswith("tensoryard"):
            continue
        for name, kind in inspect.get_annotations(base).items():
            if not name.startswith("_") and name not in fields:
                facts[f"data {name}"] = _text(kind)
        for name, member in vars(base).items():
            fact = _member(member)
            if not fact or name in fields or (name.startswith("_") and name not in _OPERATORS):
                continue
            if fact[1] == "stored" and f"data {name}" in facts:
                continue
            facts = {key: text for key, text in facts.items() if key.partition(" ")[2] != name}
            facts[f"{fact[0]} {name}"] = fact[1]
    return facts


#: Special methods that are part of a contract where a class writes its own.
_OPERATORS = {"__len__", "__getitem__", "__str__", "__bool__"}


def _member(member: Any) -> tuple[str, str] | None:
    if isinstance(member, functools.cached_property):
        return "data", _returned(member.func)
    if isinstance(member, property):
        return "data", ("abstract " if getattr(member, "__isabstractmethod__", False) else "") + _returned(member.fget)
    if isinstance(member, classmethod):
        return "classmethod", _called(member.__func__)
    if inspect.isfunction(member):
        return "method", _called(member)
    return ("data", "stored") if inspect.ismemberdescriptor(member) else None


def _called(function: Any) -> str:
    words = ["abstract"] if getattr(function, "__isabstractmethod__", False) else []
    words += ["async"] if inspect.iscoroutinefunction(function) else []
    return " ".join([*words, signature(function, skip_first=True)])


def _returned(function: Any) -> str:
    return _text(inspect.get_annotations(function).get("return", "Any"))


def signature(function: Any, *, skip_first: bool) -> str:
    """Names, order, kinds and defaults of a function's parameters."""
    found = inspect.signature(function)
    parameters = list(found.parameters.values())[1 if skip_first else 0 :]
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return str(inspect.Signature(plain)).replace("<factory>", "...")


def alias(value: Any) -> str:
    """A type as it would be written, without the modules of its parts."""
    if value is Any or isinstance(value, typing.TypeVar):
        return getattr(value, "__name__", "Any")
    if value is type(None):
        return "None"
    if value is Ellipsis:
        return "..."
    if isinstance(value, list):
        return f"[{', '.join(map(alias, value))}]"
    origin, arguments = typing.get_origin(value), typing.get_args(value)
    if origin is None:
        return getattr(value, "__name__", str(value))
    if origin is typing.Union or type(value).__name__ == "UnionType":
        return " | ".join(map(alias, arguments))
    return f"{getattr(origin, '__name__', origin)}[{', '.join(map(alias, arguments))}]"


def _text(annotation: Any) -> str:
    """An annotation as its source has it, without the modules of its parts."""
    annotation = getattr(annotation, "__forward_arg__", annotation)
    text = annotation if isinstance(annotation, str) else alias(annotation)
    for prefix in _PREFIXES:
        text = text.replace(prefix, "")
    tree = ast.parse(text, mode="eval")
    return ast.unparse(_Renamed().visit(tree))


class _Renamed(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id in _STANDS_FOR:
            return ast.parse(_STANDS_FOR[node.id], mode="eval").body
        return node
