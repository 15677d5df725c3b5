"""The activation functions of the MLP over vectors, and exp for them and for softmax.

Numba's own exp and erf take one number at a time. These polynomials take sixteen;
docs/polynomials.py derives their coefficients.
"""

from __future__ import annotations

import numpy as np

from .jit import inline, jit
from .layout import LANES
from .simd import (
    fma,
    load_first,
    power_of_two,
    select_less,
    splat,
    store_first,
    vabs,
    vmax,
    vmin,
    vround,
)
from .team import barrier, next_task

# int64, not literals (see jit.py)
GELU, GELU_TANH, RELU, SILU, GELU_ROUNDED, GELU_TANH_ROUNDED = np.arange(6)

_F = np.float32
_ZERO, _ONE, _THREE, _HALF, _FAR = (_F(n) for n in (0.0, 1.0, 3.0, 0.5, 30.0))

# exp: x = n·ln2 + r, with ln2 in two parts so that n·ln2 is exact in the first.
_LOG2_E = _F(1.44269504088896341)
_LN2_HIGH = _F(0.693359375)
_LN2_LOW = _F(-2.12194440054690583e-4)
_EXP_LOWEST, _EXP_HIGHEST, _INFINITY = _F(-87.33654), _F(88.37626), _F(np.inf)
_EXP_2, _EXP_3, _EXP_4, _EXP_5, _EXP_6 = (
    _F(c) for c in (0.49999988, 0.16666518, 0.041669533, 0.008368916, 0.0013751407)
)

# (1 + t) · exp(t²/2) · Φ(−t) in powers of q = (t − 3) / (t + 3)
_TAIL = tuple(
    _F(c)
    for c in (
        0.4860558,
        -0.09652674,
        -0.016432619,
        0.045163423,
        -0.022724392,
        0.0011641213,
        0.002986525,
        -0.00036548273,
        -0.0004738042,
        3.5815545e-05,
        5.9636444e-05,
    )
)

# GELU_ROUNDED, GELU_TANH_ROUNDED: (far, powers of x² in (Φ(x) − ½) / x for |x| ≤ far)
_NEAR = (
    _F(4.4),
    tuple(
        _F(c)
        for c in (
            0.398764163,
            -0.0660756081,
            0.0096407691,
            -0.00105403119,
            8.41088986e-05,
            -4.70598934e-06,
            1.73010932e-07,
            -3.72208553e-09,
            3.53055953e-11,
        )
    ),
)
_NEAR_TANH = (
    _F(4.2),
    tuple(
        _F(c)
        for c in (
            0.398814619,
            -0.0665025413,
            0.009937183,
            -0.00113901496,
            9.73198476e-05,
            -5.9143299e-06,
            2.38049338e-07,
            -5.62828673e-09,
            5.8767928e-11,
        )
    ),
)

# gelu_tanh: tanh(u) with u = √(2/π) · (x + 0.044715 x³); 2u = x · (A + B x²)
_TANH_A = _F(2 * np.sqrt(2 / np.pi))
_TANH_B = _F(2 * np.sqrt(2 / np.pi) * 0.044715)

_DENSITY = _F(1 / np.sqrt(2 * np.pi))  # φ(0)
_SILU_FAR = _F(200)  # beyond it the derivative of SiLU is 0 or 1


@jit
def exp(x):
    """eˣ of each lane to 2 units in the last place; 0 for x < −87.3, inf for x > 88.3."""
    y = exp_bounded(select_less(splat(_EXP_HIGHEST), x, splat(_EXP_HIGHEST), x))
    return select_less(splat(_EXP_HIGHEST), x, splat(_INFINITY), y)


@jit
def exp_bounded(x):
    """exp(x), bit for bit, for x ≤ 88.3 only: fewer steps, for softmax."""
    safe = select_less(x, splat(_EXP_LOWEST), splat(_EXP_LOWEST), x)
    n = vround(safe * splat(_LOG2_E))
    r = fma(n, splat(-_LN2_HIGH), safe)
    r = fma(n, splat(-_LN2_LOW), r)
    p = fma(splat(_EXP_6), r, splat(_EXP_5))
    p = fma(p, r, splat(_EXP_4))
    p = fma(p, r, splat(_EXP_3))
    p = fma(p, r, splat(_EXP_2))
    p = fma(p, r * r, r) + splat(_ONE)
    return select_less(x, splat(_EXP_LOWEST), splat(_ZERO), p * power_of_two(n))


@jit
def _normal(x):
    """Φ(x), the cumulative distribution function of the normal distribution, and e^(−x²/2).

    The tail Φ(−t) of t = |x| is computed, with one division for both of its quotients.
    """
    t = vmin(vabs(x), splat(_FAR))  # the tail of 30 is 0
    a, b = t + splat(_THREE), t + splat(_ONE)
    inverse = splat(_ONE) / (a * b)
    q = (t - splat(_THREE)) * b * inverse
    g = splat(_TAIL[10])
    for power in range(9, -1, -1):
        g = fma(g, q, splat(_TAIL[power]))
    bell = exp_bounded(t * t * splat(-_HALF))
    tail = bell * g * a * inverse
    return select_less(x, splat(_ZERO), tail, splat(_ONE) - tail), bell


@jit
def _sigmoid_times(x, z):
    """x · σ(z) = x / (1 + e^−z)"""
    return x / (splat(_ONE) + exp(splat(_ZERO) - z))


@inline
def gelu_rounded(x):
    """activate(x, GELU_ROUNDED), in a third of the steps of the exact one."""
    return _gelu_near(x, _NEAR)


@inline
def _gelu_near(x, near):
    """x · Φ(x) by the polynomial `near`."""
    far, powers = near
    t = vmax(splat(-far), vmin(splat(far), x))
    tt = t * t
    p = splat(powers[8])
    for power in range(7, -1, -1):
        p = fma(p, tt, splat(powers[power]))
    factor = vmax(fma(t, p, splat(_HALF)), splat(_ZERO))
    return x * select_less(x, splat(-far), splat(_ZERO), factor)


@jit
def activate(x, kind):
    """The activation function `kind` of each lane.

    GELU       x · Φ(x), exact, with Φ of the normal distribution (Hendrycks & Gimpel 2016)
    GELU_TANH  x · ½ (1 + tanh(√(2/π) (x + 0.044715 x³))) = x · σ(2 √(2/π) (x + 0.044715 x³))
    RELU       max(x, 0)
    SILU       x · σ(x)

    GELU_ROUNDED and GELU_TANH_ROUNDED are GELU and GELU_TANH to 5·10⁻⁵, or to 1.2·10⁻⁶ of x where
    that is more, for inference whose next product rounds the result to bfloat16 or to bytes. Below
    x ≈ −2.5, where GELU is small, the error is larger than that of rounding to bfloat16.
    """
    if kind == GELU:
        below, _ = _normal(x)
        return x * below
    if kind == GELU_TANH:
        return _sigmoid_times(x, x * fma(x * x, splat(_TANH_B), splat(_TANH_A)))
    if kind == SILU:
        return _sigmoid_times(x, x)
    if kind == GELU_ROUNDED:
        return gelu_rounded(x)
    if kind == GELU_TANH_ROUNDED:
        return _gelu_near(x, _NEAR_TANH)
    # RELU. Any other kind would end here, too: add its branch above, and in activation_derivative;
    # tests/kernels/test_activation.py lists what each kind must compute.
    return vmax(x, splat(_ZERO))


@jit
def activation_derivative(x, kind):
    """The derivative of the activation function `kind` at each lane; of none that is rounded.

    GELU       Φ(x) + x · φ(x), φ the density of the normal distribution
    GELU_TANH  σ(z) + x · σ(z) (1 − σ(z)) · z', with z = x (A + B x²) and z' = A + 3 B x²
    RELU       1 where x > 0, else 0
    SILU       σ(x) + x · σ(x) (1 − σ(x))
    """
    if kind == GELU:
        below, bell = _normal(x)
        return fma(x, bell * splat(_DENSITY), below)
    if kind == GELU_TANH:
        # beyond ±30 the derivative is 0 or 1; the bound keeps x³ finite
        x = vmax(splat(-_FAR), vmin(splat(_FAR), x))
        xx = x * x
        dz = fma(xx, splat(_THREE * _TANH_B), splat(_TANH_A))
        return _sigmoid_derivative(x, x * fma(xx, splat(_TANH_B), splat(_TANH_A)), dz)
    if kind == SILU:
        x = vmax(splat(-_SILU_FAR), vmin(splat(_SILU_FAR), x))
        return _sigmoid_derivative(x, x, splat(_ONE))
    # RELU, see activate
    return select_less(splat(_ZERO), x, splat(_ONE), splat(_ZERO))


@jit
def activate_and_derivative(x, kind):
    """activate(x, kind) and activation_derivative(x, kind)."""
    if kind == GELU:
        below, bell = _normal(x)
        return x * below, fma(x, bell * splat(_DENSITY), below)
    return activate(x, kind), activation_derivative(x, kind)


@jit
def _sigmoid_derivative(x, z, dz):
    """The derivative of x · σ(z): σ + x · σ (1 − σ) · z'"""
    s = splat(_ONE) / (splat(_ONE) + exp(splat(_ZERO) - z))
    return fma(x * s, (splat(_ONE) - s) * dz, s)


@jit
def activation_forward(team, y, x, kind):
    """y = activate(x), both View [M, N], each float32 or bfloat16."""
    m = next_task(team)
    while m < x.M:
        for n in range(0, x.N, LANES):
            lanes = min(LANES, x.N - n)
            value = activate(load_first(x.data, m * x.ld + n, lanes), kind)
            store_first(value, y.data, m * y.ld + n, lanes)
        m = next_task(team)
    barrier(team)


@jit
def activation_backward(team, dx, y, dy, x, kind):
    """dx = dy · activation_derivative(x), and y = activate(x) once more; all View [M, N], each
    float32 or bfloat16.

    dx and dy may be the same.
    """
    m = next_task(team)
    while m < x.M:
        for n in range(0, x.N, LANES):
            lanes = min(LANES, x.N - n)
            value, derivative = activate_and_derivative(
                load_first(x.data, m * x.ld + n, lanes), kind
            )
            store_first(value, y.data, m * y.ld + n, lanes)
            d = load_first(dy.data, m * dy.ld + n, lanes) * derivative
            store_first(d, dx.data, m * dx.ld + n, lanes)
        m = next_task(team)
    barrier(team)
