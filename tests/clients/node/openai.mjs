// Asks with OpenAI's SDK, pointed at the gateway by its base URL alone.
//
//     node openai.mjs <base url> <model> <"chunks" | "whole" | path of a stream to read>
import OpenAI from "openai";

const [baseURL, model, what] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const question = { model, messages: [{ role: "user", content: "Hello" }] };
try {
  if (what === "whole") {
    say(await client.chat.completions.create(question));
  } else {
    const chunks =
      what === "chunks"
        ? await client.chat.completions.create({ ...question, stream: true, stream_options: { include_usage: true } })
        : await client.get(what, { stream: true });
    for await (const chunk of chunks) {
      say(chunk);
    }
  }
  say({ end: true });
} catch (error) {
  say({ failed: error.constructor.name, status: error.status ?? null, message: error.message });
}
