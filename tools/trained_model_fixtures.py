"""A checkpoint of a tiny random model for tests of programs that read one."""

import pathlib
from typing import Any

import jax
import numpy as np

from data import fixtures
from model import checkpoint
from model import config as model_config
from model import schema
from model import sharding
from model import streaming
from model import transformer

SEQ_LEN = 64
EXECUTION = model_config.ExecutionConfig(compute_dtype="float32")


def config() -> model_config.ModelConfig:
  """Two layers of width 16, for `data.fixtures`' tokenizer of 300 ids."""
  return model_config.dense(
    name="tiny",
    vocab_size=300,
    dim=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=32,
    tie_embeddings=True,
    max_seq_len=SEQ_LEN,
    # So that random weights have decided opinions.
    init_std=0.5,
  )


def write(
  folder: pathlib.Path,
  *,
  tokenizer: pathlib.Path | None,
  values: dict[str, Any] | None = None,
) -> dict[str, Any]:
  """Writes `folder/0`, a checkpoint of `config()` with random parameters.

  Args:
    folder: Where.
    tokenizer: Folder of a tokenizer to put into it; None: without one.
    values: Further files of its meta, by name.

  Returns:
    The parameters.
  """
  params = transformer.init(config(), EXECUTION, seed=0)
  shapes = jax.eval_shape(lambda: params)
  files = {} if tokenizer is None else _read(tokenizer)
  with streaming.Writer(folder, shapes) as writer:
    for name, leaf in sharding.named_leaves(params).items():
      writer.write(name, (), np.asarray(leaf))
    described = {
      "model": schema.to_dict(config()),
      "execution": schema.to_dict(EXECUTION),
    }
    writer.finish(
      {checkpoint.CONFIG_FILE: described} | (values or {}), tokenizer=files
    )
  return params


def write_tokenizer(folder: pathlib.Path) -> pathlib.Path:
  """Writes a tokenizer of 300 ids, with a template for chat."""
  fixtures.write_tokenizer(folder)
  (folder / "chat_template.jinja").write_text(
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
  )
  return folder


def _read(folder: pathlib.Path) -> dict[str, bytes]:
  return {file.name: file.read_bytes() for file in folder.iterdir()}
