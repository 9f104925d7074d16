"""Every claim is tested in float64, and every annotated shape is checked by beartype."""

import os
import signal

import jax
from jaxtyping import install_import_hook

# The commands that tests start are sent these, also where the tests run in the background or under
# nohup and would pass on that they are ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Two devices, for what is sharded. Before the first computation.
jax.config.update("jax_num_cpu_devices", 2)

# Small programs, compiled by the hundred: what makes them fast to run is left out of this process,
# and not out of the commands that it starts.
if jax.__version_info__ < (0, 11):  # later ones do not know the flag, and XLA would end the process
    flags = os.environ.get("XLA_FLAGS", "")
    quick = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{flags} {quick}"
    jax.devices()  # reads them
    os.environ["XLA_FLAGS"] = flags
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_enable_x64", True)
install_import_hook("jaxrnn", "beartype.beartype")
