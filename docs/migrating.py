"""Writes the tables of migrating.md: each public name of the other stack, and what it is here.

The other stack is imported and its public names are read off it; ``python docs/migrating.py`` fills
the places of the page. A test fails where the page says something else, and where a name is neither
offered here nor listed below with a reason.
"""

from __future__ import annotations

import ast
import inspect
import pkgutil
import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).parent))
from migrating_reasons import DIFFERENCES, INSTEAD, INSTEAD_OF_MODULES
from ported_imports import PEER, XNNPACK, is_in, place_of

PAGE = Path(__file__).with_name("migrating.md")
PLACE = re.compile(r"<!-- (names|tests): (.*?) -->\n.*?<!-- end -->", re.DOTALL)
FIRST = (PEER, f"{PEER}.quantizer")
LAST = (f"{XNNPACK}.xnnpack_quantizer", f"{XNNPACK}.xnnpack_quantizer_utils")


def peer_modules() -> list[ModuleType]:
    """The public modules of the other stack, those that others give the names of first."""
    package = import_module(PEER)
    found = [module.name for module in pkgutil.walk_packages(package.__path__, f"{PEER}.")]
    names = dict.fromkeys([*FIRST, *sorted(found), *LAST])
    return [import_module(name) for name in names if "._" not in name]


def public_names(module: ModuleType) -> set[str]:
    """What a module lists in ``__all__``, or else defines without an underscore."""
    if hasattr(module, "__all__"):
        return set(module.__all__)
    source = Path(inspect.getfile(module)).read_text()
    return {name for name in _defined(ast.parse(source)) if not name.startswith("_")}


def _defined(tree: ast.Module) -> set[str]:
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def names_by_module() -> dict[str, list[str]]:
    """The public names of each module, each name under the first that has it."""
    seen: set[str] = set()
    result = {}
    for module in peer_modules():
        new = public_names(module) - seen
        seen |= new
        if new:
            result[module.__name__] = sorted(new, key=str.lower)
    return result


def what_it_is(module: str, name: str) -> str | None:
    """What the page says of a name; None where it is neither offered nor listed."""
    place = place_of(name)
    if place is not None:
        return f"`{place}.{name}`"
    if name in INSTEAD:
        return INSTEAD[name]
    known = [text for package, text in INSTEAD_OF_MODULES.items() if is_in(module, (package,))]
    return known[0] if known else None


def unlisted() -> list[str]:
    """Names that are neither offered nor listed."""
    return [
        f"{module}.{name}"
        for module, names in names_by_module().items()
        for name in names
        if what_it_is(module, name) is None
    ]


def filled(text: str) -> str:
    """The page with its tables as the two stacks have them now."""
    return PLACE.sub(_fill, text)


def _fill(place: re.Match[str]) -> str:
    kind, wanted = place.groups()
    table = _tests(wanted) if kind == "tests" else _names(wanted)
    return f"<!-- {kind}: {wanted} -->\n\n{table}\n\n<!-- end -->"


def _names(wanted: str) -> str:
    known = names_by_module()
    if wanted != "others":
        rows = [f"| `{name}` | {what_it_is(wanted, name)} |" for name in known[wanted]]
        return "\n".join(["| there | here |", "| --- | --- |", *rows])
    rows = [row for module in known if module not in FIRST for row in _rows(module, known[module])]
    return "\n".join(["| module there | names | here |", "| --- | --- | --- |", *rows])


def _rows(module: str, names: list[str]) -> list[str]:
    """The names of a module, those together of which the page says the same."""
    said: dict[str, list[str]] = {}
    for name in names:
        place = place_of(name)
        what = str(what_it_is(module, name)) if place is None else f"the same names in `{place}`"
        said.setdefault(what, []).append(f"`{name}`")
    short = module.removeprefix(f"{PEER}.").removeprefix(f"{XNNPACK}.")
    return [f"| `{short}` | {', '.join(same)} | {what} |" for what, same in said.items()]


def _tests(quantizer: str) -> str:
    head = "| tests | why |\n| --- | --- |\n"
    return head + "\n".join(
        f"| {', '.join(f'`{name}`' for name in names)} | {reason} |"
        for reason, names in DIFFERENCES[quantizer].items()
    )


def main() -> None:
    """Fill the page beside this file."""
    PAGE.write_text(filled(PAGE.read_text()))


if __name__ == "__main__":
    main()
