#!/usr/bin/env bash
# No hub, no GPU, minutes: a small ModernBERT from real text and a real teacher, and how good it is.
#
#   bash recipes/offline.sh                    what `make run` does
#   bash recipes/offline.sh --size smoke       the same stages, small, in runs/smoke
#   bash recipes/offline.sh --overwrite        redo everything; any other flag also goes to every stage
#
# Killed? Run it again: finished stages are kept, the one that was cut goes on.
# Minutes in brackets: 2 quiet cores (docs/LOG.md has the machine), imports included.
set -eo pipefail  # no -u: bash before 4.4 (macOS) takes an empty array for an unset one
cd "$(dirname "${BASH_SOURCE[0]}")/.."

size=full
assets=assets
while [[ ${1:-} == --size || ${1:-} == --assets ]]; do
  case $1 in
    --size) size=$2 ;;
    --assets) assets=$2 ;;
  esac
  shift 2
done

case $size in
  full)  # texts labelled, passes of distillation, steps of the shorter branch
    recipe=offline texts=24000 held_out=1000 pca=20000 epochs=2 steps=1000 mlm_steps=60
    branch_steps=150 rows=32 queries=0 evaluate=500 checkpoint=125 pairs=800 rate=2e-3
    sets="sciq boolq" ;;
  smoke)
    recipe=smoke texts=1200 held_out=200 pca=1000 epochs=1 steps=0 mlm_steps=6
    branch_steps=8 rows=32 queries=100 evaluate=20 checkpoint=10 pairs=300 rate=2e-3
    sets="sciq" ;;
  *) echo "error: --size is full or smoke, not $size" >&2; exit 2 ;;
esac

teacher=$assets/models/all-MiniLM-L6-v2
evaluation=(--retrieval-folder "$assets/retrieval" --validation-sets boolq-dev)
stage() { python "$@" --recipe "$recipe" "${everywhere[@]}"; }
everywhere=("$@")
begin=$SECONDS

# 1  A blank student, narrower than its 384-d teacher, with the teacher's vocabulary. [0.1]
stage build_and_save_small_modernbert.py --preset offline --tokenizer "$teacher"

# 2  One corpus: passages first, no duplicates, a held-out part. [0.3]
stage mlm/create_dataset.py --cleaning web --sources offline --offline-text "$assets/text/train.parquet" \
  --tokenizer "$teacher" --max-tokens 256 --max-texts "$texts" --held-out-rows "$held_out" \
  --min-characters 20 --passage-share 0.45

# 3  The teacher's vectors, projected 384 -> 256. [3]
stage create_distil_dataset.py --teacher "$teacher" --pca-texts "$pca"

# 4  The main line: start as a static model of the teacher ... [0.4]
#    Without the linear map: it makes a better static model, but not a better start (docs/LOG.md).
stage mlm/init_model_mlm.py --variant static --init static --map-epochs 0

# 5  ... and learn context from the teacher's vectors. [4]
distil=(--objective cosine --optimizer adamw --rows-per-batch "$rows" --learning-rate "$rate"
  --decay 0.5 --held-out-rows 500 --evaluate-every "$evaluate" --checkpoint-every "$checkpoint"
  --select-by "retrieval_ndcg@10" "${evaluation[@]}")
stage distil_modernbert.py --student mlm/init_model_mlm@static --epochs "$epochs" \
  --max-steps "$steps" "${distil[@]}"

# 6  Cosines that track graded similarity; keeps the distilled model where retrieval would suffer. [0.4]
stage sts_fine_tuning.py --pairs mined --objective cosine --mine-pairs "$pairs" --mine-words 40 \
  --held-out-pairs 300 --epochs 1 --evaluate-every 0 \
  --sentence-pairs "$assets/sentence_pairs/mrpc.parquet" "${evaluation[@]}"

# 7  The second, shorter branch: GUIDE from the teacher's own layers, then MLM, then distillation. [2.3]
stage mlm/init_model_mlm.py --init guide --donor "$teacher"
stage mlm/pre_train.py --sequence-tokens 256 --sequences-per-batch 16 --accumulate 1 --epochs 1 \
  --max-steps "$mlm_steps" --checkpoint-every "$checkpoint" --evaluate-every 0
stage distil_modernbert.py --variant guide --student mlm/pre_train --epochs 1 \
  --max-steps "$branch_steps" "${distil[@]}"

# 8  The control: a random start with the main line's texts and steps. [4.3]
stage distil_modernbert.py --variant random --student build_and_save_small_modernbert \
  --epochs "$epochs" --max-steps "$steps" "${distil[@]}"

# 9  All of them beside the teacher, its reduction, the static twin and BM25. [2.7]
stage benchmark_hotpotqa.py --teacher "$teacher" --max-queries "$queries" \
  --models distilled=distil_modernbert sts=sts_fine_tuning guide+mlm=distil_modernbert@guide \
  random-start=distil_modernbert@random untrained-static=mlm/init_model_mlm@static/static_untrained \
  --static-twin mlm/init_model_mlm@static/static_twin \
  --retrieval $sets --retrieval-folder "$assets/retrieval" \
  --sts "$assets/sentence_pairs/mrpc.parquet"

echo "recipe $recipe: $(( (SECONDS - begin) / 60 )) min $(( (SECONDS - begin) % 60 )) s; search with: make search"
