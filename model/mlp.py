"""The MLP, gated (SwiGLU, arXiv:2002.05202) or not.

Dims: B batch, T length, D model, F feed-forward.
"""

from collections.abc import Callable
import functools

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from model import config as model_config
from model import linear
from model import sharding

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "silu": jax.nn.silu,
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


def activate(x: jax.Array, activation: str) -> jax.Array:
  """The elementwise nonlinearity of that name (config.Activation)."""
  return _ACTIVATIONS[activation](x)


def gated_down(
  gate: Float[Array, "B T F"] | None,
  up: Float[Array, "B T F"],
  down_FD: Float[Array, "F D"],
  activation: str = "silu",
) -> Float[Array, "B T D"]:
  """(activation(gate) * up) @ down; activation(up) @ down without a gate."""
  return _gated_down(gate, up, down_FD, activation)


# The backward pass keeps gate and up and recomputes their product, which is
# elementwise; the matmul's own output is not needed and not recomputed.
@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=3)
def _gated_down(gate, up, down_FD, activation):
  if gate is None:
    hidden = activate(up, activation)
  else:
    hidden = activate(gate, activation) * up
  hidden = sharding.constrain(hidden, "BTF")
  return linear.project("BTF,FD->BTD", hidden, down_FD)


class Mlp(nnx.Module):
  """down(activation(gate(x)) * up(x))."""

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

    def zeros(*shape):
      return nnx.Param(jnp.zeros(shape, param_dtype))

    if config.gated:
      self.gate_DF = normal(init_std, (dim, config.dim))
    self.up_DF = normal(init_std, (dim, config.dim))
    self.down_FD = normal(out_std, (config.dim, dim))
    if config.bias:
      if config.gated:
        self.gate_bias_F = zeros(config.dim)
      self.up_bias_F = zeros(config.dim)
      self.down_bias_D = zeros(dim)
    self.config = config

  def __call__(
    self,
    x: Float[Array, "B T D"],
    *,
    norm: Callable[[Float[Array, "B T D"]], Float[Array, "B T D"]],
  ) -> Float[Array, "B T D"]:
    """The MLP of norm(x); the norm is applied here, where it is recomputed."""
    config = self.config

    # Keeps x for the backward pass, not also norm(x).
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def project(x):
      normed = norm(x)
      gate = None
      if config.gated:
        gate = linear.project("BTD,DF->BTF", normed, self.gate_DF[...])
        if config.bias:
          gate += self.gate_bias_F[...].astype(x.dtype)
      up = linear.project("BTD,DF->BTF", normed, self.up_DF[...])
      if config.bias:
        up += self.up_bias_F[...].astype(x.dtype)
      return gate, up

    gate, up = project(x)
    out = gated_down(gate, up, self.down_FD[...], config.activation)
    if config.bias:
      out += self.down_bias_D[...].astype(x.dtype)
    return sharding.constrain(out, "BTD")
