"""The notebooks as pages, with the outputs that are committed in them, and a gallery of their pictures."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"

HEAD = """# Notebooks

Each shows one idea, at a size that runs in a minute or two; they are executed by the tests.

::::{grid} 1 2 2 3
:gutter: 3

"""

CARD = """:::{{grid-item-card}} {title}
:link: {name}
:link-type: doc
:img-top: images/{picture}
:img-alt: {alt}

{summary}
:::

"""


def write(folder: Path) -> None:
    """Write `gallery/` into the folder with the sources."""
    out = folder / "gallery"
    (out / "images").mkdir(parents=True, exist_ok=True)
    cards, names = [], []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        pictures: list[str] = []
        text = "\n\n".join(_cells(cells, path.stem, out / "images", pictures))
        _put(out / f"{path.stem}.md", f"{text}\n")
        title, _, rest = "".join(cells[0]["source"]).lstrip("# ").partition("\n")
        summary = re.split(r"\s*\n\n|(?<=[^l]\.) (?=[A-Z])", rest.strip())[0]  # The first sentence, also after "et al.".
        names.append(path.stem)
        cards.append(
            CARD.format(title=title, name=path.stem, picture=pictures[-1], alt=f"The last picture of: {title}", summary=summary)
        )
    toctree = "\n".join(["```{toctree}", ":hidden:", "", *names, "```"])
    _put(out / "index.md", f"{HEAD}{''.join(cards)}::::\n\n{toctree}\n")


def _cells(cells: list[dict[str, Any]], stem: str, images: Path, pictures: list[str]) -> Iterator[str]:
    heading = ""
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = (re.findall(r"^#+ (.*)$", source, re.MULTILINE) or [heading])[-1]
            # Between two dollars on lines of their own stands a formula that is shown, for MyST in a block.
            yield re.sub(r"\$\$(.+?)\$\$", lambda found: f"\n\n```{{math}}\n{found[1].strip()}\n```\n\n", source, flags=re.DOTALL)
            continue
        yield f"```python\n{source}\n```"
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{stem}_{len(pictures) + 1}.png"
                picture = base64.b64decode(data["image/png"])
                if not (images / name).exists() or (images / name).read_bytes() != picture:
                    (images / name).write_bytes(picture)
                pictures.append(name)
                yield f"```{{image}} images/{name}\n:alt: {_alt(heading, pictures)}\n:class: output\n```"
            else:
                text = "".join(output.get("text") or data.get("text/plain") or [])
                if text.strip():
                    yield f"```{{code-block}} text\n:class: output\n\n{text.rstrip()}\n```"


def _alt(heading: str, pictures: list[str]) -> str:
    return f"Picture {len(pictures)}: {heading}".replace("`", "")


def _put(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
