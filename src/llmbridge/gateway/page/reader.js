// One reader of a stream: an EventSource, what it received, and the check that it received everything once, in order.
// Knows nothing of the page but the element that it writes into.

export const LOST = "connection lost, trying again";
const KINDS = ["content", "reasoning", "toolCall", "json"];

function textOf(token, kind) {
  if (kind !== "toolCall") {
    return token[kind];
  }
  const { name, arguments: piece } = token.toolCall;
  return name ? `\n${name}: ${piece}` : piece;
}

export class Reader {
  #url;
  #element;
  #onChange;
  #source = null;
  #timer = 0;
  #frame = 0;
  #waiting = [];
  #node = null;
  #kind = "";
  #cursor = "";
  #ended = false;

  // `onChange` is called after every change of `state`, `problem` or `tokens`.
  constructor(element, onChange) {
    this.#element = element;
    this.#onChange = onChange;
    this.tokens = 0;
    this.text = "";
    this.cuts = 0;
    this.state = "idle";
    this.problem = "";
    this.finishReason = "";
  }

  get isReading() {
    return this.#source !== null;
  }

  open(url) {
    this.#url = url;
    this.#element.replaceChildren();
    this.#connect();
  }

  // Breaks the connection off, and comes back after some milliseconds with the last cursor received.
  cut(milliseconds) {
    if (!this.isReading || this.#ended) {
      return;
    }
    this.#leave();
    this.cuts += 1;
    this.#change("cut off");
    this.#timer = setTimeout(() => this.#connect(), milliseconds);
  }

  close() {
    clearTimeout(this.#timer);
    cancelAnimationFrame(this.#frame);
    this.#leave();
  }

  #connect() {
    const url = new URL(this.#url, location.href);
    if (this.#cursor) {
      url.searchParams.set("cursor", this.#cursor);
    }
    const source = new EventSource(url);
    this.#source = source;
    this.#change("connecting");
    source.addEventListener("connected", () => this.#change(this.tokens ? "reading" : "waiting"));
    for (const name of ["token", "complete", "message"]) {
      source.addEventListener(name, (event) => this.#take(event));
    }
    source.addEventListener("error", (event) => {
      if (event.data !== undefined) {
        this.#take(event);
      } else if (source.readyState === EventSource.CLOSED) {
        this.#leave();
        this.#fail("the bridge refused the connection");
      } else {
        this.#change(LOST);
      }
    });
  }

  #leave() {
    this.#source?.close();
    this.#source = null;
  }

  #take(event) {
    const data = JSON.parse(event.data);
    this.#cursor = event.lastEventId || this.#cursor;
    if (data.type === "token") {
      data.tokens.forEach((token) => this.#add(token));
      this.#change("reading");
    } else if (data.type === "complete") {
      this.#check(data.sequence);
      this.finishReason = data.finishReason;
      if (data.finishReason === "error") {
        this.#fail(this.problem || (data.errorMessage ?? "the generation failed"));
      } else {
        this.#end();
        this.#change("complete");
      }
    } else if (data.type === "error") {
      this.#fail(data.message);
    }
  }

  #add(token) {
    this.#check(token.sequence);
    this.tokens += 1;
    const kind = KINDS.find((name) => token[name] !== undefined) ?? "content";
    const text = textOf(token, kind) ?? "";
    this.text += text;
    this.#waiting.push([kind, text]);
    // A page in the background gets no frames; what waits is written when it is seen again.
    this.#frame ||= requestAnimationFrame(() => this.#write());
  }

  #check(sequence) {
    if (sequence !== this.tokens + 1) {
      this.problem = `expected record ${this.tokens + 1}, received ${sequence}`;
    }
  }

  #write() {
    this.#frame = 0;
    const element = this.#element;
    const atEnd = element.scrollHeight - element.scrollTop - element.clientHeight < 24;
    for (const [kind, text] of this.#waiting.splice(0)) {
      if (kind !== this.#kind || this.#node === null) {
        const span = document.createElement("span");
        span.className = kind === "reasoning" ? "reasoning" : kind === "content" ? "" : "tool";
        this.#node = document.createTextNode("");
        span.append(this.#node);
        element.append(span);
        this.#kind = kind;
      }
      this.#node.appendData(text);
    }
    if (atEnd) {
      element.scrollTop = element.scrollHeight;
    }
  }

  #end() {
    this.#ended = true;
    this.#leave();
    this.#write();
  }

  #fail(message) {
    this.#end();
    this.problem = message;
    this.#change("failed");
  }

  #change(state) {
    const before = this.state;
    this.state = state;
    this.#onChange(this, before);
  }
}
