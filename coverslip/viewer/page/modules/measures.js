// Lengths, areas and magnifications as a person reads them.

/** µm per px that "10x" stands for: an objective's power times the pixel size, as scanners have it. */
const POWER = 10;
const STEPS = [1, 2, 5];

/** "20x" of µm per screen px. */
export function magnification(umPerPx) {
  const power = POWER / umPerPx;
  return `${power >= 10 ? Math.round(power) : Number(power.toPrecision(2))}x`;
}

/** µm per screen px of an objective's power. */
export function umOfPower(power) {
  return POWER / power;
}

/** "350 µm", "1.2 mm" or "1.4 cm". */
export function lengthText(um) {
  if (um >= 1e4) return `${number(um / 1e4)} cm`;
  if (um >= 1e3) return `${number(um / 1e3)} mm`;
  return `${number(um)} µm`;
}

/** "350 µm²" or "1.2 mm²". */
export function areaText(um2) {
  return um2 >= 1e5 ? `${number(um2 / 1e6)} mm²` : `${number(um2)} µm²`;
}

/** At most three significant digits, thousands apart. */
export function number(value) {
  if (!Number.isFinite(value)) return "–";
  const rounded = Math.abs(value) >= 100 ? Math.round(value) : Number(value.toPrecision(3));
  return rounded.toLocaleString("en", { maximumFractionDigits: 6 });
}

/** The longest round bar of at most `most` px: {px, text}.
 *  unit   µm per screen px; null where the slide does not say: then the bar counts level-0 px
 *  scale  screen px per level-0 px
 */
export function scaleBar(most, unit, scale) {
  const perPx = unit ?? 1 / scale;
  const largest = most * perPx;
  let length = 10 ** Math.floor(Math.log10(largest));
  for (const step of STEPS) {
    const candidate = step * 10 ** Math.floor(Math.log10(largest));
    if (candidate <= largest) length = candidate;
  }
  const text = unit === null ? `${length.toLocaleString("en")} px` : lengthText(length);
  return { px: length / perPx, text };
}

/** Area in level-0 px² of a ring of [x, y]. */
export function ringArea(ring) {
  let twice = 0;
  for (let i = 0; i < ring.length; i++) {
    const [x, y] = ring[i];
    const [nextX, nextY] = ring[(i + 1) % ring.length];
    twice += x * nextY - y * nextX;
  }
  return Math.abs(twice) / 2;
}
