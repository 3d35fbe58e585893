"""What is published: the wheel alone runs the demo, and the source archive makes the same wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import pt2q

ROOT = Path(__file__).parent.parent
BINARIES = "Scripts" if os.name == "nt" else "bin"
NOT_COPIED = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "pt2q-demo")
pytestmark = pytest.mark.slow  # builds, installs and lowers


def run(*command: object, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built(source: Path, out: Path, *options: str) -> None:
    run(
        sys.executable, "-m", "build", "--no-isolation", *options, "-o", out, source, cwd=out.parent
    )


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source archive and the wheel made from it, of a copy: building writes into its tree."""
    folder = tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, folder / "copy", ignore=NOT_COPIED)
    built(folder / "copy", folder / "out")
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (found,) = (dist / "out").glob("*.whl")
    return found


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(contents(wheel))
    info = f"pt2q-{pt2q.__version__}.dist-info/"
    assert {name for name in names if not name.startswith(("pt2q/", info))} == set()
    assert {"pt2q/py.typed", "pt2q/demo/digits.pt", f"{info}licenses/LICENSE"} <= names
    for folder, place in {
        "pt2q": "pt2q",
        "passes": "pt2q/passes",
        "quantizers": "pt2q/quantizers",
    }.items():
        modules = {p.relative_to(ROOT / folder).as_posix() for p in (ROOT / folder).rglob("*.py")}
        assert {f"{place}/{module}" for module in modules} <= names


def test_source_archive_and_tree_make_the_same_wheel(dist: Path, wheel: Path) -> None:
    built(dist / "copy", dist / "direct", "--wheel")
    (direct,) = (dist / "direct").glob("*.whl")
    assert contents(direct) == contents(wheel)


def test_the_source_archive_can_be_tested(dist: Path) -> None:
    (archive,) = (dist / "out").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.split("/", 1)[-1] for name in opened.getnames()}
    wanted = {"LICENSE", "CHANGELOG.md", "SECURITY.md", "CITATION.cff", "mkdocs.yml", "Makefile"}
    assert {*wanted, "docs/index.md", "tests/test_distribution.py", "constraints.txt"} <= names


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel, which borrows the installed dependencies.

    They come by a path file, and path files in a folder that is added by one are not read: so the
    editable install of this checkout stays out.
    """
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / BINARIES / "python"
    command = (
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
    )
    run(*command, wheel, cwd=folder)
    return folder


def packages(environment: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(run(environment / BINARIES / "python", "-c", code, cwd=environment).strip())


def test_only_the_package_is_installed(environment: Path) -> None:
    installed = {path.name for path in packages(environment).iterdir()} - {"borrowed.pth"}
    assert installed == {"pt2q", f"pt2q-{pt2q.__version__}.dist-info"}


def test_the_installed_wheel_runs_the_demo(environment: Path, tmp_path: Path) -> None:
    borrowed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages(environment) / "borrowed.pth").write_text("\n".join(borrowed))
    code = "import pt2q, pt2q.passes, pt2q.quantizers as q; print(pt2q.__file__, q.__file__)"
    places = run(environment / BINARIES / "python", "-c", code, cwd=tmp_path).split()
    assert all(Path(place).is_relative_to(environment) for place in places), places

    printed = run(environment / BINARIES / "pt2q", "demo", "--out", "out", cwd=tmp_path)
    assert "runs on XNNPACK" in printed
    float_file, int8_file = (
        tmp_path / "out" / "digits-float.pte",
        tmp_path / "out" / "digits-int8.pte",
    )
    assert int8_file.stat().st_size < 0.4 * float_file.stat().st_size
