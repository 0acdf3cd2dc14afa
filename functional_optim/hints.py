"""What other libraries call things, and what they are called here: for the errors that meet those who come from there."""

import difflib
from collections.abc import Callable, Collection, Iterator
from typing import Any

# A word of optax's, torch's or Keras's, and what may be meant by it here, likeliest first: the first that is accepted where the
# word was given is the advice.
MEANT: dict[str, tuple[str, ...]] = {
    # Hyper-parameters and options.
    "learning_rate": ("lr",),
    "rate": ("lr",),
    "step_size": ("lr", "factor"),
    "eta": ("lr",),
    "b1": ("betas", "momentum"),
    "b2": ("betas", "alpha", "rho", "beta2"),
    "b3": ("betas",),
    "beta": ("betas", "momentum"),
    "beta1": ("betas", "momentum"),
    "beta2": ("betas", "alpha", "rho"),
    "beta_1": ("betas", "momentum"),
    "beta_2": ("betas", "alpha", "rho"),
    "decay": ("alpha", "rho", "momentum", "ema_decay", "lr_decay", "weight_decay"),
    "decay_rate": ("beta2_decay", "rate", "alpha", "momentum"),
    "epsilon": ("eps",),
    "wd": ("weight_decay",),
    "l2": ("weight_decay",),
    "weight_decay_rate": ("weight_decay",),
    "max_delta": ("clip_value",),
    "max_grad_norm": ("max_norm",),
    "clip_norm": ("max_norm",),
    "clipnorm": ("max_norm",),
    "clipvalue": ("clip_value",),
    "mu_dtype": ("state_dtype",),
    "accumulator_dtype": ("state_dtype",),
    "initial_scale": ("initial_accumulator_value",),
    "initial_accumulator": ("initial_accumulator_value",),
    "every_k_schedule": ("every",),
    "every_k": ("every",),
    "steps": ("every",),
    "step_size_fn": ("schedule",),
    "transforms": ("branches",),
    "param_labels": ("labels",),
    "init_value": ("start", "value"),
    "end_value": ("end",),
    "final_lr": ("end",),
    "peak_value": ("peak",),
    "max_lr": ("peak",),
    "base_lr": ("peak", "lr"),
    "transition_steps": ("steps",),
    "decay_steps": ("total_steps", "steps"),
    "num_warmup_steps": ("warmup_steps",),
    "num_training_steps": ("total_steps",),
    # Methods, also scipy's.
    "L-BFGS-B": ("lbfgs",),
    "CG": ("nonlinear_cg",),
    "Newton-CG": ("newton_cg",),
    **dict.fromkeys(("TNC", "dogleg", "trust-ncg", "trust-krylov", "trust-exact"), ("newton_cg",)),
    **dict.fromkeys(("lm", "trf", "dogbox"), ("levenberg_marquardt",)),
    # Arguments of solvers, and what they return.
    "fun": ("fn", "value"),
    "func": ("fn",),
    "x0": ("params",),
    "y0": ("params",),
    "x": ("params",),
    "maxiter": ("max_steps",),
    "max_iter": ("max_steps",),
    **dict.fromkeys(("maxfun", "maxfev", "max_nfev", "max_eval"), ("max_evals",)),
    **dict.fromkeys(("gtol", "pgtol", "tolerance_grad"), ("tol",)),
    **dict.fromkeys(("maxcor", "m", "memory", "memory_size"), ("history_size",)),
    "line_search": ("search",),
    "line_search_fn": ("search",),
    "c1": ("decrease",),
    "c2": ("curvature",),
    "jac": ("grads",),
    "nfev": ("evaluations",),
    "nit": ("steps",),
    "success": ("converged",),
    "message": ("why",),
    "init": ("init_state",),
    "init_fn": ("init_state",),
    "apply": ("update",),
    # Functions and classes.
    "GradientTransformation": ("Transform",),
    "GradientTransformationExtraArgs": ("Transform",),
    "MultiSteps": ("accumulate",),
    "apply_every": ("accumulate",),
    "clip": ("clip_by_value",),
    "clip_grad_norm_": ("clip_by_global_norm",),
    "clip_grad_value_": ("clip_by_value",),
    "conditionally_mask": ("conditionally",),
    "conditionally_transform": ("conditionally",),
    "constant_schedule": ("constant",),
    "cosine_decay": ("cosine",),
    "cosine_decay_schedule": ("cosine",),
    "cosine_onecycle_schedule": ("one_cycle",),
    "exponential_decay": ("exponential",),
    "get_cosine_schedule_with_warmup": ("warmup_cosine",),
    "incremental_update": ("ema_params",),
    "inject_hyperparams": ("scheduled",),
    "inject_stateful_hyperparams": ("scheduled",),
    "join_schedules": ("join",),
    "linear_onecycle_schedule": ("one_cycle",),
    "linear_schedule": ("linear",),
    "multi_transform": ("partition",),
    "named_chain": ("chain",),
    "Optimizer": ("adapters.OptimizerAdapter",),
    "optim": ("adapters.OptimizerAdapter",),
    "lr_scheduler": ("adapters.as_lr_scheduler",),
    "piecewise_constant_schedule": ("piecewise_constant",),
    "piecewise_interpolate_schedule": ("piecewise_interpolate",),
    "polynomial_schedule": ("polynomial",),
    "scale_by_amsgrad": ("scale_by_adam",),
    "scale_by_distance_over_gradients": ("scale_by_dog",),
    "selective_transform": ("masked",),
    "set_to_zero": ("freeze",),
    "sgdr_schedule": ("cosine_restarts",),
    "skip_not_finite": ("apply_if_finite",),
    "add_weight_decay": ("add_decayed_weights",),
    "scale_by_momentum": ("trace",),
    "warmup_constant_schedule": ("linear",),
    "warmup_cosine_decay_schedule": ("warmup_cosine",),
}

# Where nothing has another name, but another way.
ADVICE: dict[str, str] = {
    "eps_root": "Roots have slope 0 at 0 here, so that derivatives are finite without it.",
    "mask": "What is for some parameters only is wrapped: masked(add_decayed_weights(), mask).",
    "maximize": "To climb, begin with negate(): chain(negate(), ...).",
    "fused": "How to execute is the optimizer's choice: fo.adapters.OptimizerAdapter(params, transform, fused=True).",
    "foreach": "How to execute is the optimizer's choice: fo.adapters.OptimizerAdapter steps in lists by itself.",
    "params": "A transform gets parameters in init_state and update; the optimizers that hold them are in fo.adapters.",
    **dict.fromkeys(
        ("jac", "hess", "hessp", "grad", "value_and_grad"),
        "Derivatives are torch's, of a function that computes with tensors: leave it out.",
    ),
    "options": (
        "What scipy has in options are arguments here: tol, max_steps, max_evals; and those of a method are in its value, "
        "such as method=fo.solvers.lbfgs(history_size=20)."
    ),
    **dict.fromkeys(("ftol", "xtol", "tolerance_change"), "Solvers end by the gradient: tol is how large it may be."),
    **dict.fromkeys(
        ("CosineAnnealingLR", "ExponentialLR", "LambdaLR", "LinearLR", "OneCycleLR", "ReduceLROnPlateau", "StepLR"),
        "torch's own, of torch.optim.lr_scheduler, drives any optimizer of fo.adapters.",
    ),
    **dict.fromkeys(("MAML", "maml"), "It is torch.func.grad and torch.vmap of a loop, unroll(loss, transform, steps)."),
    "history_size": "It is one of a method: method=fo.solvers.lbfgs(history_size=20).",
    **dict.fromkeys(
        ("line_search", "line_search_fn", "search"),
        "A search is one of a method's arguments: method=fo.solvers.lbfgs(search=fo.solvers.strong_wolfe()).",
    ),
    **dict.fromkeys(
        ("constraints", "SLSQP", "trust-constr"),
        "There are bounds=(lower, upper), and no other constraints: add a penalty to fn.",
    ),
    **dict.fromkeys(
        ("Nelder-Mead", "Powell", "COBYLA", "COBYQA"),
        "All methods follow the gradient; fo.meta.zero_order_grad estimates one from values.",
    ),
    "lr": (
        "A learning rate is scale_by_learning_rate's, the last of a chain. A solver has none: it searches for the length of each "
        "step, which begins at what its method proposes."
    ),
    "loss": "The function is fn. A robust loss goes into it: it returns residuals √ρ(r²), whose squares add up to that loss.",
    "f_scale": "To weigh residuals, let fn return them weighed.",
    **dict.fromkeys(
        ("zero_grad", "param_groups", "state_dict", "load_state_dict", "add_param_group", "state"),
        "A transform only computes; an optimizer holds parameters and state: fo.adapters.OptimizerAdapter(params, transform).",
    ),
}


def hint(name: str, accepted: Collection[str]) -> str:
    """Advice for one who gave a name that is not among the accepted: a sentence after a space, or nothing."""
    meant = [known for known in MEANT.get(name, ()) if known in accepted]
    if name in ADVICE and not meant:
        return f" {ADVICE[name]}"
    same = [known for known in accepted if known.lower() == name.lower()]
    found = meant or same or difflib.get_close_matches(name, accepted, n=1)
    advice = next((f" {ADVICE[known]}" for known in MEANT.get(name, ()) if known in ADVICE), "")
    return f" Did you mean {found[0]!r}?" if found else advice


def module_getattr(module: str, names: Collection[str], transforms: Collection[str] = ()) -> Callable[[str], Any]:
    """The `__getattr__` of a module: an AttributeError that says which of its names may be meant, or which transform."""

    def no_attribute(name: str) -> Any:
        advice = "" if name.startswith("_") else hint(name, names)
        if not advice and name.lower() in transforms:
            advice = f" fo.{name.lower()} is a transform: fo.adapters.OptimizerAdapter(params, fo.{name.lower()}())."
        raise AttributeError(f"module {module!r} has no attribute {name!r}.{advice}")

    return no_attribute


def parameters_advice(given: Any) -> str:
    """What to say where something refused may be a model or its parameters: a sentence after a space, or nothing."""
    for each in given if isinstance(given, list | tuple) else [given]:
        if isinstance(each, Iterator) or hasattr(each, "parameters"):
            return (
                " If these are parameters: a transform gets them in init_state and update. An optimizer that holds them is "
                "fo.adapters.OptimizerAdapter(params, transform), or fo.adapters.Adam(params, lr=...)."
            )
    return ""
