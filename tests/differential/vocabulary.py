"""What random programs are written with: objectives, rules of their own, activations."""

from __future__ import annotations

ACTIVATIONS = ("silu", "gelu", "relu", "tanh", "sigmoid")
OBJECTIVES = ("dot", "l2", "l2", "lp(3)", "huber(0.7)", "pseudo_huber(1)", "pseudo_huber(inf)")
EXPRESSIONS = (
    "0.5 * sum((self(key) - value)^2)",
    "sum(softplus(self(key)) - value * self(key))",
    "0.1 * sum(self(key)^2) - dot(self(key), value)",
    "sum(log(1 + (self(key) - value)^2))",
    "0.5 * sum((normalize(self(key)) - value)^2)",
    "sqrt(1 + dot(self(key) - value, self(key) - value))",
    "sum(sigmoid(self(key)) * (1 - value)) / (1 + dot(value, value))",
    "sum(max(self(key) - value, 0.1 * (value - self(key))))",
    "0.3 * sum((self(key) - value)^2) + 0.1 * sum((self(0.5 * key) + value)^2)",
)
TRANSPOSED = ("oja", "0.2 * sum((self.T(value) - key)^2) - dot(self(key), value)")
RULES = """
rule signed(lr) {
  self <- self - lr * grad / (0.1 + abs(grad))
}
rule leaky(lr, retain = 1) {
  state m = zeros
  m <- 0.8 * m + 0.2 * grad
  self <- retain * self - lr * (m + 0.5 * grad)
}
rule delta(lr) {
  self <- self - lr * outer(err, key)
}
rule counted(lr) {
  memory average : like(self) { learn grad; minimize l2; by gd(lr = 0.3); every 1 update; reads running }
  memory rare : like(self) { learn average; minimize dot; by gd(lr = 0.5, retain = 0.5); every 2 updates summed }
  self <- self + lr * (rare - unbias(average, 0.7))
}
rule inward(lr, beta = 0.8) {
  state m = zeros
  m <- beta * m @ (identity - 0.1 * outer(key, key)) - lr * grad
  self <- 0.99 * self + m
}
rule nested(lr) {
  memory slow : like(self) { learn grad; minimize l2; by counted(lr = 0.3); every 1 update; reads running }
  self <- 0.99 * self - lr * (grad + slow)
}
rule mapped(lr, retain = 1) {
  memory square : linear(rows(self) -> rows(self)) {
    learn transpose(grad) -> transpose(grad); minimize dot; by leaky(lr = 0.2, retain = 0.8); every 1 update
  }
  memory net : mlp(cols(self) -> 3 -> cols(self), act = tanh) {
    learn 0.3 * grad -> grad; minimize l2; by gd(lr = 0.1); every 1 update; reads running
  }
  self <- retain * self - lr * (tanh(square) @ grad + net(grad))
}
rule forgetful(lr, retain = 1) {
  let size = root_mean_square(grad)
  self <- retain * self - lr * tanh(grad) / (1 + size)
}
"""
HEADER = f"""nsam 1
use std.rules (gd, dgd, safe_dgd, momentum, delta_momentum, muon, adamw, m3)
use std.optimizers (adagrad, preconditioned_momentum)
{RULES}"""
