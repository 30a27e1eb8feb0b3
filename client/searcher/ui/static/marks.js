// What was marked as good or bad among the results; nothing of it leaves before "Search on".

const marks = new Map();
const listeners = [];

export const keyOf = (result) => result.key.join("#");

/** Call `then` whenever a mark changes. */
export function onMarks(then) {
  listeners.push(then);
}

/** "good", "bad" or undefined. */
export const markOf = (result) => marks.get(keyOf(result))?.mark;

/** Mark a result, or take the same mark back. */
export function toggle(result, mark) {
  if (!result.teaches) return;
  if (markOf(result) === mark) marks.delete(keyOf(result));
  else marks.set(keyOf(result), { mark, key: result.key });
  listeners.forEach((then) => then());
}

/** Forget marks; with results, those of pictures that are not among them any more. */
export function forget(results = []) {
  const left = new Set(results.map(keyOf));
  for (const key of [...marks.keys()]) if (!left.has(key)) marks.delete(key);
  listeners.forEach((then) => then());
}

/** The keys that bear a mark. */
export const marked = (mark) =>
  [...marks.values()].filter((one) => one.mark === mark).map((one) => one.key);
