"""Which gates of a transform are open in a step."""

from collections.abc import Mapping, Sequence
from typing import Any

from functional_optim.combinators.innermost import Asked, gates_of
from functional_optim.combinators.origin import Counts
from functional_optim.form import Path
from functional_optim.hparams import HParams
from functional_optim.transform import Transform


class Gates:
    """The gates of a transform that are decided on the host, outermost first."""

    def __init__(self, gates: Sequence[Asked]) -> None:
        self._gates = gates

    def __len__(self) -> int:
        return len(self._gates)

    def standing(self, hparams: HParams, counts: Counts, known: Mapping[Path, bool] | None = None) -> dict[Path, bool]:
        """Which are open in a step, of those that are reached; one that looks at gradients is, as long as is known."""
        gates = dict[Path, bool]()
        for gate in self._gates:
            if self._is_reached(gate.path, gates):
                waits = gate.form.reduce is not None
                is_open = (known or {}).get(gate.path, True) if waits else gate.opens(hparams, counts, None)
                gates[gate.path] = is_open
        return gates

    def advanced(self, standing: Mapping[Path, bool], counts: Counts) -> dict[Path, Any]:
        """The clocks of the gates that are reached, after a step in which they stand like this."""
        return {
            (*gate.path, name): value
            for gate in self._gates
            if gate.path in standing
            for name, value in gate.form.advanced(gate.clocks(counts), standing[gate.path]).items()
        }

    def _is_reached(self, path: Path, gates: Mapping[Path, bool]) -> bool:
        outer = [gate for gate in self._gates if gate.path != path and path[: len(gate.path)] == gate.path]
        return all(
            gate.path in gates
            and any(keys and path[len(gate.path) :][: len(keys)] == keys for keys, _ in gate.form.acts(gates[gate.path]))
            for gate in outer
        )


def gates_in(transform: Transform, *, on_host: bool) -> Gates:
    """The gates of a transform.

    On another device than the host only those that don't look at gradients: what the others decide stays in a tensor, for which
    nobody waits, and with it all that is inside.
    """
    gates = gates_of(transform)
    others = [gate.path for gate in gates if gate.form.reduce is not None and not on_host]
    return Gates([gate for gate in gates if not any(gate.path[: len(path)] == path for path in others)])
