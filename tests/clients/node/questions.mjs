// Asks a server with the packages `openai` and `ai`, and prints the answers as JSON for test_node_clients.py.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, generateText, Output, stepCountIs, streamText, tool } from "ai";
import OpenAI from "openai";
import { z } from "zod";

const baseURL = process.env.OPENAI_BASE_URL;
const apiKey = process.env.OPENAI_API_KEY;
const france = "What is the capital of France?";
const weather = "What is the weather in Paris?";
const messages = [{ role: "user", content: france }];
const plain = { model: "sprout", temperature: 0, reasoning_effort: "none" };
const found = {};

const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
found.chat = (await client.chat.completions.create({ ...plain, messages })).choices[0].message.content;
found.streamed = [];
for await (const chunk of await client.chat.completions.create({ ...plain, messages, stream: true })) {
  found.streamed.push(chunk.choices[0]?.delta?.content ?? "");
}
const getWeather = {
  name: "get_weather",
  description: "Get the current weather in a city",
  parameters: { type: "object", required: ["city"], properties: { city: { type: "string" } } },
};
const called = await client.chat.completions.create({
  ...plain,
  messages: [{ role: "user", content: weather }],
  tools: [{ type: "function", function: getWeather }],
});
found.call = called.choices[0].message.tool_calls[0].function;
found.responses = (await client.responses.create({ model: "sprout", temperature: 0, input: france })).output_text;
found.embedding = (await client.embeddings.create({ model: "stories", input: "你好" })).data[0].embedding.length;
try {
  await client.chat.completions.create({ ...plain, model: "missing", messages });
} catch (error) {
  found.missing = { status: error.status, code: error.code };
}

const compatible = createOpenAICompatible({ name: "ollama", baseURL, apiKey });
const quiet = { providerOptions: { ollama: { reasoningEffort: "none" } }, temperature: 0 };
const thought = await generateText({ model: compatible("sprout"), temperature: 0, prompt: france });
found.ai = thought.text;
found.thinking = thought.reasoningText;
found.aiStreamed = [];
const stream = streamText({ model: createOpenAI({ baseURL, apiKey }).responses("sprout"), temperature: 0, prompt: france });
for await (const piece of stream.textStream) {
  found.aiStreamed.push(piece);
}
const run = await generateText({
  ...quiet,
  model: compatible("sprout"),
  prompt: weather,
  stopWhen: stepCountIs(3),
  tools: {
    get_weather: tool({
      description: getWeather.description,
      inputSchema: z.object({ city: z.string() }),
      execute: async () => ({ temperature: 18, condition: "sunny" }),
    }),
  },
});
found.tools = run.text;
const capital = await generateText({
  ...quiet,
  model: createOpenAICompatible({ name: "ollama", baseURL, apiKey, supportsStructuredOutputs: true })("sprout"),
  prompt: `${france} Answer in JSON.`,
  output: Output.object({ schema: z.object({ capital: z.string() }) }),
});
found.object = capital.output;
found.aiEmbedding = (await embed({ model: compatible.embeddingModel("stories"), value: "你好" })).embedding.length;

console.log(JSON.stringify(found));
