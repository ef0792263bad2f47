#!/usr/bin/env bash
# Measures what is open on a GPU, in at most eight minutes, on random weights of Llama 3's shapes:
#
#     bash benchmarks/gpu.sh FOLDER
#
# FOLDER gets a JSON file, the table and the log of each step, and all tables in summary.txt; a step that fails or takes
# too long is noted there, and the next one follows. DATA=../shared/data takes GSM8K's lengths (the embedded world's);
# PYTHON=python another interpreter than uv's; TINY=1 tries every step at tiny sizes on any machine.
set -uo pipefail
out=$(mkdir -p "${1:?the folder for the results}" && cd "$1" && pwd) || exit
cd "$(dirname "$0")/.." || exit
export PYTHONPATH=$PWD
read -ra python <<<"${PYTHON:-uv run}"
rows=(--dataset arithmetic)
[ -z "${DATA:-}" ] || rows=(--dataset gsm8k --data-dir "$DATA")
llama=(--shape llama-3-8b --dtype bfloat16) batch=32 many=128 steps=8 tokens=96 rounds=2 batches=(8 1 64)
largest=(--shape llama-3-70b --dtype bfloat16) patience=1
if [ -n "${TINY:-}" ]; then
    llama=(--shape tiny --dtype bfloat16) batch=2 many=4 steps=1 tokens=33 rounds=1 batches=(2 1)
    largest=(--shape tiny --dtype bfloat16 --memory 0.005) patience=9
fi
failed=0

# step NAME SECONDS SCRIPT OPTION…
step() {
    local name=$1 limit=$(($2 * patience)) code=0 start=$SECONDS
    shift 2
    timeout -k 5 "$limit" "${python[@]}" "$@" --json "$out/$name.json" >"$out/$name.txt" 2>"$out/$name.log" </dev/null || code=$?
    [ "$code" = 0 ] || failed=$((failed + 1))
    {
        echo "== $name: exit $code after $((SECONDS - start)) of $limit s: $*"
        cat "$out/$name.txt"
        [ "$code" = 0 ] || tail -n 5 "$out/$name.log"
    } | tee -a "$out/summary.txt"
}

: >"$out/summary.txt"
train=(benchmarks/train.py "${llama[@]}" "${rows[@]}" --steps $steps --rounds $rounds)
step train 60 "${train[@]}" --batch-size $batch --peers pyreft limit
step train-large 45 "${train[@]}" --batch-size $many --peers limit # whole solutions would not fit
decode=(benchmarks/decode.py "${llama[@]}" --new-tokens $tokens --rounds $rounds --ratios vs_base after_closing_vs_base)
step decode-static 135 "${decode[@]}" --batch-size 1 --cache static
for size in "${batches[@]}"; do
    step "decode-$size" 60 "${decode[@]}" --batch-size "$size"
done
PYTORCH_ALLOC_CONF=expandable_segments:True step largest 60 benchmarks/largest.py "${largest[@]}"
echo "$failed steps failed; $SECONDS s in all" | tee -a "$out/summary.txt"
[ $failed = 0 ]
