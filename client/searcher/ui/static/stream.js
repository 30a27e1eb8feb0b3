// One question to the server under way at a time; its answer comes as lines of JSON.

let underWay = new AbortController();

/** Ask, and hand each view to `show` as it comes. A later call ends an earlier one. */
export async function ask(path, body, show) {
  underWay.abort();
  const mine = (underWay = new AbortController());
  try {
    const answer = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal: mine.signal,
    });
    for await (const line of lines(answer)) show(JSON.parse(line));
  } catch (error) {
    if (!mine.signal.aborted) show({ error: words(error) });
  }
}

/** Hand over a picture to search with; returns its name. */
export async function hand(picture) {
  const answer = await fetch("/picture", { method: "PUT", body: picture });
  const said = await answer.json();
  if (said.error) throw said.error;
  return said.picture;
}

/** What went wrong, as a message and a hint. */
export function words(error) {
  if (error.message && "hint" in error) return error;
  return {
    message: "The page got no answer from its server.",
    hint: "Is blindsight ui still running? Start it again and open its new address.",
  };
}

async function* lines(answer) {
  const type = answer.headers.get("Content-Type") ?? "";
  if (!type.includes("json")) throw new TypeError(`expected JSON, got ${type}`);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const found = (rest + part.value).split("\n");
    rest = found.pop();
    yield* found;
  }
  if (rest) yield rest;
}
