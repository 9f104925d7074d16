"""Optax optimisers that clip each element of the gradient first."""

import optax


def clipped_sgd(
    learning_rate: optax.ScalarOrSchedule = 0.1, clip: float | None = 1.0
) -> optax.GradientTransformation:
    """Clip each element of the gradient to [-clip, clip], then gradient descent."""
    return optax.chain(_clip(clip), optax.sgd(learning_rate))


def clipped_adagrad(
    learning_rate: optax.ScalarOrSchedule = 0.1, clip: float | None = 5.0
) -> optax.GradientTransformation:
    """Clip each element, then Adagrad (Duchi, Hazan & Singer 2011) as min-char-rnn has it.

        s ← s + g²,   θ ← θ - learning_rate g / √(s + 1e-8),   s = 0 at first

    Optax's own default starts from s = 0.1, which keeps the first steps small.
    """
    rule = optax.adagrad(learning_rate, initial_accumulator_value=0.0, eps=1e-8)
    return optax.chain(_clip(clip), rule)


def _clip(clip: float | None) -> optax.GradientTransformation:
    return optax.identity() if clip is None else optax.clip(clip)
