"""Muon: the step of a matrix is its momentum, with all singular values made 1.

K. Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024),
scaled to the size of AdamW's steps as in "Muon is scalable for LLM training"
(arXiv:2502.16982). The orthogonal factor comes from a few matrix products
(Newton-Schulz): a polynomial, applied to the singular values again and again,
drives them to 1.

On a mesh no device orthogonalizes everything, and no product is cut in pieces
that must be added up: layers (and experts) are spread over all devices, which
takes one exchange there and one back for each parameter.

Dims: L matrices, I in, O out.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float
import optax

from model import sharding

# a x + b x^3 + c x^5, applied in order to singular values in [0, 1].
Coefficients = tuple[tuple[float, float, float], ...]

_POLAR_EXPRESS = (
  (8.28721201814563, -23.595886519098837, 17.300387312530933),
  (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
  (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
  (3.3184196573706015, -2.488488024314874, 0.51004894012372),
  (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
  (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
  (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
  (1.875, -1.25, 0.375),
)
# Lest rounding carries a singular value to where a polynomial grows.
_SAFETY = 1.01
_EPS = 1e-7


def coefficients(kind: str, num_steps: int) -> Coefficients:
  """The polynomials of so many steps.

  Args:
    kind: `newton_schulz`, Jordan's: the same each time, to somewhere between
      0.7 and 1.2. `polar_express` (arXiv:2505.16932): the best polynomial after
      those before it, to 1.
    num_steps: How many.
  """
  if kind == "newton_schulz":
    return ((3.4445, -4.7750, 2.0315),) * num_steps
  assert kind == "polar_express", kind
  known = _POLAR_EXPRESS[:num_steps]
  steps = known + _POLAR_EXPRESS[-1:] * (num_steps - len(known))
  # Of x / _SAFETY, all but the last.
  safe = tuple(
    (a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in steps[:-1]
  )
  return (*safe, steps[-1])


def scale_by_muon(
  *,
  momentum: float,
  steps: Coefficients,
  rms: float,
  dtype: jax.typing.DTypeLike,
  momentum_dtype: jax.typing.DTypeLike,
) -> optax.GradientTransformation:
  """Nesterov momentum, orthogonalized and scaled.

  Args:
    momentum: Its decay.
    steps: Of the orthogonalization.
    rms: Root mean square of an update's numbers, were all its singular values
      1: it is `rms` * sqrt(max(I, O)) times the orthogonal factor.
    dtype: In which it is computed.
    momentum_dtype: In which momentum is kept.
  """

  def update(updates, params=None):
    del params

    def one(path, x):
      return _step(x, name=str(path[-1].key), steps=steps, rms=rms, dtype=dtype)

    return jax.tree_util.tree_map_with_path(one, updates)

  return optax.chain(
    optax.trace(momentum, nesterov=True, accumulator_dtype=momentum_dtype),
    optax.stateless(update),
  )


def _step(x, *, name, steps, rms, dtype):
  """A parameter's momentum to its step."""
  dims = sharding.param_dims(name)
  num_stacked = x.ndim - len(dims) + (dims[0] == "E")
  dims = dims.removeprefix("E")
  # It sums over its first dim (q_DNH), or over all but the last where that is
  # the model dim (o_NHD).
  num_in = len(dims) - 1 if dims[-1] == "D" else 1
  stack, rest = x.shape[:num_stacked], x.shape[num_stacked:]
  # Experts first: they lie on an axis of the mesh already.
  order = (*range(num_stacked)[::-1], *range(num_stacked, x.ndim))
  matrices = jnp.transpose(x.astype(dtype), order).reshape(
    math.prod(stack), math.prod(rest[:num_in]), math.prod(rest[num_in:])
  )
  spec = sharding.param_spec(name, x.ndim)
  layout = (spec[num_stacked - 1] if num_stacked else None,)
  layout += (spec[num_stacked], spec[num_stacked + num_in])
  spread = _Spread(layout)
  factor = spread.back(
    orthogonalize(spread(matrices), steps), num=math.prod(stack)
  )
  scale = rms * math.sqrt(max(matrices.shape[1:]))
  factor = jnp.transpose(
    (scale * factor.astype(x.dtype)).reshape(*stack[::-1], *rest), order
  )
  return sharding.constrain_param(factor, name)


def applies(name: str) -> bool:
  """Whether a parameter is a matrix inside the network.

  Embeddings and the output head are not, as in arXiv:2502.16982; nor routers
  and short convolutions.
  """
  is_table = name in ("embed_VD", "head_DV", "position_PD")
  is_small = name.startswith("router_") or "_conv_" in name
  return sharding.is_matrix(name) and not is_table and not is_small


def orthogonalize(
  x: Float[Array, "L I O"], steps: Coefficients
) -> Float[Array, "L I O"]:
  """U V^T of each matrix U S V^T, nearly; 0 of a matrix of zeros."""
  is_tall = x.shape[1] > x.shape[2]
  if is_tall:
    x = jnp.swapaxes(x, 1, 2)
  norm = jnp.sqrt(
    jnp.sum(jnp.square(x.astype(jnp.float32)), axis=(1, 2), keepdims=True)
  )
  x = (x / (norm + _EPS)).astype(x.dtype)
  for a, b, c in steps:
    square = jnp.einsum("LIO,LJO->LIJ", x, x)
    factor = b * square + c * jnp.einsum("LIJ,LJK->LIK", square, square)
    x = a * x + jnp.einsum("LIJ,LJO->LIO", factor, x)
  return jnp.swapaxes(x, 1, 2) if is_tall else x


class _Spread:
  """Whole matrices on every device, as many on each; zeros fill up.

  One axis of the mesh moves at a time, which is one exchange along it: several
  at once would have XLA gather everything everywhere.
  """

  def __init__(self, layout: tuple[str | None, str | None, str | None]):
    """Of matrices that lie so: the axis of each dim."""
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {axis: size for axis, size in mesh.shape.items() if size > 1}
    self._num_devices = math.prod(sizes.values())
    self._layouts = []
    first, *others = layout
    axes = sorted(sizes, key=lambda axis: axis != first)
    begin = 1 if first in sizes else 0
    for num in range(begin, len(axes) + 1):
      moved = tuple(axes[:num])
      places = [axis if axis not in moved else None for axis in others]
      self._layouts.append(P(moved or None, *places))

  def __call__(self, x):
    if self._num_devices == 1:
      return x
    x = jnp.pad(x, ((0, -x.shape[0] % self._num_devices), (0, 0), (0, 0)))
    for layout in self._layouts:
      x = jax.lax.with_sharding_constraint(x, layout)
    return x

  def back(self, x, *, num: int):
    """As they lay before: the first `num`."""
    if self._num_devices == 1:
      return x
    for layout in self._layouts[::-1]:
      x = jax.lax.with_sharding_constraint(x, layout)
    return x[:num]
