// The person's own picture to search by: chosen, dropped or pasted.

import { hand, words } from "./stream.js";

const box = document.getElementById("own");
const file = document.getElementById("file");
const pick = document.getElementById("pick");
const drop = document.getElementById("drop");
let name = null;
let inside = 0;

/** The name under which the server has the picture, or null. */
export const ownPicture = () => name;

/** `taken()` is called when a picture is there, `refused(error)` when it is none. */
export function startOwn(taken, refused) {
  const take = async (picture) => {
    if (!picture) return;
    try {
      const most = Number(file.dataset.mostBytes);
      if (picture.size > most)
        throw { message: `The picture is larger than ${most / 2 ** 20} MB.`, hint: "Scale it down." };
      name = await hand(picture);
      show(picture);
      taken();
    } catch (error) {
      refused(words(error));
    }
  };
  pick.onclick = () => file.click();
  file.onchange = async () => {
    await take(file.files[0]);
    file.value = "";
  };
  box.querySelector("button").onclick = () => {
    forgetOwn();
    pick.focus();
  };
  addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) {
      event.preventDefault();
      take(event.clipboardData.files[0]);
    }
  });
  const carries = (event) => event.dataTransfer?.types.includes("Files");
  const over = (by) => (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    inside += by;
    drop.hidden = inside <= 0;
  };
  addEventListener("dragenter", over(1));
  addEventListener("dragleave", over(-1));
  addEventListener("dragover", over(0));
  addEventListener("drop", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    inside = 0;
    drop.hidden = true;
    take(event.dataTransfer.files[0]);
  });
}

export function forgetOwn() {
  name = null;
  box.hidden = true;
  pick.hidden = false;
}

function show(picture) {
  const image = box.querySelector("img");
  image.onload = () => URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(picture);
  box.hidden = false;
  pick.hidden = true;
}
