"""The report's style sheet: system fonts, one column, readable from 320 pixels up and on paper."""

from moorage.runtime.telemetry.palette import BAD, GOOD, GRID, INK, MUTED, PAPER, WARN

CSS = f"""
:root{{color-scheme:light}}
*{{box-sizing:border-box}}
body{{margin:0;background:#F5F7FA;color:{INK};font-size:16px;line-height:1.55;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif}}
main{{max-width:930px;margin:0 auto;padding:28px 18px 48px}}
h1{{font-size:1.9rem;line-height:1.2;margin:0 0 .3em;letter-spacing:-.015em}}
.lead{{color:{MUTED};margin:0 0 1em;max-width:68ch}}
.verdict{{display:inline-block;margin:0 0 1.2em;padding:.4em .85em;border-radius:999px;font-weight:600}}
.verdict.good{{background:#DDF3EA;color:{GOOD}}}
.verdict.bad{{background:#FBE3E1;color:{BAD}}}
.tiles{{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-bottom:22px}}
.tile{{background:{PAPER};border:1px solid {GRID};border-radius:12px;padding:14px 16px}}
.tile b{{display:block;font-size:1.55rem;line-height:1.25;font-variant-numeric:tabular-nums;letter-spacing:-.01em}}
.tile span{{color:{MUTED};font-size:.86rem;line-height:1.35;display:block}}
section{{background:{PAPER};border:1px solid {GRID};border-radius:14px;padding:20px 22px;margin:0 0 20px}}
h2{{font-size:1.2rem;margin:0 0 .6em;letter-spacing:-.01em}}
h2 i{{display:inline-block;min-width:1.75em;margin-right:.55em;border-radius:8px;background:#E8F1F8;color:#005A8D;
font-style:normal;text-align:center;font-size:.92em}}
p{{margin:.5em 0;max-width:75ch}}
figure{{margin:14px 0 10px}}
figure svg{{display:block;width:100%;height:auto;overflow:visible}}
svg *{{stroke-linejoin:round;stroke-linecap:butt}}
svg text{{font-family:inherit!important}}
figcaption,.caption{{color:{MUTED};font-size:.86rem;text-align:left;margin-top:6px;max-width:80ch}}
code{{font-family:ui-monospace,"Cascadia Mono",Menlo,"Liberation Mono",monospace;font-size:.9em;background:#EEF2F6;
border-radius:5px;padding:.08em .3em}}
.narrow{{display:none}}
.pair{{display:grid;grid-template-columns:1fr 1fr;gap:22px}}
.scroll{{overflow-x:auto;margin:12px 0}}
table{{border-collapse:collapse;width:100%;font-size:.92rem}}
th,td{{text-align:left;padding:.42em .7em;border-bottom:1px solid {GRID};vertical-align:top}}
th{{color:{MUTED};font-weight:600;font-size:.84rem;white-space:nowrap}}
.n{{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}}
tr.strong td{{font-weight:600}}
td:last-child{{min-width:9em}}td.n:last-child{{min-width:0}}
td.good{{color:{GOOD};font-weight:600;white-space:nowrap}}
td.bad{{color:{BAD};font-weight:600;white-space:nowrap}}
td.warn{{color:{WARN};font-weight:600;white-space:nowrap}}
.tile.good b{{color:{GOOD}}}.tile.bad b{{color:{BAD}}}.tile.warn b{{color:{WARN}}}
footer{{color:{MUTED};font-size:.84rem;padding:0 4px}}
@media(max-width:640px){{
main{{padding:18px 10px 36px}}
h1{{font-size:1.5rem}}
section{{padding:16px 12px;border-radius:12px}}
.tiles{{grid-template-columns:1fr 1fr;gap:8px}}
.tile{{padding:11px 12px}}.tile b{{font-size:1.25rem}}
.wide{{display:none}}.narrow{{display:block}}
.pair{{grid-template-columns:1fr;gap:0}}
th,td{{padding:.4em .5em}}
.prose thead{{display:none}}
.prose tr{{display:flex;flex-wrap:wrap;border-bottom:1px solid {GRID};padding:.3em 0}}
.prose td{{border:0;padding:.15em .5em}}
.prose td:last-child{{flex:1 0 100%}}
}}
@media print{{body{{background:{PAPER}}}section,.tile{{break-inside:avoid}}}}
""".strip()
