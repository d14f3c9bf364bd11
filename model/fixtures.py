"""The model and the batch that the tests of this package share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model import config as model_config
from model import transformer


def config(**settings) -> model_config.ModelConfig:
  """Two equal layers of width 16, with grouped queries."""
  defaults: dict[str, Any] = {
    "name": "test",
    "vocab_size": 64,
    "dim": 16,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "mlp_dim": 32,
    "tie_embeddings": False,
  }
  return model_config.dense(**(defaults | settings))


def execution(**settings) -> model_config.ExecutionConfig:
  """In float32."""
  defaults: dict[str, Any] = {"compute_dtype": "float32"}
  return model_config.ExecutionConfig(**(defaults | settings))


def batch(*, vocab_size: int, rows: int, length: int) -> dict[str, np.ndarray]:
  """Random tokens; each row is two documents, the second from its position 0.

  Returns:
    tokens, positions, segment_ids: int32 [B, T].
  """
  rng = np.random.default_rng(0)
  index = np.arange(length)
  cut = rng.integers(1, length, size=(rows, 1))
  second = index >= cut
  arrays = {
    "tokens": rng.integers(0, vocab_size, size=(rows, length)),
    "positions": index - cut * second,
    "segment_ids": 1 + second,
  }
  return {name: array.astype(np.int32) for name, array in arrays.items()}


def params(
  model: model_config.ModelConfig, run: model_config.ExecutionConfig
) -> dict[str, Any]:
  """Initial parameters; what begins at 0 or 1 is moved by up to a half."""
  rng = np.random.default_rng(0)

  def perturb(leaf):
    if np.unique(np.asarray(leaf)).size > 1:
      return leaf
    return leaf + rng.uniform(-0.5, 0.5, leaf.shape).astype(leaf.dtype)

  return jax.tree.map(perturb, transformer.init(model, run, seed=0))


def make_loss(
  model: model_config.ModelConfig, run: model_config.ExecutionConfig
):
  """(params, batch) -> mean negative log-likelihood of each next token."""
  graphdef, _ = transformer.abstract(model, run)

  def loss(params, batch):
    bound = transformer.bind(graphdef, params)
    logits = bound.logits(bound(**batch).hidden)[:, :-1]
    targets = batch["tokens"][:, 1:, None]
    hit = jnp.take_along_axis(logits, targets, axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - hit)

  return loss
