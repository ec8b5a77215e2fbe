// The list of slides: a picture, a name, what has been done; filtered as you type.

import { fetched } from "./api.js";
import { element, icon } from "./dom.js";
import { number } from "./measures.js";
import { sayProblem } from "./messages.js";

const AGAIN_MS = 2000;
const STATUS = {
  done: ["check", "Processed"],
  partial: ["partial", "Partly processed"],
  "not run": ["empty", "Not processed"],
  unreadable: ["warning", "Cannot be opened"],
};

/** Tells by events: "open" with detail {id, beside}, "loaded". */
export class SlideList extends EventTarget {
  constructor() {
    super();
    this.place = document.getElementById("slides");
    this.filter = document.getElementById("slide-filter");
    this.count = document.getElementById("slide-count");
    this.slides = [];
    this.facts = {};
    this.open = [];
    this.filter.addEventListener("input", () => this.fill());
    this.place.addEventListener("keydown", (event) => this.step(event));
  }

  /** Ask the server, again while it still looks into slides. */
  async load() {
    try {
      this.facts = await fetched("/api/slides");
      this.slides = this.facts.slides;
      this.fill();
      this.dispatchEvent(new Event("loaded"));
      if (this.facts.pending) setTimeout(() => this.load(), AGAIN_MS);
    } catch (problem) {
      sayProblem(problem, "slides");
    }
  }

  /** The slide of an id, or undefined. */
  find(id) {
    return this.slides.find((slide) => slide.id === id);
  }

  /** Mark the slides that the panes show. */
  mark(ids) {
    this.open = ids;
    for (const item of this.place.querySelectorAll("[data-id]")) {
      const shown = ids.includes(item.dataset.id);
      item.setAttribute("aria-current", shown ? "true" : "false");
      if (item.dataset.id === ids[0]) item.scrollIntoView({ block: "nearest" });
    }
  }

  /** The id `step` slides after that one, among those shown. */
  beside(id, step) {
    const shown = this.shown();
    const at = shown.findIndex((slide) => slide.id === id);
    return shown[Math.min(Math.max(at + step, 0), shown.length - 1)]?.id;
  }

  shown() {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    return this.slides.filter((slide) => {
      const text = `${slide.name} ${slide.status} ${slide.stages.join(" ")}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
  }

  fill() {
    const shown = this.shown();
    this.count.textContent =
      shown.length === this.slides.length ? `${shown.length}` : `${shown.length} of ${this.slides.length}`;
    this.place.replaceChildren(...shown.map((slide) => this.item(slide)));
    if (!shown.length) {
      const text = this.slides.length ? "No slide matches." : "No slides.";
      this.place.append(element("li", { class: "hint" }, text));
    }
    this.mark(this.open);
  }

  item(slide) {
    const [picture, label] = STATUS[slide.status] ?? STATUS["not run"];
    const details = [
      slide.size ? `${slide.size.map((side) => side.toLocaleString("en")).join(" × ")}` : null,
      slide.mpp ? `${number(slide.mpp[0])} µm` : null,
    ].filter(Boolean);
    const readable = slide.status !== "unreadable";
    const tell = (beside) =>
      this.dispatchEvent(new CustomEvent("open", { detail: { id: slide.id, beside } }));
    const thumbnail = readable
      ? element("img", { src: slide.thumbnail, alt: "", loading: "lazy", decoding: "async", draggable: false })
      : icon("warning");
    const button = element(
      "button",
      {
        type: "button", class: "slide", "data-id": slide.id, "aria-current": "false",
        title: slide.problem ?? `${slide.name}\nShift-click: open beside`,
        disabled: !readable, on: { click: (event) => tell(event.shiftKey) },
      },
      element("span", { class: "thumbnail" }, thumbnail),
      element(
        "span", { class: "slide-text" },
        element("span", { class: "slide-name" }, slide.name),
        element("span", { class: "slide-detail" }, details.join(" · ") || slide.problem || "…"),
        element("span", { class: `status ${slide.status.replace(" ", "-")}` }, icon(picture), label),
      ),
    );
    return element("li", {}, button);
  }

  step(event) {
    const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!move) return;
    event.preventDefault();
    event.stopPropagation();
    const buttons = [...this.place.querySelectorAll("button:not([disabled])")];
    const at = buttons.indexOf(document.activeElement);
    buttons[Math.min(Math.max(at + move, 0), buttons.length - 1)]?.focus();
  }
}
