#!/usr/bin/env bash
# What one NVIDIA GPU makes of srnas_fast, in 15 minutes: bench/gpu.sh OUT [PIECE...]
#
#   warm     compile for the card, on all cores: programs, Triton's kernels, the peers' 130 seconds at most
#   tests    pytest -m gpu, in several processes, without the cap                       180
#   speed    of the mixed operations that count most, launched and as CUDA graphs       200
#   steps    whole search steps: memory and speed, with CUDA graphs and without         180
#   memory   of the mixed operations that count most, beside the peers                  100
#   search   HiNAS denoising at the paper's settings, half a minute of it               70
#   summary  pictures, and summary.md: what was measured beside what was hoped for      40
#   more     the other mixed operations, depthwise convolutions, sparse weights         240
#
# Without a piece all of them but `more`, in this order: what matters most comes first, for a card that is lent for
# minutes. torch's allocator is capped at 11 GiB. Everything is left in the folder OUT; rows are added to those that are
# there, each as soon as it is measured. A piece that fails, or takes too long, is told, the others still run, and the
# exit status is 1. Every case has a process of its own: what breaks in one of them is gone for the next. PYTHON names
# the interpreter, DATA a folder of images for the search (default: the photographs of scikit-image).
set -uo pipefail

pieces=(warm tests speed steps memory search summary)
all=("${pieces[@]}" more)
if [ $# -eq 0 ]; then
    echo "usage: bench/gpu.sh OUT [PIECE...]; pieces: ${all[*]}" >&2
    exit 2
fi
out=$(realpath -m "$1")
data=${DATA:+$(realpath -m "$DATA")}
python=${PYTHON:-python3}
[[ $python == */* ]] && python=$(realpath -s "$python")
shift
[ $# -eq 0 ] && set -- "${pieces[@]}"
for piece; do
    if [[ " ${all[*]} " != *" $piece "* ]]; then
        echo "bench/gpu.sh: there is no piece $piece; give some of: ${all[*]}" >&2
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

# mixed BENCH [OPTION...]: the mixed operations that count most, beside all peers.
mixed() {
    local case
    for case in "${headline[@]}"; do
        bench "$@" --gib 11 --case "$case"
    done
}

# warm: every case once, all at the same time, so that their compilers use all cores: g++ for the code that launches,
# NVRTC for programs, Triton, torch's Inductor. Each keeps what it made; what is measured is thrown away.
warm() {
    local case kept=$out
    out=$(mktemp -d)
    for case in "${headline[@]}"; do
        bench speed --rounds 1 --case "$case" >/dev/null &
    done
    for case in hinas-search dlsr-search/64; do
        bench speed --rounds 1 --case "$case" --peer srnas_fast --peer srnas_fast-graphs >/dev/null &
    done
    wait
    rm -rf "$out"
    out=$kept
}

# run PIECE: `ends` is when it has to be done, in seconds from the start of this script.
run() {
    local case
    case $1 in
        warm)
            ends=$((SECONDS + 130))
            warm
            ;;
        tests)
            ends=$((SECONDS + 180))
            rm -f "$out/tests.xml"
            measure "$python" -m pytest -q -n auto -m gpu --junitxml="$out/tests.xml" python_tests
            ;;
        speed)
            ends=$((SECONDS + 200))
            mixed speed --rounds 9
            for case in "${headline[@]}" dlsr-32; do
                bench speed --gib 11 --rounds 9 --case "$case" --graph
            done
            ;;
        steps)
            ends=$((SECONDS + 180))
            for case in hinas-search dlsr-search/64; do
                bench memory --gib 11 --case "$case"
                bench speed --gib 11 --case "$case" --rounds 2
            done
            ;;
        memory)
            ends=$((SECONDS + 100))
            mixed memory
            ;;
        search)
            ends=$((SECONDS + 70))
            bench search --gib 11 ${data:+--root "$data"}
            ;;
        summary)
            ends=$((SECONDS + 40))
            bench plot
            bench summary
            ;;
        more)
            ends=$((SECONDS + 240))
            for case in "${others[@]}"; do
                bench speed --gib 11 --rounds 9 --case "$case" --peer eager --peer compile --peer srnas_fast
                bench memory --gib 11 --case "$case" --peer eager --peer compile --peer srnas_fast
            done
            bench memory --gib 11 --case hinas-sr-search
            bench memory --gib 11 --case hnas-search
            bench speed --gib 11 --case hinas-sr-search --rounds 2
            bench speed --gib 11 --case multi-depthwise
            bench speed --gib 11 --case simplex
            bench speed --gib 11 --case sparsity/dlsr --rounds 3
            bench speed --gib 11 --case sparsity/hinas-search
            bench memory --gib 11 --case dlsr-search/8
            bench speed --gib 11 --case dlsr-search/8
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
