"""Every claim is tested in float64, and every annotated shape is checked by beartype."""

import os
import signal
from pathlib import Path

# A thread for each test process is enough: more wait for each other where cores are shared.
# Before NumPy is imported.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import jax
import pytest
from jaxtyping import install_import_hook

# Tests send these signals to the commands that they start. A shell's background job and nohup
# ignore some of them, and the commands would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
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


def pytest_xdist_auto_num_workers(config):
    return min(os.cpu_count() or 1, 8)


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the slow tests too")


def pytest_configure(config):
    """Let the tests' processes share compiled programs, with one another and with the next run."""
    if hasattr(config, "workerinput"):
        config.option.all = config.workerinput["all"]
    else:
        whole_suite = config.args_source is pytest.Config.ArgsSource.TESTPATHS
        config.option.all |= not whole_suite or bool(config.option.markexpr)
    cache = {
        "jax_compilation_cache_dir": str(config.cache.mkdir("jax")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in cache.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


def pytest_configure_node(node):
    """Tell a worker whether the slow tests run: it knows the command line only."""
    node.workerinput["all"] = node.config.option.all


def pytest_collection_modifyitems(config, items):
    """Leave out what is marked `slow` or `process` where the whole suite runs without --all."""
    if config.option.all:
        return
    quick, left_out = [], []
    for item in items:
        marked = any(map(item.get_closest_marker, ("slow", "process")))
        (left_out if marked else quick).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = quick


@pytest.fixture(autouse=True, scope="module")
def few_memory_mappings():
    """Drop compiled programs before Linux runs out of memory mappings, 65,530 for each process.

    Every program takes three of them, and one too many ends the process.
    """
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and len(mappings.read_text().splitlines()) > 30_000:
        jax.clear_caches()
