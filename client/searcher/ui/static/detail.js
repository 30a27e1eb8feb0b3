// One picture, larger, with all that was released of it.

import { markOf, onMarks, toggle } from "./marks.js";

const dialog = document.getElementById("detail");
let shown = null;

/** `act.like(result)` looks for more; `act.opener(result)` is what gets the focus back. */
export function startDetail(act) {
  for (const mark of ["good", "bad"])
    dialog.querySelector(`.${mark}`).onclick = () => toggle(shown, mark);
  dialog.querySelector(".like").onclick = () => {
    dialog.close();
    act.like(shown);
  };
  dialog.addEventListener("close", () => act.opener(shown)?.focus());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "g" || event.key === "b") toggle(shown, event.key === "g" ? "good" : "bad");
  });
  onMarks(showMark);
}

export function openDetail(result) {
  shown = result;
  const [name, position] = result.key;
  const image = dialog.querySelector("img");
  image.hidden = !result.large;
  dialog.querySelector(".nothing").hidden = Boolean(result.large);
  image.onerror = () => {
    // An original that the browser cannot show: then its thumbnail.
    if (!image.src.endsWith(result.small)) image.src = `/picture/${result.small}`;
  };
  if (result.large) image.src = `/picture/${result.large}`;
  else image.removeAttribute("src");
  image.alt = result.caption || `Picture of ${name}`;
  dialog.querySelector("h2").textContent = result.caption || `${name} #${position}`;
  const facts = { Institution: name, Position: `#${position}`, Score: result.score.toFixed(4) };
  if (result.id) facts.Id = result.id;
  dialog.querySelector("dl").replaceChildren(
    ...Object.entries(facts).flatMap(([term, fact]) => [
      Object.assign(document.createElement("dt"), { textContent: term }),
      Object.assign(document.createElement("dd"), { textContent: fact }),
    ]),
  );
  for (const verb of ["good", "bad", "like"]) dialog.querySelector(`.${verb}`).disabled = !result.teaches;
  showMark();
  dialog.showModal();
}

function showMark() {
  if (!shown) return;
  for (const one of ["good", "bad"])
    dialog.querySelector(`.${one}`).setAttribute("aria-pressed", String(markOf(shown) === one));
}
