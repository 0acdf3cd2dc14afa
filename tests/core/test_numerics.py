"""The formulas that lose digits or derivatives, against exact rationals, closed forms and finite differences."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from functional_optim import numerics

BETAS = [0.0, 1e-3, 0.5, 0.9, 0.99, 0.999, 0.9999, 1 - 1e-6]
STEPS = [1, 2, 3, 10, 100, 1000, 10**5]


def exact_correction(beta, t):
    """1 - βᵗ of the very double that beta is, by squaring in 4000-bit fixed point (a rational would have 5 million bits)."""
    one = 1 << 4000
    power, base = one, int(Fraction(beta) * one)
    while t:
        if t & 1:
            power = power * base >> 4000
        base = base * base >> 4000
        t >>= 1
    return Fraction(one - power, one)


@pytest.mark.parametrize("beta", BETAS)
def test_the_fixed_point_reference_is_the_exact_rational(beta):
    for t in (1, 2, 7, 40):
        assert abs(exact_correction(beta, t) - (1 - Fraction(beta) ** t)) < Fraction(1, 2**3900)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("t", STEPS)
def test_bias_correction_has_the_digits_of_float64(beta, t):
    exact = float(exact_correction(beta, t))
    # βᵗ is within an ulp (2.2e-16) of a number below 1, and the difference is rounded once more.
    allowed = 4 * 2.0**-53 / exact
    for b, n in [
        (beta, t),
        (beta, torch.tensor(t)),
        (torch.tensor(beta, dtype=torch.float64), t),
        (torch.tensor(beta, dtype=torch.float64), torch.tensor(t)),
    ]:
        assert float(numerics.bias_correction(b, n)) == pytest.approx(exact, rel=allowed)


def test_a_float32_beta_and_step_are_computed_in_float64():
    beta = torch.tensor(0.999, dtype=torch.float32)
    exact = float(1 - Fraction(beta.item()))
    found = numerics.bias_correction(beta, torch.tensor(1.0, dtype=torch.float32))
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(exact, rel=1e-13)  # 1e-16 / 1e-3; in float32 it would be 1e-5


@pytest.mark.parametrize("t", [1, 2, 5])
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.999])
def test_derivatives_of_bias_correction(beta, t):
    b = torch.tensor(beta, dtype=torch.float64)

    def f(b):
        return numerics.bias_correction(b, torch.tensor(t))

    # -t βᵗ⁻¹ and -t (t-1) βᵗ⁻², with 0⁰ = 1: products of a few exact numbers and a power.
    first = -t * beta ** (t - 1)
    second = -t * (t - 1) * beta ** (t - 2) if t > 1 else 0.0
    for derivative in (torch.func.grad, torch.func.jacfwd, torch.func.jacrev):
        assert derivative(f)(b).item() == pytest.approx(first, rel=1e-14)
        assert derivative(derivative(f))(b).item() == pytest.approx(second, rel=1e-14)


def test_bias_correction_under_vmap_is_a_loop():
    betas, steps = torch.tensor([0.0, 0.9, 0.999], dtype=torch.float64), torch.tensor([1, 4, 9])
    found = torch.vmap(numerics.bias_correction)(betas, steps)
    expected = [float(exact_correction(b, t)) for b, t in zip(betas.tolist(), steps.tolist(), strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)  # 1e-16 / 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sqrt_has_torchs_values(dtype):
    x = torch.tensor([0.0, -0.0, 1e-45, 1e-38, 2.0, 1e30, math.inf, math.nan, -1.0], dtype=dtype)
    torch.testing.assert_close(numerics.sqrt(x), x.sqrt(), rtol=0, atol=0, equal_nan=True)
    assert numerics.sqrt(torch.tensor(4.0, dtype=dtype)).shape == ()
    assert numerics.sqrt(torch.zeros(0, dtype=dtype)).shape == (0,)


@settings(max_examples=100, deadline=None)
@given(st.floats(min_value=0, max_value=1e300))
def test_sqrt_is_pythons(x):
    # Python's is correctly rounded, torch's to an ulp (2.2e-16).
    assert numerics.sqrt(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(math.sqrt(x), rel=2.3e-16, abs=0)


@pytest.mark.parametrize("derivative", [torch.func.grad, torch.func.jacfwd, torch.func.jacrev])
def test_sqrt_has_slope_0_at_0_and_the_true_slope_elsewhere(derivative):
    slope = derivative(numerics.sqrt)
    curvature = derivative(slope)
    assert slope(torch.tensor(0.0)).item() == 0
    assert curvature(torch.tensor(0.0)).item() == 0
    for x in (0.25, 4.0, 1e-6):
        # Powers of an exact argument, in float64.
        assert slope(torch.tensor(x).double()).item() == pytest.approx(0.5 / math.sqrt(torch.tensor(x).item()), rel=1e-14)
        expected = -0.25 * torch.tensor(x).item() ** -1.5
        assert curvature(torch.tensor(x).double()).item() == pytest.approx(expected, rel=1e-14)


def test_mixed_second_derivatives_of_sqrt_are_finite_at_0():
    x = torch.tensor([0.0, 4.0], dtype=torch.float64)

    def total(x):
        return numerics.sqrt(x * x).sum()  # |x|, the chain that gives 0 · inf with torch.sqrt

    for hessian in (
        torch.func.hessian(total),
        torch.func.jacrev(torch.func.jacrev(total)),
        torch.func.jacfwd(torch.func.grad(total)),
    ):
        assert hessian(x).tolist() == [[0, 0], [0, 0]]
    assert torch.func.grad(total)(x).tolist() == [0, 1]
    assert torch.func.grad(lambda x: torch.sqrt(x * x).sum())(x)[0].isnan()  # what it is there to avoid


def test_sqrt_against_finite_differences():
    x = torch.tensor([0.3, 2.0, 50.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(numerics.sqrt, x, check_forward_ad=True)
    assert gradgradcheck(numerics.sqrt, x)


def test_sqrt_and_its_slope_under_vmap():
    x = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)
    assert torch.vmap(numerics.sqrt)(x).tolist() == [0, 1, 2]
    assert torch.vmap(torch.func.grad(numerics.sqrt))(x).tolist() == [0, 0.5, 0.25]


def test_global_norm_is_the_euclidean_norm_of_everything():
    tensors = [torch.tensor([[1.0, -2.0], [3.0, 0.5]]).double(), torch.tensor(-7.0).double(), torch.zeros(0).double()]
    expected = math.hypot(1, -2, 3, 0.5, -7)
    found = numerics.global_norm(tensors)
    assert found.shape == ()
    assert found.item() == pytest.approx(expected, rel=1e-15)  # five squares
    assert found.item() == pytest.approx(torch.nn.utils.get_total_norm(tensors).item(), rel=1e-15)
    assert numerics.global_norm([]).item() == 0


def test_the_slope_of_global_norm_is_the_unit_vector_and_0_at_0():
    def norm(a, b):
        return numerics.global_norm([a, b])

    a, b = torch.tensor([3.0, 0.0]).double(), torch.tensor(-4.0).double()
    by_a, by_b = torch.func.grad(norm, argnums=(0, 1))(a, b)
    assert by_a.tolist() == pytest.approx([0.6, 0.0], rel=1e-15) and by_b.item() == pytest.approx(-0.8, rel=1e-15)
    by_a, by_b = torch.func.grad(norm, argnums=(0, 1))(torch.zeros(2), torch.zeros(()))
    assert by_a.tolist() == [0, 0] and by_b.item() == 0
    inputs = (a.clone().requires_grad_(), b.clone().requires_grad_())
    assert gradcheck(norm, inputs, check_forward_ad=True) and gradgradcheck(norm, inputs)


def test_where_and_cos_take_numbers_and_tensors():
    assert numerics.where(True, 1.0, 2.0) == 1.0 and numerics.where(False, 1.0, 2.0) == 2.0
    for condition, expected in ((True, 0.1), (False, 0.2)):
        found = numerics.where(torch.tensor(condition), 0.1, 0.2)
        assert found.dtype == torch.float64 and found.item() == expected
    assert torch.vmap(lambda c: numerics.where(c, 0.1, 0.2))(torch.tensor([True, False])).tolist() == [0.1, 0.2]
    assert numerics.cos(0.7) == math.cos(0.7)
    # Two implementations of cos, each good to an ulp.
    assert numerics.cos(torch.tensor(0.7, dtype=torch.float64)).item() == pytest.approx(math.cos(0.7), rel=4e-16)


def test_the_slope_at_0_holds_under_no_grad_as_well():
    # no_grad stops reverse mode around it, but neither torch.func nor forward mode.
    zero, one = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    with torch.no_grad():
        assert torch.func.grad(lambda x: numerics.sqrt(x).sum())(zero).tolist() == [0, 0]
        assert torch.func.jvp(numerics.sqrt, (zero,), (one,))[1].tolist() == [0, 0]
        assert torch.func.jacfwd(numerics.sqrt)(zero).tolist() == [[0, 0], [0, 0]]
        assert torch.vmap(lambda x: torch.func.jvp(numerics.sqrt, (x,), (torch.ones_like(x),))[1])(zero).tolist() == [0, 0]
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(zero, one)
            assert torch.autograd.forward_ad.unpack_dual(numerics.sqrt(dual)).tangent.tolist() == [0, 0]
        assert numerics.sqrt(torch.tensor([0.0, 4.0])).tolist() == [0, 2]


def test_log_and_floor_take_numbers_and_tensors():
    for x in (0.7, 1.0, 3.0, 12.9):
        given = torch.tensor(x, dtype=torch.float64)
        # Two implementations of the logarithm, each good to an ulp.
        assert numerics.log(x) == math.log(x) and numerics.log(given).item() == pytest.approx(math.log(x), rel=4e-16)
        assert numerics.floor(x) == math.floor(x) and numerics.floor(given).item() == math.floor(x)
        assert isinstance(numerics.floor(x), float)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("x", [0.0, 0.3, 4.0])
def test_power_is_pythons_and_its_slope_is_0_at_0(x, exponent):
    given, to = torch.tensor(x, dtype=torch.float64), torch.tensor(exponent, dtype=torch.float64)
    assert numerics.power(x, exponent) == x**exponent
    assert numerics.power(given, to).item() == pytest.approx(x**exponent, rel=4e-16)
    slopes = (exponent * x ** (exponent - 1), x**exponent * math.log(x)) if x else (0.0, 0.0)
    for derivative in (torch.func.grad, torch.func.jacfwd):
        found = [each.item() for each in derivative(numerics.power, (0, 1))(given, to)]
        assert found == pytest.approx(slopes, rel=1e-14)


def test_a_power_beyond_the_largest_double_is_infinite():
    assert numerics.power(2.0, 5000.0) == math.inf
    assert numerics.power(torch.tensor(2.0), 5000.0).item() == math.inf


@pytest.mark.parametrize("grad", [False, True])
def test_cbrt_and_atan2_are_those_of_the_standard_library(grad):
    x = torch.tensor([0.0, 1e-300, 1e-12, 0.3, 8.0, 1e30], dtype=torch.float64, requires_grad=grad)
    # x^(1/3) with an exponent off by 1e-17 relative, times ln x = 690.
    assert numerics.cbrt(x).tolist() == pytest.approx([math.cbrt(y) for y in x.tolist()], rel=2e-14)
    y = torch.tensor([0.0, 1.0, -1.0, -2.0, 0.0, 1e-8], dtype=torch.float64, requires_grad=grad)
    angles = [math.atan2(a, b) for a, b in zip(y.tolist(), x.tolist(), strict=True)]
    assert numerics.atan2(y, x).tolist() == pytest.approx(angles, rel=1e-15)


def test_cbrt_and_atan2_have_slope_0_where_torch_has_none():
    x = torch.tensor([0.0, 8.0, 0.5], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0.0, 2.0, -1.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(numerics.cbrt(x).sum(), x)
    assert slope.tolist() == pytest.approx([0.0, 1 / 12, math.cbrt(0.5) / 1.5], rel=1e-14)
    assert [g[0].item() for g in torch.autograd.grad(numerics.atan2(y, x).sum(), (y, x))] == [0.0, 0.0]
    positive = (x.detach()[1:].requires_grad_(), y.detach()[1:].requires_grad_())
    assert gradcheck(numerics.cbrt, positive[:1]) and gradgradcheck(numerics.cbrt, positive[:1])
    assert gradcheck(numerics.atan2, positive) and gradgradcheck(numerics.atan2, positive)


def test_an_inner_product_spans_all_tensors():
    xs, ys = [torch.tensor([1.0, 2.0]), torch.tensor(3.0)], [torch.tensor([4.0, 5.0]), torch.tensor(-6.0)]
    assert numerics.inner_product(xs, ys).item() == 4 + 10 - 18
    assert numerics.inner_product([], []).item() == 0


def test_the_logarithm_of_a_number_and_of_a_tensor():
    assert numerics.log(0.0) == -math.inf and float(numerics.log(torch.tensor(0.0))) == -math.inf
    assert numerics.log(2.0) == math.log(2)
