"""What an explanation holds, as values that print: at a prompt as text, in a notebook as a table."""

import html
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# In a notebook, on whatever background.
TABLE = "width:100%; table-layout:fixed; border-collapse:collapse"
CELL = "text-align:left; vertical-align:top; padding:0.3em 0.6em; overflow-wrap:anywhere; border-top:1px solid #7f7f7f55"
WIDTHS = ("24%", "48%", "28%")
WRAPPED = "white-space:pre-wrap; overflow-wrap:anywhere"
NOTHING = "There is nothing to step: no parameters, or all of them are frozen."
BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Row:
    """What one link does to some parameters.

    Attributes:
        params: the parameters, which all go through the same links with the same numbers.
        elements: how many numbers they are together.
        link: the keys to the link's state, joined by dots; or its name.
        depth: how many wrappers it is inside.
        what: a sentence.
        formula: the lines of it.
        hparams: the link's own hyper-parameters, as they are in force.
        options: what else it was made with, as text.
        state: bytes of each entry of its state, in this process; of what all parameters share, the whole.
        remarks: what has gone wrong so far.
    """

    params: tuple[str, ...]
    elements: int
    link: str
    depth: int
    what: str
    formula: tuple[str, ...]
    hparams: Mapping[str, Any]
    options: Mapping[str, str]
    state: Mapping[str, int]
    remarks: Sequence[str] = ()

    @property
    def numbers(self) -> str:
        """Hyper-parameters and options, as they are written in a call."""
        return ", ".join([*(f"{name}={_shown(x)}" for name, x in self.hparams.items()), *map("=".join, self.options.items())])

    @property
    def keeps(self) -> str:
        """The entries of its state, with their bytes."""
        return ", ".join(f"{name} ({_size(size)})" for name, size in self.state.items())

    @property
    def cells(self) -> list[str]:
        """As a row of a table, in HTML."""
        path = html.escape(self.link).replace(".", ".<wbr>")
        link = f'<code style="padding-left:{self.depth}em; overflow-wrap:anywhere">{path}</code>'
        about = [self.numbers, f"keeps {self.keeps}" if self.keeps else "", *self.remarks]
        return [link, _marked(self.what) + "".join(map(_set, self.formula)), "<br>".join(html.escape(x) for x in about if x)]

    def __str__(self) -> str:
        lines = [f"{self.link}: {self.what}" if self.what else self.link, *(f"    {line}" for line in self.formula)]
        about = "; ".join(filter(None, [self.numbers, f"keeps {self.keeps}" if self.keeps else "", *self.remarks]))
        return "\n".join("│ " * self.depth + line for line in [*lines, *([f"    {about}"] if about else [])])


@dataclass(frozen=True)
class Curve:
    """A schedule.

    Attributes:
        name: the hyper-parameter that it gives, with the keys to where.
        schedule: as it is written.
        values: over `steps` steps from the first one on.
        steps: where the schedule ends, if it says so.
        step: the present one.
        now: its value there.
    """

    name: str
    schedule: str
    values: tuple[float, ...]
    steps: float
    step: float
    now: float

    @property
    def sparkline(self) -> str:
        """The values as a line of bars."""
        finite = [value for value in self.values if math.isfinite(value)]
        low, high = min(finite, default=0.0), max(finite, default=0.0)
        height = [(value - low) / (high - low) if high > low else 0.5 for value in finite]
        return "".join(BARS[round(x * (len(BARS) - 1))] for x in height)

    def __str__(self) -> str:
        return (
            f"{self.name} = {self.schedule}\n"
            f"    {self.sparkline}  from {self.values[0]:.3g} to {self.values[-1]:.3g} in {self.steps:g} steps; "
            f"{self.now:.4g} at step {self.step:g}"
        )


@dataclass(frozen=True, repr=False)
class Explanation:
    """What `explain` returns: a value that prints, at a prompt and in a notebook.

    Attributes:
        rows: what happens to the parameters, link after link; those of one kind of parameters after those of another.
        curves: the schedules.
        stages: of an optimizer, how its last step was run; empty before it, and without an optimizer.
        reasons: why a transform, or a part of it, is not run in a better way.
    """

    rows: tuple[Row, ...]
    curves: tuple[Curve, ...] = ()
    stages: tuple[Any, ...] = ()
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        blocks = [f"{_called(params, rows)}\n{_indented(rows)}" for params, rows in self._kinds()]
        return "\n\n".join([*(blocks or [NOTHING]), *self._rest()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """As a table, in a notebook."""
        head = _cells("th", ["link", "what it does", "numbers and state"])
        parts = []
        for params, rows in self._kinds():
            body = "".join(_cells("td", row.cells) for row in rows)
            parts.append(f"<p><b>{html.escape(_called(params, rows))}</b></p><table style={TABLE!r}>{head}{body}</table>")
        rest = "\n\n".join(self._rest())
        return ("".join(parts) or f"<p>{NOTHING}</p>") + (f"<pre style={WRAPPED!r}>{html.escape(rest)}</pre>" if rest else "")

    def _rest(self) -> Iterator[str]:
        """What is told of schedules, and of the last step."""
        if self.curves:
            yield "schedules\n" + _indented(self.curves)
        if ran := [*map(str, self.stages), *self.reasons]:
            yield "the last step\n" + _indented(ran)

    def _kinds(self) -> list[tuple[tuple[str, ...], list[Row]]]:
        kinds: dict[tuple[str, ...], list[Row]] = {}
        for row in self.rows:
            kinds.setdefault(row.params, []).append(row)
        return list(kinds.items())


def _shown(value: Any) -> str:
    """A number, also of a tensor that can be read."""
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_shown, value))})"
    if isinstance(value, Tensor) and value.ndim == 0 and value.device.type != "meta":
        return f"{float(value):.4g}"
    return repr(value)


def _size(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} bytes"


def _marked(text: str) -> str:
    """A sentence in HTML, with its code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _set(line: str) -> str:
    """A line of a formula in HTML; what stands apart from it, in the docstring, is a remark."""
    formula, *remarks = re.split(r"\s{2,}", line)
    rest = f'<span style="opacity:0.65; margin-left:1.5em">{html.escape("  ".join(remarks))}</span>' if remarks else ""
    return f"<div><code>{html.escape(formula)}</code>{rest}</div>"


def _cells(tag: str, cells: Sequence[str]) -> str:
    """A row of a table."""
    styled = (f'<{tag} style="width:{width}; {CELL}">{cell}</{tag}>' for cell, width in zip(cells, WIDTHS, strict=True))
    return f"<tr>{''.join(styled)}</tr>"


def _called(params: Sequence[str], rows: Sequence[Row]) -> str:
    """A heading."""
    shown = ", ".join(params[:3]) + (f" and {len(params) - 3} more" if len(params) > 3 else "")
    return f"{shown or 'a bare tensor'}: {rows[0].elements} numbers"


def _indented(parts: Iterable[Any]) -> str:
    return "\n".join(f"  {line}" for part in parts for line in str(part).splitlines())
