"""What the finished site is held to: a page for each public name, no dead link within it, and nothing fetched from elsewhere."""

import functools
import os
import re
from collections.abc import Iterable
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import functional_optim as fo

# What a browser fetches by itself. A link that a reader follows, to a paper, may lead anywhere.
FETCHED = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc=[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preload|preconnect|icon))[^>]*\bhref=[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|@import\s+[\"']?((?:https?:)?//[^\"'\s;)]+)"
    r"|url\([\"']?((?:https?:)?//[^\"')]+)"
    r"|\b(?:fetch|import)\([\"']((?:https?:)?//[^\"']+)"
)


def exists(name: str) -> bool:
    """Whether `fo.name` is something."""
    try:
        functools.reduce(getattr, name.split("."), fo)
    except AttributeError:
        return False
    return True


def faults(out: Path, pages: Iterable[str]) -> list[str]:
    """All that is wrong with the site in this folder, which is to have these pages."""
    wrong = [f"there is no page {page}" for page in pages if not (out / f"{page}.html").exists()]
    texts = {path: path.read_text(encoding="utf-8") for kind in ("html", "css", "js") for path in sorted(out.rglob(f"*.{kind}"))}
    return wrong + dead_links({path: text for path, text in texts.items() if path.suffix == ".html"}) + fetches(texts)


def dead_links(texts: dict[Path, str]) -> list[str]:
    """Links to files and places that are not there."""
    places = {str(path): set(re.findall(r'\bid="([^"]+)"', text)) for path, text in texts.items()}
    wrong = []
    for path, text in texts.items():
        for href in set(re.findall(r'<(?:a\b[^>]*\bhref|img\b[^>]*\bsrc)="([^"]*)"', text)):
            if re.match(r"\w+:|//", href):
                continue
            file, _, place = unescape(unquote(href)).partition("#")
            target = os.path.normpath(path.parent / file) if file else str(path)
            is_there = target in places or os.path.exists(target)
            if not is_there or (place and target in places and place not in places[target]):
                wrong.append(f"{path.name}: a link to {href!r}, which is not there")
    return wrong


def fetches(texts: dict[Path, str]) -> list[str]:
    """What would be loaded from another host when a page is read."""
    return [
        f"{path.name}: loads {next(filter(None, found.groups()))!r}"
        for path, text in texts.items()
        for found in FETCHED.finditer(text)
    ]
