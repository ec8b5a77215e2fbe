// The card beside the pointer: what the object under it is, and what was measured of it.

import { fetched, slidePath } from "./api.js";
import { element } from "./dom.js";
import { number } from "./measures.js";

const DWELL_MS = 110;
const MOST_KEPT = 500;
const AWAY_PX = 18;

export class HoverCard {
  /** resting   whether the pointer may be asked about (no tool is in hand) */
  constructor(pane, resting) {
    this.pane = pane;
    this.resting = resting;
    this.card = element("div", { class: "hover-card", role: "status", hidden: true });
    pane.element.append(this.card);
    this.found = null;
    this.kept = new Map();
    pane.element.addEventListener("pointermove", (event) => this.moved(event));
    pane.element.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") this.hide();
    });
    pane.element.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "mouse") this.moved(event);
    });
    pane.addEventListener("place", () => this.hide());
  }

  moved(event) {
    if (!this.pane.slide || !this.resting() || event.buttons > 1) return this.hide();
    const [x, y] = this.pane.pointOf(event);
    const found = this.pane.objects.objectAt(x, y, this.pane.scale);
    if (!found) return this.hide();
    this.put(event);
    if (found.layer === this.found?.layer && found.index === this.found.index) return undefined;
    this.found = found;
    this.pane.sketch.hovered = found.ring;
    this.pane.redraw();
    this.fill(found, this.kept.get(keyOf(found)));
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.measure(found, x, y), DWELL_MS);
    return undefined;
  }

  async measure(found, x, y) {
    const key = keyOf(found);
    if (this.kept.has(key)) return;
    const { slide } = this.pane;
    const model = encodeURIComponent(found.layer.facts.model);
    try {
      const answer = await fetched(slidePath(slide.id, `/nuclei/${model}/at?x=${x}&y=${y}`));
      if (this.kept.size > MOST_KEPT) this.kept.clear();
      this.kept.set(key, answer);
      if (this.found === found) this.fill(found, answer);
    } catch {
      // the card says what the outline alone tells
    }
  }

  fill({ layer, class: classId, probability }, answer) {
    const { name, colour } = layer.classes[classId] ?? { name: "Object", colour: "#b2b2b2" };
    const swatch = element("span", { class: "swatch" });
    swatch.style.background = colour;
    const measurements = Object.entries(answer?.measurements ?? {})
      .filter(([title]) => title !== "Detection probability");
    const rows = [["Probability", probability.toFixed(2)],
      ...measurements.map(([title, value]) => [shortTitle(title), number(value)])];
    this.card.replaceChildren(
      element("div", { class: "hover-head" }, swatch, element("strong", {}, name)),
      element("dl", { class: "facts" },
        rows.flatMap(([title, value]) => [element("dt", {}, title), element("dd", {}, value)])));
    this.card.hidden = false;
  }

  put(event) {
    const box = this.pane.element.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const right = x + AWAY_PX + 240 > box.width;
    const below = y > box.height * 0.6;
    const { style } = this.card;
    style.left = right ? "" : `${x + AWAY_PX}px`;
    style.right = right ? `${box.width - x + AWAY_PX}px` : "";
    style.top = below ? "" : `${y + AWAY_PX}px`;
    style.bottom = below ? `${box.height - y + AWAY_PX}px` : "";
  }

  hide() {
    clearTimeout(this.timer);
    if (!this.found) return;
    this.found = null;
    this.card.hidden = true;
    this.pane.sketch.hovered = null;
    this.pane.redraw();
  }
}

function keyOf({ layer, index }) {
  return `${layer.slide.id}\n${layer.facts.model}\n${index}`;
}

/** "Nucleus: Area µm^2" -> "Area µm²". */
function shortTitle(title) {
  return title.replace(/^(Nucleus|Gland|Lumen): /, "").replace("µm^2", "µm²");
}
