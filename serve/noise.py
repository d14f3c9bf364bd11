"""The noise that makes choices random.

A token of probability p arrives after E / p, E ~ Exp(1), and the first that
arrives is chosen: that is a draw by probability (the Gumbel-max trick, with a
logarithm less). E depends on a seed, on the position of the chosen token in the
text and on the token alone.

Dims: R choices, V vocabulary.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32


def exponential(
  seeds: UInt32[Array, "R"], positions: Int[Array, "R"], *, vocab_size: int
) -> Float[Array, "R V"]:
  """Exp(1) of every token, by seed and position.

  JAX's generator makes a key of each row; a hash makes 32 bits of it and the
  token's id. (Threefry for every token would take longer than all the rest.)
  The hash is two rounds of the permutation `triple32` of C. Wellons'
  hash-prospector, each behind one word of the key.
  """
  keys = jax.vmap(
    lambda seed, position: jax.random.key_data(
      jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), position)
    )
  )(seeds, positions)
  bits = jnp.arange(vocab_size, dtype=jnp.uint32)
  bits = _permute(bits ^ keys[:, :1])
  bits = _permute(bits ^ keys[:, 1:])
  # -log(1 - u). Tokens that win are those of small u, where float32 is dense
  # and 1 - u is not: there it is a series.
  u = (bits.astype(jnp.float32) + 0.5) * 2.0**-32
  series = u * (1 + u * (1 / 2 + u * (1 / 3)))
  rest = -jnp.log(jnp.maximum(1 - u, 2.0**-24))
  return jnp.where(u < 2.0**-7, series, rest)


def _permute(bits: UInt32[Array, "R V"]) -> UInt32[Array, "R V"]:
  bits = (bits ^ (bits >> 17)) * jnp.uint32(0xED5AD4BB)
  bits = (bits ^ (bits >> 11)) * jnp.uint32(0xAC4C1B51)
  bits = (bits ^ (bits >> 15)) * jnp.uint32(0x31848BAB)
  return bits ^ (bits >> 14)
