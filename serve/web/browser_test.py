"""The page in a real browser, asking the real API of a fake model."""

import asyncio
import contextlib
import dataclasses
import functools
import tempfile
import unittest

from absl.testing import absltest

from serve import conventions
from serve import request as request_lib
from serve import scheduler as scheduler_lib
from serve import server as server_lib
from serve import server_fixtures
from serve import stats as stats_lib
from serve.api import app as app_lib
from serve.api import fixtures
from serve.web import browser as browser_lib

_NO_DEFAULTS = conventions.Generation()
_MARKDOWN = """\
# A title

Some **bold**, *leaning* and `coded` text, 2 * 3 * 4.

- one
- two

```python
print("<b>")
```

<img src=x onerror="window.hacked = 1"><script>window.hacked = 2</script>
[link](javascript:window.hacked=3)"""


class _Engine(fixtures.FakeEngine):
  """Says what it is told to, and has figures."""

  def __init__(self, text):
    super().__init__(fixtures.saying(text))

  def say(self, text, **settings):
    self.script = fixtures.saying(text, **settings)

  def stats(self):
    return stats_lib.Stats(
      phase=stats_lib.Phase.SERVING,
      is_alive=True,
      step=self.step,
      last_progress=0.0,
      num_running=self.num_running,
      num_waiting=3,
      pages_used=0.42,
      num_output_tokens=100 * len(self.requests),
    )

  def is_stalled(self, now):
    return False

  def drain(self, deadline):
    return True

  def stop(self, timeout=None):
    return True


@dataclasses.dataclass
class _Fake(server_fixtures.Fake):
  """Loads such an engine; no template: no conversations."""

  said: str = _MARKDOWN
  template: str | None = fixtures.TEMPLATE
  folder: str = ""
  generation: conventions.Generation = _NO_DEFAULTS

  def __call__(self, *, status, metrics, on_death):
    self.engine = _Engine(self.said)
    tokenizer = fixtures.folder(self.folder, self.template)
    context = fixtures.context(
      self.engine, tokenizer, generation=self.generation
    )
    return server_lib.Loaded(
      engine=self.engine,
      make_app=functools.partial(app_lib.make, context),
      model_name=fixtures.MODEL,
      max_len=4096,
      has_chat=self.template is not None,
      defaults=self.generation.fields,
    )


class BrowserTest(unittest.IsolatedAsyncioTestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.browser = cls.enterClassContext(browser_lib.Browser())

  @contextlib.asynccontextmanager
  async def _open(
    self,
    *,
    template=fixtures.TEMPLATE,
    view=None,
    generation=_NO_DEFAULTS,
    **settings,
  ):
    with tempfile.TemporaryDirectory() as folder:
      fake = _Fake(template=template, folder=folder, generation=generation)
      async with (
        server_fixtures.Running(fake, **settings) as server,
        self.browser.open(server.url, **(view or {})) as page,
      ):
        self.engine = fake.engine
        yield page
        for url in page.requests:
          self.assertTrue(url.startswith((server.url, "data:")), url)

  async def _send(self, page, text):
    await page.evaluate("document.querySelector('#prompt').focus()")
    await page.write(text)
    await page.press("Enter")

  async def _answered(self, page):
    await page.until(
      "document.querySelector('#log article:last-child .note')"
      " && !document.querySelector('#send').disabled"
    )

  async def _ready(self, page):
    await page.until("document.querySelector('#phase').textContent === 'ready'")

  async def test_chat(self):
    async with self._open() as page:
      await self._ready(page)
      self.assertEqual(await page.evaluate("document.title"), fixtures.MODEL)
      await self._send(page, "Hello <i>there</i>")
      await self._answered(page)
      answer = "#log article.assistant .text"
      shown = await page.text(answer)
      for text in (
        *("A title", "bold", "2 * 3 * 4", "one", 'print("<b>")'),
        *('<img src=x onerror="window.hacked = 1">', "[link](javascript:"),
      ):
        self.assertIn(text, shown)
      for selector, number in (
        *(("h3", 1), ("strong", 1), ("em", 1), ("li", 2), ("pre code", 1)),
        *(("p code", 1), ("img", 0), ("script", 0), ("a", 0), ("i", 0)),
      ):
        found = await page.evaluate(
          f"document.querySelectorAll('#log {selector}').length"
        )
        self.assertEqual(found, number, selector)
      self.assertIsNone(await page.evaluate("window.hacked"))
      self.assertIn("Hello <i>there</i>", await page.text("#log .user .text"))
      self.assertRegex(
        await page.text("#log .note"), r"^\d+ tokens · .*first after"
      )
      await page.until(
        "document.querySelector('#waiting').textContent === '3' &&"
        " document.querySelector('#cache').textContent === '42 %'"
      )
      self.assertRegex(await page.text("#first"), r"^\d+\.\d\d s$")
      await page.until("document.querySelector('#rate').textContent > '0'")
      # The next question has the conversation before it.
      first = len(self.engine.requests[0].prompt)
      await self._send(page, "And then?")
      await page.until("document.querySelectorAll('.note').length === 2")
      self.assertGreater(len(self.engine.requests[1].prompt), first + 50)
      await page.screenshot("chat")
      # Once more, with the same question.
      await page.click("#again")
      await page.until("document.querySelectorAll('.note').length === 1")
      await page.until("document.querySelectorAll('.note').length === 2")
      self.assertEqual(
        self.engine.requests[2].prompt, self.engine.requests[1].prompt
      )
      await page.click("#clear")
      self.assertEqual(await page.text("#log"), "")
      self.assertEqual(page.problems, [])

  async def test_streams_and_stops(self):
    async with self._open() as page:
      await self._ready(page)
      for count, stop in enumerate(
        (
          functools.partial(page.press, "Escape"),
          functools.partial(page.click, "#stop"),
        ),
        start=1,
      ):
        self.engine.say("word " * 500, seconds=0.02)
        await self._send(page, "Go on")
        await page.until(
          "document.querySelector('#log article:last-child .text')"
          "?.innerText.includes('word word')"
        )
        self.assertTrue(
          await page.evaluate("document.querySelector('#send').disabled")
        )
        await stop()
        await self._answered(page)
        note = await page.text("#log article:last-child .note")
        self.assertIn("stopped", note)
        # The page need not wait until the server sees that it has left.
        async with asyncio.timeout(10):
          while len(self.engine.aborted) < count:
            await asyncio.sleep(0.01)
      self.assertEqual(len(self.engine.aborted), 2)
      self.assertEqual(page.problems, [])

  async def test_thoughts(self):
    async with self._open() as page:
      await self._ready(page)
      self.engine.say("<think>Let me see.</think>Yes.")
      await self._send(page, "Is it?")
      await self._answered(page)
      self.assertEqual(await page.text("#log .assistant .text"), "Yes.")
      thoughts = await page.evaluate(
        "document.querySelector('#log details').textContent"
      )
      self.assertIn("Let me see.", thoughts)

  async def test_settings(self):
    async with self._open() as page:
      await self._ready(page)
      await page.click("#panel summary")
      for name, value in (
        *(("temperature", "0.5"), ("top_p", "0.9"), ("top_k", "7")),
        *(("min_p", "0.1"), ("max_tokens", "5"), ("seed", "42")),
        *(("presence_penalty", "0.25"), ("frequency_penalty", "-0.5")),
        *(("repetition_penalty", "1.5"), ("system", "Rhyme.")),
      ):
        await page.fill(f"#{name}", value)
      await page.screenshot("settings")
      await self._send(page, "Hello")
      await self._answered(page)
      self.assertIn("limit of tokens", await page.text("#log .note"))
      asked = self.engine.requests[0]
      self.assertEqual(asked.max_tokens, 5)
      self.assertEqual(
        asked.sampling,
        request_lib.Sampling(
          temperature=0.5,
          top_k=7,
          top_p=0.9,
          min_p=0.1,
          repetition_penalty=1.5,
          presence_penalty=0.25,
          frequency_penalty=-0.5,
          seed=42,
        ),
      )
      longer = len(asked.prompt)
      await page.fill("#system", "")
      await page.click("#clear")
      await self._send(page, "Hello")
      await self._answered(page)
      self.assertLess(len(self.engine.requests[1].prompt), longer)
      # What cannot be is not asked.
      await page.fill("#temperature", "3")
      await self._send(page, "Hello")
      self.assertEqual(len(self.engine.requests), 2)
      self.assertFalse(
        await page.evaluate(
          "document.querySelector('#settings').checkValidity()"
        )
      )
      # Settings outlive a reload, in this tab alone.
      await page.evaluate("location.reload()")
      await page.until("document.readyState === 'complete'")
      await page.until("document.querySelector('#seed').value === '42'")
      self.assertEqual(await page.evaluate("localStorage.length"), 0)

  async def test_what_is_sampled_with_if_nothing_is_said(self):
    for own, shown, asked in (
      (_NO_DEFAULTS, "temperature 0.7", (0.7, None)),
      (
        conventions.Generation(temperature=0.6, top_k=20),
        "temperature 0.6 · top_k 20",
        (0.6, 20),
      ),
    ):
      async with self._open(generation=own) as page:
        await self._ready(page)
        self.assertEqual(await page.text("#in_use"), shown)
        placeholder = await page.evaluate(
          "document.querySelector('#temperature').placeholder"
        )
        self.assertTrue(placeholder.startswith(str(asked[0])), placeholder)
        await self._send(page, "Hello")
        await self._answered(page)
        sampling = self.engine.requests[0].sampling
        self.assertEqual((sampling.temperature, sampling.top_k), asked)
        await page.click("#panel summary")
        await page.fill("#temperature", "0.25")
        await page.until(
          "document.querySelector('#in_use').textContent"
          ".startsWith('temperature 0.25')"
        )

  async def test_key(self):
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
      keys.write("secret\n")
      keys.flush()
      async with self._open(api_keys=keys.name, waits=True) as page:
        await page.until(
          "document.querySelector('#phase').textContent === 'needs an API key'"
        )
        await self._send(page, "Hello")
        await page.until("!document.querySelector('#problem').hidden")
        self.assertIn("needs an API key", await page.text("#problem"))
        await page.click("#panel summary")
        await page.fill("#key", "secret")
        await self._ready(page)
        await page.press("Enter")  # In the field: nothing is sent.
        await page.evaluate("document.querySelector('#prompt').focus()")
        await page.press("Enter")
        await self._answered(page)
        self.assertEqual(
          await page.evaluate("document.querySelector('#key').type"), "password"
        )

  async def test_no_template(self):
    async with self._open(template=None) as page:
      await self._ready(page)
      await page.until("document.querySelector('#mode').value === 'completion'")
      self.assertTrue(
        await page.evaluate("document.querySelector('#mode option').disabled")
      )
      self.engine.say(" upon a time <b>")
      await self._send(page, "Once")
      await self._answered(page)
      self.assertEqual(
        await page.text("#log .completion .text"), "Once upon a time <b>"
      )
      self.assertEqual(page.problems, [])

  async def test_errors(self):
    async with self._open() as page:
      await self._ready(page)
      self.engine.refuses = scheduler_lib.QueueFullError("Too many.", 7)
      await self._send(page, "Hello")
      await page.until("!document.querySelector('#problem').hidden")
      problem = await page.text("#problem")
      self.assertIn("Too many.", problem)
      self.assertIn("Try again in 7 s.", problem)
      # It is there to be sent again.
      self.assertEqual(
        await page.evaluate("document.querySelector('#prompt').value"), "Hello"
      )
      self.assertEqual(await page.text("#log"), "")
      self.engine.refuses = None
      self.engine.script = lambda request: fixtures.Script(
        tokens=[50, 51],
        finish=request_lib.FinishReason.ERROR,
        error="The device is gone.",
        seconds=0.01,
      )
      await page.press("Enter")
      await self._answered(page)
      self.assertIn("The device is gone.", await page.text("#problem"))
      self.assertIn("broken off", await page.text("#log .note"))

  async def test_phone(self):
    view = {"width": 360, "height": 640, "dark": True}
    async with self._open(view=view) as page:
      await self._ready(page)
      await self._send(page, "Hello")
      await self._answered(page)
      await page.screenshot("phone")
      self.assertEqual(
        await page.evaluate("document.documentElement.scrollWidth"), 360
      )
      # All of the page fits; only the conversation scrolls.
      self.assertTrue(
        await page.evaluate(
          "document.querySelector('#send').getBoundingClientRect().bottom"
          " <= innerHeight"
        )
      )
      background = await page.evaluate(
        "getComputedStyle(document.body).backgroundColor"
      )
      self.assertEqual(background, "rgb(23, 20, 15)")

  async def test_keyboard(self):
    async with self._open() as page:
      await self._ready(page)
      await page.evaluate("document.querySelector('#prompt').focus()")
      await page.write("one")
      await page.press("Enter", shift=True)
      await page.write("two")
      self.assertEqual(self.engine.requests, [])
      await page.press("Enter")
      await self._answered(page)
      self.assertEqual(await page.text("#log .user .text"), "one\ntwo")
      self.assertEqual(
        await page.evaluate("document.activeElement.id"), "prompt"
      )
      reached = []
      for _ in range(8):
        await page.press("Tab")
        reached.append(await page.evaluate("document.activeElement.id"))
      self.assertIn("send", reached)
      self.assertIn("clear", reached)


if __name__ == "__main__":
  absltest.main()
