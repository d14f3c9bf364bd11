"""Mixture of experts: a token's feed-forward is a few of many small MLPs.

A router scores the experts (router.py), a token's few best process it, and
their outputs are added by weight (arXiv:1701.06538, arXiv:2101.03961).

Dropless, the default: (token, choice) pairs are sorted by expert and multiplied
in groups of unequal size (kernels/grouped_mlp.py). With a capacity factor each
expert has a buffer of fixed size on each device; earlier tokens go first, and
what finds it full is dropped.

On a mesh each device sorts its own tokens. Experts lie on the mesh axis
`expert`, whose devices hold different tokens too, so tokens travel along it, in
one of two ways, equal in value and gradient:

  gather      Every device of the axis gets all the axis's tokens, runs those
              that chose its experts, and results are added up where the tokens
              came from. Simple; little waste while there are about as many
              choices of a token as devices on the axis. `auto` on CPUs.
  all_to_all  A (token, choice) pair goes to the device that has its expert, and
              back. `auto` elsewhere.

Either way nothing is dropped, so arrays must have room for the case that all
tokens choose experts of one device.

Dims: B batch, T length, N = B T tokens, K experts of a token, M rows (pairs of
token and choice), D model, E experts, C capacity, F feed-forward of one expert.
"""

from collections.abc import Callable
import dataclasses
import functools
import math

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from model import config as model_config
from model import linear
from model import mlp
from model import router
from model import sharding
from model import target
from model.kernels import grouped_matmul
from model.kernels import grouped_mlp

RouterStats = router.RouterStats

# What the backward pass keeps besides the layer's input: who goes where, what
# came from other devices, and hidden units before the nonlinearity.
_RECEIVED = "moe_received"
_KEPT = jax.checkpoint_policies.save_only_these_names(
  router.ROUTING, grouped_mlp.ORDER, _RECEIVED, grouped_mlp.HIDDEN
)

_EXPERT_NAMES = {
  "gate": "gate_EDF",
  "up": "up_EDF",
  "down": "down_EFD",
  "gate_bias": "gate_bias_EF",
  "up_bias": "up_bias_EF",
  "down_bias": "down_bias_ED",
}
# Of the matrices [experts, in, out].
_SUMMED = (1,)


def clamped_swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
  """GPT-OSS's: gate clamped from above, up on both sides and shifted by 1."""
  limit, slope = 7.0, 1.702
  gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
  return (up + 1) * gate * jax.nn.sigmoid(slope * gate)


@functools.cache
def _gated(activation: str) -> grouped_mlp.Activation:
  """(gate, up) -> hidden units; one object per name."""
  if activation == "clamped_swiglu":
    return clamped_swiglu
  return lambda gate, up: mlp.activate(gate, activation) * up


class Moe(nnx.Module):
  """The sum of a token's experts, by weight, and of the shared expert."""

  def __init__(
    self,
    config: model_config.MoeConfig,
    *,
    dim: int,
    init_std: float,
    out_std: float,
    param_dtype: str,
    rngs: nnx.Rngs,
    implementation: str = "auto",
    exchange: str = "auto",
  ):
    """Args as mlp.Mlp.

    Args:
      config: Of the mixture.
      dim: D.
      init_std: Standard deviation of initial weights.
      out_std: Of those of the projections back to D.
      param_dtype: Of all parameters but the selection bias, which moves in
        steps too small for bfloat16.
      rngs: For the initial weights.
      implementation: Of kernels/grouped_matmul.py.
      exchange: `gather` or `all_to_all`; `auto` by platform.
    """

    def normal(std, *shape):
      return nnx.Param(std * jax.random.normal(rngs(), shape, param_dtype))

    def zeros(*shape, dtype=param_dtype):
      return nnx.Param(jnp.zeros(shape, dtype))

    num_experts, width = config.num_experts, config.dim
    self.router_DE = normal(init_std, dim, num_experts)
    if config.router.bias:
      self.router_bias_E = zeros(num_experts)
    if config.router.selection_bias:
      self.selection_bias_E = zeros(num_experts, dtype="float32")
    self.gate_EDF = normal(init_std, num_experts, dim, width)
    self.up_EDF = normal(init_std, num_experts, dim, width)
    self.down_EFD = normal(out_std, num_experts, width, dim)
    if config.bias:
      self.gate_bias_EF = zeros(num_experts, width)
      self.up_bias_EF = zeros(num_experts, width)
      self.down_bias_ED = zeros(num_experts, dim)
    if config.shared_dim:
      assert config.activation != "clamped_swiglu"  # MoeConfig refuses it.
      self.shared = mlp.Mlp(
        model_config.MlpConfig(
          dim=config.shared_dim, activation=config.activation
        ),
        dim=dim,
        init_std=init_std,
        out_std=out_std,
        param_dtype=param_dtype,
        rngs=rngs,
      )
      if config.shared_gate:
        self.shared_gate_D = normal(init_std, dim)
    self.config = config
    self.implementation = implementation
    self.exchange = exchange

  def __call__(
    self,
    x: Float[Array, "B T D"],
    *,
    norm: Callable[[Float[Array, "B T D"]], Float[Array, "B T D"]],
    valid: Bool[Array, "B T"] | None = None,
    capture: bool = False,
    bounded: bool = True,
  ) -> tuple[Float[Array, "B T D"], RouterStats]:
    """The mixture of norm(x); the norm is applied where it is recomputed.

    Args:
      x: The residual stream.
      norm: Of the sublayer.
      valid: Tokens that the sums count, all if not given. Others are routed
        too, but take none of an expert's capacity.
      capture: Each token's routing is in the stats too.
      bounded: With a capacity, experts drop what exceeds it.
    """
    if valid is None:
      valid = jnp.ones(x.shape[:2], bool)

    # Keeps x for the backward pass, not also norm(x).
    @functools.partial(jax.checkpoint, prevent_cse=False, policy=_KEPT)
    def mix(x):
      normed = norm(x)
      out, stats = self._mix(normed, valid, capture, bounded)
      shared_gate = None
      if self.config.shared_gate:
        logit = jnp.einsum(
          "BTD,D->BT",
          normed.astype(jnp.float32),
          self.shared_gate_D[...].astype(jnp.float32),
        )
        shared_gate = jax.nn.sigmoid(logit)[..., None].astype(x.dtype)
      return out, stats, shared_gate

    out, stats, shared_gate = mix(x)
    if self.config.shared_dim:
      shared = self.shared(x, norm=norm)
      out += shared if shared_gate is None else shared * shared_gate
    return sharding.constrain(out, "BTD"), stats

  def _mix(self, normed, valid, capture, bounded):
    """The routed experts, on each device for its own tokens."""
    params = {
      name: getattr(self, name)[...]
      for name in (
        "router_DE",
        "router_bias_E",
        "selection_bias_E",
        *_EXPERT_NAMES.values(),
      )
      if hasattr(self, name)
    }
    # In the dtype in which they are multiplied: half as much to send.
    for name in _EXPERT_NAMES.values():
      if name in params and _num_devices() > 1:
        params[name] = linear.cast(params[name], normed.dtype)
    if _num_devices() == 1:
      out, stats, routing = self._mix_on_device(
        params, normed, valid, {}, bounded
      )
    else:
      specs = {
        name: _expert_specs(name, params[name])
        if name in _EXPERT_NAMES.values()
        else P()
        for name in params
      }
      # Cut along T too, where that can be done.
      along = sharding.axes_of("T", normed.shape[1])
      tokens = P(sharding.ACTIVATION_RULES["B"], along)
      # A few prompts may be fewer rows than devices: as many for each.
      num_rows = normed.shape[0]
      missing = -num_rows % sharding.num_batch_shards()
      if missing:
        normed = jnp.pad(normed, ((0, missing), (0, 0), (0, 0)))
        valid = jnp.pad(valid, ((0, missing), (0, 0)))

      def on_device(params, normed, valid):
        out, stats, routing = self._mix_on_device(
          _gather_shards(params, specs),
          normed,
          valid,
          dict(jax.sharding.get_abstract_mesh().shape),
          bounded,
          row_axis=sharding.CONTEXT if along else None,
        )
        # Each device's own sums, to be added up outside.
        return out, jax.tree.map(lambda x: x[None], stats), routing

      # Not check_vma: the kernels' loops begin with constants, which it does
      # not take for values that differ by device.
      out, stats, routing = jax.shard_map(
        on_device,
        in_specs=(specs, tokens, tokens),
        out_specs=(tokens, P(sharding.BATCH_AXES), tokens),
        check_vma=False,
      )(params, normed, valid)
      out, routing = jax.tree.map(lambda x: x[:num_rows], (out, routing))
      stats = jax.tree.map(lambda x: jnp.sum(x, axis=0), stats)
    return out, dataclasses.replace(stats, routing=routing if capture else None)

  def _mix_on_device(
    self, params, normed, valid, axes, bounded, *, row_axis=None
  ):
    """(output, sums, routing) of one device's tokens.

    Args:
      params: By name; of the experts those of this device.
      normed: Its tokens [B, T, D].
      valid: Which of them count [B, T].
      axes: Sizes of the mesh axes; empty without a mesh.
      bounded: Whether a capacity holds.
      row_axis: Mesh axis whose devices have other pieces of the same rows.
    """
    config = self.config
    dim, num_chosen = normed.shape[-1], config.experts_per_token
    logits = jnp.einsum(
      "BTD,DE->BTE",
      normed.astype(jnp.float32),
      params["router_DE"].astype(jnp.float32),
      precision=jax.lax.Precision.HIGHEST,
    )
    if "router_bias_E" in params:
      logits += params["router_bias_E"].astype(jnp.float32)
    routing = router.route(
      checkpoint_name(logits, router.ROUTING),
      config.router,
      num_chosen=num_chosen,
      selection_bias_E=params.get("selection_bias_E"),
    )
    experts = grouped_mlp.Experts(
      **{
        field: params[name]
        for field, name in _EXPERT_NAMES.items()
        if name in params
      }
    )
    if experts.down_bias is not None and axes.get("tensor", 1) > 1:
      # Devices of the axis add up their outputs, the bias must count once.
      is_first = jax.lax.axis_index("tensor") == 0
      experts = dataclasses.replace(
        experts, down_bias=jnp.where(is_first, experts.down_bias, 0)
      )
    tokens = (
      normed.reshape(-1, dim),
      routing.indices.reshape(-1, num_chosen),
      routing.weights.reshape(-1, num_chosen),
    )
    num_shards, dropped = axes.get("expert", 1), None
    if bounded and config.capacity_factor is not None:
      out, dropped = self._bounded(*tokens, valid, experts, num_shards)
    elif num_shards == 1:
      out = self._dropless(*tokens, experts)
    elif self._exchange() == "gather":
      out = self._dropless_gather(*tokens, experts, num_shards)
    else:
      out = self._dropless_all_to_all(*tokens, experts, num_shards)
    if axes.get("tensor", 1) > 1:
      out = jax.lax.psum(out, "tensor")
    stats = router.summarize(
      routing, valid=valid, dropped=dropped, axis=row_axis
    )
    return out.reshape(normed.shape), stats, routing

  def _exchange(self) -> str:
    if self.exchange != "auto":
      return self.exchange
    return "gather" if target.platform() == "cpu" else "all_to_all"

  def _run(self, x_ND, experts, rows):
    return grouped_mlp.grouped_mlp(
      x_ND,
      experts,
      rows,
      activation=_gated(self.config.activation),
      implementation=self.implementation,
    )

  def _dropless(self, x_ND, expert_NK, weight_NK, experts):
    """All experts are here."""
    rows = grouped_mlp.make_rows(
      expert_NK, weight_NK, num_experts=self.config.num_experts
    )
    return self._run(x_ND, experts, rows)

  def _dropless_gather(self, x_ND, expert_NK, weight_NK, experts, num_shards):
    """All tokens come here, and their sums go back."""
    num_local = self.config.num_experts // num_shards
    x_ND, expert_NK, weight_NK = (
      jax.lax.all_gather(a, "expert", tiled=True)
      for a in (x_ND, expert_NK, weight_NK)
    )
    x_ND = checkpoint_name(x_ND, _RECEIVED)
    expert_NK -= jax.lax.axis_index("expert") * num_local
    is_local = (expert_NK >= 0) & (expert_NK < num_local)
    rows = grouped_mlp.make_rows(
      jnp.where(is_local, expert_NK, num_local),
      weight_NK,
      num_experts=num_local,
      # A token has so many choices among the experts of one device.
      num_rows=x_ND.shape[0] * min(expert_NK.shape[1], num_local),
    )
    out_ND = self._run(x_ND, experts, rows)
    return jax.lax.psum_scatter(out_ND, "expert", tiled=True)

  def _dropless_all_to_all(
    self, x_ND, expert_NK, weight_NK, experts, num_shards
  ):
    """Pairs of token and choice come here, and their results go back."""
    num_local = self.config.num_experts // num_shards
    num_tokens, num_chosen = expert_NK.shape
    num_rows = num_tokens * num_chosen
    rows = grouped_mlp.make_rows(
      expert_NK, weight_NK, num_experts=self.config.num_experts
    )
    sizes = rows.group_sizes.reshape(num_shards, num_local)
    # [from, to, expert of the device `to`].
    sizes = jax.lax.all_gather(sizes, "expert")
    counts = jnp.sum(sizes, axis=2)
    num_received = num_shards * num_tokens * min(num_chosen, num_local)
    x_MD, weight_M1 = (
      send(a, counts, num_received)
      for a in (grouped_mlp.dispatch(x_ND, rows), rows.weight[:, None])
    )
    x_MD = checkpoint_name(x_MD, _RECEIVED)
    # They lie by device of origin, and by expert within.
    here = jax.lax.axis_index("expert")
    group = grouped_matmul.row_groups(sizes[:, here].reshape(-1), num_received)
    is_row = group < num_shards * num_local
    expert_M1 = jnp.where(is_row, group % num_local, num_local)[:, None]
    local_rows = grouped_mlp.make_rows(
      expert_M1, weight_M1, num_experts=num_local
    )
    out_MD = self._run(x_MD, experts, local_rows)
    return grouped_mlp.combine(send(out_MD, counts.T, num_rows), rows)

  def _bounded(
    self, x_ND, expert_NK, weight_NK, valid, experts, num_shards
  ) -> tuple[Float[Array, "N D"], Bool[Array, "B T K"]]:
    """Buffers of fixed size; also which choices were dropped."""
    config = self.config
    (num_tokens, num_chosen), num_experts = expert_NK.shape, config.num_experts
    assert config.capacity_factor is not None
    capacity = math.ceil(
      config.capacity_factor * num_chosen * num_tokens / num_experts
    )
    capacity = min(capacity, num_tokens)
    expert_NK = jnp.where(valid.reshape(-1, 1), expert_NK, num_experts)
    rows, is_filled_EC, dropped_NK = _buffer(
      grouped_mlp.make_rows(expert_NK, weight_NK, num_experts=num_experts),
      expert_NK,
      capacity,
    )
    x_ECD = grouped_mlp.dispatch(x_ND, rows).reshape(num_experts, capacity, -1)
    x_ECD = jnp.where(is_filled_EC[..., None], x_ECD, 0)
    weight_EC = jnp.where(
      is_filled_EC, rows.weight.reshape(num_experts, capacity), 0
    )
    if num_shards > 1:
      x_ECD, weight_EC = (
        jax.lax.all_to_all(a, "expert", 0, 1, tiled=True)
        for a in (x_ECD, weight_EC)
      )
      x_ECD = checkpoint_name(x_ECD, _RECEIVED)
    num_local, num_slots = weight_EC.shape
    out = grouped_mlp.mlp_of_rows(
      x_ECD.reshape(num_local * num_slots, -1),
      experts,
      weight_EC.reshape(-1),
      jnp.full((num_local,), num_slots),
      activation=_gated(config.activation),
      implementation="batched",
    ).reshape(x_ECD.shape)
    if num_shards > 1:
      out = jax.lax.all_to_all(out, "expert", 1, 0, tiled=True)
    out_ND = grouped_mlp.combine(out.reshape(-1, out.shape[-1]), rows)
    return out_ND, dropped_NK.reshape(*valid.shape, num_chosen)


def _num_devices() -> int:
  return math.prod(jax.sharding.get_abstract_mesh().shape.values())


def _expert_specs(name, param):
  """Where a parameter of the experts lies; of each array, if in 8 bits."""
  spec = sharding.param_spec(name, len(sharding.param_dims(name)))
  return linear.specs(param, spec, summed=_SUMMED)


def _gather_shards(params, specs):
  """This device's experts, whole along the model dim."""

  def one(x, spec):
    for dim, axis in enumerate(spec):
      if axis == "fsdp":
        x = jax.lax.all_gather(x, "fsdp", axis=dim, tiled=True)
    return x

  return jax.tree.map(one, params, specs)


def _buffer(
  rows: grouped_mlp.Rows, expert_NK: Int[Array, "N K"], capacity: int
) -> tuple[grouped_mlp.Rows, Bool[Array, "E C"], Bool[Array, "N K"]]:
  """The first `capacity` rows of each expert, as groups of equal size.

  Returns:
    The rows [E C], which of them there are, and the choices dropped.
  """
  num_experts = rows.group_sizes.shape[0]
  starts = jnp.cumsum(rows.group_sizes) - rows.group_sizes
  slot = jnp.arange(capacity)
  is_filled_EC = slot < rows.group_sizes[:, None]
  row_M = (starts[:, None] + slot).reshape(-1)
  rank_NK = rows.row - starts.at[expert_NK].get(mode="clip")
  is_choice = expert_NK < num_experts
  is_kept = is_choice & (rank_NK < capacity)
  buffer = grouped_mlp.Rows(
    token=rows.token.at[row_M].get(mode="clip"),
    weight=rows.weight.at[row_M].get(mode="clip"),
    row=jnp.where(
      is_kept, expert_NK * capacity + rank_NK, num_experts * capacity
    ),
    group_sizes=jnp.full((num_experts,), capacity),
  )
  return buffer, is_filled_EC, is_choice & ~is_kept


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def send(
  x_MD: Float[Array, "M D"], counts: Int[Array, "S S"], num_rows: int
) -> Float[Array, "R D"]:
  """Rows to the devices of the axis `expert`, as many as each is to get.

  Args:
    x_MD: This device's rows, those for the first device first.
    counts: Rows from a device (first dim) to a device (second dim).
    num_rows: R, at least the rows that any device gets.

  Returns:
    The rows received, those from the first device first; then zeros.
  """
  here = jax.lax.axis_index("expert")
  num_sent, num_received = counts[here], counts[:, here]
  if target.platform() != "cpu":
    return jax.lax.ragged_all_to_all(
      x_MD,
      jnp.zeros((num_rows, x_MD.shape[1]), x_MD.dtype),
      _starts(num_sent),
      num_sent,
      # Where this device's rows begin on each of the others.
      (jnp.cumsum(counts, axis=0) - counts)[here],
      num_received,
      axis_name="expert",
    )
  # XLA for CPUs has none: send all devices as much as one may get.
  num_shards, width = counts.shape[0], x_MD.shape[0]
  row = _starts(num_sent)[:, None] + jnp.arange(width)
  padded = x_MD.at[row].get(mode="clip")
  padded = jax.lax.all_to_all(padded, "expert", 0, 0, tiled=True)
  index = jnp.arange(num_rows)
  origin = grouped_matmul.row_groups(num_received, num_rows)
  row = index - _starts(num_received).at[origin].get(mode="clip")
  return jnp.where(
    (origin < num_shards)[:, None],
    padded.at[origin, row].get(mode="clip"),
    0,
  )


def _starts(sizes):
  return jnp.cumsum(sizes) - sizes


def _send_forward(x_MD, counts, num_rows):
  return send(x_MD, counts, num_rows), (counts, x_MD.shape[0])


def _send_backward(num_rows, residuals, grad_RD):
  del num_rows
  counts, num_sent = residuals
  return send(grad_RD, counts.T, num_sent), None


send.defvjp(_send_forward, _send_backward)
