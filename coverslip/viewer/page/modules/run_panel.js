// The panel that runs stages on the slide in view, and tells how far they are.

import { fetched, sent, slidePath } from "./api.js";
import { element } from "./dom.js";
import { sayProblem, say } from "./messages.js";

const AGAIN_MS = 1000;
const OVER = ["done", "failed", "cancelled"];

/** Tells by an event: "done" with the slide's id in detail. */
export class RunPanel extends EventTarget {
  constructor(place) {
    super();
    this.place = place;
    this.jobs = element("div", { class: "jobs", "aria-live": "polite" });
    this.form = element("div");
    place.replaceChildren(this.form, this.jobs);
  }

  /** Offer the stages for a slide; possible: whether the server has a folder for results. */
  show(slide, possible) {
    if (!slide || !possible) {
      const text = slide
        ? "Results need a folder: start the viewer with -o OUT."
        : "Choose a slide from the list.";
      this.form.replaceChildren(element("p", { class: "hint" }, text));
      return;
    }
    const choice = (name, label, value) =>
      element("label", { class: "stage" },
        element("input", { type: "checkbox", name, value }), element("span", {}, label));
    const encoder = element("input", {
      type: "text", name: "encoder-name", value: "efficientnet-lite0", "aria-label": "Encoder",
      maxLength: 200, spellcheck: false,
    });
    const submit = element("button", { type: "submit", class: "button" }, "Run on this slide");
    const form = element("form", { class: "run" },
      choice("nuclei", "Nuclei", "default"),
      choice("quality", "Quality of tiles", "on"),
      choice("stain", "Stains (Macenko)", "macenko"),
      element("div", { class: "stage-row" }, choice("encoder", "Features by", "on"), encoder),
      submit);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const data = new FormData(form);
      const stages = {};
      if (data.has("nuclei")) stages.nuclei = "default";
      if (data.has("quality")) stages.quality = true;
      if (data.has("stain")) stages.stain = "macenko";
      if (data.has("encoder")) stages.encoder = [String(data.get("encoder-name")).trim()];
      if (Object.keys(stages).length) this.start(slide.id, stages, submit);
      else say("Choose what to run.", { key: "run" });
    });
    this.form.replaceChildren(element("p", { class: "hint" }, `On ${slide.id}`), form);
  }

  async start(id, stages, submit) {
    submit.disabled = true;
    try {
      const { content } = await sent("POST", slidePath(id, "/run"), { stages });
      this.follow(content.job, id);
    } catch (problem) {
      sayProblem(problem, "run");
    } finally {
      submit.disabled = false;
    }
  }

  follow(job, id) {
    const bar = element("progress", { max: 1, "aria-label": `Progress on ${id}` });
    const text = element("p", {}, "waiting");
    const stop = element("button", { type: "button", class: "text-button" }, "Stop");
    const card = element("div", { class: "job" },
      element("div", { class: "job-head" }, element("strong", {}, id), stop), bar, text);
    stop.addEventListener("click", () =>
      sent("DELETE", `/api/jobs/${job}`).catch((problem) => sayProblem(problem, "run")));
    this.jobs.prepend(card);
    const told = (state) => {
      if (state.total) {
        bar.value = state.done / state.total;
        text.textContent = `${state.message}: ${state.done.toLocaleString("en")} of ${state.total.toLocaleString("en")}`;
      } else {
        bar.removeAttribute("value");
        text.textContent = state.message || state.state;
      }
      if (OVER.includes(state.state)) this.finish(card, bar, text, stop, id, state);
    };
    this.listen(job, told);
  }

  listen(job, told) {
    const events = new EventSource(`/api/jobs/${job}/events`);
    let over = false;
    events.addEventListener("message", ({ data }) => {
      const state = JSON.parse(data);
      over = OVER.includes(state.state);
      if (over) events.close();
      told(state);
    });
    events.addEventListener("error", () => {
      events.close();
      if (!over) this.poll(job, told);
    });
  }

  async poll(job, told) {
    try {
      const state = await fetched(`/api/jobs/${job}`);
      told(state);
      if (!OVER.includes(state.state)) setTimeout(() => this.poll(job, told), AGAIN_MS);
    } catch (problem) {
      told({ state: "failed", message: problem.message, done: 0, total: 0 });
    }
  }

  finish(card, bar, text, stop, id, { state, message }) {
    stop.remove();
    bar.remove();
    card.classList.add(state);
    text.textContent = state === "done" ? `Done: ${message}` : `${state}: ${message}`;
    const kind = { done: "success", failed: "problem", cancelled: "note" }[state];
    say(`${id}: ${text.textContent}`, { kind });
    this.dispatchEvent(new CustomEvent("done", { detail: id }));
  }
}
