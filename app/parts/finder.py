"""A field that finds one of very many: what is typed is looked up by the server, and only what was found can be chosen."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import streamlit as st

# The list lies in the browser's top layer, so that no card cuts it off.
_DRAW = """
export default function ({ parentElement, data, setStateValue, setTriggerValue }) {
  const field = parentElement.querySelector("input"), list = parentElement.querySelector("ul");
  const state = (field.state ??= { open: false, active: -1, timer: 0, sent: "" });
  state.data = data;
  state.set = setStateValue;
  state.trigger = setTriggerValue;
  parentElement.querySelector("label").textContent = data.label;
  field.placeholder = data.placeholder;
  parentElement.querySelector("p").textContent = data.help;
  if (!state.open) field.value = data.chosen.label;

  const place = () => {
    const box = field.getBoundingClientRect();
    list.style.left = box.left + "px";
    list.style.width = box.width + "px";
    const below = window.innerHeight - box.bottom - 90, above = box.top - 12;
    const up = below < 180 && above > below;
    list.style.maxHeight = Math.max(120, Math.min(360, up ? above : below)) + "px";
    list.style.top = up ? "auto" : box.bottom + 4 + "px";
    list.style.bottom = up ? window.innerHeight - box.top + 4 + "px" : "auto";
  };
  const point = place => {
    const options = [...list.querySelectorAll("[role=option]")];
    state.active = options.length ? (place + options.length) % options.length : -1;
    options.forEach((option, index) => option.setAttribute("aria-selected", index === state.active));
    const at = options[state.active];
    if (at) { field.setAttribute("aria-activedescendant", at.id); at.scrollIntoView({ block: "nearest" }); }
    else field.removeAttribute("aria-activedescendant");
  };
  const draw = () => {
    const { options, more, query } = state.data;
    const told = JSON.stringify([options, more, query]);
    if (list.told === told) return;
    list.told = told;
    list.replaceChildren(...options.map((option, index) => {
      const item = document.createElement("li");
      item.id = "found-" + index;
      item.setAttribute("role", "option");
      item.dataset.id = option.id;
      const label = document.createElement("b"), note = document.createElement("span");
      label.textContent = option.label;
      note.textContent = option.note;
      item.append(label, note);
      item.onpointerdown = event => { event.preventDefault(); pick(option.id); };
      return item;
    }));
    if (more) {
      const item = document.createElement("li");
      item.className = "more";
      item.setAttribute("role", "presentation");
      item.textContent = more;
      list.append(item);
    }
    point(query ? 0 : Math.max(0, options.findIndex(option => option.id === state.data.chosen.id)));
  };
  const open = () => {
    if (state.open) return;
    state.open = true;
    field.setAttribute("aria-expanded", "true");
    list.showPopover();
    place();
    list.told = null;
    draw();
  };
  const close = () => {
    clearTimeout(state.timer);
    state.open = false;
    field.setAttribute("aria-expanded", "false");
    field.removeAttribute("aria-activedescendant");
    if (list.matches(":popover-open")) list.hidePopover();
    field.value = state.data.chosen.label;
    if (state.sent) { state.sent = ""; state.set("query", ""); }
  };
  const choose = () => {
    const at = list.querySelectorAll("[role=option]")[state.active];
    if (at) pick(at.dataset.id);
  };
  const pick = id => {
    const option = state.data.options.find(option => option.id === id);
    if (option) state.data = { ...state.data, chosen: option };
    state.sent = "";
    close();
    state.trigger("picked", id);
  };
  if (state.open) {
    place();
    draw();
    if (state.wanted && data.query === field.value) { state.wanted = false; choose(); }
  }
  if (state.ready) return;
  state.ready = true;
  const follow = () => { if (state.open) place(); };
  window.addEventListener("scroll", follow, true);
  window.addEventListener("resize", follow);
  field.onfocus = () => field.select();
  field.onclick = open;
  field.onblur = close;
  field.oninput = () => {
    open();
    state.wanted = false;
    clearTimeout(state.timer);
    state.timer = setTimeout(() => { state.sent = field.value; state.set("query", field.value); }, 120);
  };
  field.onkeydown = event => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) { event.preventDefault(); if (state.open) point(state.active + step); else open(); }
    else if (event.key === "Enter" && state.open) {
      event.preventDefault();
      // What was found for an earlier text is no answer to this one: then the answer is waited for.
      if (state.data.query === field.value || field.value === state.data.chosen.label) choose();
      else state.wanted = true;
    }
    else if (event.key === "Escape" && state.open) { event.stopPropagation(); close(); field.select(); }
  };
}
"""
_FIELD = """
<label for="field"></label>
<div class="field">
  <input id="field" type="text" role="combobox" aria-autocomplete="list" aria-expanded="false" aria-controls="found"
    aria-describedby="help" autocomplete="off" spellcheck="false">
  <svg viewBox="0 0 24 24" aria-hidden="true"><path d="M10.5 4a6.5 6.5 0 1 1 0 13 6.5 6.5 0 0 1 0-13Zm5 11.5L21 21"
    fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round"/></svg>
</div>
<p id="help"></p>
<ul id="found" role="listbox" aria-label="Found" popover="manual"></ul>
"""
_STYLE = """
:host, div, p, ul, li, input, label { font-family: var(--st-font); color: var(--st-text-color); box-sizing: border-box; }
label { display: block; font-size: 0.875rem; min-height: 1.5rem; margin-bottom: 0.25rem; }
.field { position: relative; }
input {
  width: 100%; height: 2.5rem; padding: 0 2.2rem 0 0.75rem; font-size: 1rem; text-overflow: ellipsis;
  background: var(--st-secondary-background-color); border: 1px solid var(--st-border-color); border-radius: 0.5rem;
}
input:focus { outline: 2px solid var(--st-primary-color); outline-offset: -1px; border-color: var(--st-primary-color); }
svg { position: absolute; right: 0.7rem; top: 0.75rem; width: 1rem; height: 1rem; color: var(--st-text-color); opacity: 0.75;
  pointer-events: none; }
p { margin: 0.3rem 0 0; font-size: 0.8rem; line-height: 1.35; opacity: 0.85; }
ul {
  position: fixed; margin: 0; padding: 0.25rem; list-style: none; overflow-y: auto; inset: auto;
  background: var(--st-background-color); border: 1px solid var(--st-border-color); border-radius: 0.5rem;
  box-shadow: 0 6px 20px rgb(0 0 0 / 22%);
}
li { padding: 0.35rem 0.55rem; border-radius: 0.35rem; cursor: pointer; overflow-wrap: anywhere; line-height: 1.3; }
li b { display: block; font-weight: 500; font-size: 0.95rem; }
li span { font-size: 0.8rem; opacity: 0.85; }
li[aria-selected="true"], li[role="option"]:hover { background: var(--st-secondary-background-color); }
li[aria-selected="true"] { box-shadow: inset 3px 0 0 var(--st-primary-color); }
li.more { font-size: 0.85rem; cursor: default; }
"""


@dataclass(frozen=True)
class Option:
    """`label` is what it is called, `note` a second line, which may be empty."""

    id: str
    label: str
    note: str = ""


def finder(
    label: str,
    chosen: Option,
    search: Callable[[str], tuple[Sequence[Option], str]],
    *,
    key: str,
    on_pick: Callable[[str], None],
    placeholder: str = "",
    help: str = "",
) -> None:
    """A field that shows `chosen`. `search(text)` says what is found for a text, and a last line that cannot be chosen: what
    there is beyond that, or that there is nothing. `on_pick(id)` is called before the rerun that a choice brings; what is only
    typed chooses nothing."""

    def picked() -> None:
        if (option := st.session_state[key].picked) is not None:
            on_pick(option)

    query = (st.session_state.get(key) or {}).get("query") or ""
    options, more = search(query)
    data = {
        "label": label,
        "chosen": asdict(chosen),
        "options": [asdict(option) for option in options],
        "more": more,
        "query": query,
        "placeholder": placeholder,
        "help": help,
    }
    draw = st.components.v2.component("finder", html=_FIELD, css=_STYLE, js=_DRAW)
    draw(data=data, key=key, height="content", default={"query": ""}, on_query_change=lambda: None, on_picked_change=picked)
