// Who was asked: how far each one is, whose pictures are shown, and what each party saw.

const facets = document.getElementById("facets");
const notes = document.getElementById("notes");
const seen = document.getElementById("seen");
const only = new Set();
const hues = new Map();

const STATES = {
  asking: "asking", sending: "answered, pictures to come", answered: "answered",
  note: "see the note", stopped: "no answer",
};

/** A colour of its own for each institution. */
export function hueOf(name) {
  if (!hues.has(name)) hues.set(name, hues.size % 8);
  return hues.get(name);
}

/** Whether pictures of this institution are to be seen. Choosing sends nothing. */
export const isShown = (name) => !only.size || only.has(name);

/** Show all again. */
export const showAll = () => only.clear();

/** Show how far each institution is; `changed` is called when another choice is made. */
export function showParties(view, changed) {
  const count = (name) => view.results.filter((one) => one.key[0] === name).length;
  const focused = document.activeElement?.dataset?.facet;
  const buttons = view.institutions.map((one) =>
    facet(one.name, count(one.name), one.state, changed),
  );
  facets.replaceChildren(facet("", view.results.length, "", changed), ...buttons);
  facets.hidden = false;
  if (focused !== undefined) facets.querySelector(`[data-facet="${CSS.escape(focused)}"]`)?.focus();
  const noted = view.institutions.filter((one) => one.note);
  notes.hidden = !noted.length;
  notes.replaceChildren(...noted.map((one) => item(one.name, one.note)));
}

/** Show the account of each party. */
export function showSeen(view) {
  seen.replaceChildren(
    ...view.institutions.map((one) => account(one)),
    section("coordinator", "hueless", "", [], view.coordinator),
  );
}

function facet(name, count, state, changed) {
  const button = Object.assign(document.createElement("button"), { type: "button" });
  button.dataset.facet = name;
  button.dataset.state = state;
  button.setAttribute("aria-pressed", String(name ? only.has(name) : !only.size));
  button.onclick = () => {
    if (!name) only.clear();
    else if (!only.delete(name)) only.add(name);
    changed();
  };
  if (name) button.append(element("i", `dot hue${hueOf(name)}`));
  button.append(element("span", "", name || "all"), " ", element("b", "", count));
  if (name) button.append(element("span", state === "answered" ? "unseen" : "state", STATES[state]));
  return button;
}

function item(name, note) {
  const row = element("li");
  const named = note.message.startsWith(name);
  row.append(element("b", "", name), named ? note.message.slice(name.length) : `: ${note.message}`);
  if (note.hint) row.append(" ", element("span", "hint", note.hint));
  return row;
}

function account({ name, state, seen: figures }) {
  const left = [
    [figures.questions_left, "questions"], [figures.items_left, "items"],
  ].filter(([number]) => number !== null).map(([number, of]) => `${number.toLocaleString("en")} ${of}`);
  const rows = [
    ["Ciphertext", `${bytes(figures.upload_bytes)} there, ${bytes(figures.download_bytes)} back`],
    ["Keys", `${figures.keys_made} made, ${figures.keys_destroyed} destroyed`],
    ["Items asked for", `${figures.items_asked}, of which ${figures.decoys} decoys`],
  ];
  if (left.length) rows.push(["Left today", left.join(", ")]);
  return section(name, `hue${hueOf(name)}`, STATES[state], rows, figures.words);
}

function section(name, hue, state, rows, words) {
  const part = element("section");
  const title = element("h3");
  title.append(element("i", `dot ${hue}`), element("span", "", name), element("span", "state", state));
  const list = element("dl");
  for (const [term, figure] of rows) list.append(element("dt", "", term), element("dd", "", figure));
  part.append(title, ...(rows.length ? [list] : []), element("p", "", words));
  return part;
}

function bytes(number) {
  if (number < 1000) return `${number} B`;
  return number < 1e6 ? `${Math.round(number / 1e3)} kB` : `${(number / 1e6).toFixed(1)} MB`;
}

function element(tag, name = "", text = "") {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.textContent = text;
  return made;
}
