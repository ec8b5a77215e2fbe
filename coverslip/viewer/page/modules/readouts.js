// What a pane says of itself: scale bar, magnification, place, how objects are drawn.

import { element } from "./dom.js";
import { magnification, number, scaleBar } from "./measures.js";

const BAR_PX = 140;

export class Readouts {
  constructor(pane) {
    this.pane = pane;
    this.name = element("span", { class: "pane-name" });
    this.barText = element("span", {});
    this.barLine = element("span", { class: "bar-line" });
    this.power = element("span", { class: "power" });
    this.place = element("span", { class: "quiet place" });
    this.detail = element("span", { class: "quiet" });
    pane.element.append(
      this.name,
      element("div", { class: "pane-foot" },
        element("div", { class: "scale-bar", role: "img" }, this.barText, this.barLine),
        element("div", { class: "readout" }, this.power, this.place, this.detail)));
    pane.addEventListener("place", () => this.update());
    pane.addEventListener("open", () => this.update());
    pane.addEventListener("layers", () => this.update());
    pane.element.addEventListener("pointermove", (event) => this.pointed(event));
    pane.element.addEventListener("pointerleave", () => this.place.replaceChildren());
  }

  update() {
    const { pane } = this;
    if (!pane.slide) return;
    const { scale, umPerPx } = pane;
    const variant = pane.variant === "original" ? "" : ` · ${pane.variant}`;
    this.name.textContent = `${pane.slide.name ?? pane.slide.id}${variant}`;
    const { px, text } = scaleBar(BAR_PX, umPerPx, scale);
    this.barLine.style.width = `${px}px`;
    this.barText.textContent = text;
    this.barText.parentElement.setAttribute("aria-label", `Scale bar: ${text}`);
    this.power.textContent = umPerPx
      ? `${magnification(umPerPx)} · ${number(umPerPx)} µm/px`
      : `${number(scale * 100)} %`;
    const shown = pane.objects.layers.filter((layer) => layer.visible);
    const ways = new Set(shown.map((layer) => layer.detail(scale)));
    this.detail.textContent = ways.has("density") ? "density; zoom in for outlines" : "";
  }

  pointed(event) {
    if (!this.pane.slide || event.pointerType !== "mouse") return;
    const [x, y] = this.pane.pointOf(event);
    const [width, height] = this.pane.slide.size;
    const inside = x >= 0 && y >= 0 && x < width && y < height;
    this.place.textContent = inside
      ? `x ${Math.floor(x).toLocaleString("en")}, y ${Math.floor(y).toLocaleString("en")}`
      : "";
  }
}
