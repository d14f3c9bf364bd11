"""Kinds of fields of request bodies: types with their limits.

What a limit says is checked where a body is decoded, and is in openapi.json.
"""

from typing import Annotated, Any

import msgspec

# Whole numbers of JSON have no end; ours have.
LARGEST = 2**31 - 1
SMALLEST_SEED = -(2**63)
LARGEST_SEED = 2**63 - 1

_ONLY = "only"


def allowed(meta: Any) -> tuple[Any, ...] | None:
  """The values that a field may have, from its metadata; None: any."""
  return (meta or {}).get(_ONLY)


Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
# openapi.json gives these the limits of the model and of the server.
NumChoices = Annotated[int, msgspec.Meta(ge=1, le=LARGEST, title="NumChoices")]
NumTokens = Annotated[int, msgspec.Meta(ge=0, le=LARGEST, title="NumTokens")]
PositiveNumTokens = Annotated[
  int, msgspec.Meta(ge=1, le=LARGEST, title="NumTokens")
]
TokenId = Annotated[int, msgspec.Meta(ge=0, le=LARGEST, title="TokenId")]
NumLogprobs = Annotated[int, msgspec.Meta(ge=0, le=20)]
Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
PositiveProbability = Annotated[float, msgspec.Meta(gt=0, le=1)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
# Logits are divided by it: smaller ones would make them infinite.
RepetitionPenalty = Annotated[float, msgspec.Meta(ge=0.01, le=100)]
Seed = Annotated[int, msgspec.Meta(ge=SMALLEST_SEED, le=LARGEST_SEED)]
Priority = Annotated[int, msgspec.Meta(ge=-LARGEST, le=LARGEST)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Label = Annotated[str, msgspec.Meta(max_length=512)]
# Never empty: it would end a text before it begins.
Stop = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
# What changes nothing: other values ask for what is not done here.
OnlyFalse = Annotated[
  bool | None,
  msgspec.Meta(
    extra={_ONLY: (False,)}, extra_json_schema={"enum": [False, None]}
  ),
]
OnlyTrue = Annotated[
  bool | None,
  msgspec.Meta(
    extra={_ONLY: (True,)}, extra_json_schema={"enum": [True, None]}
  ),
]
OnlyOne = Annotated[
  float | None,
  msgspec.Meta(extra={_ONLY: (1.0,)}, extra_json_schema={"enum": [1.0, None]}),
]
