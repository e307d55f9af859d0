#!/usr/bin/env bash
# Opens the pages of a directory in headless Chromium, in both themes and five widths. Fails on a word in the console, and on a page that is
# wider than its window. Leaves screenshots beside the pages.
set -euo pipefail
directory=$(cd "$1" && pwd)
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT

browse() {
    timeout 120 chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir="$home/profile" \
        --allow-file-access-from-files --enable-logging=stderr --v=0 "$@" 2>"$home/log"
    if grep ':CONSOLE' "$home/log"; then
        echo "the browser's console is not empty: $*" >&2
        exit 1
    fi
}

seen=0
for page in "$directory"/*.html; do
    name=$(basename "$page" .html)
    for width in 360 640 768 960 1280; do
        # The frame has the width of a phone although no window is so small.
        cat >"$home/frame.html" <<END
<!DOCTYPE html><html><body style="margin:0"><iframe src="file://$page" style="border:0;width:${width}px;height:1600px"></iframe><p id="said"></p>
<script>onload = () => { const page = document.querySelector('iframe').contentDocument.documentElement;
const wide = [...page.querySelectorAll('body *')].filter(e => !e.closest('pre, svg, .skip, .cards thead') && e.getBoundingClientRect().right > $width + 1);
document.getElementById('said').textContent = 'width ' + page.scrollWidth + ' of ${width}, beyond it ' + wide.length + ' ' + (wide[0] ? wide[0].outerHTML.slice(0, 90) : ''); }
</script></body></html>
END
        browse --dump-dom "file://$home/frame.html" >"$home/dom"
        said=$(grep -o 'width [0-9]* of [0-9]*, beyond it [0-9]*[^<]*' "$home/dom" | tail -1)
        case "$said" in
        "width $width of $width, beyond it 0"*) ;;
        *)
            echo "$name is wider than $width: ${said:-it was not measured}" >&2
            exit 1
            ;;
        esac
    done
    for theme in 1-light 0-dark; do
        for size in 1280,1500 360,1500; do
            browse --blink-settings=preferredColorScheme="${theme%-*}" --window-size="$size" \
                --screenshot="$directory/$name-${theme#*-}-${size%,*}.png" "file://$page"
            seen=$((seen + 1))
        done
    done
done
[ "$seen" -ge 12 ] || { echo "only $seen screenshots" >&2; exit 1; }
echo "$seen screenshots in $directory"
