// Asks a server with OpenAI's npm client, and prints what it gets as JSON.
//
//   node client.mjs http://127.0.0.1:8000/v1 chat

import OpenAI from "openai";

const model = "tiny";
const messages = [{ role: "user", content: "Hello, how are you?" }];
const prompt = "In the beginning";
const tool = {
  type: "function",
  function: {
    name: "switch",
    parameters: {
      type: "object",
      properties: { on: { type: "boolean" } },
      required: ["on"],
      additionalProperties: false,
    },
    strict: true,
  },
};

const [baseURL, task] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "x", maxRetries: 0 });

async function catchError(ask) {
  try {
    await ask();
  } catch (error) {
    return {
      name: error.constructor.name,
      isApiError: error instanceof OpenAI.APIError,
      status: error.status ?? null,
      param: error.param ?? null,
      code: error.code ?? null,
      requestId: error.requestID ?? null,
    };
  }
  throw new Error("nothing was refused");
}

const tasks = {
  async chat() {
    const { data, response, request_id } = await client.chat.completions
      .create({ model, messages, max_tokens: 12, temperature: 0 })
      .withResponse();
    return {
      text: data.choices[0].message.content,
      usage: data.usage,
      step: response.headers.get("x-checkpoint-step"),
      requestId: request_id,
    };
  },

  async completion() {
    const answer = await client.completions.create({
      model,
      prompt: [prompt, "def"],
      max_tokens: 6,
      temperature: 0,
      logprobs: 1,
      echo: true,
    });
    return answer.choices.map(({ text, logprobs }) => ({ text, logprobs }));
  },

  async stream() {
    const fields = { model, messages, max_tokens: 20, seed: 5 };
    const whole = await client.chat.completions.create(fields);
    const texts = [];
    let usage = null;
    for await (const chunk of await client.chat.completions.create({
      ...fields,
      stream: true,
      stream_options: { include_usage: true },
    })) {
      texts.push(chunk.choices[0]?.delta?.content ?? "");
      usage = chunk.usage ?? usage;
    }
    const helper = client.chat.completions.stream(fields);
    const final = await helper.finalChatCompletion();
    return {
      whole: whole.choices[0].message.content,
      wholeUsage: whole.usage,
      texts,
      usage,
      final: final.choices[0].message.content,
    };
  },

  async abort() {
    const controller = new AbortController();
    const stream = await client.completions.create(
      { model, prompt, n: 4, max_tokens: 1000, ignore_eos: true, stream: true },
      { signal: controller.signal },
    );
    let chunks = 0;
    for await (const _ of stream) {
      chunks += 1;
      if (chunks === 10) controller.abort();
    }
    return { chunks };
  },

  async tools() {
    const fields = {
      model,
      messages,
      tools: [tool],
      tool_choice: "required",
      parallel_tool_calls: false,
      seed: 1,
      max_tokens: 150,
    };
    const answer = await client.chat.completions.create(fields);
    const [choice] = answer.choices;
    const helper = client.chat.completions.stream(fields);
    const streamed = await helper.finalMessage();
    const again = await client.chat.completions.create({
      model,
      messages: [
        ...messages,
        choice.message,
        {
          role: "tool",
          tool_call_id: choice.message.tool_calls[0].id,
          content: "done",
        },
      ],
      tools: [tool],
      max_tokens: 4,
    });
    return {
      finish: choice.finish_reason,
      calls: choice.message.tool_calls,
      streamed: streamed.tool_calls,
      again: again.choices[0].finish_reason,
    };
  },

  async schema() {
    const answer = await client.chat.completions.parse({
      model,
      messages,
      response_format: {
        type: "json_schema",
        json_schema: {
          name: "switch",
          schema: tool.function.parameters,
          strict: true,
        },
      },
      max_tokens: 100,
    });
    return JSON.parse(answer.choices[0].message.content);
  },

  async embeddings() {
    const packed = await client.embeddings.create({ model, input: prompt });
    const plain = await client.embeddings.create({
      model,
      input: prompt,
      encoding_format: "float",
    });
    return [packed.data[0].embedding, plain.data[0].embedding];
  },

  async models() {
    const found = [];
    for await (const { id } of client.models.list()) found.push(id);
    return found;
  },

  async errors() {
    const chat = (fields, options) =>
      client.chat.completions.create({ model, messages, ...fields }, options);
    return {
      model: await catchError(() => chat({ model: "other" })),
      value: await catchError(() => chat({ temperature: 3 })),
      field: await catchError(() => chat({ unheard_of: 1 })),
      timeout: await catchError(() =>
        chat({ max_tokens: 900, n: 4, ignore_eos: true }, { timeout: 200 }),
      ),
      late: await catchError(() =>
        chat({ max_tokens: 900, n: 4, ignore_eos: true, timeout: 0.2 }),
      ),
      nobody: await catchError(() =>
        new OpenAI({
          baseURL: "http://127.0.0.1:9/v1",
          apiKey: "x",
          maxRetries: 0,
        }).models.list(),
      ),
    };
  },
};

console.log(JSON.stringify(await tasks[task]()));
