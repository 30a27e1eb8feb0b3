// The grid of pictures: cards that stay as long as their picture is among the results.

import { keyOf, markOf, onMarks, toggle } from "./marks.js";

const grid = document.getElementById("grid");
const template = document.getElementById("card");
const cards = new Map();
let act = {};

/** `act.open(result)` and `act.like(result)` do what a card is asked for. */
export function startCards(acts) {
  act = acts;
  grid.addEventListener("keydown", onKey);
  grid.addEventListener("focusin", (event) => rove(event.target.closest(".card")));
  onMarks(() => cards.forEach(showMark));
}

/** Show results, best first; `most` places are held free while a search is under way. */
export function showCards(results, hueOf, hold) {
  const focused = grid.contains(document.activeElement) ? document.activeElement : null;
  const wanted = new Set(results.map(keyOf));
  for (const [key, card] of cards) {
    if (wanted.has(key)) continue;
    card.remove();
    cards.delete(key);
  }
  const rows = results.map((result) => {
    const card = cards.get(keyOf(result)) ?? made(result);
    fill(card, result, hueOf(result.key[0]));
    return card;
  });
  const held = Array.from({ length: Math.max(0, hold - rows.length) }, placeholder);
  if (![...grid.children].every((one, place) => one === rows[place]) || held.length || rows.length !== grid.children.length)
    grid.replaceChildren(...rows, ...held);
  grid.setAttribute("aria-busy", String(hold > 0));
  if (!focused || !grid.querySelector('.open[tabindex="0"]')) rove(rows[0]);
  // The grid itself holds the focus while there is no card to have it.
  if (focused !== grid && focused?.isConnected) focused.focus({ preventScroll: true });
  else if (focused) (rows[0]?.querySelector(".open") ?? grid).focus({ preventScroll: true });
}

/** The card's button of a result, to give it the focus. */
export const opener = (result) => cards.get(keyOf(result))?.querySelector(".open");

function made(result) {
  const card = template.content.cloneNode(true).firstElementChild;
  card.dataset.key = keyOf(result);
  card.querySelector(".open").onclick = () => act.open(card.result);
  card.querySelector(".like").onclick = () => act.like(card.result);
  for (const mark of ["good", "bad"])
    card.querySelector(`.${mark}`).onclick = () => toggle(card.result, mark);
  const image = card.querySelector("img");
  image.onerror = () => {
    image.hidden = true;
    card.querySelector(".nothing").hidden = false;
  };
  card.querySelectorAll("button").forEach((button) => (button.tabIndex = -1));
  cards.set(card.dataset.key, card);
  return card;
}

function fill(card, result, hue) {
  card.result = result;
  const [name, position] = result.key;
  const title = result.caption || result.id || `#${position}`;
  const image = card.querySelector("img");
  const source = result.small && `/picture/${result.small}`;
  if (source && image.getAttribute("src") !== source) image.src = source;
  image.hidden = !source;
  image.alt = result.caption || `Picture of ${name}`;
  card.classList.toggle("waiting", result.waiting);
  card.querySelector(".nothing").hidden = Boolean(source) || result.waiting;
  card.querySelector(".caption").textContent = result.waiting ? "" : title;
  card.querySelector(".dot").className = `dot hue${hue}`;
  card.querySelector(".name").textContent = name;
  card.querySelector(".score").textContent = result.score.toFixed(3);
  card.querySelector(".open").setAttribute("aria-label", `${title}, from ${name}, score ${result.score.toFixed(2)}`);
  for (const [verb, words] of [["good", "Good"], ["bad", "Bad"], ["like", "More like this"]]) {
    const button = card.querySelector(`.${verb}`);
    button.disabled = !result.teaches;
    button.setAttribute("aria-label", `${words}: ${title}`);
  }
  showMark(card);
}

function showMark(card) {
  const mark = markOf(card.result);
  card.dataset.mark = mark ?? "";
  for (const one of ["good", "bad"])
    card.querySelector(`.${one}`).setAttribute("aria-pressed", String(one === mark));
}

function placeholder() {
  const held = document.createElement("li");
  held.className = "card waiting";
  held.setAttribute("aria-hidden", "true");
  held.append(Object.assign(document.createElement("span"), { className: "frame" }));
  return held;
}

/** One card at a time is in the order of the Tab key. */
function rove(card) {
  if (!card?.result) return;
  for (const other of cards.values())
    for (const button of other.querySelectorAll("button")) button.tabIndex = other === card ? 0 : -1;
}

function onKey(event) {
  const card = event.target.closest(".card");
  if (!card?.result || event.ctrlKey || event.metaKey || event.altKey) return;
  const all = [...grid.children].filter((one) => one.result);
  const place = all.indexOf(card);
  const wide = all.filter((one) => one.offsetTop === all[0].offsetTop).length;
  const to = {
    ArrowLeft: place - 1, ArrowRight: place + 1, ArrowUp: place - wide, ArrowDown: place + wide,
    Home: 0, End: all.length - 1,
  }[event.key];
  if (to !== undefined) {
    event.preventDefault();
    all[to]?.querySelector(".open").focus();
  } else if (event.key === "g" || event.key === "b") toggle(card.result, event.key === "g" ? "good" : "bad");
  else if (event.key === "m" && card.result.teaches) act.like(card.result);
}
