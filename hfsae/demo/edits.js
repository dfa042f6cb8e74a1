// The list of edits: the value of the component, one object a line. `facts` is what Python knows of each feature.
const list = element.querySelector('.hfsae-edits');
const live = element.querySelector('.hfsae-live input');
const edits = () => props.value || [];
const fact = (feature) => props.facts[feature] || {};

function put(next, settled) {
  props.value = next;
  trigger('input');
  if (settled && live.checked) trigger('release');
}

function make(tag, given, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function range(edit) {
  const unit = props.kinds[edit.kind][edit.unit];
  const most = unit.of_max ? fact(edit.feature).max || props.usual.scale : 1;
  const low = Math.min(unit.low * most, edit.value);
  const high = Math.max(unit.high * most, edit.value);
  return {low, high, step: 10 ** Math.floor(Math.log10((high - low) / 100))};
}

const tidy = (value, step) => Number((Math.round(value / step) * step).toPrecision(6));
const firstUnit = (kind) => (kind === props.usual.kind ? props.usual.unit : Object.keys(props.kinds[kind])[0]);

// The value that a kind of edit begins with: an effect that shows, and is not absurd.
function beginning(kind, feature) {
  const most = fact(feature).max || props.usual.scale;
  const value = {steer: firstUnit('steer') === 'max' ? 1 : most, set: most, scale: 2, clamp: most / 2, ablate: 0}[kind];
  return tidy(value, 0.01);
}

// The same strength in another unit, where both sizes are known.
function inUnit(edit, unit) {
  const sizes = fact(edit.feature).units || {};
  const known = sizes[edit.unit] && sizes[unit];
  return known ? tidy((edit.value * sizes[edit.unit]) / sizes[unit], 0.001) : 1;
}

function line(edit, n) {
  const change = (part, settled = true) => put(edits().map((one, i) => (i === n ? {...one, ...part} : one)), settled);
  const name = `feature ${edit.feature}`;
  const options = (names, chosen, words) =>
    names.map((one) => make('option', {value: one, selected: one === chosen}, words(one)));
  const head = [
    make('input', {type: 'checkbox', checked: edit.on, 'aria-label': `${name} on`, 'data-key': `on${n}`,
      onchange: (event) => { change({on: event.target.checked}); draw(); }}),
    make('button', {className: 'hfsae-name', title: 'show its card', 'data-key': `name${n}`,
      onclick: () => trigger('select', {feature: edit.feature})},
      make('b', {}, String(edit.feature)), make('span', {}, fact(edit.feature).label || '')),
    make('button', {className: 'hfsae-remove', 'aria-label': `remove ${name}`, title: 'remove',
      onclick: () => { put(edits().filter((_, i) => i !== n), true); draw(); }}, '×'),
  ];
  const kind = make('select', {'aria-label': `kind of edit of ${name}`, 'data-key': `kind${n}`, onchange: (event) => {
    const chosen = event.target.value;
    change({kind: chosen, unit: firstUnit(chosen), value: beginning(chosen, edit.feature)});
    draw();
  }}, ...options(Object.keys(props.kinds), edit.kind, (one) => one));
  const parts = edit.kind === 'ablate' ? [make('span', {className: 'hfsae-unit'}, 'set to zero')] : strength(edit, n, change);
  return make('li', {className: edit.on ? '' : 'hfsae-off'}, make('div', {className: 'hfsae-head'}, ...head),
    make('div', {className: 'hfsae-strength'}, kind, ...parts));
}

function strength(edit, n, change) {
  const {low, high, step} = range(edit);
  const name = `feature ${edit.feature}`;
  const sizes = fact(edit.feature).units;
  const units = Object.keys(props.kinds[edit.kind]).filter((unit) => edit.kind !== 'steer' || !sizes || unit in sizes);
  const words = (unit) => props.kinds[edit.kind][unit].words;
  const number = make('input', {type: 'number', step: 'any', 'aria-label': `strength of ${name} as a number`,
    'data-key': `number${n}`, value: edit.value, onchange: (event) => {
      const value = Number(event.target.value);
      if (event.target.value !== '' && Math.abs(value) <= props.usual.most) change({value});
      draw();
    }});
  const slider = make('input', {type: 'range', min: low, max: high, step, 'aria-label': `strength of ${name}`,
    'data-key': `slider${n}`,
    oninput: (event) => {
      const value = tidy(Number(event.target.value), step);
      number.value = value;
      change({value}, false);
    },
    onchange: () => put(edits(), true)});
  slider.value = edit.value;  // after its ends, which would cut it
  slider.style.setProperty('--zero', -low / (high - low));
  const unit = units.length === 1 ? make('span', {className: 'hfsae-unit'}, words(units[0])) :
    make('select', {'aria-label': `unit of ${name}`, 'data-key': `unit${n}`, onchange: (event) => {
      change({unit: event.target.value, value: inUnit(edits()[n], event.target.value)});
      draw();
    }}, ...units.map((one) => make('option', {value: one, selected: one === edit.unit}, words(one))));
  return [slider, number, unit];
}

function draw() {
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  list.replaceChildren(...edits().map(line));
  element.querySelector('.hfsae-none').hidden = edits().length > 0;
  if (focused) list.querySelector(`[data-key="${focused}"]`)?.focus();
}

function add(feature) {
  if (edits().length >= props.usual.edits) return;
  const {kind} = props.usual;
  put([...edits(), {kind, feature, value: beginning(kind, feature), unit: firstUnit(kind), on: true}], true);
  draw();
}

document.addEventListener('hfsae-add', (event) => add(event.detail));
watch(['value', 'facts'], draw);
// Later, when the prompt and the rest of the state have arrived too: a trigger takes the values of its moment.
watch('arrived', () => setTimeout(() => { trigger('input'); trigger('release'); }, 50));
draw();
