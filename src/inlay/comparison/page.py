"""A comparison as HTML: one page that loads nothing, or the part of it that a notebook shows."""

from __future__ import annotations

from html import escape

from inlay.comparison.result import Comparison, Row

_STYLE = """
.inlay-comparison { --ink:#1c1e21; --faint:#6b7280; --line:#e3e5e9; --card:#fff; --tint:#f7f8fa;
  --new:#d9f2e1; --new-ink:#0b5d2c; --old:#fbe2e0; --old-ink:#8c1d18;
  color:var(--ink); font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif; }
@media (prefers-color-scheme: dark) { .inlay-comparison { --ink:#e6e8eb; --faint:#9aa1ac; --line:#343a42;
  --card:#1c2025; --tint:#23282f; --new:#143d25; --new-ink:#a6e8bf; --old:#4a211f; --old-ink:#f4b9b4; } }
.inlay-comparison * { box-sizing:border-box; }
.inlay-comparison .sum { display:flex; flex-wrap:wrap; gap:.25rem 2rem; color:var(--faint); font-size:13px;
  margin:0 0 1rem; }
.inlay-comparison .sum b { color:var(--ink); font-variant-numeric:tabular-nums; }
.inlay-comparison section { background:var(--card); border:1px solid var(--line); border-radius:10px;
  margin:0 0 1.25rem; overflow:hidden; }
.inlay-comparison .ask { display:flex; gap:.75rem; padding:.8rem 1rem; background:var(--tint);
  border-bottom:1px solid var(--line); font-weight:600; }
.inlay-comparison .ask i { color:var(--faint); font-style:normal; font-weight:400;
  font-variant-numeric:tabular-nums; }
.inlay-comparison .said { display:grid; grid-template-columns:repeat(auto-fit,minmax(15rem,1fr)); gap:1px;
  background:var(--line); }
.inlay-comparison .said > div { background:var(--card); padding:.8rem 1rem 1rem; }
.inlay-comparison h3 { display:flex; justify-content:space-between; gap:1rem; margin:0 0 .4rem; color:var(--faint);
  font-size:12px; font-weight:600; letter-spacing:.02em; }
.inlay-comparison h3 span { font-weight:400; font-variant-numeric:tabular-nums; white-space:nowrap; }
.inlay-comparison h3 .best { color:var(--new-ink); font-weight:600; }
.inlay-comparison p { margin:0; white-space:pre-wrap; overflow-wrap:anywhere; }
.inlay-comparison .ref { padding:.7rem 1rem; border-top:1px solid var(--line); color:var(--faint); font-size:14px; }
.inlay-comparison mark { background:var(--new); color:var(--new-ink); border-radius:3px; padding:0 1px; }
.inlay-comparison mark.old { background:var(--old); color:var(--old-ink); }
.inlay-comparison .none { color:var(--faint); }
"""


def page(comparison: Comparison) -> str:
    """A whole document. Its policy lets a browser load nothing and run nothing."""
    title = "Comparison: " + ", ".join(comparison.columns)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n"
        "<style>body { max-width:80rem; margin:2.5rem auto; padding:0 1.25rem; }"
        " h1 { font:600 22px/1.3 system-ui,sans-serif; margin:0 0 .5rem; }</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{fragment(comparison)}\n</body>\n</html>\n"
    )


def fragment(comparison: Comparison) -> str:
    """The part within the page, with its style."""
    rows = "\n".join(_section(comparison.columns, n, row) for n, row in enumerate(comparison.rows, 1))
    return f'<div class="inlay-comparison"><style>{_STYLE}</style>\n{_summary(comparison)}\n{rows}\n</div>'


def _summary(comparison: Comparison) -> str:
    mean = [f"{escape(n)} <b>{loss:.4f}</b>" for n, loss in comparison.losses.items() if loss is not None]
    settings = [f"{escape(str(k))} <b>{escape(str(v))}</b>" for k, v in comparison.settings.items()]
    spans = [*(["mean loss"] if mean else []), *mean, f"prompts <b>{len(comparison.rows)}</b>", *settings]
    return '<div class="sum">' + "".join(f"<span>{span}</span>" for span in spans) + "</div>"


def _section(columns: tuple[str, ...], number: int, row: Row) -> str:
    cells = "".join(_cell(name, row, i) for i, name in enumerate(columns))
    reference = "" if row.reference is None else f'<div class="ref"><p>Reference: {escape(row.reference)}</p></div>'
    asked = f'<div class="ask"><i>{number}</i><p>{escape(row.prompt)}</p></div>'
    return f'<section>{asked}<div class="said">{cells}</div>{reference}</section>'


def _cell(name: str, row: Row, column: int) -> str:
    loss = row.answers[column].loss
    best = ' class="best"' if column == row.best else ""
    shown = "" if loss is None else f"<span{best}>loss {loss:.4f}</span>"
    mark = '<mark class="old">' if column == 0 else "<mark>"
    pieces = (f"{mark}{escape(p.text)}</mark>" if p.differs else escape(p.text) for p in row.pieces(column))
    text = "".join(pieces) or '<span class="none">(empty)</span>'
    return f"<div><h3>{escape(name)}{shown}</h3><p>{text}</p></div>"
