from absl.testing import absltest
from absl.testing import parameterized
import msgspec
from openai.types import chat
from openai.types import completion_create_params
from openai.types import embedding_create_params

from serve.api import requests


class RequestsTest(parameterized.TestCase):
  @parameterized.parameters(
    (
      requests.Completion,
      completion_create_params.CompletionCreateParamsNonStreaming,
    ),
    (
      requests.Chat,
      chat.completion_create_params.CompletionCreateParamsNonStreaming,
    ),
    (requests.Embedding, embedding_create_params.EmbeddingCreateParams),
  )
  def test_openai_has_no_field_that_is_not_known(self, kind, params):
    self.assertContainsSubset(
      params.__annotations__,
      {field.encode_name: None for field in msgspec.structs.fields(kind)},
    )

  def test_every_field_is_explained(self):
    for kind in (
      requests.Completion,
      requests.Chat,
      requests.Generation,
      requests.Embedding,
      requests.Tokenize,
      requests.Detokenize,
      requests.StructuredOutputs,
      requests.StreamOptions,
    ):
      explained = "".join(str(base.__doc__) for base in kind.__mro__)
      for name in kind.__struct_fields__:
        self.assertIn(f"    {name}: ", explained)


if __name__ == "__main__":
  absltest.main()
