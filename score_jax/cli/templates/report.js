"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const make = (tag, text, name) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (name) element.className = name;
    return element;
  };

  // Tooltips: the definition of whatever has a data-key, on hover, focus and tap.
  const tip = byId("tip");
  let owner = null;
  let leaving = 0;

  function sentences(target) {
    const entry = byId("d-" + target.dataset.key);
    if (!entry) return [];
    const error = entry.dataset.error;
    const lines = [entry.textContent.trim()];
    const isNumber = target.matches(".number, .mark");
    const text = target.dataset.tip || target.textContent;
    if (target.dataset.unit || entry.dataset.unit) {
      lines.push("Unit: " + (target.dataset.unit || entry.dataset.unit) + ".");
    }
    if (isNumber && text.includes("±")) lines.push("± is the " + error + ".");
    else if (isNumber && error === "exact") lines.push("Exact: it has no error.");
    else if (isNumber && error.startsWith("not estimated")) lines.push("Error: " + error + ".");
    else if (isNumber) lines.push("Error (" + error + "): not computed.");
    if (target.dataset.floor) lines.push("Floor: " + target.dataset.floor + ".");
    const better = target.dataset.better || entry.dataset.better;
    if (better) lines.push(better);
    return lines;
  }

  function show(target) {
    const lines = sentences(target);
    if (!lines.length) return;
    hide();
    owner = target;
    const entry = byId("d-" + target.dataset.key);
    tip.replaceChildren(make("strong", entry.dataset.name));
    if (target.dataset.tip) tip.append(make("p", target.dataset.tip));
    for (const line of lines) tip.append(make("p", line));
    // A modal dialog covers everything outside of it.
    (target.closest("dialog") || document.body).append(tip);
    tip.hidden = false;
    if (target.matches("button")) {
      target.classList.add("open");
      target.setAttribute("aria-describedby", "tip");
    }
    place(target);
  }

  function place(target) {
    tip.style.left = tip.style.top = "0px";
    // Within the panel it must not leave the panel, which would cut it.
    const frame = (target.closest("dialog") || document.documentElement).getBoundingClientRect();
    tip.style.maxWidth = `min(22rem, ${frame.width - 20}px)`;
    const zero = tip.getBoundingClientRect();
    const box = target.getBoundingClientRect();
    const right = frame.left + frame.width - zero.width - 10;
    const left = Math.max(frame.left + 8, Math.min(box.left, right));
    const below = box.bottom + 6 + zero.height < window.innerHeight;
    const top = below || box.top < zero.height + 6 ? box.bottom + 6 : box.top - zero.height - 6;
    tip.style.left = left - zero.left + "px";
    tip.style.top = top - zero.top + "px";
  }

  function hide() {
    clearTimeout(leaving);
    if (!owner) return;
    owner.classList.remove("open");
    if (owner.matches("button")) owner.setAttribute("aria-describedby", "d-" + owner.dataset.key);
    owner = null;
    tip.hidden = true;
  }

  const keyed = (event) => event.target instanceof Element && event.target.closest("[data-key]");
  document.addEventListener("pointerover", (event) => {
    const target = keyed(event);
    if (target && event.pointerType !== "touch") {
      clearTimeout(leaving);
      if (target !== owner) show(target);
    } else if (tip.contains(event.target)) clearTimeout(leaving);
  });
  document.addEventListener("pointerout", (event) => {
    if (!owner || event.pointerType === "touch" || document.activeElement === owner) return;
    clearTimeout(leaving);
    leaving = setTimeout(hide, 150);
  });
  document.addEventListener("focusin", (event) => {
    const target = keyed(event);
    if (target) show(target);
    else hide();
  });
  document.addEventListener("focusout", () => {
    leaving = setTimeout(hide, 150);
  });
  document.addEventListener("click", (event) => {
    const target = keyed(event);
    if (target) show(target);
    else hide();
  });
  document.addEventListener("keydown", (event) => {
    // The first Escape closes the tooltip, the next one the panel.
    if (event.key === "Escape" && owner) {
      hide();
      event.preventDefault();
      event.stopPropagation();
    }
  }, true);

  // Arrow keys move within tables of numbers and grids of samples: one tab stop each.
  function rove(container, cells) {
    const all = cells.flat();
    if (!all.length) return;
    let current = all[0];
    const settle = (cell) => {
      current.tabIndex = -1;
      current = cell;
      current.tabIndex = 0;
    };
    for (const cell of all) cell.tabIndex = -1;
    settle(all[0]);
    container.addEventListener("focusin", (event) => {
      if (all.includes(event.target)) settle(event.target);
    });
    container.addEventListener("keydown", (event) => {
      const row = cells.findIndex((each) => each.includes(event.target));
      if (row < 0) return;
      const column = cells[row].indexOf(event.target);
      const moves = {
        ArrowRight: [row, column + 1], ArrowLeft: [row, column - 1],
        ArrowDown: [row + 1, column], ArrowUp: [row - 1, column],
        Home: [row, 0], End: [row, cells[row].length - 1],
      };
      const to = moves[event.key];
      if (!to) return;
      const next = cells[to[0]] && (cells[to[0]][to[1]] || (to[0] !== row && cells[to[0]].at(-1)));
      event.preventDefault();
      if (next) next.focus();
    });
  }

  for (const table of document.querySelectorAll("table.numbers")) {
    table.setAttribute("role", "grid");
    const rows = [...table.rows].map((row) => [...row.querySelectorAll("button")]);
    rove(table, rows.filter((row) => row.length));
  }
  for (const sheet of document.querySelectorAll(".sheet")) {
    const buttons = [...sheet.querySelectorAll(".sample")];
    const columns = Number(sheet.dataset.columns);
    const rows = [];
    for (let i = 0; i < buttons.length; i += columns) rows.push(buttons.slice(i, i + columns));
    rove(sheet, rows);
  }

  // The slider walks the chain.
  for (const chain of document.querySelectorAll(".chain")) {
    const slider = chain.querySelector("input[type=range]");
    if (!slider) continue;
    const frames = [...chain.querySelectorAll(".frame")];
    const value = chain.querySelector(".sigma .value");
    const placeText = chain.querySelector(".sigma .place");
    const go = (n) => {
      frames.forEach((frame, i) => frame.toggleAttribute("hidden", i !== n));
      const sigma = frames[n].dataset.sigma || "end of the chain";
      value.textContent = sigma;
      placeText.textContent = `${n + 1} of ${frames.length}`;
      slider.setAttribute("aria-valuetext", `sigma ${sigma}`);
    };
    slider.addEventListener("input", () => go(Number(slider.value)));
    slider.value = slider.max;
    go(frames.length - 1);

    const play = chain.querySelector(".play");
    play.hidden = false;
    let timer = 0;
    const stop = () => {
      clearInterval(timer);
      timer = 0;
      play.setAttribute("aria-pressed", "false");
    };
    play.addEventListener("click", () => {
      if (timer) return stop();
      let n = 0;
      play.setAttribute("aria-pressed", "true");
      const step = () => {
        slider.value = n;
        go(n);
        n += 1;
        if (n === frames.length) stop();
      };
      step();
      timer = setInterval(step, 180);
      return undefined;
    });
    slider.addEventListener("pointerdown", stop);
    slider.addEventListener("keydown", stop);
  }

  // The panel of one sample.
  const panel = byId("panel");
  let opened = null;

  function crop(element, url, columns, rows, index) {
    const percent = (place, number) => (number > 1 ? (100 * place) / (number - 1) : 0) + "%";
    element.style.backgroundImage = `url("${url}")`;
    element.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
    element.style.backgroundPosition =
      percent(index % columns, columns) + " " + percent(Math.floor(index / columns), rows);
    return element;
  }

  function number(text, key) {
    const button = make("button", text, "number");
    button.type = "button";
    button.dataset.key = key;
    button.setAttribute("aria-describedby", "d-" + key);
    return button;
  }

  const rounded = (x, digits = 3) => Number(x.toPrecision(digits)).toString();

  function fact(list, label, ...content) {
    const group = make("div");
    const value = make("dd");
    value.append(...content);
    group.append(make("dt", label), value);
    list.append(group);
  }

  function open(run, index) {
    const sheet = byId(run + "-chain").querySelector(".sheet");
    const data = JSON.parse(byId(run + "-data").textContent);
    const columns = Number(sheet.dataset.columns);
    const rows = Number(sheet.dataset.rows);
    const frames = [...sheet.querySelectorAll("img.frame")];
    const label = data.labels ? data.labels[index] : null;
    opened = { run, index, number: sheet.querySelectorAll(".sample").length };
    hide();
    panel.style.setProperty("--ratio", data.ratio);
    byId("panel-title").textContent = "Sample " + index;

    // The sample, its class, and its place among held-out examples.
    const large = crop(panel.querySelector(".large"), frames.at(-1).src, columns, rows, index);
    large.setAttribute("aria-label", `Sample ${index}`);
    const facts = panel.querySelector(".facts");
    facts.replaceChildren();
    if (label !== null) fact(facts, "Class it was drawn for", number(String(label), "class"));
    const nearest = panel.querySelector(".nearest");
    nearest.replaceChildren();
    const yardstick = panel.querySelector(".yardstick");
    if (data.nearest) {
      const rank = data.ranks[index];
      const error = Math.sqrt(Math.max(rank * (1 - rank), 1 / data.rank_error) / data.rank_error);
      fact(facts, "Held-out images that are nearer to a training image",
        number(`${rank.toFixed(3)} ± ${rounded(error, 2)}`, "rank"));
      yardstick.replaceChildren(
        "The yardstick: the nearest training image of a held-out image has the median distance ",
        number(data.held_out, "nearest_held_out"), ".");
      const sprite = byId(run + "-neighbors");
      for (const [position, example, other, distance] of data.nearest[index]) {
        const item = make("li");
        const picture = crop(make("div", undefined, "crop"), sprite.src,
          Number(sprite.dataset.columns), Number(sprite.dataset.rows), position);
        picture.setAttribute("role", "img");
        picture.setAttribute("aria-label", `Training image ${example}`);
        item.append(picture, "no. ", number(String(example), "example"));
        if (other !== null) item.append(make("br"), "class ", number(String(other), "class"));
        item.append(make("br"), "distance ", number(rounded(distance), "distance"));
        nearest.append(item);
      }
    } else yardstick.textContent = data.missing;

    // The same chain at every noise level.
    const trajectory = panel.querySelector(".trajectory");
    trajectory.replaceChildren();
    for (const frame of frames) {
      const item = make("li");
      const picture = crop(make("div", undefined, "crop"), frame.src, columns, rows, index);
      const sigma = frame.dataset.sigma;
      picture.setAttribute("role", "img");
      picture.setAttribute("aria-label", sigma ? `Sample ${index} at sigma ${sigma}` : "The end");
      item.append(picture, sigma ? number(sigma, "sigma") : "end");
      trajectory.append(item);
    }
    if (!panel.open) panel.showModal();
    byId("panel-title").focus();
    panel.scrollTop = 0;
  }

  for (const sheet of document.querySelectorAll(".sheet")) {
    const run = sheet.closest(".chain").id.replace(/-chain$/, "");
    sheet.addEventListener("click", (event) => {
      const button = event.target.closest(".sample");
      if (button) open(run, Number(button.dataset.index));
    });
  }
  const move = (by) => open(opened.run, (opened.index + by + opened.number) % opened.number);
  panel.querySelector(".previous").addEventListener("click", () => move(-1));
  panel.querySelector(".next").addEventListener("click", () => move(1));
  panel.querySelector(".close").addEventListener("click", () => panel.close());
  panel.addEventListener("click", (event) => {
    if (event.target !== panel) return;
    const box = panel.getBoundingClientRect();
    const inside = event.clientX >= box.left && event.clientX <= box.right &&
      event.clientY >= box.top && event.clientY <= box.bottom;
    if (!inside) panel.close();
  });
  panel.addEventListener("close", () => {
    hide();
    const sheet = byId(opened.run + "-chain").querySelector(".sheet");
    sheet.querySelector(`[data-index="${opened.index}"]`).focus();
  });

  // Print everything.
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const each of closed) each.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const each of closed) each.open = false;
  });
})();
