// The page: two panes, the list at the left, the panels at the right, and what joins them.

import { fetched, slidePath } from "./api.js";
import { AnnotationPanel } from "./annotation_panel.js";
import { Annotations } from "./annotations.js";
import { iconButton, settled } from "./dom.js";
import { HoverCard } from "./hover_card.js";
import { LayerPanel } from "./layer_panel.js";
import { umOfPower } from "./measures.js";
import { say, sayProblem } from "./messages.js";
import { ObjectLoader } from "./object_loader.js";
import { addKeys, POWERS } from "./keys.js";
import { keep, preference } from "./preferences.js";
import { Readouts } from "./readouts.js";
import { RunPanel } from "./run_panel.js";
import { SearchPanel } from "./search_panel.js";
import { Shortcuts } from "./shortcuts.js";
import { SideBySide } from "./side_by_side.js";
import { SlideList } from "./slide_list.js";
import { SlidePane } from "./slide_pane.js";
import { Tools, TOOLS } from "./tools.js";

const THEMES = ["auto", "light", "dark"];
const PAN_SHARE = 0.2;
/** Where list and panel lie over the slide, as page.css has it. */
const NARROW = window.matchMedia("(max-width: 1100px)");
const SMALL = window.matchMedia("(max-width: 820px)");
const at = (id) => document.getElementById(id);

class Page {
  constructor() {
    const loader = new ObjectLoader();
    this.panes = ["first", "second"].map((name) => new SlidePane(at(`pane-${name}`), loader, name));
    [this.pane] = this.panes;
    this.list = new SlideList();
    this.annotations = new Annotations(this.panes[0]);
    this.tools = new Tools();
    this.sideBySide = new SideBySide(...this.panes);
    this.layers = new LayerPanel(at("tab-layers"), () => this.list.facts.text ?? []);
    this.annotationPanel = new AnnotationPanel(at("tab-annotations"), this.annotations);
    this.search = new SearchPanel(at("tab-search"), (id) => this.list.find(id));
    this.runs = new RunPanel(at("tab-run"));
    this.shortcuts = new Shortcuts(at("shortcuts"));
    this.opening = 0;
    this.told = settled(250, () => this.writeAddress());
  }

  async start() {
    this.theme(preference("theme", "auto"));
    this.panes.forEach((pane, i) => {
      new Readouts(pane);
      new HoverCard(pane, () => this.tools.name === "move");
      this.tools.attach(pane, i === 0 ? this.annotations : null);
      pane.element.addEventListener("pointerdown", () => this.choosePane(pane), { capture: true });
      pane.addEventListener("place", () => this.told());
      pane.addEventListener("open", () => this.told());
      pane.addEventListener("layers", () => this.told());
    });
    this.makeToolbar();
    this.makePowers();
    this.connect();
    addKeys(this.shortcuts, this);
    this.makeRoom();
    for (const width of [NARROW, SMALL]) width.addEventListener("change", () => this.makeRoom());
    await this.list.load();
    await this.readAddress();
  }

  connect() {
    this.list.addEventListener("open", ({ detail }) => this.open(detail.id, { beside: detail.beside }));
    this.list.addEventListener("loaded", () => this.showRuns());
    this.search.addEventListener("visit", ({ detail }) => this.visit(detail));
    this.runs.addEventListener("done", ({ detail }) => this.renew(detail));
    this.tools.addEventListener("tool", () => this.markTool());
    this.tools.addEventListener("region", ({ detail }) => {
      this.showTab("search");
      this.search.search(detail.pane, detail.box);
      this.tools.take("move");
    });
    const click = (id, run) => at(id).addEventListener("click", run);
    click("toggle-list", () => this.collapse("list"));
    click("toggle-panel", () => this.collapse("panel"));
    click("zoom-in", () => this.zoomBy(1.6));
    click("zoom-out", () => this.zoomBy(1 / 1.6));
    click("zoom-fit", () => this.fit());
    click("split", () => this.split());
    click("lock", () => this.lock());
    click("fullscreen", () => this.fullscreen());
    click("theme", () => this.nextTheme());
    click("help", () => this.shortcuts.show());
    for (const tab of document.querySelectorAll("[role=tab]")) {
      tab.addEventListener("click", () => this.showTab(tab.dataset.tab));
      tab.addEventListener("keydown", (event) => this.stepTab(event));
    }
    window.addEventListener("hashchange", () => this.readAddress());
    window.addEventListener("beforeunload", (event) => {
      if (["changed", "conflict"].includes(this.annotations.state)) event.preventDefault();
    });
  }

  makeToolbar() {
    const buttons = TOOLS.map(({ name, icon, label, key }) =>
      iconButton(icon, `${label} (${key.toUpperCase()})`, {
        "data-tool": name, "aria-pressed": "false", on: { click: () => this.take(name) },
      }));
    at("tools").prepend(...buttons);
    this.markTool();
  }

  makePowers() {
    at("powers").replaceChildren(...POWERS.map((power) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `${power}x`;
      button.title = `View as through a ${power}x objective`;
      button.addEventListener("click", () => this.power(power));
      return button;
    }));
  }

  /** Show a slide in the pane that is in use, or in the second one. */
  async open(id, { beside = false, place = null, variant = null } = {}) {
    if (beside && !this.isSplit) this.split(true, false);
    const pane = beside ? this.panes[1] : this.pane;
    const ticket = ++this.opening;
    try {
      const facts = await fetched(slidePath(id));
      if (ticket !== this.opening) return;
      if (variant) pane.variant = variant;
      pane.open(facts, place);
      pane.element.classList.remove("empty");
      if (pane === this.panes[0]) this.annotations.open(id);
      if (this.isSplit) this.pairUp(pane);
      this.choosePane(pane);
      this.list.mark(this.panes.flatMap((each) => (each.slide ? [each.slide.id] : [])));
      document.title = `${facts.name ?? id} · Coverslip`;
      if (NARROW.matches) this.collapse("list", true);
    } catch (problem) {
      sayProblem(problem, "open");
    }
  }

  /** After one of two panes has another slide: the same slide is aligned, others stay as they are. */
  pairUp(pane) {
    const settle = () => {
      if (!this.sideBySide.active) return;
      if (this.panes[0].slide.id === this.panes[1].slide.id) this.sideBySide.align();
      else this.sideBySide.remember();
    };
    pane.addEventListener("open", () => requestAnimationFrame(settle), { once: true });
  }

  visit({ slide, box, beside }) {
    const pane = beside ? this.panes[1] : this.pane;
    if (pane.slide?.id === slide) {
      pane.goToBox(box);
      return;
    }
    const [x, y, w, h] = box;
    const scale = Math.min(window.innerWidth, window.innerHeight) / Math.max(w, h) / 3;
    this.open(slide, { beside, place: { x: x + w / 2, y: y + h / 2, scale } });
  }

  /** A run has made something new on a slide. */
  async renew(id) {
    this.list.load();
    try {
      const facts = await fetched(slidePath(id));
      for (const pane of this.panes) if (pane.slide?.id === id) pane.renew(facts);
      this.layers.show(this.pane, () => this.renew(id));
    } catch (problem) {
      sayProblem(problem, "open");
    }
  }

  choosePane(pane) {
    if (this.pane === pane && this.panelOf === pane.slide) return;
    this.pane = pane;
    this.panelOf = pane.slide;
    for (const each of this.panes) each.element.classList.toggle("chosen", each === pane);
    this.layers.show(pane, () => this.renew(pane.slide.id));
    this.showRuns();
  }

  showRuns() {
    this.runs.show(this.pane.slide, this.list.facts.output ?? true);
  }

  get isSplit() {
    return document.body.classList.contains("split");
  }

  /** Show two panes, the second with what the first shows, or one. */
  split(on = !this.isSplit, fill = true) {
    document.body.classList.toggle("split", on);
    at("split").setAttribute("aria-pressed", String(on));
    at("lock").hidden = !on;
    at("pane-second").hidden = !on;
    const [first, second] = this.panes;
    if (!on) {
      second.close();
      this.choosePane(first);
    } else if (fill && first.slide) {
      second.variant = first.slide.variants[1] ?? "original";
      this.open(first.slide.id, { beside: true, place: first.place(), variant: second.variant });
    }
    this.list.mark(this.panes.flatMap((each) => (each.slide ? [each.slide.id] : [])));
    this.told();
  }

  lock(on = !this.sideBySide.locked) {
    this.sideBySide.lock(on);
    at("lock").setAttribute("aria-pressed", String(on));
    say(on ? "The two views move together." : "The two views move apart.", { key: "lock" });
  }

  take(name) {
    const tool = TOOLS.find((each) => each.name === name);
    if (tool.annotates && this.annotations.state === "off") {
      say(this.annotations.problem, { kind: "problem", key: "annotations" });
      return;
    }
    if (name === "similar" && this.list.facts.search === false) {
      say("Nothing to search: start the viewer with -o, a run's folder.", { key: "similar" });
      return;
    }
    this.tools.take(this.tools.name === name ? "move" : name);
    if (tool.annotates && !SMALL.matches) this.showTab("annotations");
  }

  markTool() {
    for (const button of at("tools").querySelectorAll("[data-tool]")) {
      button.setAttribute("aria-pressed", String(button.dataset.tool === this.tools.name));
    }
    document.body.dataset.tool = this.tools.name;
  }

  lead() {
    this.sideBySide.lead(this.pane);
  }

  zoomBy(factor) {
    if (!this.pane.slide) return;
    this.lead();
    this.pane.viewer.viewport.zoomBy(factor).applyConstraints();
  }

  fit() {
    if (!this.pane.slide) return;
    this.lead();
    this.pane.fit();
  }

  power(power) {
    if (!this.pane.slide) return;
    this.lead();
    if (this.pane.slide.mpp) this.pane.zoomTo(umOfPower(power));
    else say("This slide does not say how large its pixels are.", { key: "power" });
  }

  pan(x, y) {
    if (!this.pane.slide) return;
    this.lead();
    const { viewport } = this.pane.viewer;
    const { width, height } = viewport.getBounds();
    const { Point } = globalThis.OpenSeadragon;
    viewport.panBy(new Point(x * width * PAN_SHARE, y * height * PAN_SHARE)).applyConstraints();
  }

  toggleLayer(name) {
    at("tab-layers").querySelector(`[data-layer="${name}"]`)?.click();
  }

  toggleObjects() {
    for (const box of at("tab-layers").querySelectorAll("[data-layer]")) {
      if (!["tissue", "grid"].includes(box.dataset.layer)) box.click();
    }
  }

  toggleHeat() {
    const select = at(`heat-${this.pane.name}`);
    if (!select) return;
    const last = this.lastHeat;
    this.lastHeat = select.value || last;
    select.value = select.value ? "" : (last ?? select.options[1]?.value ?? "");
    select.dispatchEvent(new Event("change"));
  }

  nextVariant() {
    const { slide, variant } = this.pane;
    if (!slide) return;
    const { variants } = slide;
    const next = variants[(variants.indexOf(variant) + 1) % variants.length];
    this.pane.showVariant(next);
    this.layers.show(this.pane, this.layers.reload);
  }

  step(by) {
    const id = this.list.beside(this.pane.slide?.id, by);
    if (id && id !== this.pane.slide?.id) this.open(id, { beside: this.pane === this.panes[1] });
  }

  collapse(what, on = !document.body.classList.contains(`no-${what}`)) {
    document.body.classList.toggle(`no-${what}`, on);
    at(`toggle-${what}`).setAttribute("aria-expanded", String(!on));
    const other = what === "list" ? "panel" : "list";
    if (!on && SMALL.matches) this.collapse(other, true);
  }

  /** What lies over the slide on a small screen is put aside until it is asked for. */
  makeRoom() {
    this.collapse("list", NARROW.matches);
    this.collapse("panel", SMALL.matches);
  }

  showTab(name) {
    this.collapse("panel", false);
    for (const tab of document.querySelectorAll("[role=tab]")) {
      const chosen = tab.dataset.tab === name;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
      at(`tab-${tab.dataset.tab}`).hidden = !chosen;
    }
  }

  stepTab(event) {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    event.stopPropagation();
    const tabs = [...document.querySelectorAll("[role=tab]")];
    const next = tabs[(tabs.indexOf(event.target) + move + tabs.length) % tabs.length];
    this.showTab(next.dataset.tab);
    next.focus();
  }

  nextTheme() {
    const now = THEMES.indexOf(document.documentElement.dataset.theme);
    this.theme(THEMES[(now + 1) % THEMES.length]);
  }

  theme(name) {
    keep("theme", name);
    document.documentElement.dataset.theme = name;
    const label = `Colours of the page: ${name}`;
    at("theme").title = label;
    at("theme").setAttribute("aria-label", label);
  }

  fullscreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else document.documentElement.requestFullscreen().catch((problem) => sayProblem(problem));
  }

  putDown() {
    this.tools.take("move");
    this.annotations.deselect();
  }

  removeSelected() {
    const { selected } = this.annotations;
    if (selected) this.annotations.remove(selected.id);
  }

  focusFilter() {
    this.collapse("list", false);
    this.list.filter.focus();
  }

  /** The address says what is shown, so that it can be kept and sent. */
  writeAddress() {
    const [first, second] = this.panes;
    if (!first.slide) return;
    const { x, y, scale } = first.place();
    const words = new URLSearchParams({
      slide: first.slide.id, x: Math.round(x), y: Math.round(y), scale: Number(scale.toPrecision(4)),
    });
    if (first.variant !== "original") words.set("colours", first.variant);
    if (second.slide) words.set("beside", second.slide.id);
    if (second.slide && second.variant !== "original") words.set("beside-colours", second.variant);
    this.address = `#${words}`;
    history.replaceState(null, "", this.address);
  }

  async readAddress() {
    if (location.hash === this.address) return;
    const words = new URLSearchParams(location.hash.slice(1));
    const first = this.list.slides.find((slide) => slide.status !== "unreadable");
    const id = words.get("slide") ?? first?.id;
    if (!id) return;
    const [x, y, scale] = ["x", "y", "scale"].map((name) => Number.parseFloat(words.get(name)));
    const place = [x, y, scale].every(Number.isFinite) && scale > 0 ? { x, y, scale } : null;
    [this.pane] = this.panes;
    await this.open(id, { place, variant: words.get("colours") ?? "original" });
    const beside = words.get("beside");
    if (beside) {
      await this.open(beside, { beside: true, place, variant: words.get("beside-colours") ?? "original" });
      this.choosePane(this.panes[0]);
    }
  }
}

const page = new Page();
globalThis.coverslip = page;
page.start();
