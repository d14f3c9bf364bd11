"""The programs that a runner calls, compiled ahead and in parallel.

A key names a function of step.py and the shapes that it is called with.

Dims: B rows, T tokens of a row, K drafts, N tokens that can be read at once, D
model, V vocabulary, W words of a mask.
"""

from collections.abc import Callable
import concurrent.futures
import dataclasses
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from serve import logprobs
from serve import sampling
from serve import shapes
from serve import step
from serve import weights

Key = tuple[Any, ...]
Report = Callable[[int, int], None]


class NotCompiledError(Exception):
  """A shape is not among those that are compiled ahead: a bug."""


@dataclasses.dataclass(kw_only=True)
class Network:
  """A model on the device; pages are donated and replaced in each step."""

  layout: weights.Layout
  network: step.Network
  params: step.Params
  layers: step.Layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Program:
  """A function and what it is called with.

  Attributes:
    function: To be jitted.
    args: ShapeDtypeStructs; with a sharding if they are on the device already.
    kept: Which of them is donated, and comes back as the first result.
    num_others: Results besides it.
  """

  function: Callable
  args: tuple[Any, ...]
  kept: int | None = None
  num_others: int = 0


class Programs:
  """See the module."""

  def __init__(
    self,
    *,
    mesh: jax.sharding.Mesh,
    all_shapes: shapes.Shapes,
    form: shapes.Format,
    target: Network,
    draft: Network | None,
    state: sampling.State,
    num_drafts: int,
  ):
    """Of these models, and arrays that lie as these do."""
    self._mesh = mesh
    self._shapes = all_shapes
    self._form = form
    self._target = target
    self._draft = draft
    self._state = _specs(state)
    self._num_drafts = num_drafts
    self._compiled: dict[Key, jax.stages.Compiled] = {}
    self._is_complete = False

  @property
  def num_compiled(self) -> int:
    """So far."""
    return len(self._compiled)

  @property
  def nums_drafts(self) -> tuple[int, ...]:
    """The K of programs."""
    return (0, self._num_drafts) if self._num_drafts else (0,)

  def compile_all(self, report: Report | None = None) -> None:
    """Compiles what is missing; from then on nothing may be."""
    missing = [key for key in self._keys() if key not in self._compiled]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      # Tracing holds the interpreter, compiling does not.
      keys = {pool.submit(self._lower(key).compile): key for key in missing}
      for i, future in enumerate(concurrent.futures.as_completed(keys)):
        self._compiled[keys[future]] = future.result()
        if report is not None:
          report(i + 1, len(missing))
    self._is_complete = True

  def call(self, *key: Any) -> Callable:
    """The program of a key, compiled now if it may be."""
    compiled = self._compiled.get(key)
    if compiled is None:
      if self._is_complete:
        raise NotCompiledError(f"{key} was not compiled ahead: a bug.")
      compiled = self._compiled[key] = self._lower(key).compile()
    return compiled

  def _keys(self) -> list[Key]:
    """All that can be asked for, what takes longest first."""
    keys: list[Key] = []
    for shape in self._shapes.prefill[::-1]:
      keys.append(("read", *shape))
      if self._draft is not None:
        keys.append(("read_draft", *shape))
    rows = self._shapes.decode_rows[::-1]
    decoded = [(num, drafts) for num in rows for drafts in self.nums_drafts]
    keys += [("go_on", *shape) for shape in decoded]
    for variant in sampling.Variant:
      if self._draft is not None:
        keys += [("draft_one", num, variant) for num in rows]
      keys += [("choose", *shape, variant) for shape in decoded]
    for num_top in logprobs.NUM_TOP:
      keys.append(("prompt_logprobs", num_top))
      keys += [("chosen_logprobs", *shape, num_top) for shape in decoded]
    return [*keys, ("admit", False), ("admit", True)]

  def _lower(self, key: Key) -> jax.stages.Lowered:
    program: _Program = getattr(self, f"_{key[0]}")(*key[1:])
    # What comes from the host is needed by all devices, and so are results,
    # except for what is kept where it was.
    everywhere = jax.sharding.NamedSharding(self._mesh, P())
    args = jax.tree.map(
      lambda x: x if x.sharding else _spec(x.shape, x.dtype, everywhere),
      program.args,
    )
    results: Any = everywhere
    if program.kept is not None:
      kept = jax.tree.map(lambda x: x.sharding, args[program.kept])
      results = (kept, *[everywhere] * program.num_others)
      if not program.num_others:
        results = kept
    with jax.set_mesh(self._mesh):
      jitted = jax.jit(
        program.function,
        donate_argnums=() if program.kept is None else program.kept,
        out_shardings=results,
      )
      return jitted.lower(*args)

  def _read(self, rows: int, tokens: int) -> _Program:
    function = functools.partial(
      step.read,
      network=self._target.network,
      form=self._form,
      num_rows=self._shapes.rows(rows),
      num_tokens=self._shapes.prefill_tokens,
    )
    args = (*_model(self._target), self._packed(rows, tokens))
    return _Program(function=function, args=args, kept=1, num_others=3)

  def _read_draft(self, rows: int, tokens: int) -> _Program:
    assert self._draft is not None
    function = functools.partial(
      step.read_draft, network=self._draft.network, form=self._form
    )
    args = (*_model(self._draft), self._packed(rows, tokens))
    return _Program(function=function, args=args, kept=1, num_others=0)

  def _go_on(self, rows: int, num_drafts: int) -> _Program:
    function = functools.partial(
      step.go_on, network=self._target.network, form=self._form
    )
    args = (
      *_model(self._target),
      self._state.last_token,
      self._packed(rows, 0),
      _int32(rows, num_drafts),
    )
    return _Program(function=function, args=args, kept=1, num_others=1)

  def _draft_one(self, rows: int, variant: sampling.Variant) -> _Program:
    assert self._draft is not None
    function = functools.partial(
      step.draft,
      network=self._draft.network,
      form=self._form,
      variant=variant,
    )
    args = (
      *_model(self._draft),
      self._state,
      self._packed(rows, 0),
      _int32(rows, self._num_drafts),
      _int32(),
    )
    return _Program(function=function, args=args, kept=1, num_others=1)

  def _choose(
    self, rows: int, num_drafts: int, variant: sampling.Variant
  ) -> _Program:
    function = functools.partial(step.choose, form=self._form, variant=variant)
    masks = ()
    if variant is sampling.Variant.FULL:
      words = -(-self._vocab_size // 32)
      masks = (_spec((rows, 1 + num_drafts, words), jnp.uint32),)
    args = (
      self._state,
      self._logits(rows, num_drafts),
      _int32(*self._form.header_shape(rows)),
      _int32(rows, num_drafts),
      *masks,
    )
    return _Program(function=function, args=args, kept=0, num_others=1)

  def _chosen_logprobs(
    self, rows: int, num_drafts: int, num_top: int
  ) -> _Program:
    function = functools.partial(step.chosen_logprobs, num_top=num_top)
    args = (self._logits(rows, num_drafts), _int32(rows, 3 + num_drafts))
    return _Program(function=function, args=args)

  def _prompt_logprobs(self, num_top: int) -> _Program:
    function = functools.partial(
      step.prompt_logprobs, network=self._target.network, num_top=num_top
    )
    num = self._shapes.prefill_tokens
    source = self._target.layout
    hidden = _spec((num, source.config.dim), jnp.dtype(source.compute_dtype))
    args = (_specs(self._target.params), hidden, _int32(num))
    return _Program(function=function, args=args)

  def _admit(self, has_penalties: bool) -> _Program:
    one = jax.tree.map(
      lambda x: _spec(x.shape[1:], x.dtype), self._state.settings
    )
    counts = ()
    if has_penalties:
      counts = (
        _int32(self._vocab_size),
        _spec((self._vocab_size,), jnp.bool),
      )
    args = (self._state, _int32(), one, *counts)
    return _Program(function=sampling.admit, args=args, kept=0, num_others=0)

  @property
  def _vocab_size(self) -> int:
    return self._target.layout.config.vocab_size

  def _packed(self, rows: int, tokens: int) -> jax.ShapeDtypeStruct:
    return _int32(*self._form.shape(rows, tokens))

  def _logits(self, rows: int, num_drafts: int) -> jax.ShapeDtypeStruct:
    return _spec((rows, 1 + num_drafts, self._vocab_size), jnp.float32)


def _spec(
  shape: tuple[int, ...], dtype: Any, sharding: Any = None
) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _int32(*shape: int) -> jax.ShapeDtypeStruct:
  return _spec(shape, jnp.int32)


def _specs(arrays: Any) -> Any:
  """What lies where these do."""
  return jax.tree.map(lambda x: _spec(x.shape, x.dtype, x.sharding), arrays)


def _model(network: Network) -> tuple[Any, Any]:
  """A model's parameters and pages."""
  return _specs(network.params), _specs(network.layers)
