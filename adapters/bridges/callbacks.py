"""What other people's training loops call: `lightning_callback` and `trainer_callback` log an optimizer's values there."""

import fnmatch
import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from functional_optim.recipe import answering

from ..state.own import is_own, unwrapped
from .logs import log_values


@answering
def lightning_callback(names: Sequence[str] = ("*",)) -> Any:
    """A callback for Lightning: it logs `log_values` of every optimizer of this package, and validates the average.

        lightning.Trainer(callbacks=[fo.adapters.lightning_callback(["lr", "*norm"])])

    Values go to the trainer's loggers when it logs, as `optimizer/lr`; of a second optimizer as `optimizer_1/lr`. Lightning's own
    `LearningRateMonitor` shows what the groups hold, which may be a factor; here is the rate in force. While the model is
    validated, its parameters are those to evaluate at (`eval_params`); checkpoints hold those that are trained.

    Args:
        names: patterns of the values to log.

    Raises:
        ImportError: Lightning is not installed.
    """
    return _lightning()(names)


@answering
def trainer_callback(names: Sequence[str] = ("*",)) -> Any:
    """A callback for Hugging Face's Trainer: it adds `log_values` to what is logged, as `optimizer/lr`.

        Trainer(model, args, callbacks=[fo.adapters.trainer_callback(["lr", "*norm"])], optimizers=(optimizer, None))

    They are in `trainer.state.log_history`, and callbacks after this one get them. Those that report to TensorBoard or elsewhere
    come first; to let them have the values, `trainer.callback_handler.callbacks.insert(0, trainer_callback())`. The Trainer
    switches to the average by itself when it evaluates.

    Args:
        names: patterns of the values to log.

    Raises:
        ImportError: transformers is not installed.
    """
    return _trainer()(names)


def _logged(optimizer: Any, prefix: str, names: Sequence[str]) -> dict[str, float]:
    """The values as numbers, with names for a logger."""
    values: Mapping[str, Any] = log_values(optimizer)
    return {f"{prefix}/{name}": float(x) for name, x in values.items() if any(fnmatch.fnmatch(name, each) for each in names)}


@functools.cache
def _lightning() -> Any:
    lightning: Any = importlib.import_module("lightning.pytorch")

    class LightningCallback(lightning.Callback):
        """See `lightning_callback`."""

        def __init__(self, names: Sequence[str]) -> None:
            self.names = tuple(names)

        def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
            loop = trainer.fit_loop.epoch_loop
            if not trainer._logger_connector.should_update_logs:
                return
            values: dict[str, float] = {}
            for i, optimizer in enumerate(filter(is_own, trainer.optimizers)):
                values |= _logged(optimizer, f"optimizer_{i}" if i else "optimizer", self.names)
            for logger in trainer.loggers:
                logger.log_metrics(values, step=loop._batches_that_stepped)

        def on_validation_start(self, trainer: Any, *args: Any) -> None:
            for optimizer in filter(is_own, trainer.optimizers):
                optimizer.evaluation.begin(optimizer)

        def on_validation_end(self, trainer: Any, *args: Any) -> None:
            for optimizer in filter(is_own, trainer.optimizers):
                optimizer.evaluation.leave()

        def on_exception(self, trainer: Any, *args: Any) -> None:
            for optimizer in filter(is_own, trainer.optimizers):
                optimizer.evaluation.leave()

    return LightningCallback


@functools.cache
def _trainer() -> Any:
    transformers: Any = importlib.import_module("transformers")

    class TrainerCallback(transformers.TrainerCallback):
        """See `trainer_callback`."""

        def __init__(self, names: Sequence[str]) -> None:
            self.names = tuple(names)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, optimizer: Any = None, **kwargs: Any) -> None:
            own = unwrapped(optimizer)
            if is_own(own) and logs is not None:
                values = _logged(own, "optimizer", self.names)
                logs.update(values)
                state.log_history[-1].update(values)

    return TrainerCallback
