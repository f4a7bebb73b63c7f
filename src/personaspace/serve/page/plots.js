// What both figures share: Plotly, and how a figure of this page looks.
import { css } from "./dom.js";

export const config = { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false, doubleClick: false };
export const colours = { standard: "--standard", capped: "--capped" };
export const symbols = { standard: "circle", capped: "square" };

let loading = null;

/** Loads Plotly; false where it cannot be had, and the conversation goes on without figures. */
export function loadPlotly() {
  loading ||= new Promise(resolve => {
    const script = document.createElement("script");
    script.src = "page/plotly.js";
    script.onload = () => resolve(Boolean(window.Plotly));
    script.onerror = () => resolve(false);
    document.head.append(script);
  });
  return loading;
}

export function layout({ xaxis = {}, yaxis = {}, ...rest } = {}) {
  const axis = { gridcolor: css("--line"), zeroline: false, linecolor: css("--line"), automargin: true, fixedrange: true, tickfont: { color: css("--soft") } };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, dragmode: false, hovermode: "closest",
    font: { family: "system-ui, sans-serif", size: 13, color: css("--ink") }, margin: { l: 8, r: 10, t: 8, b: 8 },
    hoverlabel: { bgcolor: css("--panel"), bordercolor: css("--line"), font: { color: css("--ink") } },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}

// Plotly takes some markup in texts, so that what comes from the server must not look like any.
export const escaped = text => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
