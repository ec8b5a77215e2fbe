// The panel of similar regions: what was boxed, and the tiles of the cohort that are like it.

import { fetched, sent, slidePath } from "./api.js";
import { cropCanvas } from "./crop.js";
import { element } from "./dom.js";

const COUNT = 24;
const CARD_PX = 128;

/** Tells by an event: "visit" with detail {slide, box, beside}. */
export class SearchPanel extends EventTarget {
  /** find   id -> {id, size} of the list of slides */
  constructor(place, find) {
    super();
    this.place = place;
    this.find = find;
    this.hint();
  }

  hint() {
    this.place.replaceChildren(element("p", { class: "hint" },
      "Take the similar-region tool (F) and box something: its nearest neighbours among all "
      + "processed slides appear here."));
  }

  /** Ask for tiles like a box of a pane's slide. */
  async search(pane, drawn) {
    const slide = { id: pane.slide.id, size: pane.slide.size };
    const box = await tileBox(slide, drawn);
    const asked = element("figure", { class: "asked" }, cropCanvas(slide, box, CARD_PX),
      element("figcaption", {}, `Boxed on ${slide.id}`));
    const waiting = element("p", { class: "hint", role: "status" }, "Searching…");
    this.place.replaceChildren(asked, waiting);
    try {
      const question = { box, count: COUNT };
      const { content } = await sent("POST", slidePath(slide.id, "/similar"), question);
      waiting.remove();
      for (const remark of content.remarks) {
        this.place.append(element("p", { class: "hint" }, String(remark)));
      }
      const grid = element("div", { class: "results" }, content.tiles.map((tile) => this.card(tile)));
      this.place.append(grid);
      if (!content.tiles.length) this.place.append(element("p", { class: "hint" }, "Nothing is like it."));
    } catch (problem) {
      waiting.className = "warning-text";
      waiting.textContent = problem.message;
    }
  }

  card({ slide: id, x, y, w, h, similarity }) {
    const slide = this.find(id);
    const box = [x, y, w, h];
    const visit = (event) => this.dispatchEvent(
      new CustomEvent("visit", { detail: { slide: id, box, beside: event.shiftKey } }));
    return element("button", {
      type: "button", class: "result", title: `${id}\nShift-click: open beside`, on: { click: visit },
    }, slide?.size ? cropCanvas(slide, box, CARD_PX) : element("span", { class: "no-crop" }),
    element("span", { class: "result-name" }, id),
    element("span", { class: "quiet" }, similarity.toFixed(3)));
  }
}

/** The box, made so large around its middle that the centre of a tile lies in it. */
async function tileBox({ id, size }, [x, y, w, h]) {
  const { grids } = await fetched(slidePath(id, "/outlines")).catch(() => ({ grids: [] }));
  const sides = [w, h].map((side, axis) =>
    Math.min(size[axis], Math.max(side, ...grids.map(({ step_px0: step }) => Math.ceil(step[axis]) + 1))));
  const corner = [x + w / 2, y + h / 2].map((middle, axis) =>
    Math.min(Math.max(0, middle - sides[axis] / 2), size[axis] - sides[axis]));
  return [...corner, ...sides];
}
