"""Updates in proportion to the size of each parameter tensor.

    u ← u · max(‖p‖, s)               or  u ← u · max(rms p, s),  rms p = ‖p‖ / √(number of elements)

Shazeer & Stern 2018, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, section 8, https://arxiv.org/abs/1804.04235
"""

from functional_optim.hparams import NON_NEGATIVE, Hparam
from functional_optim.numerics import sqrt
from functional_optim.transform import numbered

HPARAMS = {"min_scale": Hparam(1e-3, NON_NEGATIVE)}


def _square(u, p):
    return p * p


def _scaled(new, u, p):
    return new["scale"] * u


@numbered(hparams=HPARAMS)
def scale_by_param_block_norm(hp, numbers):
    """Multiply each tensor's update by the norm of its parameter, `u · max(‖p‖, s)`.

    Args:
        min_scale: s, at least 0: what a parameter with a smaller norm counts as, so that zeros can move.

    Raises:
        ValueError: `update` was called without params.

    As `optax.scale_by_param_block_norm`; derivatives at a parameter of 0 are finite.
    """

    def finish(sums):
        return {"scale": sqrt(sums.own[0]).clamp(min=hp["min_scale"])}

    return _square, finish, _scaled


@numbered(hparams=HPARAMS)
def scale_by_param_block_rms(hp, numbers):
    """Multiply each tensor's update by the root mean square of its parameter, `u · max(rms p, s)`.

    Args:
        min_scale: s, at least 0, in units of |p|: what a smaller parameter counts as, so that zeros can move.

    Raises:
        ValueError: `update` was called without params.

    Source: Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235. As `optax.scale_by_param_block_rms`; derivatives at a
    parameter of 0 are finite.
    """

    def finish(sums):
        return {"scale": sqrt(sums.own[0] / sums.size).clamp(min=hp["min_scale"])}

    return _square, finish, _scaled
