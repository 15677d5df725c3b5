"""Compute and print the polynomial coefficients in kernels/activation.py.

exp    on r in [−ln2/2, ln2/2]:  exp(r) ≈ 1 + r + r² · p(r)
Φ(−t)  for t ≥ 0, the normal distribution's tail: Φ(−t) = exp(−t²/2) · g(t) with
       g(t) = erfcx(t/√2) / 2, which falls smoothly from 1/2 and like 1/(t·√2π) for large t. The
       substitution q = (t − 3) / (t + 3) maps [0, ∞) to [−1, 1), and (1 + t) · g(t) is nearly
       linear in q, so a polynomial in q fits it to float32 precision for every t.
Φ(x)   for activations that are rounded to bfloat16 or to bytes: Φ(x) ≈ ½ + x · p(x²) with |x| held
       at `far`, where p is pressed to Φ(−far) ≤ 0, which the kernel raises to 0. Its error is that
       of x · Φ(x), for GELU's Φ and for ½ (1 + tanh(…)) of GELU by tanh.

The first two are fitted at Chebyshev nodes in float64, weighted by the relative error. At these
nodes the interpolating polynomial is within a small factor of the best one (Trefethen,
Approximation Theory and Approximation Practice, 2013, chapter 16).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.polynomial import Polynomial, chebyshev


def nodes(low: float, high: float, count: int) -> np.ndarray:
    """`count` Chebyshev nodes in [low, high]."""
    return (low + high) / 2 + (high - low) / 2 * chebyshev.chebpts1(count)


def fit(x: np.ndarray, y: np.ndarray, weight: np.ndarray, degree: int) -> np.ndarray:
    """The float32 coefficients of the weighted least-squares polynomial, lowest power first."""
    powers = np.vander(x, degree + 1, increasing=True)
    solution = np.linalg.lstsq(powers * weight[:, None], y * weight, rcond=None)[0]
    return solution.astype(np.float32)


def scaled_tail(t: float) -> float:
    """(1 + t) · exp(t²/2) · Φ(−t), by erfc; by its asymptotic series where erfc underflows."""
    if t < 35:
        return (1 + t) * math.exp(t * t / 2) * math.erfc(t / math.sqrt(2)) / 2
    series = 1 - 1 / t**2 + 3 / t**4 - 15 / t**6
    return (1 + t) * series / (t * math.sqrt(2 * math.pi))


def sigmoid_of_gelu(x: np.ndarray, by_tanh: bool) -> np.ndarray:
    """The factor of x in GELU: Φ(x), or its approximation by tanh."""
    if by_tanh:
        return (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    return np.array([math.erfc(-value / math.sqrt(2)) / 2 for value in x])


def fit_gelu(far: float, by_tanh: bool) -> tuple[np.ndarray, float]:
    """The float32 coefficients of p, lowest power first, and the maximum error of x · Φ(x)."""
    x = np.append(nodes(0, far, 400), far)
    truth, weight = sigmoid_of_gelu(x, by_tanh) - 0.5, x.copy()
    truth[-1], weight[-1] = 0.5 + 3e-7, 1e3
    scaled = fit((x / far) ** 2, truth / x, weight * x, 8).astype(float)
    p = (scaled / far ** (2 * np.arange(9))).astype(np.float32)
    x = np.linspace(-far, far, 10_001)
    approximation = np.maximum(0.5 + x * Polynomial(p.astype(float))(x**2), 0)
    return p, float(np.abs(x * (approximation - sigmoid_of_gelu(x, by_tanh))).max())


def show(name: str, coefficients: np.ndarray, error: float, kind: str = "relative ") -> None:
    print(f"{name}: maximum {kind}error {error:.1e}")
    for power, value in enumerate(coefficients):
        print(f"    {value:>16.9g}  # power {power}")


if __name__ == "__main__":
    r = nodes(-math.log(2) / 2, math.log(2) / 2, 200)
    p = fit(r, (np.exp(r) - 1 - r) / r**2, r**2 / np.exp(r), 4)
    exp_error = np.abs((1 + r + r**2 * Polynomial(p.astype(float))(r)) / np.exp(r) - 1).max()
    show("exp", p, exp_error)

    q = nodes(-1, 0.9999, 400)
    t = 3 * (1 + q) / (1 - q)
    truth = np.array([scaled_tail(value) for value in t])
    g = fit(q, truth, 1 / truth, 10)
    tail_error = np.abs(Polynomial(g.astype(float))(q) / truth - 1).max()
    show("tail", g, tail_error)

    for name, far, by_tanh in (("GELU", 4.4, False), ("GELU by tanh", 4.2, True)):
        show(name, *fit_gelu(far, by_tanh), kind="")
