// One slide on the screen: its tiles, what lies over them, where the view is.

import { lastLevel, screenPoint, slidePoint, TILE } from "./geometry.js";
import { slidePath } from "./api.js";
import { ObjectLayer } from "./object_layer.js";
import { ObjectOverlay } from "./object_overlay.js";
import { SketchOverlay } from "./sketch_overlay.js";
import { isSoftwareDrawn } from "./graphics.js";

const OpenSeadragon = globalThis.OpenSeadragon;
const LARGEST_SCALE = 8;
const SMALLEST_SHARE = 0.5;
const FITTED_SHARE = 0.94;
/** Overlays have whole tiles from this level on. */
const FIRST_OVERLAY_LEVEL = 8;
const SWAP_MS = 4000;

/** OpenSeadragon adds an inline style sheet, which the page's policy forbids, unless it finds this
 *  mark; an element of no known namespace is a mark and nothing else. */
function markStyles() {
  const mark = document.createElementNS("coverslip:mark", "style");
  mark.setAttribute("data-openseadragon-mobile-css", "");
  document.head.append(mark);
}

markStyles();

/** A pane tells by events: "place" (the view has moved), "open", "layers", "pointer". */
export class SlidePane extends EventTarget {
  constructor(place, loader, name) {
    super();
    this.element = place;
    this.name = name;
    this.slide = null;
    this.variant = "original";
    this.heat = { layer: null, opacity: 0.6, low: null, high: null };
    this.tiles = { image: null, heat: null, density: new Map() };
    this.viewer = this.newViewer(place);
    this.objects = new ObjectOverlay(loader, () => this.redraw());
    this.sketch = new SketchOverlay();
    this.viewer.canvas.append(this.objects.canvas, this.sketch.canvas);
    this.viewer.addHandler("update-viewport", () => this.drawOverlays());
    this.viewer.addHandler("resize", () => requestAnimationFrame(() => this.redraw()));
    this.viewer.addHandler("canvas-key", (event) => {
      event.preventDefaultAction = true;
    });
    for (const event of ["viewport-change", "animation-finish"]) {
      this.viewer.addHandler(event, () => this.dispatchEvent(new Event("place")));
    }
  }

  newViewer(place) {
    const viewer = OpenSeadragon({
      element: place,
      drawer: isSoftwareDrawn() ? ["canvas"] : ["webgl", "canvas"],
      showNavigationControl: false,
      showNavigator: true,
      navigatorPosition: "BOTTOM_RIGHT",
      navigatorWidth: "132px",
      navigatorHeight: "132px",
      navigatorAutoFade: false,
      silenceMultiImageWarnings: true,
      animationTime: 0.35,
      springStiffness: 9,
      zoomPerScroll: 1.25,
      visibilityRatio: 0.15,
      minZoomImageRatio: SMALLEST_SHARE,
      maxZoomPixelRatio: LARGEST_SCALE,
      imageLoaderLimit: 8,
      maxImageCacheCount: 500,
      tileRetryMax: 2,
      tileRetryDelay: 1500,
      preserveImageSizeOnResize: true,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: true, pinchRotate: false },
      gestureSettingsPen: { clickToZoom: false, dblClickToZoom: true },
    });
    // overlays are whole squares that reach beyond the slide: home is the slide alone
    for (const { world } of [viewer, viewer.navigator]) {
      world.getHomeBounds = () => this.homeBounds();
    }
    return viewer;
  }

  homeBounds() {
    if (!this.slide) return new OpenSeadragon.Rect(0, 0, 1, 1);
    return new OpenSeadragon.Rect(0, 0, 1, this.slide.size[1] / this.slide.size[0]);
  }

  /** Show a slide. facts: of /api/slides/{id}; place: {x, y, scale} or null for all of it. */
  open(facts, place = null) {
    this.close();
    this.slide = facts;
    this.viewer.navigator.element.setAttribute("aria-label", `Overview of ${facts.id}`);
    if (!facts.variants.includes(this.variant)) this.variant = "original";
    this.addImage(() => {
      if (place) this.goTo(place, true);
      else this.fit(true);
      this.dispatchEvent(new Event("open"));
    });
    this.objects.show(facts.nuclei.map((each) => new ObjectLayer(facts, each)));
    this.heat = { layer: null, opacity: this.heat.opacity, low: null, high: null };
    this.sketch.clear();
    this.sketch.size = facts.size;
  }

  /** Show nothing. */
  close() {
    this.viewer.world.removeAll();
    this.viewer.navigator.world.removeAll();
    this.tiles = { image: null, heat: null, density: new Map() };
    this.objects.show([]);
    this.slide = null;
  }

  /** What changed on the server, objects and heat maps, in place of what was known; the view stays. */
  renew(facts) {
    const before = new Map(this.objects.layers.map((layer) => [layer.facts.model, layer]));
    this.slide = facts;
    const layers = facts.nuclei.map((each) => {
      const layer = new ObjectLayer(facts, each);
      const { visible, opacity, fill, line, least } = before.get(each.model) ?? layer;
      return Object.assign(layer, { visible, opacity, fill, line, least });
    });
    this.objects.show(layers);
    this.showDensity();
    this.redraw();
  }

  addImage(opened) {
    const { size, id, levels } = this.slide;
    const { variant } = this;
    const before = this.tiles.image;
    this.viewer.addTiledImage({
      index: before ? 1 : 0,
      tileSource: {
        width: size[0],
        height: size[1],
        tileSize: TILE,
        minLevel: 0,
        maxLevel: levels - 1,
        getTileUrl: (level, column, row) =>
          slidePath(id, `/tiles/${variant}/${level}/${column}_${row}.jpg`),
      },
      success: ({ item }) => {
        this.tiles.image = item;
        if (before) this.swap(before, item);
        opened?.();
      },
    });
  }

  swap(before, after) {
    const remove = () => {
      if (this.viewer.world.getIndexOfItem(before) >= 0) this.viewer.world.removeItem(before);
    };
    after.addOnceHandler("fully-loaded-change", remove);
    setTimeout(remove, SWAP_MS);
  }

  /** Show the slide in other colours: one of its `variants`. */
  showVariant(variant) {
    if (!this.slide || variant === this.variant) return;
    this.variant = variant;
    this.addImage();
    this.dispatchEvent(new Event("layers"));
  }

  /** Show a heat layer of the slide's facts, or null for none.
   *  low, high   values outside are clear; null for no bound
   */
  showHeat(layer, { low = null, high = null } = {}) {
    this.heat = { ...this.heat, layer, low, high };
    if (this.tiles.heat) this.viewer.world.removeItem(this.tiles.heat);
    this.tiles.heat = null;
    if (!layer) return;
    const bounds = Object.entries({ low, high }).filter(([, value]) => value !== null);
    const query = bounds.length ? `?${new URLSearchParams(bounds)}` : "";
    const { id } = this.slide;
    this.addOverlay(
      (level, column, row) => slidePath(id, `/heat/${layer.layer}/${level}/${column}_${row}.png${query}`),
      this.heat.opacity,
      (item) => {
        if (this.heat.layer === layer && !this.tiles.heat) this.tiles.heat = item;
        else this.viewer.world.removeItem(item);
      },
    );
  }

  /** Let the tissue shine through the heat map. */
  fadeHeat(opacity) {
    this.heat.opacity = opacity;
    this.tiles.heat?.setOpacity(opacity);
  }

  /** Tile layers of the densities, as visible as the zoom wants them. */
  showDensity() {
    for (const item of this.tiles.density.values()) {
      if (item !== "coming") this.viewer.world.removeItem(item);
    }
    this.tiles.density = new Map();
    this.redraw();
  }

  updateDensity(scale) {
    for (const layer of this.objects.layers) {
      const wanted = layer.visible && layer.detail(scale) === "density" ? layer.opacity : 0;
      const item = this.tiles.density.get(layer);
      if (item && item !== "coming") {
        if (item.getOpacity() !== wanted) item.setOpacity(wanted);
      } else if (!item && wanted) {
        const table = this.tiles.density;
        table.set(layer, "coming");
        this.addOverlay((...place) => layer.densityUrl(...place), wanted, (made) => {
          if (this.tiles.density === table) table.set(layer, made);
          else this.viewer.world.removeItem(made);
        });
      }
    }
  }

  addOverlay(getTileUrl, opacity, made) {
    const { size } = this.slide;
    const last = lastLevel(size);
    const side = 2 ** last;
    this.viewer.addTiledImage({
      x: 0,
      y: 0,
      width: side / size[0],
      clip: new OpenSeadragon.Rect(0, 0, size[0], size[1]),
      opacity,
      tileSource: {
        width: side,
        height: side,
        tileSize: TILE,
        minLevel: Math.min(FIRST_OVERLAY_LEVEL, last),
        maxLevel: last,
        getTileUrl,
        tileExists: (level, column, row) => {
          const tile = TILE * 2 ** (last - level);
          return column >= 0 && row >= 0 && column * tile < size[0] && row * tile < size[1];
        },
      },
      success: ({ item }) => made(item),
    });
  }

  /** CSS px per level-0 px. */
  get scale() {
    const [a, b] = this.transform();
    return Math.hypot(a, b);
  }

  /** µm per CSS px; null where the slide does not say how large a pixel is. */
  get umPerPx() {
    return this.slide?.mpp ? this.slide.mpp[0] / this.scale : null;
  }

  /** Level-0 px -> CSS px of the pane: [a, b, c, d, e, f] as canvases have it. */
  transform() {
    const { viewport } = this.viewer;
    const unit = 1 / (this.slide?.size[0] ?? 1);
    const at = (x, y) => viewport.pixelFromPoint(new OpenSeadragon.Point(x, y), true);
    const [origin, right, down] = [at(0, 0), at(1, 0), at(0, 1)];
    return [
      (right.x - origin.x) * unit, (right.y - origin.y) * unit,
      (down.x - origin.x) * unit, (down.y - origin.y) * unit, origin.x, origin.y,
    ];
  }

  /** Where the view is: middle {x, y} in level-0 px, scale in CSS px per level-0 px. */
  place() {
    const { width, height } = this.size();
    const [x, y] = slidePoint(this.transform(), width / 2, height / 2);
    return { x, y, scale: this.scale };
  }

  size() {
    const { x, y } = this.viewer.viewport.getContainerSize();
    return { width: x, height: y };
  }

  /** Move the view so that `x, y` is in the middle. */
  goTo({ x, y, scale }, immediately = false) {
    const { viewport } = this.viewer;
    const { width, height } = this.size();
    const px = 1 / this.slide.size[0];
    const [w, h] = [(width / scale) * px, (height / scale) * px];
    viewport.fitBounds(
      new OpenSeadragon.Rect(x * px - w / 2, y * px - h / 2, w, h), immediately);
  }

  /** Show all of the slide. */
  fit(immediately = false) {
    const [w, h] = this.slide.size;
    const { width, height } = this.size();
    const scale = Math.min(width / w, height / h) * FITTED_SHARE;
    this.goTo({ x: w / 2, y: h / 2, scale }, immediately);
  }

  /** Show a box of level-0 px with some air around it. */
  goToBox([x, y, w, h], immediately = false) {
    const { width, height } = this.size();
    const scale = Math.min(width / w, height / h, LARGEST_SCALE) * 0.7;
    this.goTo({ x: x + w / 2, y: y + h / 2, scale }, immediately);
  }

  /** Zoom to a power (µm per CSS px) around the middle. */
  zoomTo(umPerPx) {
    if (!this.slide?.mpp) return;
    this.goTo({ ...this.place(), scale: this.slide.mpp[0] / umPerPx });
  }

  /** Level-0 [x, y] of a pointer event. */
  pointOf(event) {
    const box = this.element.getBoundingClientRect();
    return slidePoint(this.transform(), event.clientX - box.left, event.clientY - box.top);
  }

  /** CSS [x, y] in the pane of a level-0 point. */
  screenOf(x, y) {
    return screenPoint(this.transform(), x, y);
  }

  /** Draw again at the next frame. */
  redraw() {
    this.viewer.forceRedraw();
  }

  drawOverlays() {
    if (!this.slide) return;
    const transform = this.transform();
    const scale = Math.hypot(transform[0], transform[1]);
    const { width, height } = this.size();
    this.updateDensity(scale);
    this.objects.draw(transform, scale, width, height);
    this.sketch.draw(transform, scale, width, height);
  }

}
