"""Tests that users' mistakes, without the type checker of the tests, give one clear line each."""

import json
import subprocess
import sys

import pytest

MISTAKES = {
    "jaxrnn.RNN(5, 0, 2)": "hidden_size must be a whole number of at least 1, got 0",
    "jaxrnn.RNN(5, 2.5, 2)": "hidden_size must be a whole number of at least 1, got 2.5",
    "jaxrnn.RNN(5, 4, 2, activation='gelu')": "activation must be one of tanh, relu, sigmoid",
    "jaxrnn.RNN(5, 4, 2, reduction='max')": "reduction must be one of mean, sum, got 'max'",
    "jaxrnn.RNN(5, 4, 2, loss_function='hinge')": "loss_function must be one of softmax",
    "jaxrnn.gradients.truncated_bptt(rnn, -1)": "window must be a whole number of at least 0, got",
    "jaxrnn.gradients.truncated_bptt(rnn, 2.0)": "window must be a whole number of at least 0, got",
    "jaxrnn.gradients.rtrl(large).init(big, large.initial_state(9))": "influence of a layer (B=9",
    "jaxrnn.gradients.snap(rnn, 0)": "n must be a whole number of at least 1, got 0",
    "jaxrnn.gradients.ok(rnn, 1.5)": "rank must be a whole number of at least 1, got 1.5",
    "jaxrnn.gradients.kernl(rnn, 2.0)": "learning_rate must lie in 0 … 1, got 2.0",
    "jaxrnn.gradients.kernl(rnn, decay=0.0)": "decay must be above 0 and at most 1, got 0.0",
    "jaxrnn.gradients.rflo(rnn, 'direct')": "feedback must be one of readout, random, got 'direct'",
    "jaxrnn.RNN(5, 4, 2, leak=0)": "leak must be above 0 and at most 1",
    "jaxrnn.gradients.uoro(rnn).init(params, h)": "this rule draws random numbers and got no key",
    "jaxrnn.gradients.rflo(rnn, 'random').init(params, h)": "random numbers and got no key",
    "chunk(jaxrnn.gradients.bptt(rnn), jaxrnn.gradients.rtrl(rnn))": "another rule's or another",
    "chunk(jaxrnn.gradients.autodiff(rnn), jaxrnn.gradients.rtrl(rnn))": "another rule's",
    "chunk(jaxrnn.gradients.checkpointed_bptt(rnn), jaxrnn.gradients.rtrl(rnn))": "another rule's",
    "chunk(jaxrnn.gradients.rflo(rnn), jaxrnn.gradients.snap(rnn, 2))": "another rule's",
    "chunk(window(3), window(2))": "carry.memory.ids has shape (2, 3), but h of shape (1, 3, 4)",
    "chunk(rtrl, rtrl, 2)": "carry.memory[0].influence has shape (2, 10, 4, 4), but h",
    "step(jaxrnn.gradients.parallel_bptt(large))": "parallel_bptt's step Jacobians (T=999",
    "rnn.unroll(cell, x, h[0, :2])": "h has shape (2, 4), but needs (3, 4)",
    "rnn.unroll(cell, x[0, 0], h[0])": "inputs have shape (5,) and dtype float32, but must be ids",
    "rnn.step(cell, x[:, 0], h[0, :2])": "h has shape (2, 4), but needs (3, 4)",
    "rnn.step(cell, x[:, 0, :2], h[0])": "features (B, I=5) as floats",
    "rnn.apply(params, x, h[:, :1])": "start with rnn.initial_state(3)",
    "rnn.apply(params, x.sum(-1), h)": "must be ids, whole numbers of an integer dtype",
    "rnn.apply(params, x[..., None], h)": "inputs have shape (3, 6, 5, 1)",
    "jaxrnn.RNN(np.float64(5), 4, 2)": "input_size must be a whole number of at least 1, got",
    "jaxrnn.RNN(np.uint8(200), np.int16(9), 2).init(key).cells[0].W_xh.shape": "gave (200, 9)",
    "rnn.init(0)": "key must be a random key, got 0: jax.random.key(0)",
    "jaxrnn.init_train_state(bptt(rnn), optax.adam, params, h)": "must be an Optax transformation",
    "jaxrnn.make_train_step(bptt(rnn), optax.adam)": "got a function: call its builder, as in",
    "bptt(rnn).value_and_grad(params, h, jaxrnn.Batch(x, ids))": "carry must be a jaxrnn.Carry",
    "rtrl.value_and_grad(params, h, jaxrnn.Batch(x, ids))": "carry must be a jaxrnn.Carry, got a",
    "looped(jaxrnn.Batch(x, ids))": "batches must have a leading axis N, as in inputs (N, B, T)",
    "looped(three) and looped(three)": "this state was given to the loop before, which",
    "backward(lambda cell, tape, error: error[0])": "an array (T, B, H) = (6, 3, 4), got shape",
    "backward(lambda cell, tape, error: None)": "(T, B, H) = (6, 3, 4), got a NoneType",
    "forward(lambda c, M, tape: M[0], read)": "the shapes of the influence, (10, 4), got (4,)",
    "forward(lambda c, M, tape: M, lambda M, e: e)": "an array (N, H) = (10, 4), got shape (3, 4)",
    "jaxrnn.lm.evaluate(params, 'text.txt')": "model must be a jaxrnn.lm.Model, got a Params: lm.l",
    "rnn.init(key, int)": "dtype must be a floating dtype, got int",
    "rnn.loss(params, h, (x, ids))": "batch must be a jaxrnn.Batch, got a tuple: jaxrnn.Batch(inp",
    "rnn.loss(params, h, {'inputs': x})": "batch must be a jaxrnn.Batch, got a dict",
    "bptt(rnn).value_and_grad(params, jaxrnn.Carry(h, ()), (x, ids))": "batch must be a jaxrnn.Bat",
    "jaxrnn.gradient_flow(rnn, params, (x, ids))": "batch must be a jaxrnn.Batch, got a tuple",
    "jax.jit(lambda p: jaxrnn.gradient_flow(rnn, p, jaxrnn.Batch(x, ids)))(params)": "be traced",
    "rnn.loss(params, h, jaxrnn.Batch({'x': x}, ids))": "inputs must be an array, got a dict: pass",
    "rnn.loss(params, h, jaxrnn.Batch('abc', ids))": "inputs must be an array, got a str: pass a",
    "rnn.loss(params, h, jaxrnn.Batch([[0, 1], [0]], ids))": "inputs must be an array, got a list",
    "rnn.loss(params, h, jaxrnn.Batch(x, 'abc'))": "targets must be an array, got a str",
    "rnn.loss(params, h, jaxrnn.Batch(x, ids, 'all'))": "mask must be an array, got a str",
    "rnn.loss(params, h + 1j, jaxrnn.Batch(x, ids))": "h have dtype complex64: pass a JAX or NumPy",
    "rnn.loss(params, 'zero', jaxrnn.Batch(x, ids))": "h must be an array, got a str",
    "rnn.loss(params, h, jaxrnn.Batch(x, ids + 2**32))": "targets hold the id 4294967296, but must",
    "custom.loss(params, h, jaxrnn.Batch(x, ids + 2**32))": "targets hold 4294967296, which int32",
    "jaxrnn.reset(rtrl, params, rtrl.init(params, h), [0, 1])": "rows must be booleans of shape (3",
    "jaxrnn.evaluate(rnn, params, (x, ids))": "batch must be a jaxrnn.Batch, got a tuple",
    "jaxrnn.walkthrough(rnn, params, (x, ids))": "batch must be a jaxrnn.Batch, got a tuple",
    "jaxrnn.compare({'mine': bptt(rnn)}, rnn, params, (x, ids), key=key)": "batch must be a jaxrnn",
    "jaxrnn.make_train_loop(None)(None, (x, ids))": "batch must be a jaxrnn.Batch, got a tuple",
    "jaxrnn.evaluate(rnn, params, masked)": "every position of these batches has weight 0: give a",
    "loop(count=10)": "count must lie in 0 … 3, the number of batches, got 10",
    "loop(count=-1)": "count must lie in 0 … 3, the number of batches, got -1",
    "rnn.loss(params, h, jaxrnn.Batch(x, ids[:, :5]))": "targets has shape (3, 5), but needs",
    "rnn.loss(params, h, jaxrnn.Batch(x, ids + 2))": "targets hold the id 2, but must lie in 0 … 1",
    "custom.loss(params, h, jaxrnn.Batch(x, ids))": "the loss has shape (), but needs (3, 6)",
    "jaxrnn.lm.sample(rnn, params, ids, 5, key=key)": "input_size=5 must equal output_size=2",
    "jaxrnn.lm.sample(square, other, ids, 0, key=key)": "length must be at least 1, got 0",
    "jaxrnn.lm.sample(square, other, ids[:, :0], 5, key=key)": "prompt must be ids (B, P)",
    "jaxrnn.lm.sample(square, other, ids + 9, 5, key=key)": "inputs hold the id 9, but must lie in",
    "jaxrnn.lm.sample(square, other, ids, 5, key=key, temperature=-1)": "temperature must be",
    "jaxrnn.lm.sample(square, other, ids, 5, key=key, temperature=np.nan)": "temperature must",
    "jaxrnn.lm.sample(square, other, ids, 5, key=key, end=2)": "end must be an id in 0 … 1, got 2",
    "jaxrnn.walkthrough(rnn, params, jaxrnn.Batch(x, ids))": "one sequence",
    "jaxrnn.walkthrough(two, two.init(key), jaxrnn.Batch(x, ids))": "a walkthrough needs one layer",
    "jaxrnn.verify(grads, rnn, params, jaxrnn.Batch(x, ids), dtype='float16')": "dtype must be one",
    "jaxrnn.verify(grads, rnn, other, jaxrnn.Batch(x, ids))": "W_xh has shape (2, 4)",
    "jaxrnn.verify(grads, rnn, params, jaxrnn.Batch(x, ids + 2))": "targets hold the id 2",
    "jaxrnn.verify(grads, rnn, params, jaxrnn.Batch(x, ids), h=h[:, :1])": "h has shape (1, 1, 4)",
    "jaxrnn.verify(grads, rnn, params, jaxrnn.Batch(x, ids), reference=grads)": "the reference",
    "jaxrnn.verify(rnn, bptt(rnn), params, jaxrnn.Batch(x, ids))": "rnn must be a jaxrnn.RNN, got",
    "jaxrnn.verify(bptt, rnn, params, jaxrnn.Batch(x, ids))": "candidate is the builder of bptt",
    "jaxrnn.verify(grads, rnn, params, jaxrnn.Batch(x, ids, 0 * ids))": "has weight 0, so loss",
    "jaxrnn.make_train_step(bptt, None)": "algorithm must be a GradientAlgorithm, got a function",
    "rtrl.init(params, h[0])": "h has shape (3, 4), but needs (num_layers, B, H) = (1, B, 4)",
    "rnn.states(params, x, h[0])": "h has shape (3, 4), but needs (num_layers, B, H) = (1, B, 4)",
    "jaxrnn.save('params', {'W': x})": "params must be jaxrnn.Params, got a dict: pass",
    "jaxrnn.chunks(jaxrnn.Batch(x, ids), 0)": "length must be a whole number of at least 1, got 0",
    "jaxrnn.load('nowhere.safetensors')": "FileNotFoundError('No such file or directory",
    "jaxrnn.finite_difference(directions=0)": "directions must be at least 1, got 0",
    "jaxrnn.complex_step(elements=-1)": "elements must be at least 0, got -1",
    "jaxrnn.check_grad(grads, float)": "args must not be empty",
    "jaxrnn.check_grad(grads, lambda x: float(x), x)": "JAX cannot differentiate the loss",
    "jaxrnn.gradient_flow(rnn, params, jaxrnn.Batch(x, ids), lags=9)": "lags must lie in 1 … 6",
    "compare([bptt(rnn)])": "algorithms must be a dict {name: algorithm, …}, got a list: the names",
    "compare({'mine': bptt(rnn)}, mask=0 * ids)": "every position of this batch has weight 0, so",
    "compare({})": "algorithms is empty: give {name: algorithm, …}",
    "compare({'mine': bptt})": "algorithms['mine'] must be a GradientAlgorithm, got a function: bu",
    "compare({'mine': bptt(rnn)}, draws=1)": "draws must be a whole number of at least 2, got 1",
    "compare({'mine': bptt(rnn)}, draws=2.5)": "draws must be a whole number of at least 2, got 2.",
    "compare({'mine': bptt(rnn)}, rounds=0)": "rounds must be a whole number of at least 1, got 0",
    "compare({'mine': bptt(rnn)}, h=h[:, :1])": "h has shape (1, 1, 4), but inputs of shape (3, 6,",
    "compare({'mine': odd})": "the gradient of mine must have the structure and shapes of the para",
    "prepare('ab' * 99, Options(schedule='sudden'))": "schedule must be one of constant,",
    "from_json(Options, 3)": "it must be an object, got 3",
    "from_json(Options, {'keep': 1.5})": "keep has the invalid value 1.5",
    "from_json(Options, {'steps': True})": "steps has the invalid value True",
    "from_json(Options, {'learning_rates': ['x']})": "learning_rates has the invalid",
    "prepare('ab' * 99, Options(seeds=10**8))": "make 100,000,000 models, more than 10,000 at once",
    "prepare('ab' * 99, Options(num_layers=10**8))": "num_layers must be at most 1000, got 1000",
    "prepare('ab' * 99, Options(learning_rates=()))": "learning_rates is empty: give at least one",
    "from_json(Options, {'optimizer': 'x'})": "optimizer has the invalid value 'x'",
    "jaxrnn.lm.Vocabulary(('a',), 'letter')": "level must be one of char, byte, word, got 'letter'",
    "tasks.copy(0)": "delay must be a whole number of at least 1 (the go signal is a step of it)",
    "tasks.copy(2.5)": "delay must be a whole number of at least 1 (the go signal is a step of it)",
    "tasks.copy(5, symbols=1)": "symbols must be a whole number of at least 2 (a single one need",
    "tasks.copy(5, recall=0)": "recall must be a whole number of at least 1, got 0",
    "tasks.copy(5).draw(3, 24, key=key)": "length must be delay + 2 recall = 25, or left out, got",
    "tasks.copy(5).draw(0, key=key)": "batch_size must be a whole number of at least 1, got 0",
    "tasks.adding().draw(3, 1, key=key)": "at least 2 (one marker in each half), got 1",
    "tasks.adding().draw(0, 9, key=key)": "batch_size must be a whole number of at least 1, got 0",
    "tasks.delayed_add(-1, 2)": "first must be a whole number of at least 0, got -1",
    "tasks.delayed_add(1, 2.0)": "second must be a whole number of at least 0, got 2.0",
    "tasks.delayed_add(4, 4)": "first and second must be different delays, got 4 for both",
    "tasks.delayed_add(5, 9).draw(3, 9, key=key)": "at least 10 (above both delays), got 9",
    "tasks.delayed_add(9, 5).draw(3, 9, key=key)": "at least 10 (above both delays), got 9",
    "tasks.delayed_add().draw(-1, 20, key=key)": "batch_size must be a whole number of at least 1",
    "tasks.text(thirds, 0)": "vocabulary_size must be a whole number of at least 1, got 0",
    "tasks.text(thirds, 2)": "ids hold the id 2, but must lie in 0 … 1 (vocabulary_size=2)",
    "tasks.text(thirds * 1.0, 3)": "ids of shape (9,) must be ids, whole numbers of an integer dty",
    "tasks.text(thirds[None], 3)": "ids must have shape (N,), N at least 2, got shape (1, 9)",
    "tasks.text(thirds[:1], 3)": "ids must have shape (N,), N at least 2, got shape (1,)",
    "tasks.text(thirds, 3).draw(3, 9, key=key)": "length must be at most 8, one less than the",
    "tasks.text(thirds, 3).draw(3, 0, key=key)": "length must be a whole number of at least 1",
    "tasks.text(thirds, 3).draw(0, 3, key=key)": "batch_size must be a whole number of at least",
}

SCRIPT = """
import json, sys
import jax, jax.numpy as jnp, numpy as np, optax, jaxrnn
from jaxrnn import tasks
from jaxrnn.lm import Options, prepare
from jaxrnn.lm.store.header import from_json
key = jax.random.key(0)
rnn, two = jaxrnn.RNN(5, 4, 2), jaxrnn.RNN(5, 4, 2, num_layers=2)
square = jaxrnn.RNN(2, 4, 2)
custom = jaxrnn.RNN(5, 4, 2, loss_function=lambda y, target: (y**2).sum())
params, other = rnn.init(key), square.init(key)
cell, h = params.cells[0], rnn.initial_state(3)
x, ids = jnp.ones((3, 6, 5)), np.zeros((3, 6), int)
thirds = np.arange(9) % 3
bptt = jaxrnn.gradients.bptt
odd = jaxrnn.GradientAlgorithm(
    bptt(rnn).init, lambda params, carry, batch: ((0.0, carry), params.cells))
compare = lambda rules, mask=None, **options: jaxrnn.compare(
    rules, rnn, params, jaxrnn.Batch(x, ids, mask), key=key, **options)
grads = lambda params, batch: (0.0, params.cells)
large = jaxrnn.RNN(500, 500, 2)
big, long = large.init(key), jaxrnn.Batch(np.zeros((9, 999), int), np.zeros((9, 999), int))
window = lambda K: jaxrnn.gradients.truncated_bptt(rnn, K)
rtrl = jaxrnn.gradients.rtrl(rnn)
def chunk(rule, other, batch_size=3):
    carry = other.init(params, rnn.initial_state(batch_size))._replace(h=h)
    return rule.value_and_grad(params, carry, jaxrnn.Batch(x, ids))
uoro = jaxrnn.gradients.uoro(rnn)
masked = jaxrnn.Batch(x[None], ids[None], jnp.zeros((1, 3, 6)))
def loop(count):
    state = jaxrnn.init_train_state(bptt(rnn), jaxrnn.clipped_sgd(), params, h, key=key)
    three = jaxrnn.Batch(jnp.stack([x] * 3), np.stack([ids] * 3))
    run = jaxrnn.make_train_loop(jaxrnn.make_train_step(bptt(rnn), jaxrnn.clipped_sgd()))
    return run(state, three, count=count)
three = jaxrnn.Batch(jnp.stack([x] * 3), np.stack([ids] * 3))
once = jaxrnn.init_train_state(bptt(rnn), jaxrnn.clipped_sgd(), params, h, key=key)
def looped(batches):
    run = jaxrnn.make_train_loop(jaxrnn.make_train_step(bptt(rnn), jaxrnn.clipped_sgd()))
    return run(once, batches)
of = lambda rule: rule.value_and_grad(params, rule.init(params, h), jaxrnn.Batch(x, ids))
backward = lambda deltas: of(jaxrnn.gradients.backward_rule(rnn, deltas))
read = lambda M, error: jnp.einsum("bpj,bj->pj", M, error)
forward = lambda advance, read: of(jaxrnn.gradients.influence_rule(
    rnn, lambda cell: jnp.zeros((10, 4)), advance, read))
step = lambda rule: rule.value_and_grad(big, rule.init(big, large.initial_state(9)), long)
answers = {}
for mistake in json.load(sys.stdin):
    try:
        answers[mistake] = f"nothing, but gave {eval(mistake)!r}"
    except ValueError as error:
        answers[mistake] = str(error)
    except Exception as error:
        answers[mistake] = repr(error)
print(json.dumps(answers))
"""


@pytest.mark.process
def test_every_mistake_is_answered_in_one_clear_line():
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(list(MISTAKES)),
        capture_output=True,
        text=True,
        check=True,
    )
    answers = json.loads(result.stdout)
    assert answers.keys() == MISTAKES.keys()
    unclear = {
        mistake: answers[mistake]
        for mistake, message in MISTAKES.items()
        if message not in answers[mistake] or "\n" in answers[mistake]
    }
    assert unclear == {}
