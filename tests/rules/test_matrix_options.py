"""Options of matrix methods that can't be meant are errors of the constructor, which say what was expected."""

import pytest
import torch

import functional_optim as fo

UNFIT = {
    "radius": (lambda: fo.scion(radius=-1.0), "radius = -1.0 is outside"),
    "root": (lambda: fo.scale_by_shampoo(root=0), "root = 0: expected a whole number of at least 1"),
    "half a root": (lambda: fo.scale_by_shampoo(root=0.5), "root = 0.5: expected a whole number"),
    "offset": (lambda: fo.rotate(fo.scale_by_adam(), precondition_offset=-1), "precondition_offset = -1 is outside"),
    "dtype of whole numbers": (lambda: fo.muon(ns_dtype=torch.int8), "ns_dtype = torch.int8: expected a real floating dtype"),
    "dtype by name": (lambda: fo.orthogonalize(ns_dtype="bfloat16"), "ns_dtype = 'bfloat16': expected"),
    "dtype of lmo": (lambda: fo.scion(ns_dtype=16), "ns_dtype = 16: expected"),
    "dtype of dion2": (lambda: fo.dion2(ns_dtype=16), "ns_dtype = 16: expected"),
    "largest triangle": (
        lambda: fo.psgd_kron(max_size_triangular=-1),
        "max_size_triangular = -1: expected a whole",
    ),
    "dimensions of triangles": (lambda: fo.psgd_kron(min_ndim_triangular="2"), "min_ndim_triangular = '2': expected a whole"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_cannot_be_meant_is_an_error_of_the_constructor(name):
    make, message = UNFIT[name]
    with pytest.raises((TypeError, ValueError), match=message):
        make()
