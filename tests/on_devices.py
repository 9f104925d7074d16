"""Not a test by itself: what is asked of a process with several devices, answered in JSON.

`compare` reads two chunks one after the other, so that what passes between them counts.
"""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from cases import chunks, make_case, relative_error
from test_gradients import RULES

import jaxrnn


def through_chunks(algorithm, case):
    step, found = jax.jit(algorithm.value_and_grad), []
    carry = algorithm.init(case.params, case.h, key=jax.random.key(7))
    for chunk in chunks(case.batch, 3, 3):
        (loss, carry), grads = step(case.params, carry, chunk)
        found.append((loss, grads))
    return jax.tree.map(np.asarray, (found, carry.h, key_data(carry.memory)))


def key_data(tree):
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)


def compare():
    """Compare the rules, and in another network one that works backward and one forward."""
    mesh, errors = jaxrnn.make_mesh(), {}
    masked = {"ids": True, "mask": True, "reduction": "mean"}
    other = {"num_layers": 2, "leak": 0.7, "loss_function": "squared_error"}
    cases = [(name, name, masked) for name in RULES]
    cases += [(f"{name}, stacked", name, other) for name in ("bptt", "uoro")]
    for what, name, network in cases:
        rule, case = RULES[name].build, make_case(B=2 * mesh.size, **network)
        alone = through_chunks(rule(case.rnn), case)
        together = through_chunks(jaxrnn.sharded(rule, case.rnn, mesh), case)
        errors[what] = relative_error(together, alone)
    return {"devices": mesh.size, "errors": errors}


def reduces():
    """Count the all-reduces of a step's compiled program."""
    case = make_case(B=6, ids=True, reduction="mean")
    algorithm = jaxrnn.sharded(jaxrnn.gradients.bptt, case.rnn)
    carry = algorithm.init(case.params, case.h)
    program = jax.jit(algorithm.value_and_grad).lower(case.params, carry, case.batch).compile()
    return {"all-reduces": len(re.findall(r"all-reduce(-start)?\(", program.as_text() or ""))}


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    print(json.dumps({"compare": compare, "reduces": reduces}[sys.argv[1]]()))
