import dataclasses
import functools
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from serve import noise
from serve import request as request_lib
from serve import sampling

_V = 101
_SLOTS = 64
_choose = jax.jit(sampling.choose, static_argnames="variant")
_propose = jax.jit(sampling.propose, static_argnames="variant")
_admit = jax.jit(sampling.admit)
_noise = jax.jit(noise.exponential, static_argnames="vocab_size")


def _request(
  *, prompt=(1, 2), min_tokens=0, stop_ids=(), **settings
) -> request_lib.Request:
  return request_lib.Request(
    id="r",
    prompt=tuple(prompt),
    max_tokens=99,
    min_tokens=min_tokens,
    stop_ids=frozenset(stop_ids),
    sampling=request_lib.Sampling(**settings),
  )


def _state(requests, texts=None, *, vocab_size=_V, num_slots=None):
  """Requests in slots from 1 on; `texts` are what each has so far."""
  state = sampling.make(
    num_slots=num_slots or len(requests) + 1, vocab_size=vocab_size
  )
  for index, request in enumerate(requests):
    text = texts[index] if texts else request.prompt
    state = _admit(
      state,
      index + 1,
      sampling.settings_of(request, vocab_size=vocab_size),
      *sampling.text_counts(
        text, num_prompt=len(request.prompt), vocab_size=vocab_size
      ),
    )
  return state


def _step(
  state,
  logits,
  *,
  positions,
  slots=None,
  drafts=None,
  num_drafts=None,
  active=None,
  masks=None,
  variant=sampling.Variant.SAMPLED,
):
  """One call; logits [B, 1+K, V] or [B, V]."""
  logits = np.asarray(logits, np.float32)
  logits = logits.reshape(logits.shape[0], -1, logits.shape[-1])
  rows, width, _ = logits.shape
  if slots is None:
    slots = np.arange(1, rows + 1)
  if drafts is None:
    drafts = np.zeros((rows, width - 1))
  if num_drafts is None:
    num_drafts = np.full(rows, width - 1)
  if active is None:
    active = np.ones(rows, bool)
  return _choose(
    state,
    logits,
    slots=np.asarray(slots, np.int32),
    positions=np.asarray(positions, np.int32),
    drafts=np.asarray(drafts, np.int32),
    num_drafts=np.asarray(num_drafts, np.int32),
    active=active,
    masks=masks,
    variant=variant,
  )


def _pack(allowed):
  """Bits [..., V] as words [..., W]."""
  padding = -allowed.shape[-1] % 32
  allowed = np.pad(allowed, [(0, 0)] * (allowed.ndim - 1) + [(0, padding)])
  return np.packbits(allowed, axis=-1, bitorder="little").view(np.uint32)


def _kept(logits, settings):
  """Which tokens may be chosen: one row, sorted, one token after the other."""
  scaled = (logits - logits.max()) / np.float32(settings.temperature)
  shares = np.asarray(jnp.exp(scaled), np.float64)
  order = np.argsort(-shares, kind="stable")
  kept = list(order)
  if settings.top_k is not None and settings.top_k < len(kept):
    least = shares[kept[settings.top_k - 1]]
    kept = [token for token in kept if shares[token] >= least]
  total = shares[kept].sum()
  if settings.top_p < 1:
    reached, least = 0.0, 0.0
    for token in kept:
      reached, least = reached + shares[token], shares[token]
      if reached >= settings.top_p * total:
        break
    kept = [token for token in kept if shares[token] >= least]
  is_kept = np.zeros(len(logits), bool)
  is_kept[kept] = True
  return is_kept & (shares >= np.float32(settings.min_p))


def _oracle(request, text, logits, *, allowed=None):
  """The token of one row of logits, from the definitions; None: there is none.

  The noise is the device's.
  """
  settings = request.sampling
  logits = np.array(logits, np.float32)
  output = text[len(request.prompt) :]
  for token in range(len(logits)):
    count = np.float32(output.count(token))
    if token in text:
      penalty = np.float32(settings.repetition_penalty)
      positive = logits[token] > 0
      logits[token] = (
        logits[token] / penalty if positive else logits[token] * penalty
      )
    logits[token] -= np.float32(settings.frequency_penalty) * count
    logits[token] -= np.float32(settings.presence_penalty) * (count > 0)
  for token, bias in settings.logit_bias:
    logits[token] += np.float32(bias)
  if allowed is not None:
    logits[~allowed] = -np.inf
  if len(output) < request.min_tokens:
    banned = logits.copy()
    banned[sorted(request.stop_ids)] = -np.inf
    logits = banned if banned.max() > -np.inf else logits
  if not np.isfinite(logits.max()):
    return None
  if settings.temperature == 0:
    return int(np.argmax(logits))
  arrival = _noise(
    np.array([settings.seed], np.uint32),
    np.array([len(text)], np.int32),
    vocab_size=len(logits),
  )[0]
  scaled = (logits - logits.max()) / np.float32(settings.temperature)
  race = np.exp(scaled.astype(np.float64)) / np.asarray(arrival, np.float64)
  return int(np.argmax(np.where(_kept(logits, settings), race, -1)))


def _random_settings(rng) -> dict[str, Any]:
  return {
    "temperature": float(rng.choice([0.0, 0.3, 1.0, 1.7])),
    "top_k": rng.choice([None, None, 1, 5, 64, 65, 90, 500]),
    "top_p": float(rng.choice([0.0, 0.13, 0.51, 0.93, 0.999, 1.0, 1.0])),
    "min_p": float(rng.choice([0.0, 0.0, 0.03, 0.4, 1.0])),
    "seed": int(rng.integers(2**32)),
  }


def _random_penalties(rng) -> dict[str, Any]:
  return {
    "repetition_penalty": float(rng.choice([1.0, 1.3, 0.7])),
    "presence_penalty": float(rng.choice([0.0, 1.5, -1.0])),
    "frequency_penalty": float(rng.choice([0.0, 0.7, -0.2])),
    "logit_bias": tuple(
      (int(token), float(rng.normal() * 5))
      for token in rng.choice(_V, rng.integers(0, 40), replace=False)
    ),
  }


class ChooseTest(parameterized.TestCase):
  @parameterized.parameters("smooth", "with ties", "flat")
  def test_is_the_oracles_choice(self, kind):
    rng = np.random.default_rng(0)
    requests = [
      _request(
        prompt=rng.integers(_V, size=5).tolist(), **_random_settings(rng)
      )
      for _ in range(_SLOTS)
    ]
    state = _state(requests)
    for _ in range(4):
      logits = rng.normal(size=(_SLOTS, _V)).astype(np.float32) * 3
      if kind == "with ties":
        logits = np.round(logits)
      if kind == "flat":
        logits = logits / 30
      _, choice = _step(state, logits, positions=np.full(_SLOTS, 5))
      expected = [
        _oracle(request, list(request.prompt), row)
        for request, row in zip(requests, logits, strict=True)
      ]
      self.assertEqual(choice.tokens[:, 0].tolist(), expected)

  def test_is_the_oracles_choice_with_all_that_changes_logits(self):
    rng = np.random.default_rng(1)
    requests, texts = [], []
    for _ in range(_SLOTS):
      prompt = rng.integers(_V, size=5).tolist()
      output = rng.integers(20, size=rng.integers(0, 30)).tolist()
      texts.append(prompt + output)
      requests.append(
        _request(
          prompt=prompt,
          min_tokens=int(rng.integers(40)),
          stop_ids=rng.integers(_V, size=rng.integers(0, 65)).tolist(),
          **_random_settings(rng),
          **_random_penalties(rng),
        )
      )
    state = _state(requests, texts)
    for _ in range(4):
      logits = rng.normal(size=(_SLOTS, _V)) * 3
      allowed = rng.random((_SLOTS, 1, _V)) < rng.random((_SLOTS, 1, 1)) ** 2
      _, choice = _step(
        state,
        logits,
        positions=[len(text) for text in texts],
        masks=_pack(allowed),
        variant=sampling.Variant.FULL,
      )
      for row in range(_SLOTS):
        expected = _oracle(
          requests[row], texts[row], logits[row], allowed=allowed[row, 0]
        )
        self.assertEqual(choice.is_finite[row], expected is not None)
        self.assertEqual(choice.num_chosen[row], int(expected is not None))
        if expected is not None:
          self.assertEqual(choice.tokens[row, 0], expected)

  @parameterized.parameters(
    # The logits below as probabilities: 16, 8, 8, 4, 2, 1, 1, 1 of 41.
    ({"top_k": 1}, 1),
    ({"top_k": 2}, 3),  # The third is as likely as the second.
    ({"top_k": 3}, 3),
    ({"top_k": 4}, 4),
    ({"top_k": 80}, 8),
    ({"top_p": 0.0}, 1),
    ({"top_p": 0.39}, 1),
    ({"top_p": 0.40}, 3),
    ({"top_p": 0.78}, 3),
    ({"top_p": 0.79}, 4),
    ({"top_p": 0.99}, 8),
    ({"min_p": 0.5}, 3),
    ({"min_p": 0.51}, 1),
    ({"min_p": 0.0625}, 8),
    ({"top_k": 3, "top_p": 0.76}, 3),  # 24 of 32 is too little.
    ({"top_k": 3, "top_p": 0.5}, 1),
    ({"top_k": 4, "min_p": 0.3}, 3),
  )
  def test_tokens_that_remain(self, settings, num_kept):
    shares = np.array([1, 16, 8, 1, 2, 8, 4, 1])
    logits = np.full(_V, -np.inf)
    logits[10:18] = np.log(shares)
    state = _state([_request(seed=3, **settings)])
    rows = 512
    _, choice = _step(
      state,
      np.tile(logits, (rows, 1)),
      slots=np.ones(rows),
      positions=np.arange(rows),
    )
    likeliest = np.argsort(-shares, kind="stable") + 10
    self.assertCountEqual(
      set(choice.tokens[:, 0].tolist()), likeliest[:num_kept].tolist()
    )

  def test_greedy_takes_the_first_of_equals(self):
    requests = [_request(temperature=0.0), _request(temperature=0.0)]
    logits = np.zeros((2, _V))
    logits[0, [7, 70]] = 3
    logits[1, 50] = 1
    for variant in sampling.Variant:
      _, choice = _step(
        _state(requests), logits, positions=[2, 2], variant=variant
      )
      self.assertEqual(choice.tokens[:, 0].tolist(), [7, 50])

  def test_coldest_is_greedy(self):
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(1, _V))
    state = _state([_request(temperature=1e-38)])
    _, choice = _step(state, logits, positions=[2])
    self.assertEqual(choice.tokens[0, 0], np.argmax(logits))
    self.assertTrue(choice.is_finite[0])

  def test_a_mask_wins_over_min_tokens(self):
    state = _state([_request(min_tokens=4, stop_ids=[9])])
    allowed = np.zeros((1, 1, _V), bool)
    allowed[0, 0, 9] = True
    _, choice = _step(
      state,
      np.zeros((1, _V)),
      positions=[2],
      masks=_pack(allowed),
      variant=sampling.Variant.FULL,
    )
    self.assertEqual(choice.tokens[0, 0], 9)
    self.assertTrue(choice.is_finite[0])


class IndependenceTest(parameterized.TestCase):
  def test_company_does_not_matter(self):
    # An odd vocabulary: the last tokens do not fill a vector register.
    rng = np.random.default_rng(3)
    requests = [_request(**_random_settings(rng)) for _ in range(13)]
    logits = rng.normal(size=(13, 3, _V)) * 2
    drafts = rng.integers(_V, size=(13, 2))
    positions = rng.integers(1000, size=13)
    state = _state(requests, num_slots=40)
    together = _step(state, logits, positions=positions, drafts=drafts)[1]
    for rows in ([4], [3, 9], [12, 5, 0], [1, 11, 2, 4, 8]):
      # Other slots, too.
      state = _state([requests[row] for row in reversed(rows)], num_slots=40)
      _, choice = _step(
        state,
        logits[rows],
        slots=np.arange(len(rows), 0, -1),
        positions=positions[rows],
        drafts=drafts[rows],
      )
      for i, row in enumerate(rows):
        self.assertEqual(
          choice.tokens[i].tolist(), together.tokens[row].tolist()
        )


class RandomnessTest(absltest.TestCase):
  def test_frequencies_are_the_probabilities(self):
    rows = 4096
    probabilities = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.03, 0.01])
    logits = np.full(_V, -np.inf)
    logits[3:10] = np.log(probabilities)
    requests = [_request(seed=seed) for seed in range(8)]
    state = _state(requests, num_slots=_SLOTS + 1)
    counts = np.zeros(7)
    for first in range(5):
      _, choice = _step(
        state,
        np.tile(logits, (rows, 1)),
        slots=1 + np.arange(rows) % 8,
        positions=first * rows + np.arange(rows) // 8,
      )
      counts += np.bincount(choice.tokens[:, 0] - 3, minlength=7)
    expected = probabilities * counts.sum()
    chi_square = np.sum((counts - expected) ** 2 / expected)
    self.assertLess(chi_square, 22.5)  # 6 degrees of freedom: p = 0.001.


class SpeculationTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"temperature": 0.0}, sampling.Variant.GREEDY),
    ({"temperature": 0.9, "top_p": 0.9, "seed": 5}, sampling.Variant.SAMPLED),
    (
      {
        "temperature": 0.9,
        "seed": 5,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.4,
      },
      sampling.Variant.FULL,
    ),
  )
  def test_writes_what_is_written_without(self, settings, variant):
    rng = np.random.default_rng(4)
    table = rng.normal(size=(_V, _V)).astype(np.float32) * 2  # Of a bigram.
    request = _request(
      prompt=(3, 1, 4), min_tokens=20, stop_ids=range(30), **settings
    )

    plain, state = list(request.prompt), _state([request])
    while len(plain) < 40:
      logits = table[plain[-1]][None]
      state, choice = _step(
        state, logits, positions=[len(plain)], variant=variant
      )
      plain.append(int(choice.tokens[0, 0]))
      self.assertEqual(state.last_token[1], plain[-1])
      self.assertEqual(choice.num_chosen[0], 1)

    text, state, steps = list(request.prompt), _state([request]), 0
    while len(text) < 40:
      right = (plain + [0] * 3)[len(text) : len(text) + 3]
      drafts = [
        token if rng.random() < 0.7 else int(rng.integers(_V))
        for token in right
      ]
      num_drafts = int(rng.integers(4))
      logits = np.stack([table[token] for token in (text[-1], *drafts)])
      state, choice = _step(
        state,
        logits[None],
        positions=[len(text)],
        drafts=[drafts],
        num_drafts=[num_drafts],
        variant=variant,
      )
      num_chosen = int(choice.num_chosen[0])
      self.assertLessEqual(num_chosen, num_drafts + 1)
      text += choice.tokens[0, :num_chosen].tolist()
      steps += 1
      self.assertEqual(state.last_token[1], text[-1])
    self.assertEqual(text[:40], plain)
    self.assertLess(steps, 35)
    if variant is sampling.Variant.FULL:
      counts, in_prompt = sampling.text_counts(
        tuple(text), num_prompt=3, vocab_size=_V
      )
      np.testing.assert_array_equal(state.counts[1], counts)
      np.testing.assert_array_equal(state.in_prompt[1], in_prompt)
      # min_tokens ends in the midst of a step, and stop tokens are likely.
      self.assertGreaterEqual(min(text[3:23]), 30)
      self.assertLess(min(text[23:]), 30)

  def test_proposals_of_the_same_model_are_right(self):
    rng = np.random.default_rng(5)
    requests = [
      _request(**_random_settings(rng), **_random_penalties(rng))
      for _ in range(4)
    ]
    state = _state(requests, num_slots=9)
    logits = rng.normal(size=(4, 2, _V)).astype(np.float32)
    arrays: dict[str, Any] = {
      "slots": np.arange(1, 5, dtype=np.int32),
      "variant": sampling.Variant.FULL,
    }
    first = _propose(
      state, logits[:, 0], positions=np.full(4, 2, np.int32), **arrays
    )
    second = _propose(
      state,
      logits[:, 1],
      positions=np.full(4, 3, np.int32),
      earlier=first[:, None],
      **arrays,
    )
    _, choice = _step(
      state,
      logits,
      positions=[2] * 4,
      drafts=first[:, None],
      variant=sampling.Variant.FULL,
    )
    self.assertEqual(choice.num_chosen.tolist(), [2] * 4)
    self.assertEqual(choice.tokens[:, 0].tolist(), first.tolist())
    self.assertEqual(choice.tokens[:, 1].tolist(), second.tolist())


class HarmTest(parameterized.TestCase):
  @parameterized.product(
    bad=(np.nan, np.inf, -np.inf), variant=tuple(sampling.Variant)
  )
  def test_a_row_that_is_not_finite_harms_nothing(self, bad, variant):
    rng = np.random.default_rng(6)
    requests = [_request(frequency_penalty=1.0, seed=seed) for seed in range(3)]
    state = _state(requests)
    logits = rng.normal(size=(3, _V))
    before, clean = _step(state, logits, positions=[2] * 3, variant=variant)
    broken = logits.copy()
    broken[1, :] = bad if bad == -np.inf else broken[1]
    broken[1, 77] = bad
    after, choice = _step(state, broken, positions=[2] * 3, variant=variant)
    self.assertEqual(choice.is_finite.tolist(), [True, False, True])
    self.assertEqual(choice.num_chosen.tolist(), [1, 0, 1])
    for row in (0, 2):
      self.assertEqual(choice.tokens[row, 0], clean.tokens[row, 0])
    expected = dataclasses.replace(
      before,
      last_token=before.last_token.at[2].set(state.last_token[2]),
      counts=before.counts.at[2].set(state.counts[2]),
    )
    jax.tree.map(np.testing.assert_array_equal, after, expected)

  def test_what_is_not_reached_may_be_broken(self):
    state = _state([_request(temperature=0.0)] * 2)
    logits = np.zeros((2, 2, _V))
    logits[:, 0, 5] = 1
    logits[:, 1] = np.nan
    _, choice = _step(
      state,
      logits,
      positions=[2, 2],
      drafts=[[6], [5]],
      variant=sampling.Variant.GREEDY,
    )
    self.assertEqual(choice.is_finite.tolist(), [True, False])
    self.assertEqual(choice.num_chosen.tolist(), [1, 0])

  @parameterized.parameters(*sampling.Variant)
  def test_rows_that_are_not_active_leave_no_trace(self, variant):
    state = _state([_request()] * 3)
    after, choice = _step(
      state,
      np.full((3, _V), np.nan),
      slots=[0, 2, 0],
      positions=[2] * 3,
      active=np.zeros(3, bool),
      variant=variant,
    )
    self.assertEqual(choice.num_chosen.tolist(), [0] * 3)
    self.assertEqual(choice.is_finite.tolist(), [True] * 3)
    jax.tree.map(np.testing.assert_array_equal, after, state)

  def test_a_slot_forgets_who_was_in_it(self):
    old = _request(
      prompt=(1, 2, 3),
      temperature=0.0,
      repetition_penalty=1.5,
      logit_bias=((3, 90.0),),
      min_tokens=9,
      stop_ids=range(50),
    )
    new = _request(temperature=0.0)
    state = _state([old])
    state = _admit(state, 1, sampling.settings_of(new, vocab_size=_V))
    logits = np.zeros((1, _V))
    logits[0, 1] = 1.0
    _, choice = _step(
      state, logits, positions=[2], variant=sampling.Variant.FULL
    )
    self.assertEqual(choice.tokens[0, 0], 1)


class SettingsTest(absltest.TestCase):
  def test_refuses_what_there_is_no_room_for(self):
    settings_of = functools.partial(sampling.settings_of, vocab_size=400)
    too_many = tuple((token, 1.0) for token in range(301))
    with self.assertRaisesRegex(ValueError, "logit_bias has 301 tokens"):
      settings_of(_request(logit_bias=too_many))
    with self.assertRaisesRegex(ValueError, "logit_bias has token 400"):
      settings_of(_request(logit_bias=((400, 1.0),)))
    with self.assertRaisesRegex(ValueError, "stop_ids has token -1"):
      settings_of(_request(stop_ids=[-1]))
    with self.assertRaisesRegex(ValueError, "stop_ids has 65 tokens"):
      settings_of(_request(stop_ids=range(65)))

  def test_the_least_variant(self):
    variant = sampling.Variant
    cases: list[tuple[dict[str, Any], sampling.Variant]] = [
      ({"temperature": 0.0, "top_p": 0.5}, variant.GREEDY),
      ({}, variant.SAMPLED),
      ({"temperature": 0.0, "frequency_penalty": 0.1}, variant.FULL),
      ({"logit_bias": ((1, 1.0),)}, variant.FULL),
      ({"min_tokens": 3}, variant.SAMPLED),
      ({"min_tokens": 3, "stop_ids": [1]}, variant.FULL),
    ]
    for settings, expected in cases:
      self.assertEqual(sampling.variant_of(_request(**settings)), expected)


if __name__ == "__main__":
  absltest.main()
