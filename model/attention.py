"""Grouped-query attention (arXiv:2305.13245) with rotary positions.

Dims: B batch, T query length, S key length, D model, N query heads,
K key/value heads, H head dim.
"""

from collections.abc import Callable
import functools

from flax import nnx
import jax
from jaxtyping import Array, Float, Int

from model import config as model_config
from model import linear
from model import rope
from model import sharding
from model.kernels import attention as kernel


class Attention(nnx.Module):
  """Causal self-attention of one block."""

  def __init__(
    self,
    config: model_config.AttentionConfig,
    *,
    dim: int,
    init_std: float,
    out_std: float,
    param_dtype: str,
    implementation: str,
    rngs: nnx.Rngs,
  ):
    """Args as config; `out_std` initialises the projection back to D."""
    heads, kv_heads = config.num_heads, config.num_kv_heads
    head_dim = config.head_dim

    def normal(std, shape):
      return nnx.Param(std * jax.random.normal(rngs(), shape, param_dtype))

    self.q_DNH = normal(init_std, (dim, heads, head_dim))
    self.k_DKH = normal(init_std, (dim, kv_heads, head_dim))
    self.v_DKH = normal(init_std, (dim, kv_heads, head_dim))
    self.o_NHD = normal(out_std, (heads, head_dim, dim))
    self.config = config
    self.implementation = implementation

  def __call__(
    self,
    x: Float[Array, "B T D"],
    *,
    norm: Callable[[Float[Array, "B T D"]], Float[Array, "B T D"]],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
  ) -> Float[Array, "B T D"]:
    """Attention over norm(x), within segments and never to later tokens.

    The norm is applied here, where it is recomputed.
    """
    freq = rope.frequencies(self.config.rope, self.config.head_dim)
    cos, sin = rope.angles(positions, freq)

    # Keeps x for the backward pass, not also norm(x).
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def project(x):
      normed = norm(x)
      q = linear.project("BTD,DNH->BTNH", normed, self.q_DNH[...])
      k = linear.project("BSD,DKH->BSKH", normed, self.k_DKH[...])
      v = linear.project("BSD,DKH->BSKH", normed, self.v_DKH[...])
      return rope.rotate(q, cos, sin), rope.rotate(k, cos, sin), v

    q, k, v = project(x)
    out = kernel.attend(
      sharding.constrain(q, "BTNH"),
      sharding.constrain(k, "BTKH"),
      sharding.constrain(v, "BTKH"),
      segment_ids=segment_ids,
      implementation=self.implementation,
    )
    out = sharding.constrain(out, "BTNH")
    out = linear.project("BTNH,NHD->BTD", out, self.o_NHD[...])
    return sharding.constrain(out, "BTD")
