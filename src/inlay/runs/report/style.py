"""The report's looks: CSS, beside that of every page (`inlay.comparison.page.document`)."""

from __future__ import annotations

from inlay.comparison.page import palette

STYLE = (
    palette(
        ":root",
        "--train:#2563a8; --held:#c2571a; --good:#0b6b34; --bad:#a3271f; --mid:#8a5a00;",
        "--train:#7db4f0; --held:#f0a36b; --good:#7fdca2; --bad:#f29b93; --mid:#ecc069;",
    )
    + """
header .facts { color:var(--faint); font-size:14px; margin:0 0 1.25rem; overflow-wrap:anywhere; }
header .facts span:not(:last-child)::after { content:"\\00b7"; margin:0 .55rem; }
.verdict { border:1px solid var(--line); border-left:4px solid var(--tone); border-radius:8px; background:var(--card);
  padding:.9rem 1.1rem; margin:0 0 1.5rem; }
.verdict p { margin:0; overflow-wrap:anywhere; white-space:pre-wrap; }
.verdict .main { font-size:17px; font-weight:600; }
.verdict p + p { margin-top:.3rem; color:var(--faint); font-size:14px; }
.good { --tone:var(--good); } .bad { --tone:var(--bad); } .mid { --tone:var(--mid); }
body > section { margin:0 0 2.25rem; }
h2 { font-size:1.05rem; font-weight:650; margin:0 0 .7rem; }
figure { margin:0; background:var(--card); border:1px solid var(--line); border-radius:10px;
  padding:.8rem .9rem .5rem; min-width:0; }
figcaption { font-size:13px; font-weight:600; color:var(--faint); margin:0 0 .35rem; }
figure svg { display:block; width:100%; height:auto; overflow:visible; }
figure svg text { font-family:inherit; font-variant-numeric:tabular-nums; }
.curves { display:grid; grid-template-columns:repeat(auto-fit,minmax(17rem,1fr)); gap:.9rem; }
.curves figure:first-child { grid-column:1/-1; }
.narrow { display:none; }
@media (max-width: 40rem) { .wide { display:none; } .narrow { display:block; } }
.card { background:var(--card); border:1px solid var(--line); border-radius:10px; overflow-x:auto; }
table { border-collapse:collapse; width:100%; font-size:14px; }
th, td { text-align:left; vertical-align:top; padding:.42rem 1rem; font-weight:400; }
tr:not(:last-child) > * { border-bottom:1px solid var(--line); }
thead th { color:var(--faint); font-size:12.5px; font-weight:600; }
thead + tbody tr:first-child > * { border-top:1px solid var(--line); }
tbody th { color:var(--faint); white-space:nowrap; width:1%; }
td { overflow-wrap:anywhere; font-variant-numeric:tabular-nums; }
.card:has(> .numbers) { width:fit-content; max-width:100%; }
.numbers { width:auto; }
.numbers :is(th, td) { padding-left:1.6rem; }
.numbers th, .numbers td { text-align:right; white-space:nowrap; width:auto; }
.best > * { font-weight:650; color:var(--good); }
.note { color:var(--faint); font-size:13px; margin:.5rem 0 0; }
@media (max-width: 40rem) {
  th, td { padding:.42rem .7rem; }
  .numbers :is(th, td) { padding-left:.8rem; }
  .parts tr { display:grid; grid-template-columns:1fr 1fr; }
  .parts tbody th { grid-column:1/-1; width:auto; border:0; padding-bottom:0; }
  .parts tbody tr > td { padding-top:.1rem; }
  .parts tbody tr:first-child > td { border-top:0; }
  .parts [colspan] { grid-column:1/-1; }
  .parts thead th:first-child { display:none; }
}
code, pre { font:12.5px/1.6 ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace; }
td code { overflow-wrap:anywhere; }
pre { margin:0; padding:.8rem 1rem; overflow-x:auto; white-space:pre; }
.pair { display:grid; grid-template-columns:repeat(auto-fit,minmax(18rem,1fr)); gap:.9rem; align-items:start; }
.pair > * { min-width:0; }
@media print { body { max-width:none; padding:0; } figure, .card, .verdict { break-inside:avoid; } }
"""
)
