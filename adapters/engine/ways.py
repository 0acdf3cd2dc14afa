"""Which way there is for the elementwise stages of a parameter, and why not a better one."""

from collections.abc import Sequence

from functional_optim.hparams import HParams

from .backends.called import Called
from .backends.coded import Coded, is_coded, sees_stored
from .backends.foreach import Lists
from .buckets import Leaf, Way
from .memory import on_host
from .route import Link
from .work import Backend


class Ways:
    """The ways of one plan.

    Args:
        reasons: why something is not run as kernels, where they are wanted; some may be added.
        fused: whether kernels are wanted.
        fresh: whether results go into new tensors.

    Attributes:
        backends: what runs each way that there is.
    """

    def __init__(self, reasons: dict[str, None], *, fused: bool, fresh: bool = False) -> None:
        self.backends: dict[Way, Backend] = {
            Way.CALLED: Called(),
            Way.CODED: Coded(reasons if fused else None),
            Way.LISTED: Lists(),
        }
        self._reasons, self._fused = reasons, fused
        if fused:
            try:
                from .backends.inductor import Compiled  # Half a second of the compiler's modules, for those who ask for it.
            except ImportError as problem:  # They are private to torch, and may move.
                reasons[f"{problem}"] = None
            else:
                self.backends[Way.COMPILED] = Compiled(fresh=fresh)

    def look_at(self, links: Sequence[Link]) -> None:
        """Remember which are no rules."""
        for link in links:
            if self._fused and link.rule is None:
                text = f"{link} is no rule for one tensor, its gradient and its slots, so it is called as it is, between kernels"
                self._reasons[text] = None

    def best(self, leaf: Leaf, hparams: HParams) -> Way:
        """The best way for a parameter."""
        if not leaf.param.numel():
            return Way.CALLED
        if is_coded(leaf):
            return Way.CODED
        for way in (Way.COMPILED, Way.LISTED):
            if way in self.backends:
                reason = self.backends[way].refuses(leaf, hparams)
                if not reason:
                    return way
                if way is Way.COMPILED:
                    self._reasons[f"{reason}; what that concerns steps eagerly"] = None
        return Way.CODED if sees_stored(leaf) and on_host(leaf.param) else Way.CALLED
