"""Checkpoints of a tiny random model, for tests."""

import pathlib
from typing import Any

import jax
import numpy as np

from data import tokenizer as tokenizer_lib
from model import checkpoint
from model import config as model_config
from model import schema
from model import sharding
from model import streaming
from model import transformer

VOCAB_SIZE = 300
_TEXTS = (
  "In the beginning was the word, and the word was 1234 bytes long.",
  "def add(a, b):\n    return a + b\n\n",
  "모든 문장은 끝에서 다시 시작한다. 문장의 순서는 섞인다.",
)


def config(**changes: Any) -> model_config.ModelConfig:
  """Two layers of width 16, for `write_tokenizer`'s tokenizer."""
  settings: dict[str, Any] = {
    "name": "tiny",
    "vocab_size": VOCAB_SIZE,
    "dim": 16,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 8,
    "mlp_dim": 32,
    "tie_embeddings": True,
    "max_seq_len": 64,
  }
  return model_config.dense(**(settings | changes))


def write(
  folder: pathlib.Path,
  *,
  step: int = 0,
  model: model_config.ModelConfig | None = None,
  tokenizer: pathlib.Path | None = None,
  values: dict[str, Any] | None = None,
  poison: int | None = None,
) -> dict[str, Any]:
  """Writes `<folder>/<step>`, with random parameters that depend on the step.

  Args:
    folder: Where.
    step: Which, and the seed.
    model: Unset: `config()`.
    tokenizer: Folder of a tokenizer to put into it; None: without one.
    values: Further files of its meta, by name.
    poison: A token whose embedding is NaN; None: all are numbers.

  Returns:
    The parameters.
  """
  model = model or config()
  execution = model_config.ExecutionConfig(remat="full")
  _, shapes = transformer.abstract(model, execution)
  rng = np.random.default_rng(step)
  params = jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape, scale=0.5).astype(leaf.dtype),
    shapes,
  )
  if poison is not None:
    params["embed_VD"][poison] = np.nan
  files = {}
  if tokenizer is not None:
    files = {f.name: f.read_bytes() for f in tokenizer.iterdir()}
  with streaming.Writer(folder, shapes, step=step) as writer:
    for name, leaf in sharding.named_leaves(params).items():
      writer.write(name, (), leaf)
    described = {
      "model": schema.to_dict(model),
      "execution": schema.to_dict(execution),
    }
    writer.finish(
      {checkpoint.CONFIG_FILE: described} | (values or {}), tokenizer=files
    )
  return params


def write_tokenizer(folder: pathlib.Path) -> pathlib.Path:
  """Writes a tokenizer of 300 ids, with a template for chat."""
  tokenizer_lib.Tokenizer.train(_TEXTS, vocab_size=VOCAB_SIZE).save(folder)
  (folder / "chat_template.jinja").write_text(
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
  )
  return folder
