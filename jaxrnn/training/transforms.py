"""Optax optimisers that first clip each element of the gradient."""

import optax


def clipped_sgd(
    learning_rate: optax.ScalarOrSchedule = 0.1, clip: float | None = 1.0
) -> optax.GradientTransformation:
    """Return gradient descent on the gradient g with each element clipped to [-clip, clip].

        θ ← θ - learning_rate · min(max(g, -clip), clip)

    Args:
        learning_rate: the learning rate, or a schedule (step -> learning rate).
        clip: the largest magnitude of an element; None does not clip.

    Returns:
        An Optax optimiser.

    >>> import jax.numpy as jnp, jaxrnn
    >>> optimizer = jaxrnn.clipped_sgd(learning_rate=0.5, clip=1.0)
    >>> g = jnp.array([0.2, 30.0])
    >>> optimizer.update(g, optimizer.init(g))[0].tolist()  # -0.5 · [0.2, 1]
    [-0.10000000149011612, -0.5]
    """
    return optax.chain(_clip(clip), optax.sgd(learning_rate))


def clipped_adagrad(
    learning_rate: optax.ScalarOrSchedule = 0.1, clip: float | None = 5.0
) -> optax.GradientTransformation:
    """Return Adagrad with min-char-rnn's settings, on the gradient g with each element clipped.

        s ← s + g²,   θ ← θ - learning_rate g / √(s + 1e-8),   s = 0 at first

    Optax's own default starts from s = 0.1, which keeps the first steps small (Duchi, Hazan &
    Singer 2011).

    Args:
        learning_rate: the learning rate, or a schedule (step -> learning rate).
        clip: the largest magnitude of an element; None does not clip.

    Returns:
        An Optax optimiser.

    >>> import jax.numpy as jnp, jaxrnn
    >>> optimizer = jaxrnn.clipped_adagrad(learning_rate=0.1, clip=5.0)
    >>> g = jnp.array([0.2, -30.0])
    >>> [round(u, 4) for u in optimizer.update(g, optimizer.init(g))[0].tolist()]
    [-0.1, 0.1]
    """
    rule = optax.adagrad(learning_rate, initial_accumulator_value=0.0, eps=1e-8)
    return optax.chain(_clip(clip), rule)


def _clip(clip: float | None) -> optax.GradientTransformation:
    return optax.identity() if clip is None else optax.clip(clip)
