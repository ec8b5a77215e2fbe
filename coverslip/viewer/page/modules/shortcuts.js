// Keys, and the sheet that lists them.

import { element } from "./dom.js";

/** Groups of [keys as they are written, what they do, key, action]; filled by the page. */
export class Shortcuts {
  constructor(dialog) {
    this.dialog = dialog;
    this.groups = [];
    document.addEventListener("keydown", (event) => this.pressed(event));
  }

  /** A group of shortcuts: {keys: "N", label, match: ["n"], run}. */
  add(title, shortcuts) {
    this.groups.push({ title, shortcuts });
  }

  pressed(event) {
    const { target } = event;
    const typing = target.matches?.("input:not([type=checkbox], [type=radio], [type=range], [type=color]), textarea, select");
    if (event.key === "Escape" && typing) target.blur();
    if (typing || this.dialog.open) return;
    const key = (event.ctrlKey || event.metaKey ? "ctrl+" : "") +
      (event.shiftKey && event.key.length > 1 ? "shift+" : "") + keyName(event);
    if (event.altKey) return;
    for (const { shortcuts } of this.groups) {
      for (const { match, run } of shortcuts) {
        if (!match.includes(key)) continue;
        if (key.startsWith("arrow") && target.matches?.("input, [role=tab]")) return;
        event.preventDefault();
        run(key);
        return;
      }
    }
  }

  /** Show the sheet. */
  show() {
    const sheet = this.dialog.querySelector(".sheet");
    sheet.replaceChildren(...this.groups.map(({ title, shortcuts }) =>
      element("section", {}, element("h3", {}, title),
        element("dl", { class: "keys" }, shortcuts.flatMap(({ keys, label }) => [
          element("dt", {}, keys.split(" ").map((each) => element("kbd", {}, each))),
          element("dd", {}, label),
        ])))));
    this.dialog.showModal();
  }
}

function keyName({ key, shiftKey, ctrlKey, metaKey }) {
  if (key.length === 1 && (ctrlKey || metaKey)) return (shiftKey ? "shift+" : "") + key.toLowerCase();
  return key.toLowerCase();
}
