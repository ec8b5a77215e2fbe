// The panel of what lies over a slide: its colours, objects, heat maps, outlines.

import { fetched, sent, slidePath } from "./api.js";
import { chooseColour, forgetColours, hexadecimal, VIRIDIS } from "./colours.js";
import { element, settled, slider, toggle } from "./dom.js";
import { number } from "./measures.js";
import { sayProblem } from "./messages.js";

const VARIANTS = {
  original: "Original", normalised: "Normalised", haematoxylin: "Haematoxylin", eosin: "Eosin",
};
const KINDS = {
  attention: "Attention", probability: "Class probability", prompt: "Text prompt",
  "class map": "Tissue classes", quality: "Quality",
};
const NOUNS = { nuclei: "nuclei", glands: "glands", lumina: "lumina" };

export class LayerPanel {
  /** panel place; encoders: () -> names of encoders that take a text */
  constructor(place, encoders) {
    this.place = place;
    this.encoders = encoders;
    this.pane = null;
  }

  /** Show the layers of a pane; `reload` is called where the server holds new ones. */
  show(pane, reload) {
    this.pane = pane;
    this.reload = reload;
    const { slide } = pane;
    if (!slide) {
      this.place.replaceChildren(element("p", { class: "hint" }, "Choose a slide from the list."));
      return;
    }
    const sections = [
      this.slideFacts(), this.colours(), ...pane.objects.layers.map((layer) => this.objects(layer)),
      this.heat(), this.outlines(),
    ];
    this.place.replaceChildren(...sections.filter(Boolean));
    if (!slide.nuclei.length && !slide.heat.length) {
      this.place.append(element("p", { class: "hint" },
        "Nothing has been computed on this slide yet. The Run tab starts it."));
    }
  }

  section(title, ...content) {
    return element("section", { class: "section" }, element("h3", {}, title), ...content);
  }

  slideFacts() {
    const { slide } = this.pane;
    const [width, height] = slide.size;
    const lines = [
      ["Size", `${width.toLocaleString("en")} × ${height.toLocaleString("en")} px`],
      ["Pixel", slide.mpp ? `${number(slide.mpp[0])} µm` : "unknown"],
      ["Stages", slide.stages.length ? String(slide.stages.length) : "none"],
    ];
    const list = element("dl", { class: "facts" },
      lines.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
    if (slide.stages.length) {
      list.lastElementChild.title = slide.stages.join("\n");
    }
    const label = slide.label ? this.label() : null;
    const problem = slide.problem ? element("p", { class: "warning-text" }, slide.problem) : null;
    return this.section(slide.name ?? slide.id, list, problem, label);
  }

  label() {
    const picture = element("img", { class: "label-image", alt: "Label of the slide", hidden: true });
    const show = () => {
      picture.src = slidePath(this.pane.slide.id, "/label.jpg");
      picture.hidden = !picture.hidden;
    };
    return element("div", {},
      element("button", { type: "button", class: "text-button", on: { click: show } }, "Label"), picture);
  }

  colours() {
    const { slide } = this.pane;
    if (slide.variants.length < 2) return null;
    const name = `variant-${this.pane.name}`;
    const choices = slide.variants.map((variant) =>
      element("label", {},
        element("input", {
          type: "radio", name, value: variant, checked: variant === this.pane.variant,
          on: { change: () => this.pane.showVariant(variant) },
        }),
        element("span", {}, VARIANTS[variant] ?? variant)));
    return this.section("Colours",
      element("div", { class: "segments", role: "radiogroup", "aria-label": "Colours" }, choices));
  }

  objects(layer) {
    const redraw = () => this.pane.redraw();
    const set = (name) => (value) => {
      layer[name] = value;
      redraw();
    };
    const { facts } = layer;
    const count = `${facts.count.toLocaleString("en")} ${NOUNS[facts.kind] ?? facts.kind}`;
    const controls = element("div", { class: "controls" },
      slider("Opacity", layer.opacity, set("opacity")),
      slider("Fill", layer.fill, set("fill")),
      slider("Probability from", layer.least, set("least"), { text: (value) => value.toFixed(2) }),
      this.classes(layer));
    controls.hidden = !layer.visible;
    const shown = toggle(count, layer.visible, (visible) => {
      layer.visible = visible;
      controls.hidden = !visible;
      redraw();
    }, { "data-layer": facts.model });
    return this.section(facts.model, shown, controls);
  }

  classes(layer) {
    const list = element("ul", { class: "classes" });
    layer.classes.forEach((each, number_) => {
      const change = (properties) => {
        Object.assign(each, properties);
        layer.recolour();
        if ("visible" in properties) this.pane.showDensity();
        this.pane.redraw();
      };
      const colour = element("input", {
        type: "color", value: each.colour, "aria-label": `Colour of ${each.name}`,
        on: { input: ({ target }) => {
          chooseColour(each.name, target.value);
          change({ colour: target.value });
        } },
      });
      const only = () => {
        layer.classes.forEach((other, n) => {
          other.visible = n === number_;
        });
        change({ visible: true });
        list.replaceWith(this.classes(layer));
      };
      list.append(element("li", {}, colour,
        toggle(each.name, each.visible, (visible) => change({ visible })),
        layer.classes.length > 1
          ? element("button", { type: "button", class: "text-button quiet", on: { click: only },
              title: `Show ${each.name} alone` }, "only")
          : null));
    });
    const fresh = () => {
      forgetColours();
      this.reload();
    };
    list.append(element("li", { class: "legend-actions" },
      element("button", { type: "button", class: "text-button quiet", on: { click: fresh } },
        "Standard colours")));
    return list;
  }

  heat() {
    const { slide, heat } = this.pane;
    const encoders = this.encoders();
    if (!slide.heat.length && !encoders.length) return null;
    const select = element("select", { "aria-label": "Heat map", id: `heat-${this.pane.name}` },
      element("option", { value: "" }, "None"));
    for (const [kind, title] of Object.entries(KINDS)) {
      const layers = slide.heat.filter((layer) => layer.kind === kind);
      if (!layers.length) continue;
      select.append(element("optgroup", { label: title }, layers.map((layer) =>
        element("option", { value: layer.layer }, heatTitle(layer)))));
    }
    select.value = heat.layer?.layer ?? "";
    const controls = element("div", { class: "controls" });
    select.addEventListener("change", () => {
      const layer = slide.heat.find((each) => each.layer === select.value) ?? null;
      this.pane.showHeat(layer);
      controls.replaceChildren(...this.heatControls(layer));
    });
    controls.replaceChildren(...this.heatControls(heat.layer));
    return this.section("Heat map", slide.heat.length ? select : null, controls,
      encoders.length ? this.prompt(encoders) : null);
  }

  heatControls(layer) {
    if (!layer) return [];
    const { pane } = this;
    const opacity = slider("Opacity", pane.heat.opacity, (value) => pane.fadeHeat(value));
    if (layer.classes) return [this.classLegend(layer), opacity];
    const [low, high] = layer.limits;
    const bounds = { low: null, high: null };
    const show = settled(200, () => pane.showHeat(layer, bounds));
    const bound = (name, label, start) =>
      slider(label, start, (value) => {
        bounds[name] = value === start ? null : value;
        show();
      }, { least: low, most: high, step: (high - low) / 200, text: number });
    return [this.ramp(layer), opacity, bound("low", "From", low), bound("high", "To", high)];
  }

  ramp({ limits: [low, high] }) {
    const bar = element("span", { class: "ramp", role: "img", "aria-label": "viridis, dark is low" });
    bar.style.background = `linear-gradient(to right, ${VIRIDIS.join(", ")})`;
    return element("div", { class: "ramp-legend" },
      element("span", {}, number(low)), bar, element("span", {}, number(high)));
  }

  classLegend({ classes }) {
    return element("ul", { class: "classes" }, classes.map(({ name, color }) => {
      const swatch = element("span", { class: "swatch" });
      swatch.style.background = hexadecimal(color);
      return element("li", {}, swatch, element("span", {}, name));
    }));
  }

  prompt(encoders) {
    const text = element("input", {
      type: "text", placeholder: "e.g. inflamed mucosa", maxLength: 500, required: true,
      "aria-label": "Text to look for", name: "prompt",
    });
    const encoder = element("select", { "aria-label": "Encoder" },
      encoders.map((name) => element("option", { value: name }, name)));
    encoder.hidden = encoders.length < 2;
    const button = element("button", { type: "submit", class: "button" }, "Look for it");
    const ask = async (event) => {
      event.preventDefault();
      button.disabled = true;
      const { pane } = this;
      const { id } = pane.slide;
      try {
        const question = { encoder: encoder.value, text: text.value };
        const { content } = await sent("POST", slidePath(id, "/prompt"), question);
        const facts = await fetched(slidePath(id));
        if (pane.slide?.id !== id) return;
        pane.slide.heat = facts.heat;
        pane.showHeat(facts.heat.find((each) => each.layer === content.layer) ?? null);
        this.show(pane, this.reload);
      } catch (problem) {
        sayProblem(problem, "prompt");
      } finally {
        button.disabled = false;
      }
    };
    return element("form", { class: "prompt", on: { submit: ask } }, text, encoder, button);
  }

  outlines() {
    const { pane } = this;
    if (!pane.slide.outlines && !pane.sketch.grid) {
      if (!pane.slide.stages.some((stage) => stage.startsWith("tiles/"))) return null;
    }
    const load = async () => {
      if (pane.sketch.tissue) return;
      const { id } = pane.slide;
      const { features, grids } = await fetched(slidePath(id, "/outlines"));
      if (pane.slide?.id !== id) return;
      pane.sketch.setTissue(features);
      pane.sketch.grid = grids[0] ?? null;
    };
    const show = (name) => async (visible) => {
      pane.sketch[name] = visible;
      await load().catch((problem) => sayProblem(problem, "outlines"));
      pane.redraw();
    };
    return this.section("Outlines",
      toggle("Tissue", pane.sketch.showTissue, show("showTissue"), { "data-layer": "tissue" }),
      toggle("Tile grid", pane.sketch.showGrid, show("showGrid"), { "data-layer": "grid" }));
  }
}

function heatTitle({ kind, title, column }) {
  return kind === "quality" ? column : `${column} · ${title}`;
}

