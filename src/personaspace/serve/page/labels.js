// Finds places for names on the map, so that none lies on another. Sizes are estimates in pixels: good enough to read.

const HEIGHT = 14, OFF = 8, EDGE = 8;
const SPOTS = [["top center", 0, -1], ["bottom center", 0, 1], ["middle right", 1, 0], ["middle left", -1, 0]];

function boxAt(x, y, width, right, down) {
  const left = x - width / 2 + right * (width / 2 + OFF), top = y - HEIGHT / 2 + down * (HEIGHT / 2 + OFF);
  return { left, top, right: left + width, bottom: top + HEIGHT };
}

const touch = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;

/**
 * points: [{x, y, text}] in the figure's units, the first ones preferred. area: {width, height, x: [low, high], y: [low, high]}.
 * letter: a letter's mean width. taken: boxes to stay clear of; what is placed is added. Returns one {text, position} a point, the text empty where none fits.
 */
export function placeNames(points, area, taken, letter = 6) {
  return points.map(({ x, y, text }) => {
    const px = (x - area.x[0]) / (area.x[1] - area.x[0]) * area.width, py = (area.y[1] - y) / (area.y[1] - area.y[0]) * area.height;
    for (const [position, right, down] of text ? SPOTS : []) {
      const box = boxAt(px, py, letter * text.length + 4, right, down);
      const inside = box.left >= 0 && box.right <= area.width + EDGE && box.top >= -EDGE && box.bottom <= area.height + EDGE;
      if (!inside || taken.some(other => touch(box, other))) continue;
      taken.push(box);
      return { text, position };
    }
    return { text: "", position: "top center" };
  });
}

/** The box that a mark takes up. */
export function markBox(x, y, area, radius = 9) {
  const px = (x - area.x[0]) / (area.x[1] - area.x[0]) * area.width, py = (area.y[1] - y) / (area.y[1] - area.y[0]) * area.height;
  return { left: px - radius, right: px + radius, top: py - radius, bottom: py + radius };
}

/** Pushes heights apart that lie closer than `gap`, as little as it takes. Returns each one's shift upwards. */
export function spread(heights, gap) {
  const order = heights.map((h, i) => [h, i]).sort((a, b) => a[0] - b[0]);
  const places = order.map(([h]) => h);
  for (let round = 0; round < 40; round++) {
    for (let k = 1; k < places.length; k++) {
      const lack = gap - (places[k] - places[k - 1]);
      if (lack > 0.1) { places[k] += lack / 2; places[k - 1] -= lack / 2; }
    }
  }
  const shifts = [];
  order.forEach(([h, i], k) => { shifts[i] = places[k] - h; });
  return shifts;
}
