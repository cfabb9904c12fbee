// Mounts `useChat` with `resume: true`, as a page does that was just loaded, and plays the person in front of it.
//
//     node use_chat.mjs <major version of ai> <url of the gateway> <chat id> <messages the page was loaded with, JSON>
//
// Says each state as a line of JSON. Reads commands, one line each: {"do": "send" | "stop" | "resume" | "output" | …, …}.
import { createInterface } from "node:readline";

import { JSDOM } from "jsdom";

const [major, url, id, messages = "[]"] = process.argv.slice(2);

const window = new JSDOM("<div></div>", { pretendToBeVisual: true }).window;
Object.assign(globalThis, { window, document: window.document });
// Newer versions of node have one that can't be assigned to.
Object.defineProperty(globalThis, "navigator", { value: window.navigator, configurable: true });

// After the globals: these look for a document when they are loaded.
const { createElement, useEffect } = await import("react");
const { createRoot } = await import("react-dom/client");
const { useChat } = await import(major === "6" ? "ai-sdk-react-3" : "@ai-sdk/react");
const { DefaultChatTransport } = await import(major === "6" ? "ai-6" : "ai");

const say = (line) => void process.stdout.write(`${JSON.stringify(line)}\n`);
let chat;

function Page() {
  chat = useChat({
    id,
    resume: true,
    messages: JSON.parse(messages),
    transport: new DefaultChatTransport({ api: `${url}/api/chat` }),
    onToolCall: ({ toolCall }) => say({ toolCall }),
    onFinish: ({ isAbort, isDisconnect, isError, finishReason }) =>
      say({ finished: { isAbort, isDisconnect, isError, finishReason } }),
  });
  const { status, error } = chat;
  useEffect(() => {
    say({ status, error: error?.message ?? null, messages: chat.messages });
  });
  return null;
}

const root = createRoot(window.document.querySelector("div"));
root.render(createElement(Page));

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  if (command.do === "send") {
    void chat.sendMessage(command.text && { text: command.text }, { body: command.body });
  } else if (command.do === "stop") {
    // As the SDK's documentation has it: the endpoint ends the work, `stop` only this page's reading.
    const assistantMessage = chat.messages.at(-1);
    const response = await fetch(`${url}/api/chat/${encodeURIComponent(id)}/stop`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ assistantMessage, activeStreamId: command.activeStreamId }),
    });
    say({ stopped: await response.json() });
  } else if (command.do === "resume") {
    void chat.resumeStream();
  } else if (command.do === "take the half away") {
    const [last, ...before] = chat.messages.toReversed();
    const parts = last.parts.slice(0, last.parts.findLastIndex((part) => part.type === "step-start"));
    chat.setMessages([...before.toReversed(), { ...last, parts }]);
  } else if (command.do === "output") {
    void chat.addToolOutput({ tool: command.tool, toolCallId: command.toolCallId, output: command.output });
  }
}
root.unmount();
process.exit(0);
