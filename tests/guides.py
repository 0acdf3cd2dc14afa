"""The programs in the guides and in the cookbook.

A page is one program: its blocks marked `python`, one after another. What is checked stands in comments that readers don't see,
`<!-- check … -->`. Blocks of other kinds show programs of other libraries.
"""

import re
from pathlib import Path

from builds import ROOT

DOCS = ROOT / "docs"
RECIPES = sorted(path for path in DOCS.glob("cookbook/*.md") if path.stem != "index")
PAGES = [DOCS / "index.md", *sorted(DOCS.glob("guides/*.md")), *RECIPES]
BLOCK = re.compile(r"^```python\n(.*?)^```|^<!-- check\n(.*?)^-->", re.DOTALL | re.MULTILINE)


def program(path: Path, *, checked: bool) -> str:
    """The blocks of a page, each where it stands, so that an error tells its line; checks too, or not."""
    text = path.read_text(encoding="utf-8")
    kept = [""] * (text.count("\n") + 1)
    for found in BLOCK.finditer(text):
        code = found[1] or (found[2] if checked else None)
        if code is not None:
            first = text[: found.start()].count("\n") + 1
            kept[first : first + code.count("\n")] = code.splitlines()
    return "\n".join(kept)


def name_of(path: Path) -> str:
    return path.relative_to(DOCS).with_suffix("").as_posix()
