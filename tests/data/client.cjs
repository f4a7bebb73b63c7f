// What OpenAI's own client is told by a server; printed as JSON. Arguments: the server's address, and as JSON the model, what is
// said to it, and a tool that it may offer.
const OpenAI = require("openai");

const [address, what] = process.argv.slice(2);
const { model, content, tool } = JSON.parse(what);
const client = new OpenAI({ baseURL: `${address}/v1`, apiKey: "none", maxRetries: 0 });
const limit = tool ? {} : { max_tokens: 12 };
const asked = { model, messages: [{ role: "user", content }], temperature: 0, ...limit, ...(tool && { tools: [tool] }) };
const response = {
  model,
  input: content,
  temperature: 0,
  ...(tool ? { tools: [{ type: "function", ...tool.function }] } : { max_output_tokens: 12 }),
};

const called = (calls) => calls.map((c) => ({ name: c.name, arguments: JSON.parse(c.arguments) }));
const message = (m) => ({ text: m.content, calls: called((m.tool_calls || []).map((c) => c.function)) });
const output = (r) => ({ text: r.output_text, calls: called(r.output.filter((i) => i.type === "function_call")) });

async function main() {
  const told = { models: [] };
  for await (const model of client.models.list()) told.models.push(model.id);
  const whole = await client.chat.completions.create(asked);
  told.whole = message(whole.choices[0].message);
  told.persona = whole.persona.tokens_read;
  // What a stream brought is put together here: the client's own end of it is an error where a reply was cut short.
  const streamed = { content: "", tool_calls: [] };
  for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
    for (const choice of chunk.choices) {
      streamed.content += choice.delta.content || "";
      streamed.tool_calls.push(...(choice.delta.tool_calls || []));
    }
  }
  told.streamed = message(streamed);
  told.response = output(await client.responses.create(response));
  let last;
  for await (const event of await client.responses.create({ ...response, stream: true })) last = event.response || last;
  const text = last.output.filter((i) => i.type === "message").flatMap((i) => i.content.map((c) => c.text)).join("");
  told.response_streamed = output({ ...last, output_text: text });
  if (tool) {
    const stream = client.chat.completions.stream(asked);
    for await (const _ of stream);
    told.final = message((await stream.finalChatCompletion()).choices[0].message);
    const add = { ...tool.function, function: async () => "four", parse: JSON.parse };
    const tools = [{ type: "function", function: add }];
    const runner = client.chat.completions.runTools({ ...asked, parallel_tool_calls: false, tools });
    told.loop = await runner.finalContent();
  }
  try {
    await client.chat.completions.create({ ...asked, logit_bias: { x: 1 } });
  } catch (error) {
    told.refused = { status: error.status, message: error.message };
  }
  console.log(JSON.stringify(told));
}

main();
