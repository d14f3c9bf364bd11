"""The gated MLP (SwiGLU, arXiv:2002.05202).

Dims: B batch, T length, D model, F feed-forward.
"""

from collections.abc import Callable
import functools

from flax import nnx
import jax
from jaxtyping import Array, Float

from model import config as model_config
from model import linear
from model import sharding


# The backward pass keeps gate and up and recomputes their product, which is
# elementwise; the matmul's own output is not needed and not recomputed.
@functools.partial(jax.checkpoint, prevent_cse=False)
def gated_down(
  gate: Float[Array, "B T F"],
  up: Float[Array, "B T F"],
  down_FD: Float[Array, "F D"],
) -> Float[Array, "B T D"]:
  """(silu(gate) * up) @ down."""
  hidden = sharding.constrain(jax.nn.silu(gate) * up, "BTF")
  return linear.project("BTF,FD->BTD", hidden, down_FD)


class Mlp(nnx.Module):
  """down(silu(gate(x)) * up(x))."""

  def __init__(
    self,
    config: model_config.MlpConfig,
    *,
    dim: int,
    init_std: float,
    out_std: float,
    param_dtype: str,
    rngs: nnx.Rngs,
  ):
    """Args as config; `out_std` initialises the projection back to D."""

    def normal(std, shape):
      return nnx.Param(std * jax.random.normal(rngs(), shape, param_dtype))

    self.gate_DF = normal(init_std, (dim, config.dim))
    self.up_DF = normal(init_std, (dim, config.dim))
    self.down_FD = normal(out_std, (config.dim, dim))

  def __call__(
    self,
    x: Float[Array, "B T D"],
    *,
    norm: Callable[[Float[Array, "B T D"]], Float[Array, "B T D"]],
  ) -> Float[Array, "B T D"]:
    """The MLP of norm(x); the norm is applied here, where it is recomputed."""

    # Keeps x for the backward pass, not also norm(x).
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def project(x):
      normed = norm(x)
      gate = linear.project("BTD,DF->BTF", normed, self.gate_DF[...])
      up = linear.project("BTD,DF->BTF", normed, self.up_DF[...])
      return gate, up

    gate, up = project(x)
    out = gated_down(gate, up, self.down_FD[...])
    return sharding.constrain(out, "BTD")
