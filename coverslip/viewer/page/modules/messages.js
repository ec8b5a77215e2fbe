// Short messages at the edge of the page; screen readers are told, nothing is blocked.

import { element, iconButton } from "./dom.js";

const SHOWN_MS = 5000;
const MOST = 4;

/** Say something.
 *  kind     "note", "success" or "problem"; a problem stays until it is closed
 *  action   {label, run}: a button
 *  key      a later message of the same key takes this one's place
 */
export function say(text, { kind = "note", action = null, key = "" } = {}) {
  const place = document.getElementById("messages");
  if (key) place.querySelector(`[data-key="${CSS.escape(key)}"]`)?.remove();
  const message = element("div", { class: `message ${kind}`, "data-key": key || null });
  const close = () => message.remove();
  message.append(element("p", {}, text));
  for (const each of [action].flat().filter(Boolean)) {
    const run = () => {
      close();
      each.run();
    };
    message.append(element("button", { type: "button", class: "text-button", on: { click: run } },
      each.label));
  }
  message.append(iconButton("close", "Close this message", { on: { click: close } }));
  place.append(message);
  while (place.children.length > MOST) place.firstElementChild.remove();
  if (kind !== "problem" && !action) setTimeout(close, SHOWN_MS);
}

/** Tell of an error; one that a person caused by going on is none. */
export function sayProblem(error, key = "") {
  if (error.name === "AbortError") return;
  say(error.message, { kind: "problem", key });
}
