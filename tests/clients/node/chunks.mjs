// Reads the SDK's stream with nothing between: DefaultChatTransport.reconnectToStream, which validates every chunk.
//
//     node chunks.mjs <major version of ai> <url of the stream>
//
// Says each chunk as a line of JSON; then {"end": true}, or {"error": …} when the stream broke off.
const [major, api] = process.argv.slice(2);
const { DefaultChatTransport } = await import(major === "6" ? "ai-6" : "ai");

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const transport = new DefaultChatTransport({ prepareReconnectToStreamRequest: () => ({ api }) });
try {
  const stream = await transport.reconnectToStream({ chatId: "any" });
  for await (const chunk of stream ?? []) {
    say(chunk);
  }
  say(stream === null ? { none: true } : { end: true });
} catch (error) {
  say({ error: error.message, name: error.name });
}
