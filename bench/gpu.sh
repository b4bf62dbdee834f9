#!/usr/bin/env bash
# What one NVIDIA GPU makes of srnas_fast, in 25 minutes: bench/gpu.sh OUT [PIECE...]
#
#   tests    pytest -m gpu, without the cap                                            390 seconds at most
#   memory   of every mixed operation beside the peers                                 340
#   speed    of the same, of depthwise convolutions, of sparse weights                 280
#   steps    whole search steps: memory and speed, with CUDA graphs and without        270
#   search   HiNAS denoising at the paper's settings, half a minute of it               90
#   summary  pictures, and summary.md: what was measured beside what was hoped for      40
#
# Without a piece all of them, in this order. torch's allocator is capped at 11 GiB. Everything is left in the folder
# OUT; rows are added to those that are there. A piece that fails, or takes too long, is told, the others still run, and
# the exit status is 1. Every case has a process of its own: what breaks in one of them is gone for the next. PYTHON
# names the interpreter, DATA a folder of images for the search (default: the photographs of scikit-image).
set -uo pipefail

pieces=(tests memory speed steps search summary)
if [ $# -eq 0 ]; then
    echo "usage: bench/gpu.sh OUT [PIECE...]; pieces: ${pieces[*]}" >&2
    exit 2
fi
out=$(realpath -m "$1")
data=${DATA:+$(realpath -m "$DATA")}
python=${PYTHON:-python3}
[[ $python == */* ]] && python=$(realpath -s "$python")
shift
[ $# -eq 0 ] && set -- "${pieces[@]}"
for piece; do
    if [[ " ${pieces[*]} " != *" $piece "* ]]; then
        echo "bench/gpu.sh: there is no piece $piece; give some of: ${pieces[*]}" >&2
        exit 2
    fi
done
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
trap 'exit 130' INT

# measure COMMAND...: runs it, as long as the piece has time; with it the piece fails.
measure() {
    local left=$((ends - SECONDS)) status
    if [ "$left" -le 0 ]; then
        echo "not reached in time: $*" >&2
        failed=yes
        return
    fi
    timeout --foreground --signal=INT --kill-after=10 "$left" "$@"  # INT: Python ends its own processes, too
    status=$?
    if [ "$status" -ne 0 ]; then
        echo "exit status $status (124 and 137: out of time): $*" >&2
        failed=yes
    fi
}

bench() {
    measure "$python" "bench/$1.py" --out "$out" "${@:2}"
}

# mixed BENCH [OPTION...]: all mixed operations, the three that count most beside all peers, the others without the one
# that compiles longest.
mixed() {
    local case peers=(--peer eager --peer checkpoint --peer selective --peer compile)
    peers+=(--peer srnas_fast --peer srnas_fast-unmerged)
    for case in "${headline[@]}"; do
        bench "$@" --gib 11 --case "$case"
    done
    for case in "${others[@]}"; do
        bench "$@" --gib 11 --case "$case" "${peers[@]}"
    done
}

# run PIECE: `ends` is when it has to be done, in seconds from the start of this script.
run() {
    local case
    case $1 in
        tests)
            ends=$((SECONDS + 390))
            rm -f "$out/tests.xml"
            measure "$python" -m pytest -q -m gpu --junitxml="$out/tests.xml" python_tests
            ;;
        memory)
            ends=$((SECONDS + 340))
            mixed memory
            ;;
        speed)
            ends=$((SECONDS + 280))
            mixed speed --rounds 9
            bench speed --gib 11 --case multi-depthwise
            bench speed --gib 11 --case simplex
            bench speed --gib 11 --case sparsity/dlsr --rounds 3
            ;;
        steps)
            ends=$((SECONDS + 270))
            for case in hinas-search dlsr-search/64 dlsr-search/8; do
                bench memory --gib 11 --case "$case"
                bench speed --gib 11 --case "$case"
            done
            bench speed --gib 11 --case sparsity/hinas-search
            ;;
        search)
            ends=$((SECONDS + 90))
            bench search --gib 11 ${data:+--root "$data"}
            ;;
        summary)
            ends=$((SECONDS + 40))
            bench plot
            bench summary
            ;;
    esac
}

timeout --foreground 90 "$python" bench/machine.py --out "$out" || exit
{ read -ra headline && read -ra others; } < <(PYTHONPATH="bench:$PYTHONPATH" "$python" -c '
from cases import HEADLINE, MIXED
print(*HEADLINE)
print(*(case for case in MIXED if case not in HEADLINE))') || exit

status=0
for piece; do
    printf '\n=== %s ===\n' "$piece"
    began=$SECONDS failed=
    run "$piece"
    if [ -n "$failed" ]; then
        printf '=== %s: FAILED after %d s ===\n' "$piece" $((SECONDS - began)) >&2
        status=1
    else
        printf '=== %s: done in %d s ===\n' "$piece" $((SECONDS - began))
    fi
done
exit "$status"
