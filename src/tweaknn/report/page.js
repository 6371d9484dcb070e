"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const NS = "http://www.w3.org/2000/svg";
  const node = (name, attributes, text) => {
    const e = document.createElementNS(NS, name);
    for (const key in attributes) e.setAttribute(key, attributes[key]);
    if (text !== undefined) e.textContent = text;
    return e;
  };
  const pct = (v) => (v === null || v === undefined ? "–" : (100 * v).toFixed(1));
  const pts = (v) => (v === null || v === undefined ? "–" : (v > 0 ? "+" : v < 0 ? "−" : "±") + Math.abs(100 * v).toFixed(1));
  const tone = (v) => (v > 5e-5 ? "up" : v < -5e-5 ? "down" : "same");
  const isTarget = new Set(page.targets.map((t) => page.classes.indexOf(t)));
  const state = { view: page.start.view, mode: page.start.mode, at: null, axis: "overall" };

  // Wilson's interval at 95 %.
  function wilson(p, n) {
    if (p === null || !n) return null;
    const z = 1.959964, d = 1 + (z * z) / n, m = (p + (z * z) / (2 * n)) / d;
    const h = (z / d) * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n));
    return [Math.max(0, m - h), Math.min(1, m + h)];
  }
  const view = () => page.views[state.view];
  // The points of the front that is drawn: a result may hold two, against overall accuracy and against the worst loss.
  const points = () => view().front.filter((f) => !f.fronts || f.fronts.includes(state.axis));
  function now() {
    const front = points();
    if (state.at !== null && front.length) {
      const f = front[state.at];
      return { per_class: f.per_class, per_class_sd: null, target: f.target, overall: f.overall, E: f.E };
    }
    return view().modes[state.mode];
  }
  // What is plotted upwards: overall accuracy, or how much the class that loses most loses.
  function height(point) {
    if (state.axis === "overall") return point.overall;
    const k = worst(point.per_class);
    return k < 0 ? 0 : Math.min(0, point.per_class[k] - page.base.per_class[k]);
  }
  function worst(per_class) {
    let k = -1;
    per_class.forEach((a, j) => {
      const b = page.base.per_class[j];
      if (a !== null && b !== null && (k < 0 || a - b < per_class[k] - page.base.per_class[k])) k = j;
    });
    return k;
  }

  // --- classes: which ones are drawn, and in which order, never changes while dragging
  const order = page.classes.map((_, j) => j).filter((j) => page.base.per_class[j] !== null);
  order.sort((a, b) => isTarget.has(b) - isTarget.has(a) || page.base.per_class[a] - page.base.per_class[b]);
  const shown = order.length <= 40 ? order : order.slice(0, 40);
  const D = { w: 620, left: Math.min(170, 24 + 7.4 * Math.max(...shown.map((j) => page.classes[j].length))), right: 150, row: 32, top: 26 };
  const low = Math.max(0, Math.floor(10 * (Math.min(...shown.map((j) => page.base.per_class[j])) - 0.12)) / 10);
  const X = (v) => D.left + ((Math.max(v, low) - low) / (1 - low)) * (D.w - D.left - D.right);
  const rows = new Map();
  function drawClasses() {
    const svg = $("dumbbells");
    const h = D.top + shown.length * D.row + 12;
    svg.setAttribute("viewBox", `0 0 ${D.w} ${h}`);
    for (let t = low; t <= 1.0001; t += 0.1) {
      svg.append(node("line", { x1: X(t), x2: X(t), y1: D.top - 6, y2: h - 8, class: "axis" }));
      if (Math.round(t * 10) % 2 === 0) svg.append(node("text", { x: X(t), y: 13, "text-anchor": "middle", class: "quiet" }, Math.round(100 * t)));
    }
    shown.forEach((j, i) => {
      const y = D.top + i * D.row + D.row / 2;
      const name = node("text", { x: D.left - 12, y: y + 4.5, "text-anchor": "end" }, page.classes[j]);
      if (isTarget.has(j)) name.setAttribute("font-weight", "700");
      const parts = {
        before: node("line", { y1: y - 6, y2: y - 6, class: "whisker untouched" }), whisker: node("line", { y1: y + 6, y2: y + 6, class: "whisker" }), link: node("line", { y1: y, y2: y, class: "link" }),
        ring: node("circle", { cx: X(page.base.per_class[j]), cy: y, r: 5, class: "ring" }), mark: node("path", {}),
        text: node("text", { x: D.w - D.right + 16, y: y + 4.5 }), change: node("text", { x: D.w - 4, y: y + 4.5, "text-anchor": "end", "font-weight": "600" }), y,
      };
      const ci = wilson(page.base.per_class[j], page.counts[j]);
      if (ci) { parts.before.setAttribute("x1", X(ci[0])); parts.before.setAttribute("x2", X(ci[1])); }
      svg.append(name, parts.before, parts.whisker, parts.link, parts.ring, parts.mark, parts.text, parts.change);
      rows.set(j, parts);
    });
  }
  const band = (p, n) => { const ci = wilson(p, n); return ci ? `${pct(ci[0])} to ${pct(ci[1])}` : ""; };
  const plusMinus = (sd) => (sd === null || sd === undefined || sd < 1e-12 ? "" : ` ± ${(100 * sd).toFixed(1)}`);
  function moveClasses(per_class, spread) {
    for (const [j, r] of rows) {
      const a = per_class[j], b = page.base.per_class[j], c = tone(a - b), ci = wilson(a, page.counts[j]) || [a, a];
      r.whisker.setAttribute("x1", X(ci[0])); r.whisker.setAttribute("x2", X(ci[1])); r.whisker.setAttribute("class", `whisker ${c}`);
      r.link.setAttribute("x1", X(b)); r.link.setAttribute("x2", X(a)); r.link.setAttribute("class", `link ${c}`);
      const x = X(a), y = r.y, s = c === "up" ? 1 : -1;
      r.mark.setAttribute("d", c === "same" ? `M${x - 3} ${y}a3 3 0 1 0 6 0a3 3 0 1 0 -6 0` : `M${x + 6 * s} ${y}L${x - 4 * s} ${y - 6}L${x - 4 * s} ${y + 6}Z`);
      r.mark.setAttribute("class", c);
      r.text.textContent = `${pct(b)} → ${pct(a)}`;
      r.change.textContent = pts(a - b); r.change.setAttribute("class", c);
    }
    $("dumbbells").setAttribute("aria-label", "Accuracy of each class before and after, in per cent: " +
      shown.map((j) => `${page.classes[j]} ${pct(page.base.per_class[j])} to ${pct(per_class[j])}`).join(", "));
    const cells = $("numbers").tBodies[0].rows;
    page.classes.forEach((_, j) => {
      const a = per_class[j], b = page.base.per_class[j];
      if (!cells[j] || b === null) return;
      const texts = [pct(a) + plusMinus(spread ? spread[j] : null), band(a, page.counts[j]), pts(a - b)];
      texts.forEach((text, k) => { cells[j].cells[4 + k].textContent = text; });
    });
  }

  // --- the front
  const P = { w: 480, h: 360, left: 52, right: 16, top: 16, bottom: 44 };
  let scaleX, scaleY, handle;
  function drawFront() {
    const svg = $("pareto");
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${P.w} ${P.h}`);
    const front = points(), floor = state.axis === "overall" ? page.base.overall : 0;
    const spots = [[page.base.target, floor], ...front.map((f) => [f.target, height(f)])];
    for (const m in view().modes) spots.push([view().modes[m].target, height(view().modes[m])]);
    const seeds = (view().seeds || []).map((curve) => curve.map((p) => [p[0], state.axis === "overall" ? p[1] : p[2]]));
    for (const curve of seeds) spots.push(...curve);
    const least = Math.min(...spots.map((p) => p[1]));
    const near = page.views.filter((v) => v !== view() && v.modes[state.mode]).map((v) => ({ name: v.name, ...v.modes[state.mode] }))
      .filter((o) => height(o) > least - 0.02);
    for (const o of near) spots.push([o.target, height(o)]);
    const range = (k) => {
      const v = spots.map((p) => p[k]);
      const a = Math.min(...v), b = Math.max(...v), pad = Math.max(0.01, (b - a) * 0.08);
      return [k || a > pad ? a - pad : 0, Math.min(1, b + pad)];
    };
    const [x0, x1] = range(0), [y0, y1] = range(1);
    scaleX = (v) => P.left + ((v - x0) / (x1 - x0)) * (P.w - P.left - P.right);
    scaleY = (v) => P.h - P.bottom - ((v - y0) / (y1 - y0)) * (P.h - P.top - P.bottom);
    const ticks = (a, b) => {
      const step = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2].find((s) => (b - a) / s <= 6) || 0.25, out = [];
      for (let t = Math.ceil(a / step) * step; t <= b + 1e-9; t += step) out.push(t);
      return out;
    };
    for (const t of ticks(x0, x1)) {
      svg.append(node("line", { x1: scaleX(t), x2: scaleX(t), y1: P.top, y2: P.h - P.bottom, class: "axis" }));
      svg.append(node("text", { x: scaleX(t), y: P.h - P.bottom + 16, "text-anchor": "middle", class: "quiet" }, +(100 * t).toFixed(1)));
    }
    for (const t of ticks(y0, y1)) {
      svg.append(node("line", { x1: P.left, x2: P.w - P.right, y1: scaleY(t), y2: scaleY(t), class: "axis" }));
      svg.append(node("text", { x: P.left - 8, y: scaleY(t) + 4, "text-anchor": "end", class: "quiet" }, +(100 * t).toFixed(1)));
    }
    svg.append(node("text", { x: (P.left + P.w - P.right) / 2, y: P.h - 8, "text-anchor": "middle" }, "mean target accuracy, %"));
    svg.append(node("text", { x: 14, y: (P.top + P.h - P.bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 14 ${(P.top + P.h - P.bottom) / 2})` }, state.axis === "overall" ? "overall accuracy, %" : "worst class's change, points"));
    for (const o of near) {
      const dot = node("circle", { cx: scaleX(o.target), cy: scaleY(height(o)), r: 4.5, class: "other" });
      dot.append(node("title", {}, `${o.name}: target ${pct(o.target)} %, overall ${pct(o.overall)} %`));
      svg.append(dot);
    }
    const line = (all) => all.map((p, k) => `${k ? "L" : "M"}${scaleX(p[0])} ${scaleY(p[1])}`).join("");
    for (const curve of seeds) if (curve.length) svg.append(node("path", { class: "seed", d: line(curve) }));
    if (front.length) {
      svg.append(node("path", { class: "front", d: line(front.map((f) => [f.target, height(f)])) }));
      for (const f of front) svg.append(node("circle", { cx: scaleX(f.target), cy: scaleY(height(f)), r: 2.6, class: "step" }));
    }
    const bx = scaleX(page.base.target), by = scaleY(floor);
    svg.append(node("path", { class: "basecross", d: `M${bx - 5} ${by - 5}L${bx + 5} ${by + 5}M${bx - 5} ${by + 5}L${bx + 5} ${by - 5}` }));
    const left = bx > P.w - 130;
    svg.append(node("text", { x: bx + (left ? -10 : 10), y: by - 8, "text-anchor": left ? "end" : "start", class: "quiet" }, "untouched"));
    handle = node("circle", { r: 9, class: "handle" });
    const grab = node("circle", { r: 22, class: "grab", id: "grab" });
    svg.append(handle, grab);
    handle.twin = grab;
  }
  function nearest(x, y) {
    let best = 0, least = Infinity;
    points().forEach((f, k) => {
      const d = (scaleX(f.target) - x) ** 2 + (scaleY(height(f)) - y) ** 2;
      if (d < least) { least = d; best = k; }
    });
    return best;
  }
  function local(event) {
    const svg = $("pareto"), box = svg.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * P.w, ((event.clientY - box.top) / box.height) * P.h];
  }
  let dragging = false;
  $("pareto").addEventListener("pointerdown", (event) => {
    if (!points().length) return;
    dragging = true;
    $("pareto").setPointerCapture(event.pointerId);
    go(nearest(...local(event)));
    event.preventDefault();
  });
  $("pareto").addEventListener("pointermove", (event) => { if (dragging) go(nearest(...local(event))); });
  for (const end of ["pointerup", "pointercancel"]) $("pareto").addEventListener(end, () => { dragging = false; });
  function go(k) { state.at = k; refresh(); }

  // --- confusion
  function matrix(title, m, before) {
    const table = document.createElement("table");
    table.createCaption().textContent = title;
    const head = table.createTHead().insertRow();
    head.append(document.createElement("td"));
    for (const c of page.classes) { const th = document.createElement("th"); th.scope = "col"; th.textContent = c; head.append(th); }
    const body = table.createTBody();
    m.forEach((line, i) => {
      const tr = body.insertRow(), th = document.createElement("th");
      th.scope = "row"; th.textContent = page.classes[i]; tr.append(th);
      const total = (before || m)[i].reduce((a, b) => a + b, 0) || 1;
      line.forEach((v, j) => {
        const td = tr.insertCell();
        if (before) {
          const d = Math.round(10 * (v - before[i][j])) / 10; // means over seeds have a decimal
          td.textContent = d === 0 ? "" : (d > 0 ? "+" : "−") + Math.abs(d);
          const good = (i === j) === d > 0;
          if (d) td.style.background = `rgba(var(${good ? "--heat-plus" : "--heat-minus"}), ${Math.min(0.45, 0.08 + (4 * Math.abs(d)) / total)})`;
        } else {
          td.textContent = v || "";
          if (v) td.style.background = `rgba(var(--heat), ${Math.min(0.42, 0.5 * Math.pow(v / total, 0.6))})`;
        }
      });
    });
    const wrap = document.createElement("div");
    wrap.className = "scroll"; wrap.tabIndex = 0; wrap.setAttribute("role", "region"); wrap.setAttribute("aria-label", title);
    wrap.append(table);
    return wrap;
  }
  function drawConfusion() {
    if (!$("matrices")) return;
    const m = view().modes[state.mode].confusion, box = $("matrices");
    box.replaceChildren();
    if (page.base.confusion) box.append(matrix("Before", page.base.confusion));
    if (m) { box.append(matrix(`After: ${view().name}`, m)); if (page.base.confusion) box.append(matrix("Difference", m, page.base.confusion)); }
  }

  // --- everything that follows the state
  function refresh() {
    const n = now(), k = worst(n.per_class);
    moveClasses(n.per_class, n.per_class_sd);
    if (handle) for (const c of [handle, handle.twin]) { c.setAttribute("cx", scaleX(n.target)); c.setAttribute("cy", scaleY(height(n))); }
    const drop = k < 0 ? 0 : n.per_class[k] - page.base.per_class[k];
    const cost = drop < -5e-5 ? `${page.classes[k]} loses ${Math.abs(100 * drop).toFixed(1)} points` : "no class loses";
    const said = `${state.at === null ? "Chosen point" : "This point"}: targets ${pct(n.target)} % (${pts(n.target - page.base.target)}), overall ${pct(n.overall)} % (${pts(n.overall - page.base.overall)}), ${cost}, E ${(100 * n.E).toFixed(2)}.`;
    $("said").textContent = said;
    $("pareto").setAttribute("aria-label", `Target accuracy against overall accuracy. ${said}`);
    $("along").setAttribute("aria-valuetext", said);
    if (state.at !== null) $("along").value = state.at;
    const payers = page.classes.map((c, j) => [c, n.per_class[j] === null ? 0 : n.per_class[j] - page.base.per_class[j]]).filter((p) => p[1] < -5e-5).sort((a, b) => a[1] - b[1]);
    $("payers").textContent = payers.length
      ? `${payers.length} of ${order.length} classes give something up: ${payers.slice(0, 12).map((p) => `${p[0]} ${pts(p[1])}`).join(", ")}${payers.length > 12 ? ", ..." : ""} points.`
      : "Nobody: no class is less accurate than before.";
  }
  function choose() {
    const v = view(), modes = Object.keys(v.modes);
    if (!modes.includes(state.mode)) state.mode = modes[0];
    $("mode").replaceChildren(...modes.map((m) => new Option(v.modes[m].label, m, false, m === state.mode)));
    $("view").value = state.view;
    $("about").textContent = v.summary;
    const front = points();
    $("along").max = Math.max(0, front.length - 1);
    for (const id of ["along", "back"]) $(id).disabled = !front.length;
    state.at = null;
    drawFront();
    if (front.length) $("along").value = nearest(scaleX(now().target), scaleY(height(now())));
    drawConfusion();
    refresh();
  }
  // --- figures of which one among several is shown
  for (const select of document.querySelectorAll("select[data-choices]")) {
    select.closest(".field").hidden = false;
    select.addEventListener("change", () => {
      select.closest("figure").querySelectorAll("[data-choice]").forEach((e) => { e.hidden = e.dataset.choice !== select.value; });
    });
  }
  $("view").addEventListener("change", (e) => { state.view = +e.target.value; choose(); });
  $("mode").addEventListener("change", (e) => { state.mode = e.target.value; choose(); });
  $("axis").addEventListener("change", (e) => { state.axis = e.target.value; choose(); });
  $("along").addEventListener("input", (e) => go(+e.target.value));
  $("back").addEventListener("click", choose);
  const dark = () => document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const label = () => { $("theme").textContent = dark() ? "Light" : "Dark"; $("theme").setAttribute("aria-pressed", dark()); };
  $("theme").addEventListener("click", () => { document.documentElement.dataset.theme = dark() ? "light" : "dark"; label(); });
  label();
  drawClasses();
  choose();
  document.documentElement.dataset.ready = "yes";
})();
