"""The table of transforms: every law is tested on each of them. A new transform adds a line."""

import torch

import functional_optim as fo
from functional_optim import Transform, trees
from functional_optim.numerics import global_norm, sqrt


@fo.per_tensor(slots={"norm": lambda p, hp: torch.zeros((), dtype=p.dtype, device=p.device)}, hparams={"decay": 0.9})
def divide_by_average_norm(hp, t):
    """A per-tensor rule whose slot has a shape of its own and the parameter's dtype."""

    def rule(g, p, n):
        n = hp["decay"] * n + (1 - hp["decay"]) * sqrt((g * g).sum())
        return g / (n + 0.1), n

    return rule


@fo.elementwise(slots=("exp_avg",), hparams={"lr": 1e-3, "beta": 0.9})
def sign_of_average(hp, t):
    """The README's example of a transform of one's own."""

    def rule(g, p, m):
        m = hp["beta"] * m + (1 - hp["beta"]) * g
        return -hp["lr"] * m.sign(), m

    return rule


@fo.whole_tree(slots=("exp_avg",), shared={"largest": lambda hp: hp["floor"]}, hparams={"beta": 0.9, "floor": 0.1})
def divide_average_by_largest_norm(hp, t):
    """A rule for all tensors, with slots and a value that they share."""

    def rule(gs, ps, shared, ms):
        ms = [hp["beta"] * m + (1 - hp["beta"]) * g for m, g in zip(ms, gs, strict=True)]
        largest = torch.maximum(shared["largest"], global_norm(ms).double())
        return [m / largest / t for m in ms], {"largest": largest}, ms

    return rule


@fo.elementwise(slots=("hessian",), hparams={"rho": 0.5}, extra=("value",), leaf_extra=("hessian_diag",))
def divide_by_curvature(hp):
    """A rule that asks for the loss and for a tree beside the gradients."""

    def rule(g, p, h, diagonal):
        h = (h + diagonal) / 2
        return hp["rho"] * hp["value"] * g / (h + 0.1), h

    return rule


def divide_by_largest_norm():
    """A transform written by hand, whose state is one value shared by all parameters."""

    def init_state(params, hparams):
        return {"largest_norm": torch.full((), 0.1, dtype=torch.float64, device="cpu")}

    def update(updates, state, params, hparams, **extra):
        largest = torch.maximum(state["largest_norm"], global_norm(trees.leaves(updates)).double())
        return trees.map_leaves(lambda u: hparams["factor"] * u / largest, updates), {"largest_norm": largest}

    return fo.Transform(init_state, update, {"factor": 0.5}, name="divide_by_largest_norm")


def by_dimensions(**branches):
    """A partition that any container of the table's parameters fits."""
    return fo.partition(branches, fo.by_ndim({0: "scalars"}, otherwise="rest"))


# Where a default is a tiny ε under a root, a case takes a larger one: finite differences are 1e-6 wide.
CASES: dict[str, list[Transform]] = {
    "Transform": [divide_by_largest_norm()],
    "accumulate": [fo.accumulate(fo.adamw(), every=2)],
    "adabelief": [fo.adabelief(rectify=True, weight_decay=0.1)],
    "adadelta": [fo.adadelta(eps=1e-2, weight_decay=0.1)],
    # The first update has a root mean square of 1, where d = 1 has its kink.
    "adafactor": [fo.adafactor(d=2.0, weight_decay=0.1)],
    "adagrad": [fo.adagrad(lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.1)],
    "adam": [fo.adam(), fo.adam(weight_decay=0.1, amsgrad=True)],
    "adamax": [fo.adamax(weight_decay=0.1)],
    "adamuon": [fo.adamuon(ns_steps=1, ns_dtype=None, eps=0.1)],
    "adamw": [fo.adamw(), fo.adamw(amsgrad=True, state_dtype=torch.float64)],
    "adan": [fo.adan(weight_decay=0.1)],
    "adaptive_grad_clip": [fo.adaptive_grad_clip(), fo.adaptive_grad_clip(clipping=100.0)],
    "add_decayed_weights": [fo.add_decayed_weights()],
    "add_l1_decay": [fo.add_l1_decay()],
    "add_noise": [fo.add_noise()],
    "amsgrad": [fo.amsgrad()],
    # Random, for singular vectors are constants to derivatives, and in use at once; those are tried in test_low_rank.py.
    "apollo": [fo.apollo(rank=1)],
    "apply_if_finite": [fo.apply_if_finite(fo.adamw())],
    "asam": [fo.asam(fo.sgd(momentum=0.9))],
    "asgd": [fo.asgd(t0=0.5, weight_decay=0.1)],
    "average_iterates": [fo.average_iterates(t0=-1.5)],
    "blocked": [fo.blocked(fo.scale_by_shampoo((0.9, 0.99), precondition_frequency=3), size=2)],
    "cautious_decay": [fo.cautious_decay()],
    "centralize": [fo.centralize()],
    "chain": [
        fo.chain(fo.clip_by_global_norm(), fo.adamw(), fo.clip_by_value(clip_value=1e-3)),
        fo.chain(fo.scale_by_adam(), fo.clip_by_global_norm(), fo.trace(), fo.trace(), fo.scale_by_learning_rate()),
    ],
    "clip_by_block_rms": [fo.clip_by_block_rms(), fo.clip_by_block_rms(threshold=100.0)],
    "clip_by_global_norm": [fo.clip_by_global_norm(), fo.clip_by_global_norm(max_norm=100.0)],
    "clip_by_value": [fo.clip_by_value()],
    "conditionally": [fo.conditionally(fo.clip_by_global_norm(), lambda step: step == 1, otherwise=fo.trace())],
    "dion": [fo.dion()],
    "dion2": [fo.dion2(ns_steps=1, ns_dtype=None)],
    "elementwise": [sign_of_average(), divide_by_curvature()],
    "ema": [fo.ema(), fo.ema(debias=False)],
    "ema_nesterov": [fo.ema_nesterov(fo.sgd(momentum=0.9))],
    "ema_params": [fo.ema_params(fo.adam())],
    "fira": [fo.fira(rank=1)],
    "freeze": [fo.freeze()],
    "fused": [fo.fused(fo.chain(fo.clip_by_global_norm(), fo.sgd(momentum=0.9)))],
    "fromage": [fo.fromage(lr=0.1)],
    "galore": [fo.galore(rank=1)],
    "graft": [fo.graft(fo.scale_by_sign(), fo.scale_by_adam()), fo.graft(fo.trace(), fo.scale_by_rms())],
    "hyperball": [fo.hyperball(fo.scale_by_adam())],
    "identity": [fo.identity()],
    # Bases are constants to derivatives, and in use one step later.
    "kl_shampoo": [fo.kl_shampoo(precondition_frequency=1)],
    "kl_soap": [fo.kl_soap(kl_eps=0.1)],
    "keep_params_nonnegative": [fo.keep_params_nonnegative()],
    "lamb": [fo.lamb(weight_decay=0.1)],
    "lars": [fo.lars(weight_decay=0.1), fo.lars(nesterov=True)],
    "lion": [fo.lion()],
    "log_norms": [fo.log_norms(fo.chain(fo.clip_by_global_norm(), fo.adamw()))],
    "lookahead": [fo.lookahead(fo.adam(), sync_period=2)],
    "masked": [fo.masked(fo.adamw(), lambda name, leaf: leaf.ndim > 0)],
    "mechanize": [fo.mechanize(fo.adam(lr=0.1), s_init=0.1, mechanic_eps=0.1)],
    "momo": [fo.momo(weight_decay=0.1), fo.momo(lower_bound=-1.0, adapt_lower_bound=True)],
    "momo_adam": [fo.momo_adam(lr=0.1)],
    "reduce_on_plateau": [fo.reduce_on_plateau(factor=0.3, patience=1)],
    "monitor": [fo.chain(fo.monitor("grad"), fo.adamw(), fo.monitor("update"))],
    "muon": [fo.muon(ns_steps=1, ns_dtype=None)],
    "nadam": [fo.nadam(weight_decay=0.1, decoupled_weight_decay=True)],
    "normuon": [fo.normuon(ns_steps=1, ns_dtype=None)],
    "negate": [fo.negate()],
    "orthogonalize": [fo.orthogonalize(ns_steps=2), fo.orthogonalize("polar_express", ns_steps=2)],
    "noisy_sgd": [fo.noisy_sgd()],
    "normalize_by_update_norm": [fo.normalize_by_update_norm()],
    "novograd": [fo.novograd()],
    "optimistic_adam": [fo.optimistic_adam()],
    "optimistic_gradient_descent": [fo.optimistic_gradient_descent()],
    "partition": [
        fo.chain(fo.clip_by_global_norm(), by_dimensions(rest=fo.adamw(weight_decay=0.1), scalars=fo.sgd(momentum=0.9))),
        by_dimensions(rest=fo.chain(fo.clip_by_global_norm(), fo.scale_by_adam()), scalars=fo.freeze()),
    ],
    "per_matrix": [fo.per_matrix(fo.scale_by_muon(ns_steps=1))],
    "per_tensor": [divide_by_average_norm()],
    "polyak_sgd": [fo.polyak_sgd(), fo.polyak_sgd(max_lr=0.1)],
    "project": [
        fo.project(fo.chain(fo.trace(), fo.scale_by_adam()), rank=1, proj="random"),
        fo.project(fo.scale_by_adam(), rank=1, proj="random", way="rest"),
        fo.project(fo.scale_by_adam(), rank=2, proj="random", way="tensor"),
    ],
    "psgd_kron": [fo.psgd_kron()],
    "radial_brake": [fo.radial_brake(), fo.radial_brake(inward=0.3, pinned=True)],
    "quantized": [
        fo.quantized(fo.chain(fo.clip_by_global_norm(), fo.adamw()), block=16, min_size=2),
        fo.quantized(fo.lion(), codec=fo.Blockwise(bits=4, block=16, min_size=2)),
        fo.quantized(fo.sgd(momentum=0.9), codec=fo.Stochastic()),
    ],
    "radam": [fo.radam(weight_decay=0.1)],
    "rename_hparams": [fo.rename_hparams(fo.adamw(), eps="adam_eps", lr="step_size")],
    "rotate": [
        fo.rotate(fo.scale_by_adam()),
        fo.rotate(fo.trace(), precondition_1d=True),
        fo.rotate(fo.scale_by_adam(), kl=True, kl_eps=0.1),
        fo.rotate(fo.chain(fo.ema(), fo.rename_hparams(fo.scale_by_rms(), eps="rms_eps"))),
    ],
    "rmsprop": [fo.rmsprop(alpha=0.5, momentum=0.5, centered=True, weight_decay=0.1)],
    "row_floor": [fo.row_floor(min_ratio=0.9)],
    "rprop": [fo.rprop()],
    "sam": [fo.sam(fo.adamw())],
    "scale": [fo.scale(-2.0)],
    "scale_by_adadelta": [fo.scale_by_adadelta(eps=1e-2)],
    "scale_by_adam": [
        fo.scale_by_adam(),
        fo.scale_by_adam(amsgrad=True),
        fo.scale_by_adam(optimized_update=True),
        fo.scale_by_adam(debias=False),
    ],
    "scale_by_adamax": [fo.scale_by_adamax()],
    "scale_by_adan": [fo.scale_by_adan()],
    "scale_by_asgd": [fo.scale_by_asgd()],
    "scale_by_belief": [fo.scale_by_belief(eps_root=1e-3)],
    "scale_by_dion": [fo.scale_by_dion(), fo.scale_by_dion(rank_fraction=0.5)],
    "scale_by_dion2": [fo.scale_by_dion2(fraction=0.5, ns_steps=2)],
    "scale_by_factored_rms": [fo.scale_by_factored_rms(eps1=1e-3)],
    "scale_by_inverse_time": [fo.scale_by_inverse_time(lr_decay=0.1)],
    "scale_by_learning_rate": [fo.scale_by_learning_rate()],
    "scale_by_lbfgs": [fo.scale_by_lbfgs(history_size=2)],
    "scale_by_lion": [fo.scale_by_lion(), fo.chain(fo.scale_by_lion(), fo.add_decayed_weights(), fo.scale_by_learning_rate())],
    "scale_by_kl_shampoo": [fo.scale_by_kl_shampoo(precondition_frequency=1)],
    "scale_by_mean_side": [fo.scale_by_mean_side()],
    "scale_by_lmo": [fo.scale_by_lmo(ns_steps=2), fo.scale_by_lmo(norm_eps=0.1)],
    "scale_by_muon": [fo.scale_by_muon(ns_steps=2), fo.scale_by_muon(ns_coefficients="quintic", ns_steps=2)],
    "scale_by_nadam": [fo.scale_by_nadam()],
    "scale_by_novograd": [fo.scale_by_novograd(weight_decay=0.1)],
    "scale_by_optimistic_gradient": [fo.scale_by_optimistic_gradient(alpha=0.7)],
    # Alone it grows beyond float32 in a few steps.
    "scale_by_param_block_norm": [fo.chain(fo.scale_by_param_block_norm(), fo.scale_by_learning_rate())],
    "scale_by_param_block_rms": [fo.scale_by_param_block_rms()],
    "scale_by_polyak": [fo.scale_by_polyak(), fo.scale_by_polyak(f_min=2.0, positive_part=True)],
    "scale_by_psgd_kron": [fo.scale_by_psgd_kron(update_probability=0.5)],
    "scale_by_radam": [fo.scale_by_radam(), fo.scale_by_radam(degenerated_to_sgd=False, optimized_update=False)],
    "scale_by_relative_step": [fo.scale_by_relative_step(), fo.scale_by_relative_step(lr=2.0)],
    "scale_by_rms": [fo.scale_by_rms(0.5), fo.scale_by_rms(eps_in_sqrt=True, bias_correction=True)],
    "scale_by_row_rms": [fo.scale_by_row_rms()],
    "scale_by_rprop": [fo.scale_by_rprop()],
    "scale_by_rss": [fo.scale_by_rss(), fo.scale_by_rss(0.1, eps_in_sqrt=True)],
    "scale_by_schedule": [fo.scale_by_schedule(fo.warmup_cosine(2.0, warmup_steps=2, total_steps=4, end=0.1))],
    # The roots are constants to derivatives, and new ones are in use at once: not in the first two steps here.
    "scale_by_shampoo": [fo.scale_by_shampoo((0.9, 0.99), precondition_frequency=3)],
    "shampoo": [
        fo.shampoo(
            betas=(0.9, 0.99), grafting=fo.rename_hparams(fo.scale_by_adam(), betas="adam_betas"), precondition_frequency=3
        )
    ],
    "scale_by_shape": [fo.scale_by_shape(), fo.scale_by_shape("match_rms_adamw")],
    "scale_by_sign": [fo.scale_by_sign()],
    "scale_by_sm3": [fo.scale_by_sm3()],
    # Not clipped, so that the derivatives show.
    "scale_by_sophia": [fo.scale_by_sophia(rho=10.0)],
    # Where the variance cancels, ε has to be larger than its rounding in float32.
    "scale_by_sparse_adam": [fo.scale_by_sparse_adam()],
    "scale_by_splus": [fo.scale_by_splus(inverse_every=2)],
    "scale_by_stddev": [fo.scale_by_stddev(0.5, 0.1), fo.scale_by_stddev(0.5, 0.1, eps_in_sqrt=True)],
    "scale_by_trust_ratio": [fo.scale_by_trust_ratio(), fo.scale_by_trust_ratio(min_norm=1e-3, trust_coefficient=0.1, eps=0.1)],
    "scale_by_yogi": [fo.scale_by_yogi()],
    "scheduled": [fo.scheduled(fo.adamw(), lr=fo.warmup_cosine(0.1, 1, 4), weight_decay=lambda step: 0.1 / (1 + step))],
    "scion": [fo.scion(ns_steps=1, ns_dtype=None)],
    "set_defaults": [fo.set_defaults(fo.adamw(), lr=0.1)],
    "sgd": [fo.sgd(), fo.sgd(momentum=0.9, dampening=0.1, weight_decay=0.1), fo.sgd(momentum=0.9, nesterov=True)],
    "sign_sgd": [fo.sign_sgd()],
    "signum": [fo.signum()],
    "skip_large_updates": [fo.skip_large_updates(fo.adamw(), largest_norm=4.0)],
    "sm3": [fo.sm3()],
    "soft_threshold": [fo.soft_threshold(lr=0.1, l1_decay=0.1)],
    "soap": [fo.soap()],
    "sophia": [fo.sophia()],
    "sparse_adam": [fo.sparse_adam()],
    "splus": [fo.splus()],
    "subtract_decayed_weights": [fo.subtract_decayed_weights()],
    "trace": [fo.trace(), fo.trace(dampening=0.5), fo.trace(nesterov=True)],
    # What people train with now.
    "adagc": [fo.adagc(warmup_steps=2)],
    "adam_atan2": [fo.adam_atan2(weight_decay=0.1)],
    "adam_mini": [fo.adam_mini(weight_decay=0.1, blocks=None)],
    "adamc": [fo.adamc(max_lr=0.01)],
    "add_corrected_decayed_weights": [fo.add_corrected_decayed_weights()],
    "ademamix": [fo.ademamix(weight_decay=0.1)],
    "adopt": [fo.adopt(weight_decay=0.1)],
    "schedule_free_average": [fo.schedule_free_average(lr=0.1)],
    "came": [fo.came(weight_decay=0.1)],
    "cautious": [fo.cautious(fo.scale_by_lion())],
    "clip_by_adagc": [fo.clip_by_adagc(), fo.clip_by_adagc(lambda_rel=0.5, warmup_steps=1)],
    "dadapt_adam": [fo.dadapt_adam(d0=0.1)],
    "dog": [fo.dog(lr=0.5, reps_rel=0.1, eps=0.1, weight_decay=0.1)],
    "dowg": [fo.dowg(weight_decay=0.1)],
    "error_bits": [fo.chain(fo.adamw(), fo.error_bits())],
    "grams": [fo.grams(weight_decay=0.1)],
    "kahan_sum": [fo.chain(fo.adamw(), fo.kahan_sum())],
    "laprop": [fo.laprop(weight_decay=0.1)],
    "madgrad": [fo.madgrad(weight_decay=0.1)],
    "mars": [fo.mars(weight_decay=0.1)],
    "mars_correction": [fo.mars_correction(gamma=0.5, correction_norm=2.0)],
    "prodigy": [fo.prodigy(d0=0.1)],
    "scale_by_adam_atan2": [fo.scale_by_adam_atan2()],
    "scale_by_adam_mini": [fo.scale_by_adam_mini()],
    "scale_by_ademamix": [fo.scale_by_ademamix(), fo.scale_by_ademamix(alpha_warmup=3, beta3_warmup=3)],
    "scale_by_adopt": [fo.scale_by_adopt(eps=0.1, nesterov=True, clipped=False)],
    "scale_by_bias_correction": [fo.scale_by_bias_correction()],
    "scale_by_came": [fo.scale_by_came()],
    "scale_by_d_adaptation": [fo.scale_by_d_adaptation(d0=0.1, use_bias_correction=True)],
    "scale_by_dog": [fo.scale_by_dog(reps_rel=0.1, eps=0.1)],
    "scale_by_dowg": [fo.scale_by_dowg(eps=0.1)],
    "scale_by_laprop": [fo.scale_by_laprop(eps=1e-8)],
    "scale_by_madgrad": [fo.scale_by_madgrad()],
    "scale_by_palm": [fo.scale_by_palm()],
    "scale_by_prodigy": [fo.scale_by_prodigy(d0=0.1, use_bias_correction=True, safeguard_warmup=True)],
    "scale_by_simplified_ademamix": [fo.scale_by_simplified_ademamix(alpha=0.5)],
    "scale_by_stable_adamw": [fo.scale_by_stable_adamw()],
    "scale_to_rms": [fo.scale_to_rms()],
    "schedule_free": [fo.schedule_free(fo.adamw(betas=(0.0, 0.999), lr=0.1))],
    "schedule_free_adamw": [fo.schedule_free_adamw()],
    "schedule_free_sgd": [fo.schedule_free_sgd(weight_decay=0.1)],
    "simplified_ademamix": [fo.simplified_ademamix(weight_decay=0.1)],
    "stable_adamw": [fo.stable_adamw()],
    "with_gradient_signs": [fo.with_gradient_signs(fo.chain(fo.trace(), fo.scale_by_adam()))],
    "whole_tree": [divide_average_by_largest_norm()],
    "stochastic_rounding": [fo.chain(fo.adamw(), fo.stochastic_rounding())],
    "with_line_search": [
        fo.with_line_search(fo.sgd(lr=0.1, momentum=0.9), fo.solvers.backtracking(), max_evals=3),
        fo.with_line_search(fo.chain(fo.scale_by_lbfgs(history_size=2), fo.scale_by_learning_rate(1.0)), max_evals=4),
    ],
    "with_extra": [fo.with_extra(divide_by_curvature(), value=2.0)],
    "with_lr_factor": [
        fo.with_lr_factor(fo.adamw()),
        fo.with_lr_factor(fo.scheduled(fo.sgd(momentum=0.9), lr=fo.linear(0.3, 0.1, 4))),
        fo.with_lr_factor(fo.chain(fo.scale_by_adam(), fo.scale_by_schedule(fo.linear(-0.3, -0.1, 4)))),
    ],
    "with_master_copy": [fo.with_master_copy(fo.adamw())],
    "with_rounding": [fo.with_rounding(fo.lion(), "error_bits"), fo.with_rounding(fo.sgd(momentum=0.9), "kahan")],
    "yogi": [fo.yogi()],
    "zero_nans": [fo.zero_nans()],
}


def _matrices() -> dict[str, torch.Tensor]:
    """Two of one shape, one of the transposed, one of three dimensions."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"wide": (2, 3), "other": (2, 3), "tall": (3, 2), "cube": (2, 1, 2)}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def _twins() -> dict[str, torch.Tensor]:
    """Two matrices of one shape, which a rule may get together, a vector and a () tensor."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"matrix": (2, 2), "twin": (2, 2), "vector": (2,), "scalar": ()}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def _rows() -> dict[str, torch.Tensor]:
    """Matrices whose singular vector on the shorter side is 1, whatever the gradient."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"row": (1, 3), "twin": (1, 3), "column": (3, 1), "vector": (2,), "scalar": ()}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


FOR_MATRICES = (
    "orthogonalize",
    "per_matrix",
    "scale_by_dion",
    "scale_by_dion2",
    "scale_by_kl_shampoo",
    "scale_by_muon",
    "scale_by_shape",
)
FOR_TWINS = ("project", "rotate", "scale_by_psgd_kron", "scale_by_row_rms", "scale_by_shampoo", "scale_by_splus")
# What to try a transform on that refuses vectors, or gets equal shapes together, by its name in the table.
PARAMS: dict[str, dict[str, torch.Tensor]] = {
    **dict.fromkeys(FOR_MATRICES, _matrices()),
    "blocked": {**_matrices(), "vector": torch.ones(3, dtype=torch.float64)},
    **dict.fromkeys(FOR_TWINS, _twins()),
    **dict.fromkeys(("fira", "galore"), _rows()),
}

# Every transform by a name of its own.
TABLE = {f"{name}-{i}": tx for name, row in CASES.items() for i, tx in enumerate(row)}


def params_for(case: str) -> dict[str, torch.Tensor] | None:
    """What to try a transform of `TABLE` on, if that has to be special."""
    return PARAMS.get(case.rpartition("-")[0])
