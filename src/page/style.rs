//! How the page looks. One table of colours for both themes; a test computes the contrast of all that stand on each other.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

/// Name, in the light, in the dark.
const COLOURS: [(&str, &str, &str); 16] = [
    ("page", "#ffffff", "#12161b"),
    ("panel", "#f4f6f8", "#1b2128"),
    ("text", "#1a1f25", "#e7ebf0"),
    ("soft", "#4b5561", "#adb7c3"),
    ("line", "#c6ced7", "#3a4450"),
    ("edge", "#6b7785", "#8290a0"),
    ("link", "#0a54b8", "#82b6ff"),
    ("good", "#0f6630", "#74d394"),
    ("look", "#7d4b00", "#f3bd57"),
    ("bad", "#ab1c18", "#ff958c"),
    ("good-soft", "#e2f4e7", "#14301e"),
    ("look-soft", "#fdf0d5", "#352a10"),
    ("bad-soft", "#fde8e6", "#3b1a18"),
    ("wal", "#2b6cb3", "#6fa9ee"),
    ("backup", "#7548ab", "#bb98f2"),
    ("dump", "#0c7471", "#52c9c4"),
];

const RULES: &str = "\
*{box-sizing:border-box}\
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}\
body{margin:0;background:var(--page);color:var(--text);font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',sans-serif;overflow-wrap:anywhere}\
.in{max-width:68rem;margin:0 auto;padding:0 1rem}\
header{padding:1.25rem 0 .25rem}\
h1{font-size:1.35rem;line-height:1.25;margin:0}\
h2{font-size:1.2rem;line-height:1.3;margin:0 0 .6rem}\
h3{font-size:1rem;margin:1.2rem 0 .4rem}\
p{margin:.4rem 0}\
.verdict>:last-child,.alerts>li>:last-child{margin-bottom:0}\
time,td code{white-space:nowrap}\
section{padding:1.4rem 0 0}\
a{color:var(--link);text-underline-offset:.15em}\
a:focus-visible,button:focus-visible,input:focus-within,summary:focus-visible,pre:focus-visible{outline:3px solid var(--link);outline-offset:2px}\
.skip{position:absolute;left:-999rem;top:0;padding:.5rem 1rem;background:var(--page)}\
.skip:focus{left:0;z-index:1}\
.soft{color:var(--soft)}\
.note{color:var(--soft);font-size:.9rem}\
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1rem;margin:.9rem 0 0;padding:.5rem 0;border-top:1px solid var(--line);border-bottom:1px solid var(--line);font-size:.95rem}\
nav a{display:inline-block;padding:.25rem 0}\
code,pre{font-family:ui-monospace,'SFMono-Regular',Menlo,Consolas,'DejaVu Sans Mono',monospace;font-size:.88em}\
pre{background:var(--panel);border:1px solid var(--line);border-radius:6px;padding:.6rem .75rem;margin:.35rem 0;white-space:pre;overflow-x:auto;user-select:all}\
.verdict{border:1px solid var(--line);border-left-width:8px;border-radius:8px;padding:.9rem 1.1rem;margin-top:1rem}\
.verdict h2{font-size:1.45rem;margin:0 0 .2rem}\
.verdict.good{border-color:var(--good);background:var(--good-soft)}\
.verdict.look{border-color:var(--look);background:var(--look-soft)}\
.verdict.bad{border-color:var(--bad);background:var(--bad-soft)}\
.verdict.good h2{color:var(--good)}.verdict.look h2{color:var(--look)}.verdict.bad h2{color:var(--bad)}\
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(14rem,1fr));gap:.75rem;margin:.75rem 0 0;padding:0}\
.tile{background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:.75rem .9rem}\
.tile dt{color:var(--soft);font-size:.9rem}\
.tile dd{margin:0}\
.tile .big{font-size:1.45rem;font-weight:650;line-height:1.25}\
.tile .note{line-height:1.4;margin-top:.3rem}\
.badge{display:inline-block;border:1px solid;border-radius:99px;padding:0 .55rem;font-size:.85rem;font-weight:600;white-space:nowrap}\
.badge.good{color:var(--good);background:var(--good-soft)}\
.badge.look{color:var(--look);background:var(--look-soft)}\
.badge.bad{color:var(--bad);background:var(--bad-soft)}\
.badge.plain{color:var(--soft);background:var(--panel)}\
.alerts{list-style:none;margin:0;padding:0}\
.alerts>li{border:1px solid var(--line);border-left-width:6px;border-radius:6px;padding:.55rem .8rem;margin:.5rem 0}\
.alerts>li.bad{border-left-color:var(--bad)}.alerts>li.look{border-left-color:var(--look)}\
table{border-collapse:collapse;width:100%;font-size:.92rem}\
caption{text-align:left;color:var(--soft);font-size:.9rem;padding:.2rem 0}\
th,td{text-align:left;vertical-align:top;padding:.4rem .8rem .4rem 0;border-bottom:1px solid var(--line)}\
thead th{color:var(--soft);font-weight:600;font-size:.85rem;border-bottom-color:var(--edge);overflow-wrap:normal}\
td.n,th.n{text-align:right;white-space:nowrap}\
td.w{white-space:nowrap}\
details{margin:.6rem 0}\
summary{cursor:pointer;color:var(--link);padding:.2rem 0;width:fit-content}\
.check{list-style:none;margin:.4rem 0;padding:0}\
.check li{padding:.1rem 0}\
form{display:flex;flex-wrap:wrap;gap:.6rem;align-items:end;margin:.6rem 0 .9rem}\
label{display:block;font-size:.95rem}\
input,button{font:inherit;min-height:2.6rem;max-width:100%;padding:.3rem .7rem;border-radius:6px;border:1px solid var(--edge);background:var(--page);color:var(--text)}\
button{cursor:pointer;background:var(--link);border-color:var(--link);color:var(--page);font-weight:600}\
.key{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;list-style:none;margin:.4rem 0 0;padding:0;font-size:.9rem;color:var(--soft)}\
.key svg{width:1.6em;height:1em;vertical-align:-.12em;margin-right:.35em}\
svg{display:block;width:100%;height:auto}\
table.slim{width:auto}table.slim th,table.slim td{padding-right:1.6rem}\
svg.small{width:6rem;height:.7rem;display:inline-block;margin-right:.6rem}\
.key svg{display:inline-block}\
svg text{fill:var(--text);font-size:13px;font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',sans-serif}\
svg text{paint-order:stroke;stroke:var(--page);stroke-width:3px}\
svg text.soft{fill:var(--soft);font-size:12px}\
svg .grid{stroke:var(--line);stroke-width:1}\
svg .base{stroke:var(--edge);stroke-width:1}\
svg .lane{fill:var(--panel)}\
svg .wal{fill:var(--wal)}svg .backup{fill:var(--backup)}svg .dump{fill:var(--dump)}\
svg .good{fill:var(--good)}svg .look{fill:var(--look)}svg .bad{fill:var(--bad)}\
svg .rim{stroke:var(--page);stroke-width:1.5;paint-order:stroke}\
svg .strike{stroke:var(--bad);stroke-width:2.5;fill:none;stroke-linecap:round}\
svg .halo{stroke:var(--page);stroke-width:5.5;fill:none;stroke-linecap:round}\
svg .hollow{fill:var(--page);stroke:var(--backup);stroke-width:2}\
svg .gap{stroke:var(--bad);stroke-width:1.5;stroke-dasharray:4 3}\
svg .spent{stroke:var(--edge);stroke-width:1;stroke-dasharray:2 3;fill:none}\
svg .risk{stroke:var(--look);stroke-width:1.5;stroke-dasharray:2 2}\
svg .lb{stroke:var(--bad);stroke-width:1.6}svg .ll{stroke:var(--look);stroke-width:1.2}svg .lp{stroke:var(--page);stroke-width:1.6;opacity:.75}\
svg .quota{stroke:var(--bad);stroke-width:2;stroke-dasharray:6 4}\
svg .warn{stroke:var(--look);stroke-width:2;stroke-dasharray:2 4}\
.thin{display:none}\
footer{margin:2rem 0 1.5rem;padding-top:.75rem;border-top:1px solid var(--line)}\
@media (max-width:44rem){\
.wide{display:none}.thin{display:block}\
.verdict h2{font-size:1.25rem}\
.tiles{grid-template-columns:1fr 1fr}\
.tile{padding:.6rem .7rem}.tile .big{font-size:1.2rem}\
form>*,form input,form button{width:100%}\
}\
@media (max-width:58rem){\
table.cards,.cards caption,.cards tbody,.cards tr,.cards td,.cards th{display:block;width:100%}\
.cards thead{position:absolute;left:-999rem}\
.cards tr{border:1px solid var(--line);border-radius:6px;padding:.4rem .7rem;margin:.5rem 0}\
.cards td,.cards tbody th{border:0;padding:.12rem 0;text-align:left;white-space:normal}\
.cards td[data-l]::before{content:attr(data-l) ': ';color:var(--soft)}\
}\
@media (max-width:24.5rem){.tiles{grid-template-columns:1fr}}\
@media print{.skip,nav,form{display:none}.in{max-width:none}section,li,tr,svg{break-inside:avoid}details::details-content{content-visibility:visible;display:block}svg,.verdict,.badge,.tile{print-color-adjust:exact}}\
";

/// All of it.
pub(super) static STYLE: LazyLock<String> = LazyLock::new(|| {
    let set = |pick: fn(&(&str, &'static str, &'static str)) -> &'static str| {
        COLOURS.iter().map(|colour| format!("--{}:{};", colour.0, pick(colour))).collect::<String>()
    };
    // On paper it is always light.
    format!(
        ":root{{color-scheme:light dark;{}}}@media screen and (prefers-color-scheme:dark){{:root{{{}}}}}{RULES}",
        set(|colour| colour.1),
        set(|colour| colour.2)
    )
});

/// What a browser may do with the page: nothing but to show it, and to send its form back. For the header of that name, too.
pub static CONTENT_SECURITY_POLICY: LazyLock<String> = LazyLock::new(|| {
    let digest = STANDARD.encode(Sha256::digest(STYLE.as_bytes()));
    format!("default-src 'none'; style-src 'sha256-{digest}'; form-action 'self'; base-uri 'none'")
});

#[cfg(test)]
mod tests {
    use super::*;

    fn luminance(colour: &str) -> f64 {
        let channel = |at: usize| {
            let value = f64::from(u8::from_str_radix(&colour[at..at + 2], 16).unwrap()) / 255.0;
            if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5)
    }

    /// As WCAG 2 defines it.
    fn contrast(one: &str, other: &str) -> f64 {
        let (one, other) = (luminance(one), luminance(other));
        (one.max(other) + 0.05) / (one.min(other) + 0.05)
    }

    fn colours(name: &str) -> [&'static str; 2] {
        let (_, light, dark) = COLOURS.iter().find(|(own, ..)| *own == name).unwrap_or_else(|| panic!("{name}"));
        [light, dark]
    }

    #[test]
    fn everything_can_be_read_in_both_themes() {
        assert!((contrast("#ffffff", "#000000") - 21.0).abs() < 0.01);
        // AA: 4.5 for text, 3 for shapes and the edges of controls.
        const TEXTS: [(&str, &[&str]); 7] = [
            ("text", &["page", "panel", "good-soft", "look-soft", "bad-soft"]),
            ("soft", &["page", "panel", "good-soft", "look-soft", "bad-soft"]),
            ("link", &["page", "panel", "good-soft", "look-soft", "bad-soft"]),
            ("page", &["link"]),
            ("good", &["page", "panel", "good-soft"]),
            ("look", &["page", "panel", "look-soft"]),
            ("bad", &["page", "panel", "bad-soft"]),
        ];
        const SHAPES: [(&str, &[&str]); 7] = [
            ("edge", &["page", "panel"]),
            ("wal", &["page", "panel"]),
            ("backup", &["page", "panel"]),
            ("dump", &["page", "panel"]),
            ("good", &["page", "panel"]),
            ("look", &["page", "panel"]),
            ("bad", &["page", "panel"]),
        ];
        for (pairs, least) in [(&TEXTS, 4.5), (&SHAPES, 3.0)] {
            for (front, backs) in pairs {
                for (back, theme) in backs.iter().flat_map(|back| [(back, 0), (back, 1)]) {
                    let found = contrast(colours(front)[theme], colours(back)[theme]);
                    assert!(found >= least, "{front} on {back} in theme {theme}: {found:.2}");
                }
            }
        }
    }

    #[test]
    fn every_colour_that_is_used_is_in_the_table() {
        for used in RULES.split("var(--").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            colours(used);
        }
        for (name, ..) in COLOURS {
            assert!(RULES.contains(&format!("var(--{name})")), "{name} is used nowhere");
        }
    }

    #[test]
    fn nothing_is_fetched() {
        for word in ["url(", "@import", "http", "<"] {
            assert!(!STYLE.contains(word), "{word}");
        }
    }
}
