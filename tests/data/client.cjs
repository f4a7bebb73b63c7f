// What OpenAI's own client is told by a server; printed as JSON. Arguments: the server's address, a tool that it may offer.
const OpenAI = require("openai");

const [address, tool] = process.argv.slice(2);
const offered = JSON.parse(tool);
const client = new OpenAI({ baseURL: `${address}/v1`, apiKey: "none", maxRetries: 0 });
const asked = { model: "tiny", messages: [{ role: "user", content: "hermes" }], tools: [offered], temperature: 0 };
const response = { model: "tiny", input: "hermes", tools: [{ type: "function", ...offered.function }], temperature: 0 };

const called = (calls) => calls.map((c) => ({ name: c.name, arguments: JSON.parse(c.arguments) }));
const message = (m) => ({ text: m.content, calls: called(m.tool_calls.map((c) => c.function)) });
const output = (r) => ({ text: r.output_text, calls: called(r.output.filter((i) => i.type === "function_call")) });

async function main() {
  const told = { models: [] };
  for await (const model of client.models.list()) told.models.push(model.id);
  const whole = await client.chat.completions.create(asked);
  told.whole = message(whole.choices[0].message);
  told.persona = whole.persona.tokens_read;
  const stream = client.chat.completions.stream(asked);
  for await (const _ of stream);
  told.streamed = message((await stream.finalChatCompletion()).choices[0].message);
  told.response = output(await client.responses.create(response));
  const events = client.responses.stream(response);
  for await (const _ of events);
  told.response_streamed = output(await events.finalResponse());
  const add = { ...offered.function, function: async () => "four", parse: JSON.parse };
  const runner = client.chat.completions.runTools({
    ...asked,
    parallel_tool_calls: false,
    tools: [{ type: "function", function: add }],
  });
  told.loop = await runner.finalContent();
  try {
    await client.chat.completions.create({ ...asked, logit_bias: { x: 1 } });
  } catch (error) {
    told.refused = { status: error.status, param: error.param };
  }
  console.log(JSON.stringify(told));
}

main();
