"""Parameters and FLOPs of a model: the one source for MFU and planning.

Model FLOPs follow PaLM's appendix B (arXiv:2204.02311): a multiply-add is two,
the backward pass costs twice the forward, recomputation does not count, the
embedding lookup is free, and causal attention counts the half that it needs.

Dims: T length, N query heads, H head dim, V vocabulary, D model.
"""

import dataclasses
import math

import jax

from model import config as model_config
from model import transformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterCount:
  """Numbers of parameters.

  Attributes:
    total: All that are stored.
    embedding: The embedding table.
    matmul: Those that each token is multiplied with, the output head (a tied
      embedding too) among them; norm scales are not.
  """

  total: int
  embedding: int
  matmul: int


def count_parameters(config: model_config.ModelConfig) -> ParameterCount:
  """Counts the parameters of the model that `config` would build."""
  _, shapes = transformer.abstract(config, model_config.ExecutionConfig())
  leaves = jax.tree_util.tree_leaves_with_path(shapes)
  total = sum(math.prod(leaf.shape) for _, leaf in leaves)
  vectors = sum(
    math.prod(leaf.shape)
    for path, leaf in leaves
    if len(str(path[-1].key).rsplit("_", 1)[-1]) < 2
  )
  embedding = config.vocab_size * config.dim
  lookup_only = 0 if config.tie_embeddings else embedding
  return ParameterCount(
    total=total, embedding=embedding, matmul=total - vectors - lookup_only
  )


def forward_per_token(config: model_config.ModelConfig, *, seq_len: int) -> int:
  """FLOPs of the forward pass for one token of a causal sequence.

  Args:
    config: The model.
    seq_len: T; attention costs 4 N H per visible key, T / 2 on average.
  """
  attention = sum(
    group.repeats * block.mixer.num_heads * block.mixer.head_dim
    for group in config.groups
    for block in group.pattern
  )
  return 2 * count_parameters(config).matmul + 2 * seq_len * attention


def train_per_token(config: model_config.ModelConfig, *, seq_len: int) -> int:
  """FLOPs of forward and backward pass for one token: 3 times forward."""
  return 3 * forward_per_token(config, seq_len=seq_len)
