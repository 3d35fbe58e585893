"""What finished files carry of where they come from: a text of JSON, where the format has room."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pt2q.algorithms import Applied
from pt2q.errors import DataError
from pt2q.flow import Provenance
from pt2q.ir.module import QuantGraphModule

KEY = "pt2q.provenance"
"""Its name in metadata; also of a method, with an underscore in the place of the dot."""

METHODS = "methods"
"""Where a file of several methods says what they do not have in common."""


def provenance_text(model: object, *packages: str) -> str | None:
    """Where a converted model comes from, as JSON that is the same in every run.

    Args:
        model: any; only what `convert_pt2e` gave carries something.
        packages: of the runtime; their versions are put beside those of pt2q and torch.

    Returns:
        The text; None for a model that says nothing.
    """
    content = _content(model, packages)
    return None if content is None else json.dumps(content, sort_keys=True)


def provenance_of_all(models: Mapping[str, object], *packages: str) -> str | None:
    """Where the models of one file come from; what they have in common is said once.

    Args:
        models: by the names of their methods.
        packages: see `provenance_text`.

    Returns:
        The text, with what differs under ``methods``; None where no model says anything.
    """
    found = {name: _content(model, packages) or {} for name, model in models.items()}
    first = next(iter(found.values()))
    shared = {k: v for k, v in first.items() if all(each.get(k) == v for each in found.values())}
    own = {name: {k: v for k, v in each.items() if k not in shared} for name, each in found.items()}
    content = {**shared, **({METHODS: own} if any(own.values()) else {})}
    return json.dumps(content, sort_keys=True) if content else None


def _content(model: object, packages: Iterable[str]) -> dict[str, Any] | None:
    record = model.record if isinstance(model, QuantGraphModule) else None
    found = None if record is None else record.get(Provenance)
    if record is None or found is None:
        return None
    content = found.to_dict()
    versions = {name: known for name in packages if (known := _version(name)) is not None}
    content["versions"] = {**content.get("versions", {}), **versions}
    if (applied := record.get(Applied)) is not None:
        content["algorithms"] = applied.to_dict()
    return content


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def read_provenance(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """What `provenance_text` wrote, from a file's metadata; None if it holds none.

    Raises:
        DataError: it cannot be read.
    """
    text = metadata.get(KEY)
    try:
        found = None if text is None else json.loads(text)
    except ValueError as error:
        raise DataError(f"the file's account of its provenance is broken: {error}") from error
    if found is not None and not isinstance(found, dict):
        raise DataError("the file's account of its provenance is broken: it is no table")
    return found


def provenance_lines(found: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Rows (what, text) for a reader.

    Args:
        found: what `read_provenance` gave.
    """
    if found is None:
        return [("provenance", "the file says nothing of where it comes from")]
    if METHODS in found:
        shared = {key: value for key, value in found.items() if key != METHODS}
        return [
            row
            for name, own in found[METHODS].items()
            for row in (("method", name), *provenance_lines({**shared, **own} or None))
        ]
    rows = [("quantized by", str(found.get("quantizer", "unknown")))]
    rows += [("", str(line)) for line in found.get("statements", ())]
    if found.get("trained"):
        rows.append(("ranges", "found in training"))
    if data := found.get("calibration"):
        rows.append(("calibrated on", f"{data['batches']} batch(es), sha256 {data['sha256']}"))
    if done := found.get("algorithms"):
        rows += _algorithms(done)
    if measured := found.get("sqnr"):
        where = f"against float, on {measured['batches']} batch(es) held out, before it was written"
        unit = "" if measured["decibels"] == "equal" else " dB"
        rows.append(("SQNR", f"{measured['decibels']}{unit} {where}"))
    versions = found.get("versions", {})
    rows.append(("versions", ", ".join(f"{name} {known}" for name, known in versions.items())))
    rows += [("recipe", line) for line in str(found.get("recipe", "")).splitlines()[:1]]
    rows += [("", line) for line in str(found.get("recipe", "")).splitlines()[1:]]
    return rows


def _algorithms(done: Mapping[str, Any]) -> list[tuple[str, str]]:
    changed = done.get("changed", {})
    rows = []
    for row in done.get("algorithms", ()):
        count = len(changed.get(row["name"], ()))
        rows.append(("algorithm", f"{row['name']}, {count} layer(s) changed: {_settings(row)}"))
    return rows


def _settings(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {json.dumps(value)}" for key, value in row["settings"].items())
