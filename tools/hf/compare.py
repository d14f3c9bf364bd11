"""Proves a conversion: our numbers beside a reference implementation's.

    ./bazelw run //tools/hf:compare -- --dir=FOLDER

A folder has a checkpoint in Hugging Face's form and `golden.npz`, what
Transformers computed with it: logits, losses, hidden states, gradients, router
decisions, left-padded input, greedy text with its cache. The checkpoint is
imported, saved in our format and loaded again before anything is computed, in
float32. Exit code 1 if a number differs by more than its tolerance.

Dims: B rows, T length, D model, V vocabulary, L layers, M routers, E experts.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import json
import pathlib
import sys
import tempfile
import time
from typing import Any
import zipfile

from absl import flags
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from model import checkpoint
from model import config as model_config
from model import decode
from model import router as router_lib
from model import sharding
from model import transformer
from model.hf import architecture
from model.hf import importer
from model.hf import name_map
from model.hf import source as source_lib
from tools import command_line

GOLDEN = "golden.npz"
GRAD_NORMS = "grad_norms.json"

# Largest difference allowed. Float32 noise is up to half of each, and 0.8 of it
# in the gated delta rule; the smallest mistakes known (another epsilon of a
# norm) move logits by 4e-4.
_ABSOLUTE = 1e-4
_LOSS = 1e-5
# Of an array's largest gradient; of a norm.
_RELATIVE = 1e-4
INPUTS = ("input_ids", "attention_mask", "labels", "logits")

Arrays = dict[str, np.ndarray]

_DIR = flags.DEFINE_string(
  "dir", "", f"Folder with {GOLDEN}, or a folder of such folders."
)
_CONFIG = flags.DEFINE_enum(
  "config",
  "config.json",
  ["config.json", "config_legacy.json"],
  "Which file of the folder describes the model.",
)
_ATTENTION = flags.DEFINE_enum(
  "attention",
  "auto",
  ["auto", "reference", "blockwise", "dot_product", "splash"],
  "Implementation of attention.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """One line of the report.

  Attributes:
    name: Of the array.
    difference: The largest, absolute; for ids, how many differ.
    tolerance: The largest allowed.
  """

  name: str
  difference: float
  tolerance: float

  @property
  def passed(self) -> bool:
    # Also False where the difference is not a number.
    return bool(self.difference <= self.tolerance)

  def __str__(self) -> str:
    verdict = "ok" if self.passed else "FAILED"
    return (
      f"{self.name:<56} {self.difference:9.2e} <= {self.tolerance:7.1e} "
      f"{verdict}"
    )


def find_folders(path: pathlib.Path) -> list[pathlib.Path]:
  """The folders with a golden: `path` itself, or those in it.

  Raises:
    ValueError: There is none.
  """
  if (path / GOLDEN).is_file():
    return [path]
  found = sorted(file.parent for file in path.glob(f"*/{GOLDEN}"))
  if not found:
    raise ValueError(
      f"--dir={path} has no {GOLDEN}, and neither has a folder in it; name a "
      "folder with a checkpoint and what a reference computed from it."
    )
  return found


def compare(
  folder: pathlib.Path,
  *,
  config_file: str = "config.json",
  attention: str = "auto",
) -> Iterator[Comparison]:
  """Compares everything that the folder's golden has.

  Args:
    folder: A checkpoint, with `golden.npz` and perhaps `grad_norms.json`.
    config_file: Which of its files describes the model.
    attention: Which implementation (ExecutionConfig.attention).

  Raises:
    ValueError: The checkpoint cannot be imported, or the golden is not one.
  """
  golden = _read_golden(folder / GOLDEN)
  with _load(folder, config_file, attention) as subject:
    yield from _compare_forward(subject, golden, folder)
    yield from _compare_left_padding(subject, golden)
    yield from _compare_decoding(subject, golden)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Subject:
  """The model under test."""

  config: model_config.ModelConfig
  graphdef: nnx.GraphDef
  params: Any
  bindings: list[name_map.Binding]
  aux_loss_weight: float
  end_ids: tuple[int, ...]

  def forward(
    self,
    ids: np.ndarray,
    mask: np.ndarray,
    positions: np.ndarray,
    *,
    labels: np.ndarray | None = None,
  ) -> tuple["_Forward", Any]:
    """All that one program computes: the forward pass and gradients."""
    return _forward(
      self.params,
      ids,
      mask,
      positions,
      ids if labels is None else labels,
      graphdef=self.graphdef,
      config=self.config,
    )


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=[
    "logits",
    "loss",
    "token_nll",
    "hidden",
    "normed",
    "routing",
    "aux_loss",
  ],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Forward:
  """What a forward pass gives.

  Attributes:
    logits: [B, T, V].
    loss: The mean over targets.
    token_nll: Of each position's next label; 0 where that is to be ignored
      [B, T-1].
    hidden: What enters each layer, and leaves the last one [L+1, B, T, D].
    normed: After the final norm [B, T, D].
    routing: Decisions of all routers, chosen experts ascending; None without.
    aux_loss: Their load-balancing loss; None without.
  """

  logits: Any
  loss: Any
  token_nll: Any
  hidden: Any
  normed: Any
  routing: Any
  aux_loss: Any


@contextlib.contextmanager
def _load(
  folder: pathlib.Path, config_file: str, attention: Any
) -> Iterator[_Subject]:
  """The model, through an import and a load; matmuls in full float32."""
  mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=1), jax.devices()[:1])
  with tempfile.TemporaryDirectory() as temporary:
    output = pathlib.Path(temporary)
    importer.run(folder, output, param_dtype="float32", config_file=config_file)
    bundle = checkpoint.load(output, mesh)
  source = source_lib.open_source(folder, config_file=config_file)
  values = source.config
  found, _ = architecture.read(values)
  graphdef, shapes = transformer.abstract(
    bundle.config,
    model_config.ExecutionConfig(compute_dtype="float32", attention=attention),
  )
  with jax.default_matmul_precision("highest"), jax.set_mesh(mesh):
    yield _Subject(
      config=bundle.config,
      graphdef=graphdef,
      params=bundle.params,
      bindings=architecture.bind(found, bundle.config, shapes),
      aux_loss_weight=(found.defaults | values).get(
        "router_aux_loss_coef", 0.0
      ),
      end_ids=_end_ids(source),
    )


def _end_ids(source: source_lib.Source) -> tuple[int, ...]:
  """Ids that end a text; none if the files do not say."""
  for values in (source.generation_config or {}, source.config):
    found = values.get("eos_token_id")
    if found is not None:
      return tuple(found) if isinstance(found, list) else (found,)
  return ()


def _read_golden(file: pathlib.Path) -> Arrays:
  try:
    with np.load(file) as arrays:
      golden = dict(arrays)
  except (OSError, ValueError, zipfile.BadZipFile) as error:
    raise ValueError(f"{file} cannot be read: {error}.") from error
  missing = [name for name in INPUTS if name not in golden]
  if missing:
    raise ValueError(f"{file} lacks {', '.join(missing)}.")
  return golden


def _difference(name: str, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
  if ours.shape != theirs.shape:
    raise ValueError(
      f"{GOLDEN}: {name} has the shape {theirs.shape}, the model's is "
      f"{ours.shape}."
    )
  return np.abs(ours.astype(np.float64) - theirs.astype(np.float64))


def _close(
  name: str, ours: Any, theirs: np.ndarray, tolerance: float = _ABSOLUTE
) -> Comparison:
  """The largest difference; NaN if there is a NaN in one of them."""
  difference = _difference(name, np.asarray(ours), theirs)
  return Comparison(
    name=name,
    difference=float(np.max(difference, initial=0.0)),
    tolerance=tolerance,
  )


def _equal(name: str, ours: Any, theirs: np.ndarray) -> Comparison:
  """For ids: how many differ, and none may."""
  difference = _difference(name, np.asarray(ours), theirs)
  return Comparison(
    name=name, difference=float(np.sum(difference != 0)), tolerance=0.0
  )


@functools.partial(jax.jit, static_argnames=("graphdef", "config"))
def _forward(params, ids, segment_ids, positions, labels, *, graphdef, config):
  def loss(params):
    model = transformer.bind(graphdef, params)
    output = model(
      ids, positions=positions, segment_ids=segment_ids, capture=True
    )
    logits = model.logits(output.hidden)
    targets = labels[:, 1:]
    log_probs = jax.nn.log_softmax(logits[:, :-1])
    nll = -jnp.take_along_axis(
      log_probs, jnp.maximum(targets, 0)[..., None], axis=-1
    )[..., 0]
    nll = jnp.where(targets >= 0, nll, 0.0)
    mean = jnp.sum(nll) / jnp.sum(targets >= 0)
    routing = aux_loss = None
    if output.router:
      stats = transformer.routers_by_layer(config, output.router)
      routing = stats.routing
      assert routing is not None
      order = jnp.argsort(routing.indices, axis=-1)
      routing = dataclasses.replace(
        routing,
        indices=jnp.take_along_axis(routing.indices, order, axis=-1),
        weights=jnp.take_along_axis(routing.weights, order, axis=-1),
      )
      aux_loss = router_lib.load_balance_loss(router_lib.sum_layers(stats))
    assert output.inputs is not None
    return mean, _Forward(
      logits=logits,
      loss=mean,
      token_nll=nll,
      hidden=jnp.concatenate([output.inputs, output.residual[None]]),
      normed=output.hidden,
      routing=routing,
      aux_loss=aux_loss,
    )

  grads, forward = jax.grad(loss, has_aux=True)(params)
  return forward, grads


def _compare_forward(
  subject: _Subject, golden: Arrays, folder: pathlib.Path
) -> Iterator[Comparison]:
  ids, mask = golden["input_ids"], golden["attention_mask"]
  positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
  forward, grads = jax.device_get(
    subject.forward(ids, mask, positions, labels=golden["labels"])
  )
  valid = mask == 1
  yield _close("logits", forward.logits[valid], golden["logits"][valid])
  # Hidden states of the first row only, which is not padded.
  for name, ours, tolerance in (
    ("loss", forward.loss, _LOSS),
    ("token_nll", forward.token_nll, _ABSOLUTE),
    ("hidden_states", forward.hidden[:, 0], _ABSOLUTE),
    ("hidden_final_norm", forward.normed[0], _ABSOLUTE),
  ):
    if name in golden:
      yield _close(name, ours, golden[name], tolerance)
  if "router_logits" in golden:
    yield from _compare_routers(subject, forward, golden, valid)
  yield from _compare_gradients(subject, grads, golden, folder)


def _compare_routers(
  subject: _Subject, forward: _Forward, golden: Arrays, valid: np.ndarray
) -> Iterator[Comparison]:
  if forward.routing is None:
    raise ValueError(f"{GOLDEN} has router_logits, but the model no router.")
  flat = valid.reshape(-1)
  for name, compare_with in (
    ("logits", _close),
    ("weights", _close),
    ("indices", _equal),
  ):
    # [M, B, T, n] -> [M, valid tokens, n].
    ours = getattr(forward.routing, name)
    ours = ours.reshape(len(ours), flat.size, -1)[:, flat]
    theirs = golden[f"router_{name}"][:, flat]
    yield compare_with(f"router_{name}", ours, theirs)
  if "aux_loss" in golden:
    aux = forward.aux_loss
    yield _close("aux_loss", aux, golden["aux_loss"], _LOSS)
    with_aux = np.asarray(forward.loss + subject.aux_loss_weight * aux)
    yield _close("loss_with_aux", with_aux, golden["loss_with_aux"], _LOSS)


def _compare_gradients(
  subject: _Subject, grads: Any, golden: Arrays, folder: pathlib.Path
) -> Iterator[Comparison]:
  ours = _to_theirs(subject.bindings, grads)
  for name, theirs in golden.items():
    if not name.startswith("grad/"):
      continue
    tensor = name.removeprefix("grad/")
    if tensor not in ours:
      raise ValueError(f"{GOLDEN} has {name}, but the model no such tensor.")
    largest = float(np.max(np.abs(theirs)))
    yield _close(name, ours[tensor], theirs, _RELATIVE * largest)
  if (folder / GRAD_NORMS).is_file():
    norms = json.loads((folder / GRAD_NORMS).read_text())
    yield _worst_norm(ours, norms)


def _worst_norm(ours: Arrays, norms: dict[str, Any]) -> Comparison:
  """The norm that differs the most, as a share of what it may."""
  squares = {n: np.sum(np.square(g, dtype=np.float64)) for n, g in ours.items()}
  # A tensor without elements has a norm there, and is nothing here.
  theirs = {name: norm for name, norm in norms["norms"].items() if norm != 0}
  unknown = sorted(set(theirs) - set(squares))
  if unknown:
    raise ValueError(
      f"{GRAD_NORMS} has {', '.join(unknown)}, but the model no such tensor."
    )
  zeros = set(norms["norms"]) - set(theirs)
  theirs |= dict.fromkeys(zeros & set(squares), 0.0)
  pairs = {name: (squares[name] ** 0.5, norm) for name, norm in theirs.items()}
  pairs["all"] = (sum(squares.values()) ** 0.5, norms["global_norm"])

  def tolerance(norm: float) -> float:
    return _RELATIVE * norm + 1e-6

  excesses = {n: abs(a - b) / tolerance(b) for n, (a, b) in pairs.items()}
  # A NaN is worse than any number.
  worst = max(excesses, key=lambda n: (np.isnan(excesses[n]), excesses[n]))
  mine, reference = pairs[worst]
  return Comparison(
    name=f"norms of {len(pairs)} gradients, worst: {worst}",
    difference=float(abs(mine - reference)),
    tolerance=tolerance(reference),
  )


def _to_theirs(bindings: list[name_map.Binding], tree: Any) -> Arrays:
  """A tree like the parameters as tensors of theirs."""
  leaves = sharding.named_leaves(jax.device_get(tree))
  return {
    binding.theirs: binding.rule.to_theirs(
      [leaves[name][binding.index] for name in binding.ours]
    )
    for binding in bindings
  }


def _repeat(row: np.ndarray, rows: int) -> np.ndarray:
  """One row as a batch, for a program that is compiled already [B, ...]."""
  return np.repeat(np.reshape(row, (1, row.shape[-1])), rows, axis=0)


def _compare_left_padding(
  subject: _Subject, golden: Arrays
) -> Iterator[Comparison]:
  if "leftpad_input_ids" not in golden:
    return
  ids, mask = golden["leftpad_input_ids"], golden["leftpad_attention_mask"]
  rows = len(golden["input_ids"])
  for name, positions in (
    ("leftpad_logits", golden["leftpad_position_ids"]),
    ("leftpad_logits_arange_positions", np.arange(ids.shape[1])),
  ):
    if name in golden:
      forward, _ = subject.forward(
        _repeat(ids, rows), _repeat(mask, rows), _repeat(positions, rows)
      )
      valid = mask == 1
      ours = np.asarray(forward.logits)[:1]
      yield _close(name, ours[valid], golden[name][valid])


_greedy = jax.jit(
  decode.greedy, static_argnames=("graphdef", "num_tokens", "forbidden")
)


def _compare_decoding(
  subject: _Subject, golden: Arrays
) -> Iterator[Comparison]:
  """Greedy text with a cache; ours is right-padded, whatever theirs is.

  The text does not end: theirs was asked for so many tokens (min_new_tokens).
  """
  generate = functools.partial(
    _greedy,
    subject.params,
    graphdef=subject.graphdef,
    forbidden=subject.end_ids,
  )
  rows = len(golden.get("genb_input_ids", [None]))
  if "gen_prompt_ids" in golden:
    prompt, sequence = golden["gen_prompt_ids"], golden["gen_sequence"]
    out = generate(
      _repeat(prompt, rows),
      np.full(rows, len(prompt), np.int32),
      num_tokens=len(sequence) - len(prompt),
    )
    yield _equal(
      "gen_sequence", np.asarray(out.tokens)[0], sequence[len(prompt) :]
    )
    yield _close(
      "gen_step_logits", np.asarray(out.logits)[0], golden["gen_step_logits"]
    )
  if "genb_input_ids" in golden:
    ids, mask = golden["genb_input_ids"], golden["genb_attention_mask"]
    lengths = mask.sum(axis=1).astype(np.int32)
    right_padded = np.zeros_like(ids)
    for row, length in enumerate(lengths):
      right_padded[row, :length] = ids[row, ids.shape[1] - length :]
    sequences = golden["genb_sequences"]
    out = generate(
      right_padded, lengths, num_tokens=sequences.shape[1] - ids.shape[1]
    )
    yield _equal("genb_sequences", out.tokens, sequences[:, ids.shape[1] :])


def run(folders: list[pathlib.Path], **settings: Any) -> int:
  """Compares folders, prints a report, and returns how many lines failed.

  A folder that cannot be imported is a failure; the others are still compared.
  """
  passed = failed = 0
  for folder in folders:
    start = time.perf_counter()
    print(f"{folder}:", flush=True)
    try:
      for comparison in compare(folder, **settings):
        print(f"  {comparison}", flush=True)
        passed += comparison.passed
        failed += not comparison.passed
    except (ValueError, OSError, checkpoint.CorruptCheckpointError) as error:
      print(f"  {error} FAILED", flush=True)
      failed += 1
    print(f"  {time.perf_counter() - start:.1f} s", flush=True)
  print(f"{passed} passed, {failed} failed")
  return failed


def main() -> None:
  """Compares what the flags name."""
  folders = find_folders(command_line.user_path(_DIR.value))
  if run(folders, config_file=_CONFIG.value, attention=_ATTENTION.value):
    sys.exit(1)


if __name__ == "__main__":
  command_line.run(main, required=("dir",))
