// Live charts, drawn by uPlot (a separate script, so a global) in the colors of the style. The global
// is missing where the script fails: it rejects the language "C" of WebKitGTK, for example.

import { h } from "./parts.js";

const HEIGHT = 150;
const SHORTEST_S = 120;
const LONGEST_S = 600;
const WHOLES = [1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8].flatMap((ten) => [ten, 2 * ten, 5 * ten]);
const SYNC = "overview";

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });

/**
 * A chart of some fields of the readings. series: [{label, field, tint}], tint names a color
 * of the style. isCount: only whole numbers. The values at the pointer are shown, otherwise the latest.
 * If the chart cannot be drawn, a sentence replaces it, and the values are still shown.
 */
export function chart({ title, series, format, isCount = false, hint = null }) {
  const values = series.map(() => h("span", { class: "value" }, "–"));
  const moment = h("span", { class: "hint moment" });
  const canvas = h("div", { class: "canvas", "aria-hidden": "true" });
  const element = h(
    "figure",
    { class: "chart sheet" },
    h(
      "figcaption",
      {},
      h("h2", {}, title, " ", moment),
      h(
        "ul",
        {},
        series.map(({ label, tint }, n) =>
          h(
            "li",
            { class: tint },
            h("span", { class: "mark", "aria-hidden": "true" }),
            label,
            " ",
            values[n],
          ),
        ),
      ),
    ),
    canvas,
    hint && h("p", { class: "hint" }, hint),
  );
  let columns = [[], ...series.map(() => [])];

  function showValues(index) {
    const at = index ?? columns[0].length - 1;
    series.forEach((_, n) => (values[n].textContent = format(columns[n + 1][at] ?? null)));
    moment.textContent =
      index === null || index === undefined ? "" : new Date(columns[0][at] * 1000).toLocaleTimeString();
  }

  const line = {
    stroke: () => color("soft"),
    font: "11px system-ui, sans-serif",
    grid: { stroke: () => color("line"), width: 1 },
    ticks: { show: false },
  };
  const options = {
    width: 320,
    height: HEIGHT,
    legend: { show: false },
    cursor: { sync: { key: SYNC }, drag: { x: false, y: false }, y: false, points: { size: 6 } },
    scales: {
      x: {
        range: () => {
          const end = columns[0].at(-1) ?? Date.now() / 1000;
          const start = columns[0][0] ?? end;
          return [end - Math.min(LONGEST_S, Math.max(SHORTEST_S, end - start)), end];
        },
      },
      y: { range: (_, __, most) => [0, (most || 0) > 0 ? most * 1.1 : isCount ? 4 : 1] },
    },
    axes: [
      {
        ...line,
        size: 22,
        space: 70,
        values: (_, ticks) => ticks.map((tick) => clock.format(tick * 1000)),
        incrs: [60, 120, 300],
      },
      {
        ...line,
        size: 52,
        space: 34,
        incrs: isCount ? WHOLES : undefined,
        values: (_, ticks) => ticks.map((tick) => format(tick)),
      },
    ],
    series: [
      {},
      ...series.map(({ label, tint }, n) => ({
        label,
        width: 1.75,
        stroke: () => color(tint),
        fill: n === 0 ? () => `${color(tint)}1c` : undefined,
        points: { show: false },
      })),
    ],
    hooks: { setCursor: [(drawn) => showValues(drawn.cursor.idx)] },
  };
  let drawn;
  try {
    drawn = new uPlot(options, columns, canvas);
  } catch (error) {
    console.error(error);
    canvas.replaceWith(h("p", { class: "hint" }, "The chart cannot be drawn in this browser."));
  }
  const fit = new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width > 0 && width !== drawn?.width) drawn?.setSize({ width, height: HEIGHT });
  });
  fit.observe(canvas);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const repaint = () => drawn?.redraw();
  dark.addEventListener("change", repaint);

  return {
    element,
    draw(points) {
      columns = [
        points.map(({ at }) => at),
        ...series.map(({ field }) => points.map((point) => point[field] ?? null)),
      ];
      drawn?.setData(columns);
      showValues(drawn?.cursor.idx);
    },
    destroy() {
      fit.disconnect();
      dark.removeEventListener("change", repaint);
      drawn?.destroy();
    },
  };
}
