"""Style sheet of the report. Colours are variables, so that light and dark share every rule."""

STYLE = """
:root{--page:#fbfbfa;--card:#fff;--ink:#1d2126;--soft:#66707b;--rule:#e4e6e9;--grid:#f1f2f4;
--tone0:#2467ad;--tone1:#d17a1d;--tone2:#2c8a68;--tone3:#8659b5;--tone4:#8b95a1;--heat:#2467ad;--deep:#fff;--code:#f3f4f6}
@media (prefers-color-scheme:dark){:root{--page:#14171a;--card:#1b1f23;--ink:#e4e7ea;--soft:#98a2ad;
--rule:#2e343a;--grid:#23282d;--tone0:#6aabea;--tone1:#eba556;--tone2:#63c29d;--tone3:#ba95e0;--tone4:#77828d;
--heat:#5b9fe0;--deep:#0c1116;--code:#23282d}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:860px;margin:0 auto;padding:32px 20px 48px}
h1{font-size:27px;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:18px;margin:0 0 12px}
.facts,footer,figcaption{color:var(--soft)}
.facts{margin:0 0 20px}.facts b,figcaption b{color:var(--ink);font-weight:600}
section,.tile{background:var(--card);border:1px solid var(--rule);border-radius:10px}
section{padding:18px 20px;margin:0 0 18px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(148px,1fr));gap:12px;
margin:0 0 18px}
.tile{padding:12px 16px}
.tile span,.tile small{display:block;color:var(--soft);font-size:13px}
.tile b{display:block;font-size:25px;line-height:1.3;font-variant-numeric:tabular-nums}
figure{margin:0 0 22px}figure:last-child{margin:0}figcaption{font-size:14px;margin:0 0 8px}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-size:12px;fill:var(--ink);font-family:inherit}
svg .axis{fill:var(--soft);font-size:11.5px}svg .value{font-variant-numeric:tabular-nums}
svg .cell{font-size:11.5px;font-variant-numeric:tabular-nums}svg .deep{fill:var(--deep)}
svg .mark-label{fill:var(--soft);font-size:11.5px}
.grid-line{stroke:var(--rule)}.mark{stroke:var(--soft);stroke-dasharray:3 3;opacity:.7}
polyline{fill:none;stroke-width:2;stroke-linejoin:round}
.faint{opacity:.28;stroke-width:1}.dots{stroke-width:1.4;opacity:.8}
.stroke0{stroke:var(--tone0)}.stroke1{stroke:var(--tone1)}.stroke2{stroke:var(--tone2)}.stroke3{stroke:var(--tone3)}
.tone0{fill:var(--tone0);background:var(--tone0)}.tone1{fill:var(--tone1);background:var(--tone1)}
.tone2{fill:var(--tone2);background:var(--tone2)}.tone3{fill:var(--tone3);background:var(--tone3)}
.tone4{fill:var(--tone4);background:var(--tone4)}
.bar{fill:var(--tone0)}.grid{fill:var(--grid)}.heat{fill:var(--heat)}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;margin:8px 0 0;font-size:13px;color:var(--soft)}
.legend b{color:var(--ink);font-weight:600}
.key{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:5px 14px 5px 0;border-bottom:1px solid var(--rule);vertical-align:top}
th{color:var(--soft);font-weight:600}td{overflow-wrap:anywhere}
pre{background:var(--code);border-radius:7px;padding:11px 13px;overflow-x:auto;margin:0 0 12px;
font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
summary{cursor:pointer;color:var(--soft);margin:14px 0 8px}
footer{font-size:13px;text-align:center}
@media print{section,.tile{break-inside:avoid}body{background:none}}
"""
