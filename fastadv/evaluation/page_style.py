"""The rules of style of a report: on light and dark screens, on paper, and on a telephone."""

STYLE = """
:root { color-scheme: light dark; --line: #8886; --track: #8883; --bar: #2f74b5; --mark: #222;
  --warn: #b45309; --soft: #595959; }
@media (prefers-color-scheme: dark) {
  :root { --bar: #7ab8f5; --mark: #eee; --warn: #fbbf24; --soft: #b0b0b0; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: CanvasText; background: Canvas; overflow-wrap: anywhere; }
h1 { margin: 0; line-height: 1.2; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; }
.soft { color: var(--soft); }
.measure { display: grid; grid-template-columns: 1fr auto; column-gap: 1rem; margin: .8rem 0; }
.measure strong { font-variant-numeric: tabular-nums; }
.track { display: block; grid-column: 1 / -1; position: relative; width: 100%; height: .8rem;
  background: var(--track); border-radius: .2rem; print-color-adjust: exact; }
.bar { display: block; height: 100%; background: var(--bar); border-radius: .2rem; }
.interval { position: absolute; top: 50%; height: .15rem; margin-top: -.075rem;
  min-width: .15rem; background: var(--mark); }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: left;
  vertical-align: top; }
.numbers th { overflow-wrap: normal; vertical-align: bottom; }
.numbers td { font-variant-numeric: tabular-nums; white-space: nowrap; }
.numbers td:not(:first-child), .numbers th:not(:first-child) { text-align: right; }
.numbers .track { height: .35rem; margin-top: .2rem; }
.facts th { width: 12rem; font-weight: 600; }
.note { border-left: .3rem solid var(--warn); padding-left: .8rem; }
.examples { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr)); }
.example { margin: 0; }
.images { display: grid; grid-template-columns: repeat(3, 1fr); gap: .3rem; }
.images img { width: 100%; height: auto; display: block; border: 1px solid var(--line); }
.pixels { image-rendering: pixelated; }
dt { font-weight: 600; }
dd { margin: 0 0 .6rem; }
@media (max-width: 40rem) {
  body { margin: 1rem auto; }
  .facts th, .facts td { display: block; width: auto; }
  .facts th { border-bottom: 0; padding-bottom: 0; }
  .numbers, .numbers tbody, .numbers tr { display: block; }
  .numbers thead { display: none; }
  .numbers tr { border-bottom: 1px solid var(--line); padding: .5rem 0; }
  .numbers td { display: grid; grid-template-columns: 1fr auto; column-gap: 1rem; border: 0;
    padding: .1rem .6rem; }
  .numbers td::before { content: attr(data-name); text-align: left; color: var(--soft); }
  .numbers td:first-child { font-weight: 600; }
}
"""
