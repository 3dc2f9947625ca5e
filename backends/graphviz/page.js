"use strict";
(() => {
  const about = JSON.parse(document.getElementById("about").textContent);
  const details = document.getElementById("details");
  const cards = [...document.querySelectorAll(".card")];
  const links = [...document.querySelectorAll(".link")];
  const rest = details.innerHTML;

  const say = (texts) => {
    details.replaceChildren(...texts.map((text) => Object.assign(document.createElement("pre"), { textContent: text })));
  };
  const light = (lit, chosen) => {
    for (const card of cards) {
      card.classList.toggle("dim", !lit.has(card.id));
      card.classList.toggle("chosen", card.id === chosen);
    }
  };
  const clear = () => {
    for (const element of [...cards, ...links]) element.classList.remove("dim", "chosen");
    details.innerHTML = rest;
  };
  const showCard = (card) => {
    const lit = new Set([card.id]);
    for (const link of links) {
      const { from, to } = link.dataset;
      const mine = from === card.id || to === card.id;
      link.classList.toggle("dim", !mine);
      if (mine && !link.classList.contains("hidden")) lit.add(from).add(to);
    }
    light(lit, card.id);
    say(about[card.id]);
  };
  const showLink = (link) => {
    for (const other of links) other.classList.toggle("dim", other !== link);
    light(new Set([link.dataset.from, link.dataset.to]), "");
    const name = (id) => document.querySelector(`#${id} .title`).textContent;
    say([`${name(link.dataset.from)} → ${name(link.dataset.to)}\n${link.dataset.note}`]);
  };

  for (const card of cards) {
    card.addEventListener("mouseenter", () => showCard(card));
    card.addEventListener("focus", () => showCard(card));
    card.addEventListener("mouseleave", clear);
    card.addEventListener("blur", clear);
  }
  for (const link of links) {
    link.addEventListener("mouseenter", () => showLink(link));
    link.addEventListener("mouseleave", clear);
  }
  for (const box of document.querySelectorAll("#legend input")) {
    box.addEventListener("change", () => {
      for (const link of links) if (link.dataset.kind === box.dataset.kind) link.classList.toggle("hidden", !box.checked);
    });
  }
})();
