"""Products of small matrices are kernels of the program: of any size and strides, beside sums in Python."""

import pytest
import torch
from meta_helpers import close
from torch._inductor import config
from torch.fx.experimental.proxy_tensor import make_fx

import functional_optim as fo
from functional_optim.meta import joins, products


@pytest.fixture
def codes(monkeypatch):
    """The C++ that is written for products, which may wake a second thread."""
    written, original, threads = [], products.source, torch.get_num_threads()

    def source(*args):
        written.append(original(*args))
        return written[-1]

    monkeypatch.setattr(products, "source", source)
    monkeypatch.setattr(products, "MANY", 1)
    torch.set_num_threads(2)
    yield written
    torch.set_num_threads(threads)


def pairs(x):
    """Matrices in the memory of one tensor of shape (3, 24, 40)."""
    return [
        (x[:, :10, :5], x[:, 2:7, 3:22]),  # a tail of rows and of columns
        (x[:, :18, :11].mT, x[:, :21, :18].mT),  # both by columns
        (x[:1, :6, ::3].expand(3, 6, 14), x[:, :14, ::5]),  # neither by rows nor by columns; one for all
        (x[:, :10, :13].double(), x[:, 2:21, 3:16].double().mT),  # by columns again, in shorter vectors
        (x[0, :9, :3].double(), x.reshape(-1, 144)[:3, :39].double()),  # no batch, and more than four vectors
    ]


def test_any_size_and_strides(codes):
    # whole numbers, whose products have no rounding
    x = (torch.arange(3 * 24 * 40).reshape(3, 24, 40) * 7 % 11 - 5).float()
    with config.patch(force_disable_caches=True):
        found = fo.meta.compiled(lambda x: [*(a @ b for a, b in pairs(x)), joined(*pairs(x)[0], x)])(x)
    assert len(codes) == 6 and sum("omp parallel" in code for code in codes) == 5
    expected = [(a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2) for a, b in pairs(x)]
    close(found, [*expected, joined(*pairs(x)[0], x)], rtol=0, atol=0)


def joined(a, b, x):
    """A product, one of vectors by rows, one by columns, and a sum, in one tensor."""
    row, column = x[:, :1, :5], x[:, :10, 7:8]
    pieces = a.bmm(b), row.bmm(b), a.mT.bmm(column), x.sum(1, keepdim=True)
    return torch.cat([piece.reshape(3, -1) for piece in pieces], 1)


def test_what_is_joined_is_computed_in_the_shape_that_it_has_there():
    def twice(a, b, x):
        other = x.reshape(3, -1)[:, : joined(a, b, x).shape[1]]
        return joined(a, b, x), joined(a, b, x) + other

    x = (torch.arange(3 * 24 * 40).reshape(3, 24, 40) * 7 % 11 - 5).float()
    given = *pairs(x)[0], x
    graph = make_fx(twice, tracing_mode="fake")(*given)
    joins.compute_in_place(graph)
    graph.recompile()
    close(graph(*given), twice(*given), rtol=0, atol=0)
    first, second = ([x.target for x in whole.args[0]] for whole in graph.graph.output_node().args[0])
    assert first == [products.PRODUCT, *[torch.ops.aten.sum.dim_IntList] * 3]
    assert second == [torch.ops.aten.add.Tensor] * 4


def test_what_is_on_disk_is_found_by_the_text_of_the_kernel_too(monkeypatch):
    def written():
        graph = make_fx(torch.mm, tracing_mode="fake")(torch.ones(2, 3), torch.ones(3, 4))
        products.take_small_products(graph)
        graph.recompile()
        return graph.code

    before = written()
    monkeypatch.setattr(products, "_CODE", products._CODE + "// another")
    assert "functional_optim.product" in before and before != written()
