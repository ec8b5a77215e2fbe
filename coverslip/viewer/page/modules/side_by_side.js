// Two panes that move together: by µm where both slides say how large a pixel is, else by px.

/** Keeps the view of one pane where the other one's is. */
export class SideBySide {
  constructor(first, second) {
    this.panes = [first, second];
    this.locked = true;
    this.leading = null;
    this.offset = [0, 0];
    this.ratio = 1;
    for (const pane of this.panes) {
      const lead = () => {
        this.leading = pane;
      };
      // whoever is touched leads; what it makes the other do is not sent back
      for (const event of ["pointerdown", "wheel", "keydown"]) {
        pane.element.addEventListener(event, lead, { capture: true, passive: true });
      }
      pane.addEventListener("place", () => this.follow(pane));
    }
  }

  /** Whether both panes show a slide. */
  get active() {
    return this.panes.every((pane) => pane.slide);
  }

  /** Let them move together from how they are now, or apart. */
  lock(locked) {
    this.locked = locked;
    if (locked && this.active) this.remember();
  }

  /** Take how the two lie to each other now as how they shall stay. */
  remember() {
    const [one, other] = this.panes.map((pane) => unitPlace(pane, this.panes));
    this.offset = [other.x - one.x, other.y - one.y];
    this.ratio = other.perPx / one.perPx;
  }

  /** Show the same place at the same power in the second pane. */
  align() {
    this.leading = this.panes[0];
    this.offset = [0, 0];
    this.ratio = 1;
    this.follow(this.panes[0]);
  }

  /** Make `pane` the one that the other follows. */
  lead(pane) {
    this.leading = pane;
  }

  follow(pane) {
    if (!this.locked || !this.active || pane !== this.leading) return;
    const [first] = this.panes;
    const follower = this.panes.find((each) => each !== pane);
    const { x, y, perPx } = unitPlace(pane, this.panes);
    const sign = pane === first ? 1 : -1;
    const unit = unitOf(follower, this.panes);
    follower.goTo({
      x: (x + sign * this.offset[0]) / unit,
      y: (y + sign * this.offset[1]) / unit,
      scale: unit / (perPx * this.ratio ** sign),
    }, true);
  }
}

function unitOf(pane, panes) {
  return panes.every((each) => each.slide.mpp) ? pane.slide.mpp[0] : 1;
}

/** Middle of the view and units (µm or level-0 px) per screen px. */
function unitPlace(pane, panes) {
  const unit = unitOf(pane, panes);
  const { x, y, scale } = pane.place();
  return { x: x * unit, y: y * unit, perPx: unit / scale };
}
