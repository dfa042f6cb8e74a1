// Buttons with `data-pick` choose what they name; those with `data-add` add a feature to the edits.
element.addEventListener('click', (event) => {
  const target = event.target.closest('[data-pick], [data-add]');
  if (!target) return;
  const {pick, add} = target.dataset;
  if (add) document.dispatchEvent(new CustomEvent('hfsae-add', {detail: Number(add)}));
  else trigger('select', {pick: Number(pick)});
});
