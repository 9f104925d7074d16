"""Every claim is tested in float64, and every annotated shape is checked by beartype."""

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)  # small programs, compiled by the hundred
install_import_hook("jaxrnn", "beartype.beartype")
