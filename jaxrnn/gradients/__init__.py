"""Gradient rules: ways to compute or estimate the gradient of an RNN's loss.

Every rule is a function of an `RNN` and its options. It returns a `GradientAlgorithm`, a pair of
pure functions `init` and `value_and_grad`. See `help(jaxrnn.gradients.<rule>)` for its equations,
cost and paper. Rules with a * draw random numbers: their `init` needs a key.

Exact, for one layer and for stacks:
    autodiff(rnn)             `jax.value_and_grad` of `rnn.loss`: the reference
    bptt(rnn)                 backpropagation through time, written by hand
    checkpointed_bptt(rnn)    BPTT that stores √T states and recomputes the others
    parallel_bptt(rnn)        BPTT by an associative scan in O(log T) steps

Truncated, the exact gradient of a graph that is cut after some steps:
    truncated_bptt(rnn, window=8)
                              BPTT through `window` recurrent steps, 0 for the one-hop gradient

Forward in time and exact for one layer, approximate in stacks:
    rtrl(rnn)                 real-time recurrent learning: the influence of every weight

Forward in time and unbiased for one layer, approximate in stacks:
    uoro(rnn) *               a random rank-one estimate of the influence
    kf_rtrl(rnn) *            a random Kronecker product
    ok(rnn, rank=1) *         an optimal random sum of `rank` Kronecker products

Forward in time and approximate:
    snap(rnn, n=1)            SnAp-n: the influence on units within n steps
    rflo(rnn, feedback="readout")
                              an eligibility trace that decays by the leak; feedback="random" *
                              for a random matrix in place of W_hyᵀ
    kernl(rnn, learning_rate=0.1, decay=0.5) *
                              an eligibility trace that is read through a learned kernel
    dni(rnn, learning_rate=0.05)
                              a learned linear prediction of the future credit

Types and functions:
    GradientAlgorithm  the type of every rule
    Carry              what passes from one chunk of a sequence to the next
    reset              restart some rows of a carry
    Lasting            a part of a memory that outlives a sequence: what is learned, random keys
    backward_rule      build a rule from a function of a layer's errors
    influence_rule     build a rule that carries an influence forward in time
    RULES              the table of rules, each a `Rule` with its `Claim`
    parse, build       read a rule from text such as "truncated_bptt(window=8)"
"""

from jaxrnn.gradients.engine.algorithm import Carry as Carry
from jaxrnn.gradients.engine.algorithm import GradientAlgorithm as GradientAlgorithm
from jaxrnn.gradients.engine.algorithm import Lasting as Lasting
from jaxrnn.gradients.engine.algorithm import reset as reset
from jaxrnn.gradients.engine.influence import influence_rule as influence_rule
from jaxrnn.gradients.engine.lift import backward_rule as backward_rule
from jaxrnn.gradients.rules.autodiff import autodiff as autodiff
from jaxrnn.gradients.rules.bptt import bptt as bptt
from jaxrnn.gradients.rules.checkpointed_bptt import checkpointed_bptt as checkpointed_bptt
from jaxrnn.gradients.rules.dni import dni as dni
from jaxrnn.gradients.rules.kernl import kernl as kernl
from jaxrnn.gradients.rules.kf_rtrl import kf_rtrl as kf_rtrl
from jaxrnn.gradients.rules.ok import ok as ok
from jaxrnn.gradients.rules.parallel_bptt import parallel_bptt as parallel_bptt
from jaxrnn.gradients.rules.rflo import rflo as rflo
from jaxrnn.gradients.rules.rtrl import rtrl as rtrl
from jaxrnn.gradients.rules.snap import snap as snap
from jaxrnn.gradients.rules.truncated_bptt import truncated_bptt as truncated_bptt
from jaxrnn.gradients.rules.uoro import uoro as uoro
from jaxrnn.gradients.table import RULES as RULES
from jaxrnn.gradients.table import Claim as Claim
from jaxrnn.gradients.table import Rule as Rule
from jaxrnn.gradients.table import build as build
from jaxrnn.gradients.table import parse as parse

__all__ = [
    "RULES",
    "Carry",
    "Claim",
    "GradientAlgorithm",
    "Lasting",
    "Rule",
    "autodiff",
    "backward_rule",
    "bptt",
    "build",
    "checkpointed_bptt",
    "dni",
    "influence_rule",
    "kernl",
    "kf_rtrl",
    "ok",
    "parallel_bptt",
    "parse",
    "reset",
    "rflo",
    "rtrl",
    "snap",
    "truncated_bptt",
    "uoro",
]
