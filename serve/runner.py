"""Runs the model on the batches that the scheduler plans.

Everything is compiled before the first request (`warm_up`), for a few shapes
(shapes.py). A step is launched without waiting for the one before it: tokens
that were chosen, pages and what sampling remembers never leave the device, and
are updated in place. What a step has to tell the host is copied there as soon
as it is computed, and waited for by `Handle.result` alone.

A request that makes numbers that are not finite harms itself alone: attention
looks at nothing but a text's own tokens, whatever lies in its pages besides.

Dims: B rows, T tokens of a row, K drafts, W words of a mask.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from model import config as model_config
from model import kv_cache
from model import sharding
from model import transformer
from serve import batch as batch_lib
from serve import capacity
from serve import config as serve_config
from serve import logprobs
from serve import programs
from serve import request as request_lib
from serve import sampling
from serve import shapes
from serve import step
from serve import weights

# Every token is allowed.
_ALL = 0xFFFFFFFF


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """A model as it comes: of a checkpoint.

  Attributes:
    config: What it is.
    execution: How it is computed.
    params: Stacked, on the mesh. The runner takes them: its groups are empty
      afterwards.
  """

  config: model_config.ModelConfig
  execution: model_config.ExecutionConfig
  params: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Wanted:
  """What the request in a slot wants in each step."""

  variant: sampling.Variant = sampling.Variant.GREEDY
  num_logprobs: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Outputs:
  """What comes of a call, arrays on their way from the device; None: unasked.

  Attributes:
    rows: Of the call, as indices in the batch.
    num_tokens: T; 0 if it was no call to read.
    chosen: Of `step.choose`.
    logprobs: Of chosen tokens.
    pooled: Sums of hidden states.
    prompt_logprobs: Of the tokens of all rows, one behind the other.
  """

  rows: Sequence[int]
  num_tokens: int = 0
  chosen: Any = None
  logprobs: Any = None
  pooled: Any = None
  prompt_logprobs: Any = None

  @property
  def arrays(self) -> tuple[Any, ...]:
    """Those that there are."""
    fields = (self.chosen, self.logprobs, self.pooled, self.prompt_logprobs)
    return tuple(jax.tree.leaves(fields))

  def fetched(self) -> "_Outputs":
    """The same as NumPy arrays."""
    fetch = functools.partial(jax.tree.map, np.asarray)
    return _Outputs(
      rows=self.rows,
      num_tokens=self.num_tokens,
      chosen=fetch(self.chosen),
      logprobs=fetch(self.logprobs),
      pooled=fetch(self.pooled),
      prompt_logprobs=fetch(self.prompt_logprobs),
    )


class Handle:
  """A step under way."""

  def __init__(
    self,
    rows: Sequence[batch_lib.Row],
    wanted: Sequence[_Wanted],
    outputs: Sequence[_Outputs],
  ):
    """Of the rows of a batch, what they want, and what comes of its calls."""
    self._rows = rows
    self._wanted = wanted
    self._outputs = outputs
    for output in outputs:
      for array in output.arrays:
        array.copy_to_host_async()

  def result(self) -> list[batch_lib.RowResult]:
    """Waits for the step; one result per row, in order."""
    results = [batch_lib.RowResult()] * len(self._rows)
    for output in self._outputs:
      fetched = output.fetched()
      for place, i in enumerate(output.rows):
        results[i] = _result(fetched, place, self._rows[i], self._wanted[i])
    return results


class Runner:
  """See the module. Use it from one thread at a time."""

  def __init__(
    self,
    model: Source,
    config: serve_config.RunnerConfig,
    *,
    mesh: jax.sharding.Mesh,
    draft: Source | None = None,
    num_drafts: int = 0,
  ):
    """Places the model and its cache on the mesh.

    Args:
      model: To be served.
      config: How.
      mesh: Where the parameters are: of one replica, so `data` is 1.
      draft: A smaller model with the same vocabulary, which makes drafts.
      num_drafts: Most that a row has in a step.

    Raises:
      ValueError: The settings do not fit the model, or the machine.
    """
    _check_drafts(model.config, draft, num_drafts)
    _use_compilation_cache(config.compilation_cache)
    self.num_drafts = num_drafts
    self._config = config
    self._mesh = mesh
    self._vocab_size = model.config.vocab_size
    self._shapes = shapes.make(
      max_rows=config.max_rows, prefill_tokens=config.prefill_tokens
    )
    windows = transformer.cache_windows(model.config)
    sources = [model] if draft is None else [model, draft]
    networks = [self._place(source, windows) for source in sources]
    room = capacity.plan(
      config,
      max_seq_len=model.config.max_seq_len,
      page_bytes={w: self._page_bytes(networks, w) for w in windows},
      num_drafts=num_drafts,
      device=mesh.devices.flat[0],
    )
    self.cache_pages = room.num_pages
    self.max_len = room.max_len
    for network in networks:
      network.layers = self._pages(network, room.num_pages)
    self._target = networks[0]
    self._draft = networks[1] if draft else None
    self._format = shapes.Format(
      windows=windows, num_pieces=-(-room.max_len // config.page_size)
    )
    num_slots = config.max_rows + 1
    self._state = jax.jit(
      functools.partial(
        sampling.make, num_slots=num_slots, vocab_size=self._vocab_size
      ),
      out_shardings=self._replicated,
    )()
    self._wanted = [_Wanted()] * num_slots
    # By slot, page tables as arrays, and the mapping that each was made of.
    self._tables = np.zeros((num_slots, self._format.table_columns), np.int32)
    self._made_of: list[Mapping[int, Sequence[int]] | None] = [None] * num_slots
    self._all_allowed: dict[tuple[int, int], jax.Array] = {}
    self._programs = programs.Programs(
      mesh=mesh,
      all_shapes=self._shapes,
      form=self._format,
      target=self._target,
      draft=self._draft,
      state=self._state,
      num_drafts=num_drafts,
    )

  @property
  def page_size(self) -> int:
    """Tokens of a page."""
    return self._config.page_size

  @property
  def num_compiled(self) -> int:
    """Programs; after `warm_up` no more are made."""
    return self._programs.num_compiled

  def warm_up(self, report: programs.Report | None = None) -> None:
    """Compiles all that can be asked for, or takes it from the cache on disk.

    Args:
      report: Called with the number of programs that are ready, and of all.
    """
    for rows in self._shapes.decode_rows:
      for num_drafts in self._programs.nums_drafts:
        self._allow_all(rows, num_drafts)
    self._programs.compile_all(report)

  def admit(
    self, slot: int, request: request_lib.Request, tokens: Sequence[int]
  ) -> None:
    """Gives a slot to a request.

    Args:
      slot: From 1 to max_rows.
      request: Whose.
      tokens: Its text so far, the prompt included.
    """
    settings = sampling.settings_of(request, vocab_size=self._vocab_size)
    has_penalties = request.sampling.has_penalties
    counts: tuple[np.ndarray, ...] = ()
    if has_penalties:
      counts = sampling.text_counts(
        tuple(tokens),
        num_prompt=len(request.prompt),
        vocab_size=self._vocab_size,
      )
    self._wanted[slot] = _Wanted(
      variant=sampling.variant_of(request),
      num_logprobs=request.sampling.num_logprobs,
    )
    admit = self._programs.call("admit", has_penalties)
    self._state = admit(self._state, np.int32(slot), settings, *counts)

  def run(self, batch: batch_lib.Batch) -> Handle:
    """Launches a step, and returns at once."""
    if batch.is_prefill:
      lengths = [len(row.tokens) for row in batch.rows]
      calls = self._shapes.plan(lengths)
      outputs = [self._read(batch.rows, call) for call in calls]
    else:
      outputs = [self._go_on(batch.rows)]
    wanted = [self._wanted[row.slot] for row in batch.rows]
    return Handle(batch.rows, wanted, outputs)

  def prepare_params(self, params: dict[str, Any]) -> dict[str, Any]:
    """Other parameters of the same model, for `set_params`.

    On any thread, while steps run; waits until they are on the device, where
    those in use still are.

    Args:
      params: As the runner was made with; it takes them.

    Raises:
      ValueError: They are not of this model.
    """
    layout = self._target.layout
    _check_same(params, layout.source)
    with jax.set_mesh(self._mesh):
      new = weights.prepare(params, layout, mesh=self._mesh)
    placed = jax.tree.map(
      lambda x, old: jax.device_put(x, old.sharding), new, self._target.params
    )
    return jax.block_until_ready(placed)

  def set_params(self, prepared: dict[str, Any]) -> None:
    """Other parameters from the next step on, of `prepare_params`."""
    self._target.params = prepared

  # Steps.

  def _read(self, rows: Sequence[batch_lib.Row], call: shapes.Call) -> _Outputs:
    """Launches the reading of some rows."""
    packed = self._format.make(call.num_rows, call.num_tokens)
    tokens = self._format.tokens(packed)
    for i, index in enumerate(call.rows):
      row = rows[index]
      self._fill(packed, i, row, num_tokens=len(row.tokens), num_drafts=0)
      tokens[i, : len(row.tokens)] = row.tokens
    shape = (call.num_rows, call.num_tokens)
    target = self._target
    read = self._programs.call("read", *shape)
    target.layers, logits, pooled, hidden = read(
      target.params, target.layers, packed
    )
    if self._draft is not None:
      read = self._programs.call("read_draft", *shape)
      self._draft.layers = read(self._draft.params, self._draft.layers, packed)
    own = [rows[index] for index in call.rows]
    chosen, chosen_logprobs = self._choose(own, logits, packed, ())
    return _Outputs(
      rows=call.rows,
      num_tokens=call.num_tokens,
      chosen=chosen,
      logprobs=chosen_logprobs,
      pooled=pooled if any(row.pools for row in own) else None,
      prompt_logprobs=self._prompt_logprobs(own, hidden, call.num_tokens),
    )

  def _go_on(self, rows: Sequence[batch_lib.Row]) -> _Outputs:
    """Launches the next token of all rows."""
    padded = self._shapes.rows(len(rows))
    packed = self._format.make(padded, 0)
    for i, row in enumerate(rows):
      num_drafts = max(len(row.drafts), row.num_drafts)
      self._fill(packed, i, row, num_tokens=1, num_drafts=num_drafts)
    has_drafts = bool(packed[:, shapes.NUM_DRAFTS].any())
    num_drafts = self.num_drafts if has_drafts else 0
    drafts: Any = np.zeros((padded, num_drafts), np.int32)
    for i, row in enumerate(rows):
      drafts[i, : len(row.drafts)] = row.drafts
    if num_drafts and self._draft is not None:
      drafts = self._make_drafts(rows, packed, drafts)
    target = self._target
    go_on = self._programs.call("go_on", padded, num_drafts)
    target.layers, logits = go_on(
      target.params, target.layers, self._state.last_token, packed, drafts
    )
    chosen, chosen_logprobs = self._choose(rows, logits, packed, drafts)
    return _Outputs(
      rows=range(len(rows)), chosen=chosen, logprobs=chosen_logprobs
    )

  def _make_drafts(self, rows, packed, drafts) -> jax.Array:
    """Drafts of the draft model, on the device; its pages are kept up."""
    assert self._draft is not None
    variant = self._variant(rows)
    draft_one = self._programs.call("draft_one", len(packed), variant)
    for index in range(1 + self.num_drafts):
      self._draft.layers, drafts = draft_one(
        self._draft.params,
        self._draft.layers,
        self._state,
        packed,
        drafts,
        np.int32(index),
      )
    return drafts

  def _choose(self, rows, logits, packed, drafts) -> tuple[Any, Any]:
    """Launches the choice of tokens, and their log-probabilities."""
    sampled = [row for row in rows if row.samples]
    if not sampled:
      return None, None
    padded, width, _ = logits.shape
    variant = self._variant(sampled)
    header = self._format.header(packed, padded)
    if width == 1:
      drafts = np.zeros((padded, 0), np.int32)
    masks = ()
    if variant is sampling.Variant.FULL:
      masks = (self._masks(rows, padded, width - 1),)
    choose = self._programs.call("choose", padded, width - 1, variant)
    self._state, chosen = choose(self._state, logits, header, drafts, *masks)
    wanted = [self._wanted[row.slot].num_logprobs for row in sampled]
    most = max((num for num in wanted if num is not None), default=None)
    if most is None:
      return chosen, None
    num_top = logprobs.num_top(most)
    compute = self._programs.call("chosen_logprobs", padded, width - 1, num_top)
    return chosen, compute(logits, chosen)

  def _prompt_logprobs(self, rows, hidden, num_tokens: int) -> Any:
    """Launches the log-probabilities of the rows' targets."""
    if not any(row.targets for row in rows):
      return None
    targets = np.zeros(hidden.shape[0], np.int32)
    for i, row in enumerate(rows):
      first = i * num_tokens
      targets[first : first + len(row.targets)] = row.targets
    num_top = logprobs.num_top(max(row.num_prompt_logprobs for row in rows))
    compute = self._programs.call("prompt_logprobs", num_top)
    return compute(self._target.params, hidden, targets)

  def _fill(self, packed, i, row, *, num_tokens, num_drafts) -> None:
    """Writes what the device is told of a row."""
    # A mapping is not changed once it was given here.
    if self._made_of[row.slot] is not row.tables:
      self._made_of[row.slot] = row.tables
      table = self._tables[row.slot].reshape(-1, self._format.num_pieces)
      for column, window in enumerate(self._format.windows):
        pages = row.tables[window]
        table[column, : len(pages)] = pages
        table[column, len(pages) :] = batch_lib.NULL_PAGE
    self._format.fill(
      packed,
      i,
      self._tables[row.slot],
      (
        row.slot,
        row.start,
        row.length,
        num_tokens,
        num_drafts,
        row.samples,
      ),
    )

  def _variant(self, rows: Sequence[batch_lib.Row]) -> sampling.Variant:
    return max(self._wanted[row.slot].variant for row in rows)

  def _masks(self, rows, padded: int, num_drafts: int) -> Any:
    """What the rows allow [B, 1 + K, W]."""
    if all(row.masks is None for row in rows):
      return self._allow_all(padded, num_drafts)
    masks = np.full(self._mask_shape(padded, num_drafts), _ALL, np.uint32)
    for i, row in enumerate(rows):
      if row.masks is not None:
        masks[i, : len(row.masks)] = row.masks
    return masks

  def _allow_all(self, rows: int, num_drafts: int) -> jax.Array:
    """Masks that forbid nothing; made once."""
    key = (rows, num_drafts)
    if key not in self._all_allowed:
      masks = np.full(self._mask_shape(rows, num_drafts), _ALL, np.uint32)
      self._all_allowed[key] = jax.device_put(masks, self._replicated)
    return self._all_allowed[key]

  def _mask_shape(self, rows: int, num_drafts: int) -> tuple[int, int, int]:
    return (rows, 1 + num_drafts, -(-self._vocab_size // 32))

  # Making.

  def _place(
    self, source: Source, windows: tuple[int, ...]
  ) -> programs.Network:
    """The model's parameters on the device; its pages are still missing."""
    layout = weights.layout(
      source.config,
      compute_dtype=source.execution.compute_dtype,
      quantizes=self._config.weights == "int8",
    )
    graphdef, _ = transformer.abstract(layout.config, source.execution)
    with jax.set_mesh(self._mesh):
      params = weights.prepare(source.params, layout, mesh=self._mesh)
    return programs.Network(
      layout=layout,
      network=step.Network(
        graphdef=graphdef, tables=_shared_tables(source.config, windows)
      ),
      params=params,
      layers={},
    )

  def _pages(self, network: programs.Network, num_pages: Mapping[int, int]):
    """The model's empty pages."""
    empty, shardings = self._page_shapes(network, num_pages)

    def make():
      return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), empty)

    with jax.set_mesh(self._mesh):
      return jax.jit(make, out_shardings=shardings)()

  def _page_shapes(
    self, network: programs.Network, num_pages: Mapping[int, int]
  ):
    """Of all layers, and where they lie."""
    int8 = self._config.cache == "int8"
    model = transformer.bind(network.network.graphdef, network.params)
    empty = jax.eval_shape(
      functools.partial(
        model.make_pages,
        num_pages={
          window: num_pages[table]
          for window, table in network.network.tables.items()
        },
        page_size=self._config.page_size,
        rows=self._config.max_rows + 1,
        dtype="int8" if int8 else None,
      )
    )
    return empty, kv_cache.page_shardings(empty, self._mesh)

  def _page_bytes(
    self, networks: Sequence[programs.Network], window: int
  ) -> int:
    """Of a page of this window, of all layers, on a device."""

    def size(num: int) -> int:
      total = 0
      for network in networks:
        counts = dict.fromkeys(network.network.tables.values(), 1)
        trees = self._page_shapes(network, counts | {window: num})
        for leaf, place in zip(*map(jax.tree.leaves, trees), strict=True):
          total += (
            math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
          )
      return total

    return size(2) - size(1)

  @property
  def _replicated(self) -> jax.sharding.NamedSharding:
    return jax.sharding.NamedSharding(self._mesh, P())


def _result(
  outputs: _Outputs, place: int, row: batch_lib.Row, wanted: _Wanted
) -> batch_lib.RowResult:
  """What came of a row, the `place`th of its call."""
  tokens: tuple[int, ...] = ()
  of_tokens: tuple[request_lib.TokenLogprobs, ...] = ()
  of_prompt: tuple[request_lib.TokenLogprobs, ...] = ()
  pooled, is_finite = None, True
  if row.samples:
    num, finite, *chosen = outputs.chosen[place].tolist()
    tokens, is_finite = tuple(chosen[:num]), bool(finite)
    if wanted.num_logprobs is not None:
      of_tokens = tuple(
        logprobs.values(
          outputs.logprobs, (place, i), num_top=wanted.num_logprobs
        )
        for i in range(num)
      )
  if row.pools:
    pooled = outputs.pooled[place]
    is_finite &= bool(np.isfinite(pooled).all())
  if row.targets:
    first = place * outputs.num_tokens
    of_prompt = tuple(
      logprobs.values(
        outputs.prompt_logprobs, (first + i,), num_top=row.num_prompt_logprobs
      )
      for i in range(len(row.targets))
    )
    is_finite &= all(math.isfinite(one.logprob) for one in of_prompt)
  return batch_lib.RowResult(
    tokens=tokens,
    logprobs=of_tokens,
    prompt_logprobs=of_prompt,
    pooled=pooled,
    is_finite=is_finite,
  )


def _use_compilation_cache(folder: str) -> None:
  """Keeps compiled programs on disk; empty: does not."""
  if not folder:
    return
  path = pathlib.Path(folder).expanduser()
  path.mkdir(parents=True, exist_ok=True)
  jax.config.update("jax_compilation_cache_dir", str(path))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _shared_tables(
  model: model_config.ModelConfig, windows: tuple[int, ...]
) -> dict[int, int]:
  """For each of the model's windows, that whose pages and tables it uses.

  A draft model may have others than the target: it can use those that forget
  nothing.

  Raises:
    ValueError: There are none.
  """
  tables = {}
  for window in transformer.cache_windows(model):
    table = window if window in windows else batch_lib.NO_WINDOW
    if table not in windows:
      kind = f"with a window of {window}" if window else "without a window"
      raise ValueError(
        f"The draft model {model.name!r} has attention {kind}, the model that "
        f"is served only with windows of {list(windows)}; set "
        "engine.speculation.method=ngram, or take another draft model."
      )
    tables[window] = table
  return tables


def _check_drafts(
  model: model_config.ModelConfig, draft: Source | None, num_drafts: int
) -> None:
  """Raises a ValueError if drafts cannot be made, or not be taken back."""
  for one in [model, *([draft.config] if draft else [])]:
    if num_drafts and transformer.has_recurrent_state(one):
      raise ValueError(
        f"{one.name!r} has linear attention, whose states cannot forget a "
        "wrong draft; set engine.speculation.method=none."
      )
  if draft is None:
    return
  if not num_drafts:
    raise ValueError(
      "engine.speculation.num_tokens=0 with a draft model; set it to 1 or more."
    )
  if draft.config.vocab_size != model.vocab_size:
    raise ValueError(
      f"engine.speculation.checkpoint has a vocabulary of "
      f"{draft.config.vocab_size}, the model one of {model.vocab_size}; take a "
      "draft model with the same tokenizer."
    )
  if draft.config.max_seq_len < model.max_seq_len:
    raise ValueError(
      f"engine.speculation.checkpoint reads {draft.config.max_seq_len} tokens, "
      f"the model {model.max_seq_len}; set runner.max_len="
      f"{draft.config.max_seq_len} or take another draft model."
    )


def _check_same(params: dict[str, Any], model: model_config.ModelConfig):
  """Raises a ValueError if these are not parameters of the model."""

  def shapes_of(tree):
    leaves = sharding.named_leaves(tree)
    return {name: tuple(leaf.shape) for name, leaf in leaves.items()}

  _, wanted = transformer.abstract(model, model_config.ExecutionConfig())
  wanted, given = shapes_of(wanted), shapes_of(params)
  for name in sorted(wanted.keys() | given.keys()):
    if given.get(name) != wanted.get(name):
      raise ValueError(
        f"Parameter {name} has shape {given.get(name)}, in the model that is "
        f"served {wanted.get(name)}; start a new server for another model."
      )
