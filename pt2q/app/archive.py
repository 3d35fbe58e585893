"""What a `.pt2` holds, before torch loads it: loading runs what pickles and expressions ask for.

An exported program is text and tensors. Its format also has room for pickles, for expressions that
are evaluated, and for names of functions that are looked up anywhere in torch. What is read here
has tensors alone in its pickles, arithmetic alone in its expressions and operators alone among its
functions.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pt2q.errors import DataError, UntrustedFileError

COMPILED = "data/aotinductor/"
_FOLDERS = (
    "models/",
    "data/weights/",
    "data/constants/",
    "data/sample_inputs/",
    "extra/",
    ".data/",
)
_FILES = frozenset({"archive_format", "archive_version", "byteorder", "version"})

_OPERATOR = re.compile(r"torch\.ops(\.(?!__)\w+){2,3}")
_FUNCTIONS = re.compile(
    r"torch\.(_sym|sym)_\w+|math\.(ceil|floor|trunc|sqrt|log2)|_operator\.(getitem|add|sub|mul|"
    r"truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|xor|not_|lshift|rshift)"
)
_CALLED = re.compile(
    r"FloorDiv|CleanDiv|ModularIndexing|Mod|PythonMod|CMod|Max|Min|Pow|PowByNatural|FloatPow|Abs|"
    r"floor|ceiling|CeilToInt|FloorToInt|CeilDiv|IntTrueDiv|FloatTrueDiv|ToFloat|TruncToInt|"
    r"TruncToFloat|RoundToInt|RoundDecimal|Where|Piecewise|ExprCondPair|LShift|RShift|Identity|Eq|"
    r"Ne|Lt|Le|Gt|Ge|And|Or|Not|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|"
    r"GreaterThan|BitwiseFn_\w+|OpaqueUnaryFn_\w+|sqrt|max|min|abs|int|float|round|Integer|Rational|Add|Mul"
)
_NAMED = re.compile(r"Symbol|Dummy|Float")
_NAME = re.compile(r"[\w.+-]{1,64}")
_SYMBOL = re.compile(r"(s|u|z|t|zf|uf|zuf|zoo|ps)\d+|int_oo|oo|nan|True|False|true|false")
_ARITHMETIC = (
    *(ast.Expression, ast.Compare, ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.Load, ast.Tuple),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
_OF_INPUTS = frozenset({"size", "stride", "dim", "storage_offset"})


def check_archive(path: Path, *, trusted: bool = False) -> None:
    """Refuse what is no exported program, and one whose loading could run code.

    Args:
        path: a zip archive.
        trusted: it may run code.

    Raises:
        DataError: it is another kind of archive.
        UntrustedFileError: it holds what may run code when it is loaded.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_kind(path, [name.partition("/")[2] for name in archive.namelist()])
            if not trusted:
                _check(path, archive)
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError) as error:
        raise DataError(f"model {path}: truncated or damaged: {error}") from error


def _check_kind(path: Path, members: list[str]) -> None:
    """Say what an archive is that is no exported program, and what to give instead."""
    if any(member.startswith(COMPILED) for member in members):
        raise DataError(
            f"model {path}: a compiled package, not an exported program: give what it was made from"
        )
    if any(re.fullmatch(r"models/[^/]+\.json", member) for member in members):
        return
    found = "no exported program: write it"
    if any(member.startswith("code/") for member in members):
        found = "TorchScript, not an exported program: export its model, and write that"
    elif "data.pkl" in members:
        found = "what torch.save writes, no exported program: export the model, and write that"
    raise DataError(f"model {path}: {found} with torch.export.save")


def _check(path: Path, archive: zipfile.ZipFile) -> None:
    names = archive.namelist()
    members = [name.partition("/")[2] for name in names]
    if len(set(names)) < len(names) or len({name.partition("/")[0] for name in names}) > 1:
        raise _untrusted(path, "two files with one name, or more than one archive")
    for name, member in zip(names, members, strict=True):
        if not (member.startswith(_FOLDERS) or member in _FILES):
            raise _untrusted(path, f"{name}, which is no part of an exported program")
        if member.startswith("data/sample_inputs/"):
            _check_pickle(path, name, archive.read(name))
        elif member.endswith("_config.json"):
            _check_tensors(path, archive, name)
        elif member.startswith("models/"):
            _check_text(path, name, json.loads(archive.read(name)))


def _untrusted(path: Path, what: str) -> UntrustedFileError:
    return UntrustedFileError(
        f"model {path} holds {what}, which may run code when it is loaded: pt2q loads it only "
        "where you say that you trust it, with pt2q --trust COMMAND"
    )


def _check_tensors(path: Path, archive: zipfile.ZipFile, config: str) -> None:
    """The pickles that a list of weights or constants names; objects are always pickled."""
    folder = config.rpartition("/")[0]
    for name, entry in json.loads(archive.read(config)).get("config", {}).items():
        stored = f"{folder}/{entry.get('path_name')}"
        if entry.get("tensor_meta") is None or entry.get("use_pickle"):
            known = stored in archive.namelist()
            _check_pickle(path, f"{name} in {stored}", archive.read(stored) if known else b"")


def _check_pickle(path: Path, name: str, data: bytes) -> None:
    try:
        torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:
        raise _untrusted(path, f"a pickle of more than tensors ({name})") from error


def _check_text(path: Path, name: str, text: Any) -> None:
    for key, value in _pairs(text):
        wrong = _wrong(key, value)
        if wrong:
            raise _untrusted(path, f"{wrong} ({name})")


def _wrong(key: str, value: Any) -> str:
    if key == "expr_str" and not (isinstance(value, str) and _is_arithmetic(value)):
        return f"an expression that is no arithmetic, {str(value)[:60]!r}"
    if key == "target" and isinstance(value, str) and not _is_operator(value):
        return f"a call of {value[:60]!r}"
    if key == "guards_code":
        found = next((text for text in value if not _is_arithmetic(str(text))), None)
        return "" if found is None else f"a guard that is no arithmetic, {str(found)[:60]!r}"
    if key in ("in_spec", "out_spec") and re.search("__enum__|default_factory", str(value)):
        return "arguments of a class of its own"
    return ""


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    waiting = [value]
    while waiting:
        at = waiting.pop()
        if isinstance(at, dict):
            yield from at.items()
            waiting += at.values()
        elif isinstance(at, list):
            waiting += at


def _is_operator(target: str) -> bool:
    # What does not begin like a module is looked up nowhere.
    known = _OPERATOR.fullmatch(target) or _FUNCTIONS.fullmatch(target)
    return bool(known) or not target.startswith(("torch", "math", "_operator", "#"))


def _is_arithmetic(text: str) -> bool:
    try:
        return _allowed(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _allowed(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value=value):
            return isinstance(value, int | float)
        case ast.Name(id=name):
            return bool(_SYMBOL.fullmatch(name))
        case ast.Call(func=ast.Name(id=name), args=[ast.Constant(value=str(text))]) if (
            _NAMED.fullmatch(name)
        ):
            flags = (keyword.value for keyword in node.keywords)
            return bool(_NAME.fullmatch(text)) and all(map(_allowed, flags))
        case ast.Call(func=ast.Name(id=name), keywords=[]):
            return bool(_CALLED.fullmatch(name)) and all(map(_allowed, node.args))
        case ast.Call(func=ast.Attribute(value=of, attr=attr), keywords=[]):
            return attr in _OF_INPUTS and _is_input(of) and all(map(_allowed, node.args))
        case ast.Subscript(value=ast.Call(), slice=ast.Constant(value=int())):
            return _allowed(node.value)
    children = list(ast.iter_child_nodes(node))
    return isinstance(node, _ARITHMETIC) and all(map(_allowed, children))


def _is_input(node: ast.AST) -> bool:
    """``L['x']``, ``L['x'][0]['y']``: an input by its path."""
    while isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        node = node.value
    return isinstance(node, ast.Name) and node.id == "L"
