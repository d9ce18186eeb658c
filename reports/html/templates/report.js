"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const make = (tag, text, parent) => {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (parent) parent.append(made);
  return made;
};
document.documentElement.classList.add("on");
document.querySelector(".bar").hidden = false;

// light, dark, or as the system has it
const theme = document.getElementById("theme");
theme.hidden = false;
const kept = { get: () => { try { return localStorage.getItem("fewstep-theme"); } catch { return null; } },
  set: (v) => { try { localStorage.setItem("fewstep-theme", v); } catch { /* a page without storage */ } } };
const show = (name) => {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  theme.querySelector("span").textContent = name;
};
show(["light", "dark"].includes(kept.get()) ? kept.get() : "auto");
theme.addEventListener("click", () => {
  const next = { auto: "dark", dark: "light", light: "auto" }[theme.textContent.trim()];
  kept.set(next);
  show(next);
});

// filters: what is switched off is gone from tables, charts and legends alike
all(".chip[data-filter]").forEach((chip) => chip.addEventListener("click", () => {
  const on = chip.getAttribute("aria-pressed") !== "true";
  chip.setAttribute("aria-pressed", on);
  all(`[data-${chip.dataset.filter}="${chip.dataset.value}"]`)
    .forEach((part) => part.classList.toggle("off", !on));
}));

// sorting: ascending, descending, and back to the order of the paper, in its groups
all("table.sortable").forEach((table) => {
  const bodies = [...table.tBodies];
  const home = bodies.map((body) => [...body.rows]);
  const rows = home.flat().filter((row) => !row.classList.contains("group"));
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = make("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const now = { ascending: "descending", descending: null }[head.getAttribute("aria-sort")];
      const next = now === undefined ? "ascending" : now;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      table.classList.toggle("sorted", next !== null);
      if (next === null) {
        bodies.forEach((body, i) => body.append(...home[i]));
        return;
      }
      head.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      const value = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
      const ordered = rows.slice().sort((a, b) => {
        const [p, q] = [value(a), value(b)];
        if (column === 0) return sign * p.localeCompare(q);
        if (p === "" || q === "") return (p === "") - (q === ""); // no value: last, either way
        return sign * (Number(p) - Number(q));
      });
      bodies[0].append(...ordered);
    });
  });
});

// values on hover and focus; the browser's own titles would only be in the way
all("svg.chart title").forEach((title) => title.remove());
const tip = document.getElementById("tip");
const place = (x, y) => {
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(6, Math.min(x + 14, innerWidth - box.width - 8))}px`;
  tip.style.top = `${y + box.height + 26 > innerHeight ? y - box.height - 12 : y + 16}px`;
};
const hover = (event) => {
  const part = event.target.closest?.("[data-tip]");
  tip.hidden = !part;
  if (!part) return;
  tip.textContent = part.dataset.tip;
  const box = part.getBoundingClientRect();
  if (event.type === "focusin") place(box.left, box.bottom - 8);
  else place(event.clientX, event.clientY);
};
for (const type of ["pointermove", "pointerdown", "focusin"]) document.addEventListener(type, hover);
for (const type of ["focusout", "scroll"]) document.addEventListener(type, () => { tip.hidden = true; }, true);

// a method under the pointer stands out in the charts of its part of the page
all("[data-method]:not(g)").forEach((part) => {
  const article = part.closest("article");
  const look = (on) => () => {
    article.classList.toggle("looking", on);
    all(`g[data-method="${part.dataset.method}"]`, article)
      .forEach((series) => series.classList.toggle("seen", on));
  };
  part.addEventListener("pointerenter", look(true));
  part.addEventListener("pointerleave", look(false));
});

// where a value comes from
const known = JSON.parse(document.getElementById("provenance").textContent);
const dialog = document.getElementById("cell");
const facts = (pairs, parent) => {
  const list = make("dl", null, parent);
  for (const [name, value] of pairs) {
    if (value === null || value === undefined || value === "") continue;
    make("dt", name, list);
    make("dd", value, list);
  }
};
const source = (run) => run.commit && `${run.commit.slice(0, 12)}${run.dirty ? " with uncommitted changes" : ""}`;
const where = (run) => [run.job, run.host].filter(Boolean).join(" on ");
all("button[data-cell]").forEach((button) => button.addEventListener("click", () => {
  const cell = known.cells[button.dataset.cell];
  const body = dialog.querySelector("div");
  body.replaceChildren();
  make("h3", `${cell.method}, ${cell.steps} step${cell.steps > 1 ? "s" : ""}`, body).id = "cell-title";
  make("p", `${cell.shown}${cell.nfe ? `, ${cell.nfe} NFE` : ""}`, body).className = "big";
  for (const one of cell.runs) {
    const run = known.runs[one.run];
    const part = make("div", null, body);
    part.className = "run";
    facts([["Seed", one.seed], ["Value", one.value], ["Run", one.run], ["Teacher", run.teacher],
      ["Commit", source(run)], ["Packages", run.lock], ["Trained", [where(run), run.device].filter(Boolean).join(", ")],
      ["Evaluated", one.evaluated && `${source(one.evaluated) ?? ""} ${where(one.evaluated)}`]], part);
    if (!run.command) continue;
    const command = `${run.command} ${one.evaluation ?? cell.evaluation}`;
    make("pre", null, part).append(make("code", command));
    const copy = make("button", "Copy", part);
    copy.type = "button";
    copy.className = "copy";
    copy.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(command);
        copy.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(copy.previousSibling);
        copy.textContent = "Press Ctrl-C";
      }
    });
  }
  tip.hidden = true;
  dialog.showModal();
}));
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
