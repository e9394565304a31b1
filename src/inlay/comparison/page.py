"""A comparison as HTML: one page that loads nothing, or the part of it that a notebook shows."""

from __future__ import annotations

from html import escape

from inlay.comparison.result import Comparison, Row

_LIGHT = """--ink:#1c1e21; --faint:#6b7280; --line:#e3e5e9; --page:#fbfbfc; --card:#fff; --tint:#f7f8fa;
  --new:#d9f2e1; --new-ink:#0b5d2c; --old:#fbe2e0; --old-ink:#8c1d18;"""
_DARK = """--ink:#e6e8eb; --faint:#9aa1ac; --line:#343a42; --page:#14171b; --card:#1c2025; --tint:#23282f;
  --new:#143d25; --new-ink:#a6e8bf; --old:#4a211f; --old-ink:#f4b9b4;"""
FONT = 'font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;'


def palette(selector: str, light: str = "", dark: str = "") -> str:
    """The colours, as CSS variables of what a selector matches; with some more of the caller's."""
    in_dark = f"@media (prefers-color-scheme: dark) {{ {selector} {{ {_DARK} {dark} }} }}"
    return f"{selector} {{ {_LIGHT} {light} }}\n{in_dark}\n"


_STYLE = (
    f"""
{palette(".inlay-comparison")}.inlay-comparison {{ color:var(--ink); {FONT} }}
"""
    + """.inlay-comparison * { box-sizing:border-box; }
.inlay-comparison .sum { display:flex; flex-wrap:wrap; gap:.25rem 2rem; color:var(--faint); font-size:13px;
  margin:0 0 .25rem; }
.inlay-comparison .sum + section { margin-top:.9rem; }
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
.inlay-comparison :is(h3, .sum) .best { color:var(--new-ink); font-weight:600; }
.inlay-comparison p { margin:0; white-space:pre-wrap; overflow-wrap:anywhere; }
.inlay-comparison .ref { padding:.7rem 1rem; border-top:1px solid var(--line); color:var(--faint); font-size:14px; }
.inlay-comparison mark { background:var(--new); color:var(--new-ink); border-radius:3px; padding:0 1px; }
.inlay-comparison mark.old { background:var(--old); color:var(--old-ink); }
.inlay-comparison .none { color:var(--faint); }
"""
)


def page(comparison: Comparison) -> str:
    """A whole document."""
    title = "Comparison: " + ", ".join(comparison.columns)
    wide = "body { max-width:80rem; }\n" if len(comparison.columns) > 2 else ""
    return document(title, f"<h1>{escape(title)}</h1>\n{fragment(comparison)}", wide)


def document(title: str, body: str, style: str = "") -> str:
    """A page around its body. Its policy lets a browser load nothing and run nothing."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{palette(':root')}{_DOCUMENT}{style}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


_DOCUMENT = f"""
body {{ max-width:64rem; margin:0 auto; padding:2.5rem 1.25rem 4rem; background:var(--page); color:var(--ink); {FONT} }}
h1 {{ font-size:1.5rem; line-height:1.3; font-weight:650; margin:0 0 .6rem; overflow-wrap:anywhere; }}
@media (max-width: 40rem) {{ body {{ padding:1.25rem .8rem 3rem; }} }}
"""


def fragment(comparison: Comparison) -> str:
    """The part within the page, with its style."""
    rows = "\n".join(_section(comparison.columns, n, row) for n, row in enumerate(comparison.rows, 1))
    return f'<div class="inlay-comparison"><style>{_STYLE}</style>\n{_summary(comparison)}\n{rows}\n</div>'


def _summary(comparison: Comparison) -> str:
    """Mean losses, the lowest marked if it is one alone; below them how it was asked."""
    known = {name: loss for name, loss in comparison.losses.items() if loss is not None}
    lowest = [name for name, loss in known.items() if loss == min(known.values())]
    means = [
        f"<span>{escape(n)} <b{_best(lowest == [n] and len(known) > 1)}>{loss:.4f}</b></span>"
        for n, loss in known.items()
    ]
    settings = {"prompts": len(comparison.rows), **comparison.settings}
    asked = [f"<span>{escape(str(k))} <b>{escape(str(v))}</b></span>" for k, v in settings.items()]
    wins = [f"<span>{escape(n)} <b>{count}</b></span>" for n, count in comparison.wins.items()]
    lines = (
        ["<span>mean loss</span>", *means] if means else [],
        ["<span>rows with the lowest</span>", *wins] if wins and len(comparison.rows) > 1 else [],
        asked,
    )
    return "".join(f'<div class="sum">{"".join(line)}</div>' for line in lines if line)


def _best(yes: bool) -> str:
    return ' class="best"' if yes else ""


def _section(columns: tuple[str, ...], number: int, row: Row) -> str:
    cells = "".join(_cell(name, row, i) for i, name in enumerate(columns))
    reference = "" if row.reference is None else f'<div class="ref"><p>Reference: {escape(row.reference)}</p></div>'
    asked = f'<div class="ask"><i>{number}</i><p>{escape(row.prompt)}</p></div>'
    return f'<section>{asked}<div class="said">{cells}</div>{reference}</section>'


def _cell(name: str, row: Row, column: int) -> str:
    loss = row.answers[column].loss
    shown = "" if loss is None else f"<span{_best(column == row.best)}>loss {loss:.4f}</span>"
    mark = '<mark class="old">' if column == 0 else "<mark>"
    pieces = (f"{mark}{escape(p.text)}</mark>" if p.differs else escape(p.text) for p in row.pieces(column))
    text = "".join(pieces) or '<span class="none">(empty)</span>'
    return f"<div><h3>{escape(name)}{shown}</h3><p>{text}</p></div>"
