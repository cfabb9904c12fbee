// The page: starts answers, plays streams by name in two readers, and says what happens to them.

import { LOST, Reader } from "./reader.js";

const CUT_MS = 3000;
const SLOW_MS = 3000;
const LETTERS = ["a", "b"];
const byId = (id) => document.getElementById(id);

let readers = [];
let shown = null;
let model = "";

function tell(message, tone = "") {
  byId("news").textContent = message;
  byId("news").className = tone;
}

async function call(method, path, body) {
  const options = { method, headers: { accept: "application/json" } };
  if (body !== undefined) {
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const slow = setTimeout(
    () => tell("No answer yet. All tabs share six connections, and each takes two."),
    SLOW_MS,
  );
  const response = await fetch(path, options)
    .catch(() => {
      throw new Error("the gateway can't be reached");
    })
    .finally(() => clearTimeout(slow));
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    throw new Error(answer.message ?? answer.error?.message ?? `the bridge answered ${response.status}`);
  }
  return answer;
}

function pathOf(stream) {
  const [session, model, response] = [stream.session, stream.model, stream.response].map(encodeURIComponent);
  const path = `/v1/sessions/${session}/models/${model}`;
  return response ? `${path}/responses/${response}` : path;
}

// The address names the stream, so that a reload shows it again and it can be passed on.
function toHash(stream) {
  return "#" + new URLSearchParams(stream);
}

function fromHash() {
  const named = new URLSearchParams(location.hash.slice(1));
  const stream = { session: named.get("session"), model: named.get("model"), response: named.get("response") ?? "" };
  return stream.session && stream.model ? stream : null;
}

async function newest(session, model, response) {
  const query = new URLSearchParams({ page_size: "1000" });
  const { streams = [] } = await call("GET", `/v1/sessions/${encodeURIComponent(session)}/streams?${query}`);
  const found = streams
    .map(({ stream }) => ({ session, model: stream.modelId, response: stream.responseId ?? "" }))
    .find((stream) => (!model || stream.model === model) && (!response || stream.response === response));
  if (found === undefined) {
    throw new Error(`the session ${session} has no such stream`);
  }
  return found;
}

function setDisabled(button, isDisabled) {
  // Not `disabled`, which would take the focus away from whoever has just pressed it.
  button.setAttribute("aria-disabled", String(isDisabled));
}

function show(stream) {
  readers.forEach((reader) => reader.close());
  shown = stream;
  byId("stream").textContent = `${stream.session} / ${stream.model} / ${stream.response}`;
  for (const part of ["session", "model", "response"]) {
    byId(part).value = stream[part];
  }
  readers = LETTERS.map((letter) => new Reader(byId(`text-${letter}`), (...change) => onChange(letter, ...change)));
  tell("Connecting.");
  readers.forEach((reader) => reader.open(`${pathOf(stream)}/events`));
}

function onChange(letter, reader, before) {
  const state = byId(`state-${letter}`);
  const isOver = ["complete", "failed"].includes(reader.state);
  const how = reader.finishReason ? ` (${reader.finishReason})` : "";
  const cuts = reader.cuts ? `, cut ${reader.cuts}×` : "";
  state.textContent = reader.problem
    ? `${reader.state} after ${count(reader.tokens)}${cuts}: ${reader.problem}`
    : `${reader.state}${how}: ${count(reader.tokens)}${cuts}`;
  state.className = reader.problem ? "state bad" : reader.state === "complete" ? "state good" : "state";
  setDisabled(byId(`cut-${letter}`), isOver || !reader.isReading);
  setDisabled(byId("stop"), readers.every((one) => ["complete", "failed"].includes(one.state)));
  const name = `Reader ${letter.toUpperCase()}`;
  if (reader.state !== before && CHANGES[reader.state]) {
    tell(CHANGES[reader.state](name, reader, before));
  } else if (reader.finishReason === "error") {
    tell(`The answer failed: ${reader.problem}`, "bad");
  } else if (reader.problem) {
    tell(`${name}: ${reader.problem}`, "bad");
  }
  if (readers.length === 2 && readers.every((one) => one.state === "complete" && !one.problem)) {
    compare();
  }
}

// What is told when a reader comes into a state.
const CHANGES = {
  waiting: () => "Waiting for the first token. The stream may not have begun yet.",
  reading: (name, reader, before) =>
    before === "waiting" ? "Reading." : `${name} is back and goes on after token ${reader.tokens}.`,
  "cut off": (name, reader) => `${name} is cut off after ${count(reader.tokens)}, for ${CUT_MS / 1000} s.`,
  [LOST]: (name) =>
    readers.every((one) => one.state === LOST)
      ? "Both readers lost their connection and try again."
      : `${name} lost its connection and tries again.`,
};

function count(tokens) {
  return `${tokens} ${tokens === 1 ? "token" : "tokens"}`;
}

function compare() {
  const [a, b] = readers;
  if (a.text === b.text && a.tokens === b.tokens) {
    tell(`Both readers have the same ${count(a.tokens)}.`, "good");
  } else {
    tell("The readers differ.", "bad");
  }
}

function goTo(stream) {
  // On a small screen the answer is below what asked for it.
  byId("text-a").closest("article").scrollIntoView({ block: "nearest" });
  if (toHash(stream) === location.hash) {
    show(stream);
  } else {
    location.hash = toHash(stream);
  }
}

async function attempt(action) {
  try {
    await action();
  } catch (error) {
    tell(error.message, "bad");
  }
}

byId("play").addEventListener("submit", (event) => {
  event.preventDefault();
  const [session, model, response] = ["session", "model", "response"].map((id) => byId(id).value);
  attempt(async () => goTo(model && response ? { session, model, response } : await newest(session, model, response)));
});

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    tell("Asking.");
    const session = `page-${crypto.getRandomValues(new Uint32Array(2)).join("")}`;
    const answer = await call("POST", "/chat/start", { sessionId: session, modelId: model, prompt: byId("prompt").value });
    goTo({ session: answer.sessionId, model: answer.modelId, response: answer.responseId });
  });
});

byId("stop").addEventListener("click", (event) => {
  if (event.currentTarget.getAttribute("aria-disabled") === "false") {
    attempt(() => call("POST", `${pathOf(shown)}:cancel`, { reason: "stopped on the page" }));
  }
});

byId("reload").addEventListener("click", () => location.reload());

LETTERS.forEach((letter, index) => {
  byId(`cut-${letter}`).addEventListener("click", (event) => {
    if (event.currentTarget.getAttribute("aria-disabled") === "false") {
      readers[index].cut(CUT_MS);
    }
  });
});

function showNamed() {
  const stream = fromHash();
  if (stream !== null) {
    show(stream);
  }
}

// Gives the note beside the button; without `model` there is none to ask.
async function findModel() {
  const { model: set } = await call("GET", "/page/model.json");
  if (set === null) {
    return "No model is set (LLMBRIDGE_UPSTREAM_URL).";
  }
  model = set || (await call("GET", "/v1/models")).data[0]?.id || "";
  return model || "The model server names no model (LLMBRIDGE_UPSTREAM_MODEL).";
}

addEventListener("hashchange", () => (fromHash() === null ? location.reload() : showNamed()));
showNamed();
attempt(async () => {
  byId("ask-note").textContent = await findModel();
  byId("ask").querySelector("fieldset").disabled = !model;
});
