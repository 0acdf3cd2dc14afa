"""What is done when the site is built: pages from tables and notebooks, docstrings as text, formulas, links, and checks."""

import html
import re
from pathlib import Path
from typing import Any

import formulas
import gallery
import pages
import verify
from docutils import nodes
from docutils.parsers.rst import Directive
from latex2mathml.converter import convert
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx.addnodes import desc_content, pending_xref
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

log = logging.getLogger(__name__)


def write_sources(app: Sphinx) -> None:
    """The pages that nobody writes by hand."""
    app.symbols = pages.write(Path(app.srcdir))  # type: ignore[attr-defined]
    for symbol in app.symbols:  # type: ignore[attr-defined]
        if not pages.summary(symbol.value):
            log.warning(f"fo.{symbol.short} is public and has no docstring")
    gallery.write(Path(app.srcdir))


def siblings(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """For the side bar of a name's page: the other names of its group. In the site's tree they would be in every page's bar."""
    own = next((symbol for symbol in app.symbols if symbol.page == pagename), None)  # type: ignore[attr-defined]
    if own:
        context["group"] = own.group
        context["group_page"] = pages.group_page(own.group)
        context["siblings"] = [(s.short, s.page) for s in app.symbols if s.group == own.group]  # type: ignore[attr-defined]


def docstring(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """As reStructuredText, before anything else reads it."""
    lines[:] = pages.restructured(lines)


def named_defaults(
    app: Sphinx, what: str, name: str, value: Any, options: Any, signature: str | None, returns: str | None
) -> Any:
    """Functions among the defaults by their names, so that the rest of the signature can be read, too."""
    return (signature and re.sub(r"<function (\w+)[^>]*>", r"\1", signature)), returns


class Formulas(Directive):
    """A block of formulas, line under line; what stands apart to their right are remarks."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        rows = "".join(_row(line) for line in self.content if line.strip())
        return [nodes.raw("", f'<div class="formulas"><table>{rows}</table></div>', format="html")]


class Source(Directive):
    """Code to be opened by who wants to see it, and not found by the search, which is for what is said."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        code = highlight("\n".join(self.content), PythonLexer(), HtmlFormatter(cssclass="highlight"))
        block = f'<div class="highlight-python notranslate">{code}</div>'
        return [nodes.raw("", f'<details class="source"><summary>Source</summary>{block}</details>', format="html")]


def _row(line: str) -> str:
    columns = re.split(r"\s{2,}", line.strip())
    width = f' colspan="{3 - len(columns)}"' if len(columns) < 2 else ""
    cells = [_cell(columns[0], width), *(_cell("  ".join(columns[1:])) for _ in columns[1:2])]
    return f"<tr>{''.join(cells)}</tr>"


def _cell(text: str, attributes: str = "") -> str:
    """Formulas where it is one, else words."""
    kind = ' class="remark"' if "←" not in text and "=" not in text else ""
    pieces = "&emsp;".join(_piece(piece) for piece in re.split(r"\s{2,}", text))
    return f"<td{kind}{attributes}>{pieces}</td>"


def _piece(text: str) -> str:
    lead, colon, rest = text.partition(":  ")
    if colon:
        return f"{html.escape(lead)}: {_piece(rest)}"
    if "`" in text:
        return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
    words, formula = re.match(r"((?:[A-Za-z']*[a-z]{2,}[a-z']* )(?:[A-Za-z']+ )*)?(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    if formulas.SIGNS.search(formula):
        try:
            return html.escape(words or "") + formulas.mathml(formula, display=True)
        except formulas.NoFormula:
            pass
    return html.escape(text)


class Literals(SphinxPostTransform):
    """Code in a text: formulas become mathematics, public names lead to their pages."""

    default_priority = 5

    def run(self, **kwargs: Any) -> None:
        known = {symbol.short: symbol for symbol in self.app.symbols}  # type: ignore[attr-defined]
        here = self.env.docname
        # An argument that is called as something public is not that.
        arguments = {name for symbol in known.values() if symbol.page == here for name in pages.arguments(symbol.value)}
        for node in list(self.document.findall(nodes.literal)):
            text = node.astext()
            if isinstance(node.parent, nodes.reference | pending_xref | nodes.title):
                continue
            if formulas.is_formula(text):
                try:
                    node.replace_self(nodes.raw("", formulas.mathml(" ".join(text.split()), display=_leads(node)), format="html"))
                except formulas.NoFormula:
                    pass
                continue
            name = re.sub(r"^(fo|functional_optim)\.|\(.*\)$", "", text, flags=re.DOTALL)
            symbol = known.get(name) or known.get(f"adapters.{name}") or known.get(f"meta.{name}")
            if symbol and symbol.page != here and text not in arguments:
                node.replace_self(
                    make_refnode(self.app.builder, here, symbol.page, "", node.deepcopy(), pages.summary(symbol.value))
                )
            elif re.fullmatch(r"fo\.[\w.]+(\(.*\))?", text) and not symbol and not verify.exists(name):
                log.warning(f"there is no {text!r}", location=node)


class BadSite(SphinxError):
    """The build fails with this message."""

    category = "The site is not as it must be"


def check(app: Sphinx, exception: Exception | None) -> None:
    """Raise BadSite with all that is wrong with what was built."""
    if exception is None and app.builder.name == "html":
        wrong = verify.faults(Path(app.outdir), [symbol.page for symbol in app.symbols])  # type: ignore[attr-defined]
        if wrong:
            raise BadSite("\n".join(["", *wrong]))


def inline_math(writer: Any, node: nodes.math) -> None:
    """LaTeX, which notebooks use, as MathML."""
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block_math(writer: Any, node: nodes.math_block) -> None:
    """The same, on a line of its own."""
    writer.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def _leads(node: nodes.Node) -> bool:
    """Whether a formula stands in the first paragraph of a description, where it may be as high as it needs."""
    around = node.parent.parent
    return isinstance(around, desc_content) and around.index(node.parent) == 0


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", write_sources)
    app.connect("autodoc-process-docstring", docstring, priority=100)
    app.connect("html-page-context", siblings)
    app.connect("build-finished", check)
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.add_directive("formulas", Formulas)
    app.add_directive("source", Source)
    app.connect("autodoc-process-signature", named_defaults)
    app.add_post_transform(Literals)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
