"""Recurrent layers, step by step: what `torch.lstm`, `torch.gru` and `torch.rnn_tanh` compute, of operations that batch.

Hochreiter & Schmidhuber 1997, Long Short-Term Memory, with the forget gate of Gers et al. 2000, and the projection of Sak et al.
    2014, https://arxiv.org/abs/1402.1128
Cho et al. 2014, https://arxiv.org/abs/1406.1078: GRU, its reset gate where torch and cuDNN have it, after the matrix product
"""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

# h, and for an LSTM c
State: TypeAlias = tuple[Tensor, ...]
# From what the input gives to the gates, what h gives to them, and the state: the next state.
Cell: TypeAlias = Callable[[Tensor, Tensor, State], State]


def lstm_cell(x: Tensor, h: Tensor, state: State) -> State:
    i, f, g, o = (x + h).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_cell(x: Tensor, h: Tensor, state: State) -> State:
    (r, z, n), (hr, hz, hn) = x.chunk(3, -1), h.chunk(3, -1)
    n = (n + (r + hr).sigmoid() * hn).tanh()
    return (n + (z + hz).sigmoid() * (state[0] - n),)


def tanh_cell(x: Tensor, h: Tensor, state: State) -> State:
    return ((x + h).tanh(),)


def relu_cell(x: Tensor, h: Tensor, state: State) -> State:
    return ((x + h).relu(),)


# By the names of torch's functions.
CELLS: dict[str, Cell] = {"lstm": lstm_cell, "gru": gru_cell, "rnn_tanh": tanh_cell, "rnn_relu": relu_cell}


def one_step(cell: Cell) -> Callable[..., Any]:
    """`torch.lstm_cell` and its like."""

    def step(x: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None) -> Any:
        state = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        state = cell(F.linear(x, w_ih, b_ih), F.linear(state[0], w_hh, b_hh), state)
        return state[0] if isinstance(hx, Tensor) else state

    return step


def whole_sequence(cell: Cell) -> Callable[..., Any]:
    """`torch.lstm` and its like, of the same arguments, but for packed sequences.

    Raises:
        ValueError: the sequence is packed.
    """

    def run(
        x: Tensor, hx: Any, params: Any, biases: Any, layers: Any, dropout: Any, train: Any, bidirectional: Any, batch_first: Any
    ) -> tuple[Tensor, ...]:
        if not isinstance(biases, bool):
            refuse_packed()
        starts = list(zip(*(h.unbind() for h in ((hx,) if isinstance(hx, Tensor) else hx)), strict=True))
        weights, directions, ends = list(params), 1 + bidirectional, []
        per_layer = len(weights) // len(starts)
        x = x.transpose(0, 1) if batch_first else x
        for layer in range(layers):
            if layer and train and dropout:
                x = F.dropout(x, dropout)
            outputs = []
            for backwards in range(directions):
                i = layer * directions + backwards
                output, end = _one_way(cell, x, starts[i], weights[i * per_layer : (i + 1) * per_layer], biases, bool(backwards))
                outputs.append(output)
                ends.append(end)
            x = torch.cat(outputs, -1) if bidirectional else outputs[0]
        return x.transpose(0, 1) if batch_first else x, *(torch.stack(column) for column in zip(*ends, strict=True))

    return run


def refuse_packed(*args: Any) -> NoReturn:
    raise ValueError(
        "a packed sequence can't be batched, compiled or differentiated in forward mode: pass the padded tensor to the recurrent "
        "layer, and weigh the loss with a mask."
    )


def _one_way(
    cell: Cell, x: Tensor, state: State, weights: Sequence[Tensor], biases: bool, backwards: bool
) -> tuple[Tensor, State]:
    """One layer in one direction: h at every step along the first axis, and the last state."""
    w_ih, w_hh, *rest = weights
    b_ih, b_hh = rest[:2] if biases else (None, None)
    projection = rest[2 * biases :]
    columns, outputs = list(F.linear(x, w_ih, b_ih).unbind()), []
    for column in reversed(columns) if backwards else columns:
        state = cell(column, F.linear(state[0], w_hh, b_hh), state)
        if projection:
            state = F.linear(state[0], projection[0]), *state[1:]
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs), state
