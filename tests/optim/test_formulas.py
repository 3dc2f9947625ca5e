"""Rules against independent restatements of their equations in NumPy, one matrix at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from nsam.backends.torch.optim import optimizer


def matrices(tensor: Any) -> Any:
    """Every matrix of a parameter; a vector is 1 × n."""
    if tensor.ndim < 2:
        return [tensor.double().numpy().reshape(1, -1)]
    return list(tensor.double().numpy().reshape(-1, *tensor.shape[-2:]))


def follow(problem: Any, restated: Any) -> Any:
    """Run `restated(matrix, gradients) -> path` on every matrix and lay the paths out as an optimizer's path."""
    paths = []
    for i, start in enumerate(problem.start):
        streams = [matrices(step[i]) for step in problem.gradients]
        each = [restated(w.copy(), [s[j] for s in streams]) for j, w in enumerate(matrices(start))]
        paths.append([torch.tensor(np.stack(at)).reshape(start.shape) for at in zip(*each, strict=True)])
    return [list(at) for at in zip(*paths, strict=True)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_muon(dtype: Any, tolerance: Any, problem_of: Any, distance: Any, std: Any, newton_schulz: Any) -> None:
    problem = problem_of([(3, 5), (5, 3), (4, 4), (2, 4, 3), (6,)], dtype)

    def restated(w: Any, gradients: Any) -> Any:
        lr, beta, decay = 0.02, 0.95, 0.1
        momentum, path = np.zeros_like(w), []
        for g in gradients:
            momentum = beta * momentum + g
            direction = newton_schulz(g + beta * momentum)
            w = (1 - lr * decay) * w - lr * math.sqrt(max(1.0, w.shape[0] / w.shape[1])) * direction
            path.append(w)
        return path

    parameters = problem.parameters()
    path = problem.run(optimizer(std("muon", lr=0.02, decay=0.1), parameters), parameters)
    assert distance(path, follow(problem, restated)) < tolerance


def test_m3(problem: Any, distance: Any, std: Any, newton_schulz: Any) -> None:
    def restated(w: Any, gradients: Any) -> Any:
        lr, b1, b2, b3, mix, period, rms, decay, eps = 0.02, 0.95, 0.999, 0.9, 0.5, 4, 0.2, 0.1, 1e-8
        fast, slow, square = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
        path = []
        for t, g in enumerate(gradients, 1):
            fast = b1 * fast + (1 - b1) * g
            square = b2 * square + (1 - b2) * g * g
            step = newton_schulz(fast) + mix * newton_schulz(slow)
            step = step / (np.sqrt(square / (1 - b2**t)) + eps)
            w = (1 - lr * decay) * w - lr * rms * step / max(float(np.sqrt(np.mean(step**2))), 1e-12)
            if t % period == 0:  # seen from the next step on
                slow = b3 * slow + (1 - b3) * sum(gradients[t - period : t])
            path.append(w)
        return path

    parameters = problem.parameters()
    path = problem.run(optimizer(std("m3", lr=0.02, period=4, decay=0.1), parameters), parameters)
    assert distance(path, follow(problem, restated)) < 1e-9


def test_m3_as_algorithm_1_prints_it(problem_of: Any, distance: Any, std: Any, newton_schulz: Any) -> None:
    problem = problem_of([(3, 5), (5, 3), (6,)], torch.float64, 20)

    def restated(w: Any, gradients: Any) -> Any:
        lr, b1, b2, b3, alpha, f, eps = 1e-3, 0.95, 0.999, 0.9, 0.5, 8, 1e-8
        m1, m2, v = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
        o2, path = np.zeros_like(w), []
        for t, g in enumerate(gradients, 1):
            m1, v = m1 + b1 * g, v + b2 * g**2
            w = w - lr * (newton_schulz(m1) + alpha * o2) / (np.sqrt(v) + eps)
            if t % f == 0:
                m2 = m2 + b3 * sum(gradients[t - f : t])
                o2 = newton_schulz(m2)
            path.append(w)
        return path

    parameters = problem.parameters()
    path = problem.run(optimizer(std("m3_algorithm1", lr=1e-3), parameters), parameters)
    assert distance(path, follow(problem, restated)) < 1e-9


def test_delta_momentum(problem_of: Any, distance: Any, std: Any) -> None:
    """Eq. 49 with P the identity: the memory of gradients forgets along the gradient that is being written."""
    problem = problem_of([(3, 5), (5, 3), (6,), (2, 2, 3)], torch.float64, 30)

    def restated(w: Any, gradients: Any) -> Any:
        lr, beta = 0.05, 0.8
        m, path = np.zeros_like(w), []
        for g in gradients:
            m = m @ (beta * np.eye(w.shape[1]) - lr * g.T @ g) + lr * g
            w = w - m
            path.append(w)
        return path

    parameters = problem.parameters()
    path = problem.run(optimizer(std("delta_momentum", lr=0.05, beta=0.8), parameters), parameters)
    assert distance(path, follow(problem, restated)) < 1e-10
