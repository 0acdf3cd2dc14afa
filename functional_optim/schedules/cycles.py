"""Rising, then falling: warm-ups with what follows them, one cycle, and cosine restarts."""

import math
from dataclasses import KW_ONLY, dataclass

from torch import Tensor

from functional_optim.hparams import ANY, NON_NEGATIVE
from functional_optim.numerics import Scalar, double, floor, log, power, where
from functional_optim.recipe import explained
from functional_optim.schedules.parts import LENGTH, SHAPES, between, check, known, progress, require_shape, through


@explained
@dataclass(frozen=True)
class inverse_sqrt:
    """From 0 in a straight line to `peak` at `warmup_steps` > 0, then `peak · √(warmup_steps/step)`, without an end.

    Source: Vaswani et al. 2017, Attention Is All You Need, https://arxiv.org/abs/1706.03762; here the peak is given.

    >>> [inverse_sqrt(1.0, 4)(step) for step in (0, 2, 4, 16, 64)]
    [0.0, 0.5, 1.0, 0.5, 0.25]
    """

    peak: Scalar
    warmup_steps: Scalar

    def __post_init__(self) -> None:
        check(self, peak=ANY, warmup_steps=LENGTH)

    def __call__(self, step: Scalar) -> Scalar:
        """The value at this step."""
        step, w = double(step), self.warmup_steps
        rises = step < w
        return self.peak * where(rises, step / w, power(w / where(rises, w, step), 0.5))


@explained
@dataclass(frozen=True)
class noam:
    """`factor · d_model^−½ · min(t^−½, t · warmup_steps^−3/2)` with t = step + 1, so that the first update is not lost.

    It rises in a straight line to its peak, `factor / √(d_model · warmup_steps)` at step `warmup_steps − 1`, and falls without an
    end; `d_model` and `warmup_steps` > 0.

    Source: Vaswani et al. 2017, Attention Is All You Need, https://arxiv.org/abs/1706.03762, whose steps start at 1.

    >>> [noam(d_model=4, warmup_steps=16)(step) for step in (0, 15, 63)]
    [0.0078125, 0.125, 0.0625]
    """

    d_model: Scalar
    warmup_steps: Scalar
    factor: Scalar = 1.0

    def __post_init__(self) -> None:
        check(self, d_model=LENGTH, warmup_steps=LENGTH, factor=ANY)

    def __call__(self, step: Scalar) -> Scalar:
        """The value at this step."""
        t, w = double(step) + 1, self.warmup_steps
        return self.factor * self.d_model**-0.5 * where(t < w, t * w**-1.5, t**-0.5)


@explained
@dataclass(frozen=True)
class warmup_cosine:
    """Rise linearly from 0 to `peak` in `warmup_steps`, then fall along half a cosine to `end` at `total_steps`, and stay there.

    Args:
        peak: the value at step `warmup_steps`.
        warmup_steps: length of the rise, at least 0.
        total_steps: when `end` is reached; greater than `warmup_steps`.
        end: the final value.

    Raises:
        ValueError: the steps are not in order.

    Source: Loshchilov & Hutter 2017, SGDR, https://arxiv.org/abs/1608.03983. As `optax.warmup_cosine_decay_schedule` from 0.

    >>> schedule = warmup_cosine(peak=2.0, warmup_steps=4, total_steps=12)
    >>> [round(schedule(step), 3) for step in (0, 2, 4, 8, 12, 99)]
    [0.0, 1.0, 2.0, 1.0, 0.0, 0.0]
    """

    peak: Scalar = 1.0
    warmup_steps: Scalar = 0
    total_steps: Scalar = 1
    end: Scalar = 0.0

    def __post_init__(self) -> None:
        check(self, peak=ANY, warmup_steps=ANY, total_steps=ANY, end=ANY)
        if known(self.warmup_steps, self.total_steps) and not 0 <= self.warmup_steps < self.total_steps:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps} must lie in [0, total_steps), and total_steps is {self.total_steps}."
            )

    def __call__(self, step: Scalar) -> Scalar:
        """The value at this step."""
        step, w = double(step), self.warmup_steps
        rising = self.peak * progress(step, 0, w)
        falling = between(self.peak, self.end, SHAPES["cosine"](progress(step, w, self.total_steps - w)))
        return where(step < w, rising, falling)


@explained
@dataclass(frozen=True)
class warmup_stable_decay:
    """Rise linearly from 0 to `peak`, stay there, and fall to `end` in the last `decay_steps` of `total_steps`; then hold.

    Args:
        peak: the value from step `warmup_steps` to step `total_steps − decay_steps`.
        warmup_steps: length of the rise, at least 0.
        decay_steps: length of the fall, more than 0.
        total_steps: when `end` is reached; at least `warmup_steps + decay_steps`.
        end: the final value.
        shape: of the fall, x being the share of it that is over: "linear" 1 − x, "cosine" (1 + cos πx)/2, "sqrt" 1 − √x, "square"
            1 − x².

    Raises:
        ValueError: the pieces don't fit into `total_steps`, or an unknown shape.

    Source: Hu et al. 2024, MiniCPM, https://arxiv.org/abs/2404.06395; the shapes: Hägele et al. 2024,
    https://arxiv.org/abs/2405.18392.

    >>> schedule = warmup_stable_decay(peak=1.0, warmup_steps=2, decay_steps=4, total_steps=100)
    >>> [schedule(step) for step in (0, 1, 2, 96, 97, 100, 101)]
    [0.0, 0.5, 1.0, 1.0, 0.75, 0.0, 0.0]
    """

    peak: Scalar
    warmup_steps: Scalar
    decay_steps: Scalar
    total_steps: Scalar
    end: Scalar = 0.0
    _: KW_ONLY
    shape: str = "linear"

    def __post_init__(self) -> None:
        check(self, peak=ANY, warmup_steps=NON_NEGATIVE, decay_steps=LENGTH, total_steps=ANY, end=ANY)
        require_shape(self.shape)
        pieces = self.warmup_steps + self.decay_steps
        if known(pieces, self.total_steps) and pieces > self.total_steps:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps} and decay_steps = {self.decay_steps} don't fit into total_steps = "
                f"{self.total_steps}: make total_steps at least {pieces}."
            )

    def __call__(self, step: Scalar) -> Scalar:
        """The value at this step."""
        step = double(step)
        rising = self.peak * progress(step, 0, self.warmup_steps)
        x = progress(step, self.total_steps - self.decay_steps, self.decay_steps)
        return where(step < self.warmup_steps, rising, between(self.peak, self.end, SHAPES[self.shape](x)))


@explained
@dataclass(frozen=True)
class one_cycle:
    """From `peak/div_factor` up to `peak`, and down to `peak/(div_factor · final_div_factor)` at `total_steps`; then hold.

    Args:
        peak: the value at step `pct_start · total_steps`.
        total_steps: length of the cycle, more than 0.
        pct_start: share of the cycle that rises, in [0, 1].
        div_factor: peak over first value, more than 0.
        final_div_factor: first value over final value, more than 0.
        pct_final: where given, the fall is back at the first value after this share of the cycle, between `pct_start` and 1, and
            a third phase leads from there to the final value.
        shape: of each phase, as in `warmup_stable_decay`.

    Raises:
        ValueError: a number out of range, or an unknown shape.

    Source: Smith & Topin 2018, Super-Convergence, https://arxiv.org/abs/1708.07120. As `optax.cosine_onecycle_schedule`; as
    `optax.linear_onecycle_schedule` with pct_final=0.85 and shape="linear". Each phase of `torch.optim.lr_scheduler.OneCycleLR`
    ends one step earlier. The momentum that goes with it is `piecewise_interpolate([0.95, 0.85, 0.95], [...], shape="cosine")`.

    >>> schedule = one_cycle(peak=1.0, total_steps=10, shape="linear")
    >>> [round(schedule(step), 6) for step in (0, 3, 10)]
    [0.04, 1.0, 4e-06]
    """

    peak: Scalar
    total_steps: Scalar
    pct_start: Scalar = 0.3
    div_factor: Scalar = 25.0
    final_div_factor: Scalar = 1e4
    _: KW_ONLY
    pct_final: Scalar | None = None
    shape: str = "cosine"

    def __post_init__(self) -> None:
        check(self, peak=ANY, total_steps=LENGTH, pct_start="[0, 1]", div_factor=LENGTH, final_div_factor=LENGTH)
        require_shape(self.shape)
        if self.pct_final is not None:
            check(self, pct_final="[0, 1]")
            if known(self.pct_start, self.pct_final) and self.pct_final < self.pct_start:
                raise ValueError(f"pct_final = {self.pct_final} must be at least pct_start, which is {self.pct_start}.")

    def __call__(self, step: Scalar) -> Scalar:
        """The value at this step."""
        first = self.peak / self.div_factor
        middle = () if self.pct_final is None else ((self.pct_final, first),)
        shares = ((self.pct_start, self.peak), *middle, (1.0, first / self.final_div_factor))
        knots = [(0.0, first), *((share * self.total_steps, value) for share, value in shares)]
        return through(knots, double(step), self.shape)


@explained
@dataclass(frozen=True)
class cosine_restarts:
    """`cosine` from `start` to `end` again and again: a first cycle of `steps` > 0, each further one `mult` ≥ 1 times as long.

    At a restart the value is `start`. As `torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(T_0=steps, T_mult=mult,
    eta_min=end)`. For cycles that differ in more than their length, as `optax.sgdr_schedule` has them, `join` schedules.

    Source: Loshchilov & Hutter 2017, SGDR, https://arxiv.org/abs/1608.03983.

    >>> [round(cosine_restarts(1.0, 0.0, 2, mult=2)(step), 3) for step in range(7)]
    [1.0, 0.5, 1.0, 0.854, 0.5, 0.146, 1.0]
    """

    start: Scalar
    end: Scalar
    steps: Scalar
    mult: float = 1

    def __post_init__(self) -> None:
        if isinstance(self.mult, Tensor):
            raise TypeError("cosine_restarts: mult is a tensor: expected a Python number.")
        check(self, start=ANY, end=ANY, steps=LENGTH, mult="[1, inf)")

    def __call__(self, step: Scalar) -> Scalar:
        """The value at this step."""
        cycles, m = double(step) / self.steps, self.mult
        n = floor(cycles if m == 1 else log(1 + (m - 1) * cycles) / math.log(m))
        # At a restart the quotient of logarithms may fall short of a whole number.
        n = where(cycles < self._elapsed(n + 1), n, n + 1)
        return between(self.start, self.end, SHAPES["cosine"]((cycles - self._elapsed(n)) / m**n))

    def _elapsed(self, n: Scalar) -> Scalar:
        """The length of the first n cycles, in units of the first."""
        return n if self.mult == 1 else (self.mult**n - 1) / (self.mult - 1)
