"""`LBFGS`: torch.optim's class, by the searches and directions of `functional_optim.solvers`."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from functional_optim.hparams import ANY, NON_NEGATIVE, require_count, validate_number
from functional_optim.recipe import explained
from functional_optim.rules.lbfgs import two_loops
from functional_optim.searches.backtracking import fixed
from functional_optim.searches.search import Search
from functional_optim.searches.strong_wolfe import strong_wolfe

from ..arguments import given_params, warn_of_misspellings, warn_without_gradients
from ..state.fitting import listed

COUNTS = ("max_iter", "max_eval", "history_size")
TOLERANCES = ("tolerance_grad", "tolerance_change")
OPTIONS = ("lr", *COUNTS, *TOLERANCES, "line_search_fn", "maximize")


@explained
class LBFGS(torch.optim.Optimizer):
    """L-BFGS with the signature, the stops and the checkpoints of `torch.optim.LBFGS`, and its iterates to rounding.

    Each `step(closure)` takes up to `max_iter` steps. The state lies under the first parameter, in torch's form, so that either
    class loads what the other saved. Other than torch's, it takes several groups, whose options agree: together they are one
    vector; and it can climb. An evaluation that is infinite or NaN makes the step shorter, with or without a line search.
    A search that `max_eval` ends before it has an interval keeps the best point it saw, where torch's looks at its last only.

    Args:
        params: tensors, or groups of them.
        lr: the length that a search tries first, or of every step without one.
        max_iter: steps per call of `step`, at least 1.
        max_eval: evaluations per call of `step`; by default 5/4 · `max_iter`.
        tolerance_grad: end when no component of the gradient is larger.
        tolerance_change: end when the step, or the change of the value, is smaller.
        history_size: how many pairs of steps and changes of the gradient are kept.
        line_search_fn: None or "strong_wolfe".
        maximize: climb, as torch's other classes can. What `step` returns is the closure's value all the same.

    Raises:
        TypeError: an option that is no number, or a count that is no whole one.
        ValueError: `lr` is negative, a count is below 1, an unknown `line_search_fn`, or groups that differ in their options;
            also from `step`, of what was written into a group, and from `load_state_dict`, of another class's checkpoint.

    Source: Liu & Nocedal 1989, https://doi.org/10.1007/BF01589116; Nocedal & Wright 2006, Algorithms 3.5, 3.6 and 7.4.

    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> optimizer = LBFGS([w], line_search_fn="strong_wolfe")
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = ((w - 1) ** 2).sum()
    ...     loss.backward()
    ...     return loss
    >>> optimizer.step(closure).detach(), w.detach().round(decimals=3)
    (tensor(13.), tensor([1., 1.]))
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
        *,
        maximize: bool = False,
    ) -> None:
        require_count("max_iter", max_iter, 1)
        defaults = {
            "lr": lr,
            "max_iter": max_iter,
            "max_eval": max_iter * 5 // 4 if max_eval is None else max_eval,
            "tolerance_grad": tolerance_grad,
            "tolerance_change": tolerance_change,
            "history_size": history_size,
            "line_search_fn": line_search_fn,
            "maximize": maximize,
        }
        _require_options(defaults, "")
        self._seen: dict[int, frozenset[str]] = {}
        super().__init__(given_params(params), defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, whose options must be those of the others."""
        super().add_param_group(param_group)
        try:
            self._require_groups(self.param_groups)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        for history in self.state.values():
            history["n_iter"] = 0  # It is of shorter vectors: a new one begins.

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also called by `load_state_dict`."""
        for group in state["param_groups"]:
            group.setdefault("maximize", False)  # torch's checkpoints have none.
        self._require_groups(state["param_groups"])
        count = sum(_real(p).numel() for group in state["param_groups"] for p in group["params"])
        for saved in state["state"].values():
            if "d" in saved and saved["d"].numel() != count:
                raise ValueError(
                    f"the checkpoint's direction has {saved['d'].numel()} numbers, these parameters {count}: it is of others."
                )
        super().__setstate__(state)
        self._seen = {index: frozenset(group) for index, group in enumerate(self.param_groups)}

    def _require_groups(self, groups: list[dict[str, Any]]) -> None:
        """Raise unless these groups have the options of L-BFGS, and all of them the same."""
        for index, group in enumerate(groups):
            lacking = [name for name in OPTIONS if name not in group]
            if lacking:
                raise ValueError(
                    f"param_groups[{index}] lacks {listed(lacking)}: this is no checkpoint of {type(self).__name__}."
                )
            _require_options(group, f"param_groups[{index}]: ")
            different = [name for name in OPTIONS if groups[0][name] != group[name]]
            if different:
                raise ValueError(
                    f"param_groups[{index}] has another {different[0]} than param_groups[0]: all groups are one vector to "
                    "L-BFGS, so their options must agree."
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Up to `max_iter` steps. Returns the loss of the first evaluation.

        Args:
            closure: clears the gradients, computes the loss and its gradients, and returns the loss.
        """
        if closure is None:
            raise TypeError("LBFGS evaluates the loss several times in a step: step(closure), with a function that computes it.")
        self._require_groups(self.param_groups)
        for index, each in enumerate(self.param_groups):
            warn_of_misspellings(index, each, self.defaults, type(self), self._seen)
        evaluate = torch.enable_grad()(closure)
        group, state = self.param_groups[0], self.state[self._params[0]]
        state.setdefault("func_evals", 0)
        state.setdefault("n_iter", 0)
        first = evaluate()
        warn_without_gradients(self.param_groups, first)
        f, g, evals = self._value(first), self._gradient(), 1
        state["func_evals"] += 1
        if float(g.abs().max()) <= group["tolerance_grad"]:
            return first
        for left in reversed(range(group["max_iter"])):
            d, slope = self._direction(state, g, f)
            t = float(group["lr"]) * (min(1.0, 1.0 / float(g.abs().sum())) if state["n_iter"] == 1 else 1.0)
            state["t"] = t
            if slope > -group["tolerance_change"]:
                break
            before = f
            f, g, t, used = self._searched(evaluate, group, (f, g, d, slope), t, evals, is_last=left == 0)
            evals, state["t"] = evals + used, t
            state["func_evals"] += used
            if left == 0 or evals >= group["max_eval"] or float(g.abs().max()) <= group["tolerance_grad"]:
                break
            if float(d.abs().max()) * t <= group["tolerance_change"] or abs(f - before) < group["tolerance_change"]:
                break
        return first

    @property
    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _direction(self, state: dict[str, Any], g: Tensor, f: float) -> tuple[Tensor, float]:
        """The next direction and the slope along it, with what the last step has taught."""
        state["n_iter"] += 1
        if state["n_iter"] == 1:
            state.update(old_dirs=[], old_stps=[], ro=[], H_diag=1)
        else:
            y, s = g - state["prev_flat_grad"], state["d"] * state["t"]
            ys = y.dot(s)
            if float(ys) > 1e-10:
                for name, new in (("old_dirs", y), ("old_stps", s), ("ro", 1 / ys)):
                    state[name] = [*state[name], new][-self.param_groups[0]["history_size"] :]
                state["H_diag"] = ys / y.dot(y)
        # By Python's numbers, which take half as many operations as () tensors do.
        pairs = list(zip(state["old_stps"], state["old_dirs"], map(float, state["ro"]), strict=True))
        d = -two_loops(pairs, float(state["H_diag"]), g, _dot, _scaled, _moved)
        state.update(d=d, prev_flat_grad=g, prev_loss=f)
        return d, float(d.dot(g))

    def _searched(
        self,
        evaluate: Callable[[], Any],
        group: dict[str, Any],
        start: tuple[float, Tensor, Tensor, float],
        t: float,
        evals: int,
        *,
        is_last: bool,
    ) -> tuple[float, Tensor, float, int]:
        """Value, gradient and length of the step that is taken, and how many evaluations that took; the parameters are there."""
        f, g, d, slope = start
        x, used = torch.cat([_real(p).reshape(-1) for p in self._params]), 0
        kept, tried = (f, g, 0.0), 0.0
        if is_last and group["line_search_fn"] is None:  # Of a stochastic loss, a last evaluation would be of no use.
            self._move(x, d, t)
            return f, g, t, 0
        search = _search(group, float(d.abs().max()), evals)
        line, done = search.start(t, f, slope), False
        while not done:
            tried = float(line.t)
            self._move(x, d, tried)
            f, g = self._value(evaluate()), self._gradient()
            line, keep, done = search.told(line, f, float(g.dot(d)))
            kept = (f, g, tried) if keep else kept
            used += 1
        if kept[2] != tried:
            self._move(x, d, kept[2])
        f, g, t = kept
        return f, g, t, used

    def _move(self, x: Tensor, d: Tensor, t: float) -> None:
        """Put the parameters at x + t d."""
        real = [_real(p) for p in self._params]
        for p, piece in zip(real, (x + t * d).split([p.numel() for p in real]), strict=True):
            p.copy_(piece.view_as(p))

    def _value(self, loss: Any) -> float:
        """What is minimised."""
        f = float(loss.detach()) if isinstance(loss, Tensor) else float(loss)
        return -f if self.param_groups[0]["maximize"] else f

    def _gradient(self) -> Tensor:
        """The gradients of what is minimised as one fresh vector, since closures write to theirs; zeros where there are none."""
        pieces = []
        for p in self._params:
            g = torch.zeros_like(p) if p.grad is None else p.grad.to_dense()
            pieces.append(_real(g).reshape(-1))
        g = torch.cat(pieces)
        return -g if self.param_groups[0]["maximize"] else g


def _require_options(options: Mapping[str, Any], where: str) -> None:
    """Raise unless these may be the options of a group; `where` is what an error begins with."""
    lr = options["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"{where}lr is a tensor of shape {tuple(lr.shape)}: expected a number or a tensor of one element.")
    validate_number(f"{where}lr", lr.item() if isinstance(lr, Tensor) else lr, NON_NEGATIVE)
    for name in COUNTS:
        require_count(where + name, options[name], 1)
    for name in TOLERANCES:
        validate_number(where + name, options[name], ANY)
    if options["line_search_fn"] not in (None, "strong_wolfe"):
        raise ValueError(f"{where}line_search_fn = {options['line_search_fn']!r}: expected None or 'strong_wolfe'.")


def _dot(x: Tensor, y: Tensor) -> float:
    return float(x.dot(y))


def _scaled(c: float, x: Tensor) -> Tensor:
    return c * x


def _moved(x: Tensor, c: float, y: Tensor) -> Tensor:
    return x.add(y, alpha=c)


def _search(group: dict[str, Any], size: float, evals: int) -> Search:
    """How far to go along a direction with this largest component, after so many evaluations."""
    if group["line_search_fn"] is None:
        return fixed()
    return strong_wolfe(precision=group["tolerance_change"] / size, max_evals=group["max_eval"] - evals)


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x
