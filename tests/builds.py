"""The distributions of the project, built from a copy of the sources, and environments with one of them installed."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
KEPT = ["functional_optim", "adapters", "tests", "notebooks", "docs", ".editable", ".ci"]
KEPT += ["pyproject.toml", "setup.py", "MANIFEST.in", "Makefile", "constraints.txt", "README.md", "CHANGELOG.md", "LICENSE"]
KEPT += ["CONTRIBUTING.md", "CITATION.cff"]
# `make docs` writes the last three.
MADE = shutil.ignore_patterns("__pycache__", "_build", "gallery", "api")
SOURCES = [path for folder in ("functional_optim", "adapters") for path in sorted((ROOT / folder).rglob("*.py"))]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def copied_sources(folder: Path) -> Path:
    """The sources alone, as a clone has them."""
    source = folder / "source"
    for kept in map(ROOT.joinpath, KEPT):
        if kept.is_dir():
            shutil.copytree(
                kept, source / kept.name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "_build", "gallery", "api")
            )
        elif kept.exists():
            shutil.copy(kept, source)
    return source


def built(kind: str, source: Path) -> Path:
    """A "wheel", an "sdist" or an "editable" wheel of the sources, as pip has it built, with the setuptools that is here."""
    folder = source.parent / kind
    folder.mkdir()
    run(sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_{kind}({str(folder)!r})", cwd=source)
    (file,) = folder.iterdir()
    return file


def environment(folder: Path, wheel: Path) -> Path:
    """The Python of a new environment with this wheel in it, before all that is installed here; but for editable projects."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "here.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return folder / "bin" / "python"


def run(python: Path | str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a Python that finds what is in its environment, and nothing that PYTHONPATH names."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([python, *arguments], cwd=cwd, env=variables, capture_output=True, text=True)
