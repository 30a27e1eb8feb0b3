// The page: a question, its answers as they come, and the steps that lead on from them.

import { opener, showCards, startCards } from "./cards.js";
import { openDetail, startDetail } from "./detail.js";
import { forget, marked, onMarks } from "./marks.js";
import { forgetOwn, ownPicture, startOwn } from "./own.js";
import { hueOf, isShown, showAll, showParties, showSeen } from "./parties.js";
import { ask } from "./stream.js";

const at = (id) => document.getElementById(id);
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
let view = null;

at("search").onsubmit = (event) => {
  event.preventDefault();
  addTerms();
  const text = at("text").value.trim();
  if (!text && !ownPicture()) {
    at("text").focus();
    return problem({ message: "Say what the pictures shall show, or add a picture.", hint: "" });
  }
  start("/search", { text, without: terms(), picture: ownPicture(), k: Number(at("k").value) });
};
at("refine").onclick = refine;
at("clear").onclick = () => forget();
// A step that failed was taken back by the server already.
at("undo").onclick = () => start("/back", { steps: view.failed ? 0 : 1 });

startCards({ open: openDetail, like });
startDetail({ like, opener });
startOwn(
  () => at("search").requestSubmit(),
  (error) => problem(error),
);
onMarks(showMarked);

// What is there is there again after the page was loaded anew.
if ("started" in document.body.dataset) ask("/back", { steps: 0 }, show);

function start(path, body) {
  problem(null);
  showAll();
  ask(path, body, show);
}

function refine() {
  const good = marked("good");
  const bad = marked("bad");
  if (good.length + bad.length) start("/refine", { good, bad });
}

function like(result) {
  start("/like", { key: result.key });
}

function show(found) {
  if (found.error) {
    problem(found.error);
    if (view && !view.done) show({ ...view, institutions: view.institutions.map(given), done: true, failed: true });
    return;
  }
  view = found;
  forget(view.results);
  draw();
  at("privacy").hidden = false;
  showSeen(view);
  showTrail();
  at("status").textContent = told();
}

/** An institution whose answer is not waited for any more. */
const given = (one) => (["asking", "sending"].includes(one.state) ? { ...one, state: "stopped" } : one);

function draw() {
  const results = view.results.filter((one) => isShown(one.key[0]));
  showParties(view, draw);
  showCards(results, hueOf, view.done ? 0 : view.k);
  at("empty").hidden = results.length > 0 || !view.done;
  at("empty").querySelector("p").textContent = "No picture was found.";
}

function told() {
  const asked = view.institutions.length;
  const answered = view.institutions.filter((one) => one.state === "answered").length;
  if (!view.done) return answered ? `${answered} of ${plural(asked, "institution")} answered so far.` : "Searching.";
  const notes = view.institutions.filter((one) => one.note).map((one) => `${one.name}: ${one.note.message}.`);
  return [`${plural(view.results.length, "picture")} from ${answered} of ${plural(asked, "institution")}.`, ...notes].join(" ");
}

function showTrail() {
  const steps = view.trail.length;
  at("trail").hidden = !steps;
  at("undo").hidden = steps < 2;
  const seconds = view.milliseconds ? ` · ${(view.milliseconds / 1000).toFixed(1)} s` : "";
  at("trail").querySelector("p").textContent =
    `${view.trail.at(-1) ?? ""}${view.done ? seconds : " · searching"}`;
}

function showMarked() {
  const [good, bad] = [marked("good").length, marked("bad").length];
  at("marks").hidden = !(good + bad);
  at("marks").querySelector("p").textContent =
    [good && `${good} good`, bad && `${bad} bad`].filter(Boolean).join(", ");
}

function problem(error) {
  const words = error ? [Object.assign(document.createElement("b"), { textContent: error.message })] : [];
  if (error?.hint) words.push(" ", error.hint);
  at("problem").replaceChildren(...words);
}

// Terms that the pictures shall not show.

const terms = () => [...at("chips").children].map((one) => one.firstChild.textContent);

function addTerms() {
  for (const term of at("not").value.split(",").map((one) => one.trim()).filter(Boolean)) {
    if (terms().includes(term)) continue;
    const chip = document.createElement("li");
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: "×" });
    button.setAttribute("aria-label", `Remove: not ${term}`);
    button.onclick = () => {
      chip.remove();
      at("not").focus();
    };
    chip.append(term, button);
    at("chips").append(chip);
  }
  at("not").value = "";
}

at("not").addEventListener("input", () => at("not").value.includes(",") && addTerms());
at("not").addEventListener("keydown", (event) => {
  if (event.key === "Backspace" && !at("not").value) at("chips").lastElementChild?.remove();
});

// Keys, and dialogs that a click beside them closes.

addEventListener("keydown", (event) => {
  const typing = event.target.closest("input:not([type=file]), select, textarea");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const closed = !document.querySelector("dialog[open]");
  const verb = {
    "?": () => closed && at("help").showModal(),
    "/": () => closed && at("text").focus(),
    s: () => closed && refine(),
    u: () => closed && !at("undo").hidden && at("undo").click(),
  }[event.key];
  if (!verb) return;
  event.preventDefault();
  verb();
});
for (const button of document.querySelectorAll("[data-open]"))
  button.onclick = () => at(button.dataset.open).showModal();
for (const dialog of document.querySelectorAll("dialog"))
  dialog.onclick = (event) => event.target === dialog && dialog.close();
at("privacy").open = matchMedia("(min-width: 60rem)").matches;
