// The film panel: an episode of the selected run's policy.

import { element, number } from "./data.js";

const LAST = "last";
const SECONDS = 10;  // that a film is shown before a newer one takes its place by itself

export class Film {
  constructor(buttons, screen, caption) {
    Object.assign(this, { buttons, screen, caption });
    this.wanted = LAST;
    this.shown = "";
  }

  update(run) {
    const films = run ? run.films : [];
    const choices = named(films, run);
    const chosen = choices.find(([name]) => name === this.wanted) ?? choices.find(([name]) => name === LAST) ?? choices.at(-1);
    const state = JSON.stringify([run?.key, this.wanted, choices, chosen]);
    if (state === this.state) return;
    const same = this.key === run?.key && this.named === this.wanted && chosen;
    if (same && this.shown && performance.now() - this.since < 1000 * SECONDS) return;  // the next look asks again
    Object.assign(this, { state, key: run?.key, named: this.wanted, since: performance.now() });
    this.buttons.replaceChildren(...(choices.length > 1 ? choices : []).map(([name]) => {
      const button = element("button", { type: "button", textContent: name });
      button.setAttribute("aria-pressed", String(name === chosen[0]));
      button.addEventListener("click", () => { this.wanted = name; this.update(run); });
      return button;
    }));
    if (!chosen) {
      this.shown = "";
      this.caption.textContent = "";
      this.screen.replaceChildren(element("p", {}, "No film of this run. ", element("code", { textContent: "esrl train … --films" }),
        " makes one at each evaluation, ", element("code", { textContent: "esrl render FOLDER" }), " one of its last policy."));
      return;
    }
    const film = chosen[1];
    const address = `film?${new URLSearchParams({ run: run.key, name: film.name, ...(film.at ? { at: film.at } : {}) })}`;
    this.caption.replaceChildren(`${said(film)} · `, element("a", { href: address, target: "_blank", rel: "noopener", textContent: "open" }));
    if (address === this.shown) return;
    this.shown = address;
    this.screen.replaceChildren(player(film.name, address, said(film)));
  }
}

// Names for the films: that of the start, the best, the last; and the episode that `esrl render` wrote.
function named(films, run) {
  const made = films.filter((film) => film.generation !== undefined);
  const found = new Map();
  if (made.length) {
    found.set(LAST, made.at(-1));
    const scored = made.filter((film) => film.score !== null);
    if (scored.length) found.set("best", scored.reduce((a, b) => (b.score > a.score ? b : a)));
    if (made[0].generation === 0) found.set("start", made[0]);
  }
  const order = ["start", "best", LAST].filter((name) => found.has(name)).map((name) => [name, found.get(name)]);
  return [...order, ...films.filter((film) => film.generation === undefined).map((film) => ["rendered", film])];
}

function said(film) {
  if (film.generation === undefined) return "an episode that esrl render wrote";
  const when = film.generation ? `generation ${film.generation}` : "before training";
  return `${when}, return ${number(film.return)} in ${number(film.steps)} steps`;
}

function player(name, address, title) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (name.endsWith(".html")) {
    const page = element("iframe", { title: `Episode: ${title}` });
    page.setAttribute("sandbox", "allow-scripts");  // before its address: it must never load without
    page.src = address;
    return page;
  }
  if (name.endsWith(".gif")) return element("img", { src: address, alt: `Episode: ${title}` });
  const video = element("video", { muted: true, loop: true, autoplay: !still, controls: true, playsInline: true, src: address });
  video.setAttribute("aria-label", `Episode: ${title}`);
  return video;
}
