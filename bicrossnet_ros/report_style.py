"""The style sheet of the report: light and dark, wide and narrow."""

STYLE = """
:root{color-scheme:light dark;--bg:#fbfbf9;--fg:#1b1f24;--soft:#59626d;--line:#d9dcd8;
--card:#fff;--e0:#0a8f8f;--e1:#b67a00;--e2:#e2560b;--e3:#c0143c;--eu:#3d6fd1;--no:#6b7480}
@media (prefers-color-scheme:dark){:root{--bg:#15181c;--fg:#e8eaec;--soft:#a0a8b2;--line:#333a42;
--card:#1d2126;--e0:#2cc2bd;--e1:#f0b429;--e2:#ff8442;--e3:#ff4d74;--eu:#7ea6f4;--no:#9aa3ad}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.6rem;line-height:1.25;margin:.2rem 0 .6rem}
h2{font-size:1.2rem;margin:2.4rem 0 .6rem}
h3{font-size:.85rem;font-weight:600;color:var(--soft);margin:0}
.verdict{font-size:1.1rem;max-width:46rem;margin:.4rem 0 1rem}
.note{border-left:4px solid var(--e1);padding:.3rem .8rem;margin:.5rem 0;max-width:52rem}
.small{color:var(--soft);font-size:.88rem;max-width:52rem;margin:.4rem 0}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(14.5rem,1fr));gap:.7rem;
margin:1.2rem 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.7rem .9rem}
.card p{margin:0;color:var(--soft);font-size:.85rem}
.card .figure{font-size:1.7rem;font-weight:650;color:var(--fg);line-height:1.3;
font-variant-numeric:tabular-nums}
.alarm{border:2px solid var(--e3)}.alarm .figure{color:var(--e3)}
svg{display:block;width:100%;height:auto}.scroll{overflow-x:auto}
svg path,svg polyline,svg ellipse{vector-effect:non-scaling-stroke}
.map{border-radius:.5rem;background:#22262b;max-height:92vh}
.track-edge,.track{fill:none;stroke-linejoin:round}
.track-edge{stroke:#000;stroke-opacity:.55;stroke-width:4}.track{stroke:#fff;stroke-width:1.6}
.oval{fill:#fff;fill-opacity:.05;stroke:#fff;stroke-width:1}
.e0{stroke:var(--e0);background:var(--e0)}.e1{stroke:var(--e1);background:var(--e1)}
.e2{stroke:var(--e2);background:var(--e2)}.e3{stroke:var(--e3);background:var(--e3)}
.eu{stroke:var(--eu);background:var(--eu)}.no{stroke:var(--no);background:var(--no)}
.dot,.dot-edge,.dot-hole{stroke-linecap:round;fill:none}
.dot{stroke-width:9}.dot-edge{stroke:#fff;stroke-width:12}
.dot-hole{stroke:#fff;stroke-width:4}
.plot .dot{stroke-width:8}.plot .dot-hole{stroke:var(--bg);stroke-width:4}
.miss{fill:none;stroke-width:2}
.bar-edge{stroke:#000;stroke-width:7;fill:none}.bar{stroke:#fff;stroke-width:3;fill:none}
.bar-text{fill:#fff;stroke:#000;stroke-width:.22em;paint-order:stroke;font-weight:600}
.grid{stroke:var(--line);stroke-width:1;fill:none}
.limit{stroke:var(--e3);stroke-width:1.5;stroke-dasharray:6 5;fill:none}
.bound{stroke:var(--soft);stroke-width:2;fill:none}
.axis-x,.axis-y{fill:var(--soft);font-size:15px}.axis-x{text-anchor:middle}
.axis-y{text-anchor:end}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;padding:0;margin:.7rem 0 0;
font-size:.9rem}
.key{display:inline-block;width:.75em;height:.75em;border-radius:50%;margin-right:.4em}
.key.no{background:none;border:.2em solid var(--no)}
.key.line{width:1.6em;height:.2em;border-radius:0;background:var(--soft);vertical-align:.25em}
.strip{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(30rem,100%),1fr));
gap:1.1rem;margin-top:.8rem}
figure{margin:0}.pair{display:grid;grid-template-columns:1fr 1fr;gap:.3rem}
.pair>div{position:relative}.pair img{display:block;width:100%;border-radius:.3rem}
.pair span{position:absolute;left:.3rem;bottom:.3rem;background:#000a;color:#fff;
font-size:.75rem;padding:0 .4em;border-radius:.2em}
.missing{border:1px dashed var(--line);border-radius:.3rem;display:grid;place-items:center;
min-height:7rem;color:var(--soft);font-size:.85rem;padding:.5rem;text-align:center}
figcaption{font-size:.88rem;margin-top:.35rem;overflow-wrap:anywhere}
figcaption .key{margin:0 .1em 0 .3em}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.28rem .6rem;border-bottom:1px solid var(--line);
vertical-align:top}
th:first-child,.text{text-align:left}tbody th,.facts th{font-weight:500}
.facts th{width:13rem}.facts td{overflow-wrap:anywhere}
.wide{width:42%;text-align:left}.meter{position:relative;height:.8em;margin-top:.3em}
.meter i{position:absolute;left:0;top:0;height:100%;border-radius:.2em;min-width:2px}
.p95{background:var(--line)}.p50{background:var(--e0)}
summary{cursor:pointer;font-weight:600;margin-top:2rem}
@media (max-width:40rem){main{padding:1rem .8rem 3rem}.cards{grid-template-columns:1fr 1fr}
.card .figure{font-size:1.35rem}.dot{stroke-width:7}.dot-edge{stroke-width:9}
.dot-hole{stroke-width:3}.plot .dot{stroke-width:5}.plot .dot-hole{stroke-width:2}
.plot{min-width:36rem}.axis-x,.axis-y{font-size:19px}.facts th{width:8rem}.wide{display:none}}
@media print{details{display:none}}
"""
