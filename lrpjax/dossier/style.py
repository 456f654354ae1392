"""The style of the page: light and dark, wide and narrow, on a screen and on paper."""

STYLE = """
:root{--paper:#fff;--ink:#1b1d21;--soft:#5a6069;--line:#d4d8de;--tint:#f3f5f8;--link:#0b57a4;
--first:#0b57a4;--second:#b5480a;--third:#2b7a3d;--good:#1d6b34;--bad:#a81c1c;--open:#7a5200}
@media (prefers-color-scheme:dark){:root{--paper:#15171b;--ink:#e8eaee;--soft:#a6adb8;--line:#3a3f48;--tint:#20242b;
--link:#8ab8f2;--first:#7db2f5;--second:#f2a36b;--third:#7fcf92;--good:#7fcf92;--bad:#ff9a94;--open:#e8c06a}}
*{box-sizing:border-box}
html{scroll-behavior:smooth}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0 auto;max-width:62rem;padding:1.5rem 1.25rem 4rem;background:var(--paper);color:var(--ink);
font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif;overflow-wrap:break-word}
a{color:var(--link)}
.skip{position:absolute;left:-99rem}
.skip:focus{left:1rem;top:.5rem;background:var(--paper);padding:.3rem .6rem}
h1{font-size:1.75rem;line-height:1.2;margin:.2rem 0 .6rem}
h2{font-size:1.3rem;margin:2.6rem 0 .6rem;padding-top:.5rem;border-top:2px solid var(--line)}
h3{font-size:1.06rem;margin:1.6rem 0 .4rem}
p,ul{max-width:46rem}
li{margin:.25rem 0}
header p{color:var(--soft)}
nav ol{columns:3 13rem;padding-left:1.6rem;margin:.5rem 0}
.scroll{overflow-x:auto;margin:.7rem 0}
.scroll:focus-visible,pre:focus-visible,summary:focus-visible,a:focus-visible{
outline:2px solid var(--link);outline-offset:2px}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;min-width:min(100%,26rem)}
caption{text-align:left;color:var(--soft);padding:.2rem 0;font-size:.88rem}
th,td{text-align:left;vertical-align:top;padding:.35rem .8rem .35rem 0;border-bottom:1px solid var(--line)}
thead th{border-bottom:2px solid var(--line);font-weight:600}
tbody th{font-weight:400}
.number{text-align:right;white-space:nowrap}
code,pre{font-family:ui-monospace,"Cascadia Mono",Menlo,"Liberation Mono",monospace;font-size:.86em}
.hash{overflow-wrap:anywhere}
pre{background:var(--tint);padding:.8rem 1rem;overflow-x:auto;white-space:pre-wrap;
overflow-wrap:anywhere;border-radius:4px}
.wide{max-width:none;font-size:.88rem;overflow-wrap:anywhere}
.whole{white-space:nowrap}
.refused{background:var(--tint);padding:.6rem .9rem;border-left:4px solid var(--open)}
.badge{display:inline-block;white-space:nowrap;font-size:.85rem;font-weight:600;border:1.5px solid;border-radius:1rem;
padding:0 .6rem}
.badge.passed{color:var(--good)}.badge.failed{color:var(--bad)}.badge.undecided{color:var(--open)}
.badge.not-tested,.badge.measured{color:var(--soft)}
details{margin:.5rem 0}
summary{cursor:pointer;color:var(--link);padding:.2rem 0}
figure{margin:1rem 0;max-width:40rem}
figcaption{color:var(--soft);font-size:.88rem}
svg{width:100%;height:auto;display:block}
svg text{fill:var(--ink);font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif}
.bar{fill:var(--first)}.axis{stroke:var(--soft)}.grid{stroke:var(--line);stroke-width:.7}
.mark{stroke:var(--second);stroke-width:2;stroke-dasharray:5 4}
.curve{fill:none;stroke-width:2.2}
.curve.first{stroke:var(--first)}.curve.second{stroke:var(--second);stroke-dasharray:7 4}
.curve.third{stroke:var(--third);stroke-dasharray:2 3}
.band{opacity:.18}.band.first{fill:var(--first)}.band.second{fill:var(--second)}.band.third{fill:var(--third)}
@media (max-width:40rem){body{padding:1rem .8rem 3rem}h1{font-size:1.4rem}svg{min-width:28rem}}
@media print{
:root{--paper:#fff;--ink:#000;--soft:#444;--line:#bbb;--tint:#f4f4f4;--link:#000;--first:#0b57a4;--second:#b5480a;
--third:#2b7a3d;--good:#1d6b34;--bad:#a81c1c;--open:#7a5200}
@page{size:A4;margin:18mm 16mm}
body{max-width:none;padding:0;font-size:10pt}nav,.skip{display:none}
h2,h3,caption,thead{break-after:avoid}figure,tr,pre,.refused{break-inside:avoid}
h2{margin-top:1.6rem}.scroll{overflow:visible}table{width:100%;font-size:8.5pt}td,th{overflow-wrap:anywhere}
thead{display:table-header-group}figure{max-width:14cm}details::details-content{content-visibility:visible;block-size:auto}
}
"""
