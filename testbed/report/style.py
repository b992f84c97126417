"""The report's style sheet for light and dark pages; it loads nothing from elsewhere."""

CSS = """
:root{color-scheme:light dark;
--bg:#fafaf8;--card:#fff;--ink:#1c2330;--muted:#5a6372;--rule:#e1e4e9;--soft:#f1f3f6;
--alice:#2563c9;--bob:#0b8a63;--eve:#d1490c;--bad:#c62828;--bad-soft:#f5b5b0;--ok:#1f7a3a;--warn:#8a5a00}
@media(prefers-color-scheme:dark){:root{
--bg:#12151a;--card:#191d24;--ink:#e4e8ee;--muted:#98a2b1;--rule:#2c333d;--soft:#20262f;
--alice:#7aaeff;--bob:#4bd0a0;--eve:#ff8d5c;--bad:#ff7b72;--bad-soft:#7a2e2a;--ok:#5fd083;--warn:#e0b04a}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif}
main,header{max-width:62rem;margin:0 auto;padding:0 1.5rem}
header{padding-top:2.5rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .4rem;letter-spacing:-.01em}
h2{font-size:1.25rem;margin:2.2rem 0 .6rem;padding-top:1.1rem;border-top:1px solid var(--rule)}
h3{font-size:1rem;margin:1.6rem 0 .4rem}
p{max-width:46rem;margin:.4rem 0 .8rem}
a{color:var(--alice)}
code,.mono{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.86em}
.lede{font-size:1.1rem}
.meta,.missing,figcaption,.note{color:var(--muted)}
.meta{font-size:.9rem}
.missing{border-left:3px solid var(--rule);padding:.3rem 0 .3rem .9rem}
.badge{display:inline-block;padding:.05rem .6rem;border-radius:1rem;font-size:.85rem;font-weight:600;border:1px solid}
.badge.ok{color:var(--ok)}.badge.bad{color:var(--bad)}.badge.warn{color:var(--warn)}
.alarm{border:1px solid var(--bad);border-left-width:5px;border-radius:4px;padding:.6rem 1rem;color:var(--bad)}
nav{font-size:.9rem;margin:1rem 0 0;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:.7rem;margin:1.6rem 0 0;padding:0}
.tiles div{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:.65rem .85rem}
.tiles dt{font-size:.8rem;color:var(--muted)}
.tiles dd{margin:0;font-size:1.45rem;font-weight:600;font-variant-numeric:tabular-nums;letter-spacing:-.01em}
.tiles small{display:block;font-size:.75rem;font-weight:400;color:var(--muted);letter-spacing:0;line-height:1.3}
figure{margin:1rem 0 1.6rem;background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:1rem}
figure svg{display:block;width:100%;height:auto}
figure svg.strip{min-width:38rem}
figcaption{font-size:.88rem;margin-top:.7rem;max-width:50rem}
svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif!important}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;margin:.6rem 0 1rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.32rem 1.1rem .32rem 0;border-bottom:1px solid var(--rule);vertical-align:top}
th{font-weight:600;color:var(--muted);font-size:.82rem}
td.n,th.n{text-align:right}td.n,td.ok,td.bad{white-space:nowrap}
td.ok{color:var(--ok);font-weight:600}td.bad{color:var(--bad);font-weight:600}
details{margin:.4rem 0}summary{cursor:pointer;color:var(--muted)}
pre{background:var(--soft);border-radius:6px;padding:.8rem 1rem;overflow-x:auto;font-size:.8rem;line-height:1.45}
.patterns{display:flex;flex-wrap:wrap;gap:1rem}
.patterns div{font-size:.78rem;color:var(--muted);text-align:center}
.patterns img{display:block;image-rendering:pixelated;border:1px solid var(--rule);margin-bottom:.25rem}
.alice{color:var(--alice)}.bob{color:var(--bob)}.eve{color:var(--eve)}
.cell1{fill:var(--ink)}.cell0{fill:var(--rule)}.wrong1{fill:var(--bad)}.wrong0{fill:var(--bad-soft)}
.strip text{fill:var(--ink);font-size:11px}.strip .at{fill:var(--muted);font-size:9px;text-anchor:end}
.strip .alice{fill:var(--alice)}.strip .bob{fill:var(--bob)}.strip .eve{fill:var(--eve)}
footer{max-width:62rem;margin:3rem auto;padding:1rem 1.5rem;color:var(--muted);font-size:.85rem}
@media(max-width:640px){main,header{padding-left:.8rem;padding-right:.8rem}figure{padding:.6rem}
figure .scroll svg{min-width:38rem}th,td{padding-right:.6rem}table{font-size:.82rem}
td:first-child{overflow-wrap:anywhere;min-width:6.5rem}}
@media print{body{background:#fff}figure,.tiles div{break-inside:avoid}nav{display:none}}
"""
