"""Moments of an optimizer in 8 bits, with a scale for each block of numbers.

After "8-bit Optimizers via Block-wise Quantization" (arXiv:2110.02861): what is
kept between updates is quantized, what is computed in one is float32. A moment
is the largest absolute value of its block times a power of code / top code:

  first   (code / 127)^2 with the code's sign: 0.4 % to 100 % of the largest
          value are told apart by at most an eighth of themselves.
  second  (code / 255)^4, never 0: from 2e-10 to 1 of the largest.

A moment moves by a small part of itself in an update, often less than the
distance of two codes. Rounding to the nearest would hold it where it is, so
rounding is up or down by chance, right on average. Chance is a hash of the
step, the parameter and the element: the same on any mesh, and after a restart.

Blocks lie along a dim that FSDP does not shard, so that no block is shared by
two devices; up to 8 shards of tensor parallelism divide evenly. Vectors,
embeddings, the output head and routers, whose numbers differ by orders of
magnitude from row to row, stay in float32, as in the paper.

Dims: N blocks of a dim, U numbers of a block.
"""

import math
from typing import Any, NamedTuple
import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import optax

from model import sharding
from train import muon

_MAX_BLOCK = 128
# Smaller blocks would save little.
_MIN_BLOCK = 8
# Shards of a dim that no block may be shared by.
_MAX_SHARDS = 8
# Fields of optax's states that are moments: of Adam and Lion, of momentum
# (`trace`), of an average (`ema`).
_FIRST = ("mu", "trace", "ema")
_SECOND = ("nu",)


class Quantized(NamedTuple):
  """A moment in 8 bits.

  Attributes:
    codes: In the shape of its parameter: int8 of a first moment, uint8 of a
      second.
    scales: Largest absolute value of each block, float32; the shape is the
      parameter's with N instead of N * U in the dim of the blocks.
  """

  codes: Array
  scales: Float[Array, "..."]


class State(NamedTuple):
  """Of an optimizer whose moments are in 8 bits.

  Attributes:
    count: Updates made.
    inner: Its state, with `Quantized` in place of arrays.
  """

  count: Int[Array, ""]
  inner: Any


def wrap(
  transform: optax.GradientTransformation, *, first: bool, second: bool
) -> optax.GradientTransformation:
  """`transform` with its first moments, its second ones or both in 8 bits."""
  fields = (_FIRST if first else ()) + (_SECOND if second else ())

  def pack(state: Any, count: Array) -> Any:
    def one(path, leaf):
      name = _moment_of(path, fields)
      if name is None or block_dim(name, leaf.shape) is None:
        return leaf
      is_second = bool(_attributes(path) & set(_SECOND))
      seed = zlib.crc32(jax.tree_util.keystr(path).encode())
      return quantize(
        leaf,
        name=name,
        is_second=is_second,
        chance=chance(leaf.shape, count=count, seed=seed),
      )

    return jax.tree_util.tree_map_with_path(one, state)

  def unpack(state: Any) -> Any:
    def one(path, leaf):
      if not isinstance(leaf, Quantized):
        return leaf
      name = _moment_of(path, fields)
      assert name is not None, path
      return dequantize(leaf, name=name)

    return jax.tree_util.tree_map_with_path(
      one, state, is_leaf=lambda x: isinstance(x, Quantized)
    )

  def init(params):
    count = jnp.zeros((), jnp.int32)
    return State(count=count, inner=pack(transform.init(params), count))

  def update(updates, state, params=None):
    updates, inner = transform.update(updates, unpack(state.inner), params)
    count = jnp.asarray(optax.safe_increment(state.count))
    return updates, State(count=count, inner=pack(inner, count))

  return optax.GradientTransformation(init, update)


def block_dim(name: str, shape: tuple[int, ...]) -> tuple[int, int] | None:
  """(dim, U) of a parameter's blocks, or None where it stays in float32."""
  if not muon.applies(name):
    return None
  dims = sharding.param_dims(name)
  spec = sharding.param_spec(name, len(shape))
  for dim in range(-1, -len(dims) - 1, -1):
    # Layers and experts have moments of their own size.
    if spec[dim] == "fsdp" or dims[dim] == "E":
      continue
    shards = 1 if spec[dim] is None else _MAX_SHARDS
    if shape[dim] % shards:
      continue
    block = math.gcd(_MAX_BLOCK, shape[dim] // shards)
    if block >= _MIN_BLOCK:
      return len(shape) + dim, block
  return None


def quantize(
  x: Float[Array, "..."],
  *,
  name: str,
  is_second: bool,
  chance: Float[Array, "..."],
) -> Quantized:
  """A moment of the parameter `name` in 8 bits.

  Args:
    x: The moment, of a parameter that has a `block_dim`.
    name: The parameter's.
    is_second: Whether it is a second moment.
    chance: Uniform in [0, 1): what lies between two codes goes to the upper one
      where it is nearer to it than this share of their distance.
  """
  x = x.astype(jnp.float32)
  blocks, dim = _split(x, name)
  scales = jnp.max(jnp.abs(blocks), axis=dim + 1, keepdims=True)
  share = jnp.abs(blocks) / jnp.where(scales > 0, scales, 1.0)
  share = share.reshape(x.shape)
  if is_second:
    code = _round(share, power=4, top=255, chance=chance)
    codes = jnp.maximum(code, 1).astype(jnp.uint8)
  else:
    code = _round(share, power=2, top=127, chance=chance)
    codes = (jnp.sign(x) * code).astype(jnp.int8)
  return Quantized(codes=codes, scales=jnp.squeeze(scales, dim + 1))


def dequantize(x: Quantized, *, name: str) -> Float[Array, "..."]:
  """The moment in float32."""
  codes = x.codes.astype(jnp.float32)
  if x.codes.dtype == jnp.uint8:
    share = (codes / 255) ** 4
  else:
    share = jnp.sign(codes) * (codes / 127) ** 2
  blocks, dim = _split(share, name)
  scaled = blocks * jnp.expand_dims(x.scales, dim + 1)
  return scaled.reshape(x.codes.shape)


def chance(
  shape: tuple[int, ...], *, count: Int[Array, ""], seed: int
) -> Float[Array, "..."]:
  """A number in [0, 1) for each element, by hashing where it stands.

  Args:
    shape: Of the array.
    count: Of the updates; each has other numbers.
    seed: Of the array.
  """
  index = jnp.zeros(shape, jnp.uint32)
  for axis, size in enumerate(shape):
    place = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    index = index * jnp.uint32(size % 2**32) + place
  salt = jnp.uint32(seed) ^ (count.astype(jnp.uint32) * jnp.uint32(0x9E3779B1))
  bits = _mix(index ^ _mix(salt))
  return (bits >> 8).astype(jnp.float32) * 2.0**-24


def _mix(h):
  """MurmurHash3's 32-bit finalizer: a bijection that mixes all bits."""
  h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
  h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
  return h ^ (h >> 16)


def _round(share, *, power: int, top: int, chance):
  """Codes of values in [0, 1], up or down so that their mean is right."""
  root = jnp.sqrt(share) if power == 2 else jnp.sqrt(jnp.sqrt(share))
  below = jnp.minimum(jnp.floor(root * top), top - 1)
  low, high = ((below + n) / top for n in (0, 1))
  part = (share - low**power) / (high**power - low**power)
  return below + (part > chance)


def _split(x, name: str):
  """[..., N * U, ...] -> [..., N, U, ...], and the dim of N."""
  found = block_dim(name, x.shape)
  assert found is not None, (name, x.shape)
  dim, block = found
  return x.reshape(*x.shape[:dim], -1, block, *x.shape[dim + 1 :]), dim


def _moment_of(path, fields: tuple[str, ...]) -> str | None:
  """The parameter of which the leaf at `path` is one of these moments."""
  keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
  if not keys or not _attributes(path) & set(fields):
    return None
  return str(keys[-1])


def _attributes(path) -> set[str]:
  return {k.name for k in path if isinstance(k, jax.tree_util.GetAttrKey)}
