"""`explain`: what happens to each parameter, for people."""

import dataclasses
import functools
import html
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.checks import check_params
from functional_optim.combinators.chain import Chained
from functional_optim.combinators.lr_factor import Factored, with_lr_factor
from functional_optim.combinators.partition import Partitioned
from functional_optim.combinators.rename import Renamed, rename_hparams, set_defaults
from functional_optim.combinators.rounding import with_rounding
from functional_optim.combinators.scheduled import Scheduled, scheduled
from functional_optim.form import Path, part_at
from functional_optim.hparams import HParams
from functional_optim.lifting import Lifted
from functional_optim.recipe import answering
from functional_optim.sharded import local
from functional_optim.transform import Transform, require_transform
from functional_optim.trees import Tree

# Forms that only hand on what they are given, and constructors that return another's transform.
SILENT = (Chained, Factored, Partitioned, Renamed, Scheduled)
AROUND = (set_defaults, rename_hparams, scheduled, with_lr_factor, with_rounding)

# In a notebook, on whatever background.
TABLE = "width:100%; table-layout:fixed; border-collapse:collapse"
CELL = "text-align:left; vertical-align:top; padding:0.3em 0.6em; overflow-wrap:anywhere; border-top:1px solid #7f7f7f55"
WIDTHS = ("24%", "48%", "28%")
WRAPPED = "white-space:pre-wrap; overflow-wrap:anywhere"

NOTHING = "There is nothing to step: no parameters, or all of them are frozen."

BARS = "▁▂▃▄▅▆▇█"
SAMPLES = 32


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


@answering
def explain(transform: Transform, params: Tree, state: Tree = None, hparams: HParams | None = None) -> Explanation:
    """What a transform does to each parameter: links in order with their formulas, numbers in force, state, schedules.

    Args:
        transform: any transform.
        params: what it is for. Nothing of their size is made unless the transform looks at their values.
            Of a `DTensor`, what counts is this process's part; of slots that stay float32 for how it is cut, see `quantized`,
            the bytes of codes are told.
        state: the present one; None for the first. From it come the numbers that schedules give.
        hparams: what is given to `update`.

    Returns:
        A frozen value with `rows`, a `Row` for each link and kind of parameters, and `curves`; `print` it, or leave it at the end
        of a cell. Links inside a wrapper, also those that a gate lets through now and then, stand behind a line below it.

    Raises:
        TypeError, ValueError: as `init_state`.

    `optimizer.explain()` is the same of an optimizer, and tells how its steps are run, too. optax has nothing like it.

    >>> import torch
    >>> from functional_optim import chain, clip_by_value, linear, scale_by_sign, scale_by_learning_rate, scheduled
    >>> tx = chain(clip_by_value(), scale_by_sign(), scheduled(scale_by_learning_rate(), lr=linear(1.0, 0.0, 8)))
    >>> print(explain(tx, {"w": torch.zeros(2, 3), "b": torch.zeros(2)}))
    b, w: 8 numbers
      clip_by_value: Clip every element to [−clip_value, clip_value]; complex ones in both parts.
          clip_value=1.0
      scale_by_sign: Every element of the update becomes −1, 0 or 1.
          u ← sign(g)
      scale_by_learning_rate.inner (scale_by_learning_rate): Multiply updates by `−lr`, which turns their sign.
          lr=1
    <BLANKLINE>
    schedules
      scale_by_learning_rate.lr = linear(start=1.0, end=0.0, steps=8)
          ███▇▇▇▇▆▆▆▆▆▅▅▅▅▄▄▄▄▃▃▃▃▃▂▂▂▂▁▁▁  from 1 to 0 in 8 steps; 1 at step 0
    """
    require_transform(transform, "explain(transform, params)")
    complete = transform.complete(hparams)
    check_params(params)
    transform.form.check(params)
    transform.form.check_each(params)
    sketch = sketched(transform, params, complete) if state is None else state
    return explained(transform, params, sketch, sketch, complete)


def explained(transform: Transform, params: Tree, kept: Tree, state: Tree, hparams: HParams) -> Explanation:
    """The explanation of a transform of which it is known what it keeps of these parameters, and in what state it is.

    Args:
        kept: a state of all parameters, whose tensors need no memory.
        state: that of which the counts are, perhaps of some parameters only.
        hparams: complete.
    """
    links = list(_walk(_Place(transform, (), 0, params, kept, state, transform.select(hparams))))
    names = [name for name, p in zip(trees.names(params), trees.leaves(params), strict=True) if p is not None]
    sizes = dict(zip(trees.names(params), (0 if p is None else p.numel() for p in trees.leaves(params)), strict=True))
    kinds: dict[tuple[int, ...], list[str]] = {}
    for name in names:
        kinds.setdefault(tuple(i for i, link in enumerate(links) if name in link.by_name), []).append(name)
    rows: list[Row] = []
    for route, members in kinds.items():
        elements = sum(sizes[name] for name in members)
        rows += [links[i].row(tuple(members), elements) for i in route] or [_untouched(tuple(members), elements)]
    return Explanation(tuple(rows), tuple(curve for link in links for curve in link.curves))


def _untouched(params: tuple[str, ...], elements: int) -> Row:
    """What is to be said of parameters that no link sees."""
    return Row(params, elements, "nothing", 0, "No link sees them: their updates are the gradients.", (), {}, {}, {})


def sketched(transform: Transform, params: Tree, hparams: HParams) -> Tree:
    """The first state, of tensors without memory where that is possible; but its numbers can be read."""
    like = trees.map_leaves(lambda p: torch.empty(p.shape, dtype=p.dtype, device="meta"), params)
    try:
        state = transform.first_state(like, hparams)
    except Exception:  # Whatever a transform by hand makes of tensors without values.
        return transform.first_state(params, hparams)
    return trees.map_leaves(lambda x: torch.zeros((), dtype=x.dtype, device="cpu") if _is_bare(x) else x, state)


def _is_bare(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim == 0 and x.device.type == "meta"


@dataclass(frozen=True)
class _Place:
    """A transform inside another: the keys to its state, and what it sees and keeps."""

    transform: Transform
    path: Path
    depth: int
    params: Tree
    kept: Tree
    state: Tree
    hp: Mapping[str, Any]

    @functools.cached_property
    def by_name(self) -> dict[str, Tensor]:
        """The parameters that it sees."""
        return {name: p for name, p in zip(trees.names(self.params), trees.leaves(self.params), strict=True) if p is not None}

    @property
    def is_silent(self) -> bool:
        """Whether there is nothing to be said of it but of its parts."""
        return isinstance(self.transform.form, SILENT)

    @property
    def inside(self) -> "Iterator[_Place]":
        """Its parts."""
        form, shares = self.transform.form, self.transform.form.shares(self.params)
        for keys, part in form.parts.items():
            yield _Place(
                part,
                (*self.path, *keys),
                self.depth + (not self.is_silent),
                shares[keys],
                part_at(self.kept, keys),
                part_at(self.state, keys),
                form.handed(keys, self.hp, self.state),
            )

    @property
    def own(self) -> dict[str, Any]:
        """What it keeps itself, by name."""
        of_parts = {keys[0] if keys else None for keys in self.transform.form.parts}
        entries = self.kept.items() if isinstance(self.kept, Mapping) and None not in of_parts else ()
        return {name: value for name, value in entries if name not in of_parts}

    @property
    def curves(self) -> Iterator[Curve]:
        """The schedules that it has."""
        form = self.transform.form
        if isinstance(form, Scheduled):
            for name, schedule in form.schedules.items():
                yield from _curve(".".join((*self.path, name)), schedule, self.state["schedule_step"])
        elif not self.is_silent:
            step = next((self.state[name] for name in ("gradient_step", "step") if name in self.own), 0)
            for name, value in _arguments(self.transform).items():
                if callable(value) and name in ("schedule", "every"):
                    yield from _curve(".".join((*self.path, name)), value, step)

    def row(self, params: tuple[str, ...], elements: int) -> Row:
        """What it does to these parameters."""
        form, parts = self.transform.form, self.transform.form.parts.values()
        own = {name: value for name, value in self.hp.items() if not any(name in part.declared for part in parts)}
        given = _arguments(self.transform).items()
        options = {name: _text(x) for name, x in given if name not in self.transform.declared and not _holds_transforms(x)}
        return Row(
            params=params,
            elements=elements,
            link=_label(self.path, self.transform.name),
            depth=self.depth,
            what=_sentence(_documented(self.transform)),
            formula=_formula(self.transform) if isinstance(form, Lifted) else (),
            hparams=own if parts else dict(self.hp),
            options=options,
            state={name: _bytes(value, {name: self.by_name[name] for name in params}) for name, value in self.own.items()},
            remarks=tuple(form.remarks(self.state)),
        )


def _walk(place: _Place) -> Iterator[_Place]:
    """A place, unless it is silent, and all inside it; silent ones with schedules for these alone, without members."""
    if not place.is_silent:
        yield place
    elif isinstance(place.transform.form, Scheduled):
        yield replace(place, params={})
    for inner in place.inside:
        yield from _walk(inner)


def _made(transform: Transform) -> Transform:
    """The transform that somebody has given other defaults or names."""
    while transform.recipe is not None and transform.recipe.constructor in AROUND:
        transform = transform.recipe.bound.arguments["transform"]
    return transform


def _arguments(transform: Transform) -> dict[str, Any]:
    """What it was made with, but for what has its default."""
    recipe, form = _made(transform).recipe, transform.form
    if recipe is not None:
        return dict(recipe.arguments(shown=()))
    # Of one that was made anew of others, with a factor of its learning rates, the form tells.
    names = [each.name for each in dataclasses.fields(form)] if transform.form.parts and dataclasses.is_dataclass(form) else []
    return {name: getattr(form, name) for name in names if isinstance(getattr(form, name), int | float | str)}


def _documented(transform: Transform) -> Any:
    """What has a docstring about it."""
    import functional_optim as fo

    recipe, form = _made(transform).recipe, transform.form
    found = [
        None if recipe is None else recipe.constructor,
        getattr(form, "scalars", None),
        vars(fo).get(transform.name),
    ]
    return next((each for each in found if each is not None and inspect.getdoc(each)), None)


def _label(path: Path, name: str) -> str:
    """The keys to its state, and what it is where these don't say so."""
    keys = ".".join(path)
    last = re.sub(r"_\d+$", "", path[-1]) if path else ""
    return keys if last == name else f"{keys} ({name})" if keys else name


def _sentence(documented: Any) -> str:
    """The first sentence of a docstring."""
    paragraph = " ".join((inspect.getdoc(documented) or "").partition("\n\n")[0].split()) if documented else ""
    return re.split(r"(?<=\.)\s+(?=[A-Z])", paragraph)[0]


def _formula(transform: Transform) -> tuple[str, ...]:
    """The lines of the paper's pseudocode, which a module of a single rule begins with."""
    scalars = getattr(transform.form, "scalars", None)
    module = sys.modules.get(getattr(scalars, "__module__", ""))
    if module is None or len(_rules_of(module)) != 1:
        return ()
    return tuple(line.strip() for line in (module.__doc__ or "").splitlines() if "←" in line)


def _rules_of(module: Any) -> list[Any]:
    """What a module has for others that makes a transform."""
    own = (value for name, value in vars(module).items() if not name.startswith("_") and inspect.isfunction(value))
    return [f for f in own if f.__module__ == module.__name__ and inspect.signature(f).return_annotation is Transform]


def _curve(name: str, schedule: Callable[[Any], Any], step: Any) -> Iterator[Curve]:
    """A schedule of one number, over its own length, or over twice the steps that have been."""
    try:
        present = float(step)
        length = float(_length(schedule) or max(100.0, 2 * present))
        values = tuple(float(schedule(length * i / (SAMPLES - 1))) for i in range(SAMPLES))
        yield Curve(name, _text(schedule), values, length, present, float(schedule(present)))
    except (TypeError, ValueError, RuntimeError):  # Of several numbers, batched, or of whole steps only.
        return


def _length(schedule: Any) -> Any:
    boundaries = getattr(schedule, "boundaries", None)
    last = 2 * boundaries[-1] if boundaries else None
    return last or getattr(schedule, "total_steps", None) or getattr(schedule, "steps", None)


def _bytes(value: Any, params: Mapping[str, Tensor]) -> int:
    """What these parameters keep of a tree, or all of what is shared; of what is spread as they are, the part of this process."""
    leaves = {name: x for name, x in zip(trees.names(value), trees.leaves(value), strict=True) if isinstance(x, Tensor)}
    own = leaves.keys() & params.keys() or leaves.keys()
    return sum(_held(leaves[name], params.get(name)) * leaves[name].element_size() for name in own)


def _held(x: Tensor, param: Tensor | None) -> int:
    """How many numbers this process has of a tensor that a parameter keeps."""
    return x.numel() if param is None or x.shape != param.shape else local(param).numel()


def _holds_transforms(value: Any) -> bool:
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]
    return any(isinstance(each, Transform) for each in inside)


def _text(value: Any) -> str:
    return getattr(value, "__qualname__", None) or repr(value)


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
