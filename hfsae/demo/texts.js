// Two texts side by side, token by token. What comes from outside is set as text, never as HTML.
const panels = [...element.querySelectorAll('.hfsae-panel')];
const legend = element.querySelector('.hfsae-legend');

function tint(span, piece, value, scale) {
  if (span.textContent !== piece) span.textContent = piece;
  span.style.setProperty('--a', scale > 0 ? Math.min(Math.max(value / scale, 0), 1).toFixed(3) : 0);
  span.dataset.value = value ? value.toPrecision(3) : '0';
}

function drawText(panel, text, shown, parted) {
  const body = panel.querySelector('.hfsae-text');
  const pieces = text ? text.pieces : [];
  const first = pieces.findIndex((piece) => piece);  // special tokens have no text
  while (body.children.length > pieces.length) body.lastChild.remove();
  pieces.forEach((piece, n) => {
    let span = body.children[n];
    if (!span) {
      span = document.createElement('span');
      span.setAttribute('role', 'button');
      body.append(span);
    }
    span.hidden = !piece;
    span.tabIndex = n === first ? 0 : -1;  // one stop of the tab key a text; arrows go from token to token
    span.className = 'hfsae-token' + (n < shown.prompt ? ' hfsae-prompt' : '') + (n === parted ? ' hfsae-parted' : '');
    tint(span, piece, text.values[n], shown.scale);
  });
}

let stopped;  // the run that was stopped, of which some tokens may still be under way

function stop() {
  stopped = (props.value || {}).run;
  draw();
}

function draw() {
  if (stopped && props.value.run === stopped && !props.value.done) props.value = {...props.value, done: true};
  const shown = props.value || {};
  const texts = shown.texts || [];
  const pair = texts.map((text) => text.pieces);
  const parted = pair.length === 2 ? pair[1].findIndex((piece, n) => piece !== pair[0][n]) : -1;
  panels.forEach((panel, row) => drawText(panel, texts[row], shown, row === 1 ? parted : -1));
  element.querySelector('.hfsae-error').textContent = shown.error || '';
  const watched = shown.feature === undefined || shown.feature === null;
  legend.textContent = watched || !texts.length ? '' : `tint: feature ${shown.feature} ${shown.label}`.trim();
  element.firstElementChild.classList.toggle('hfsae-writing', texts.length > 0 && !shown.done);
  element.firstElementChild.dataset.done = texts.length && shown.done ? 'yes' : 'no';
}

function pick(span) {
  const row = panels.findIndex((panel) => panel.contains(span));
  element.querySelectorAll('.hfsae-picked').forEach((other) => other.classList.remove('hfsae-picked'));
  span.classList.add('hfsae-picked');
  trigger('select', {row, position: [...span.parentNode.children].indexOf(span)});
}

element.addEventListener('click', (event) => {
  const span = event.target.closest('.hfsae-token');
  if (span) pick(span);
});
element.addEventListener('keydown', (event) => {
  const span = event.target.closest('.hfsae-token');
  const step = {ArrowRight: 'nextElementSibling', ArrowLeft: 'previousElementSibling'}[event.key];
  if (!span || (!step && event.key !== 'Enter' && event.key !== ' ')) return;
  event.preventDefault();
  if (!step) return pick(span);
  let next = span[step];
  while (next && next.hidden) next = next[step];
  if (next) next.focus();
});

document.addEventListener('click', (event) => event.target.closest('#stop') && stop());
watch('value', draw);
draw();
