#!/usr/bin/env bash
# No hub, no GPU, minutes: small models from real text and a real teacher, and how good they are.
#
#   bash recipes/offline.sh                    what `make run` does
#   bash recipes/offline.sh --size smoke       the same stages, small, in runs/smoke
#   bash recipes/offline.sh --size afternoon   the same with 2.5 times the text, in runs/afternoon: some
#                                              three quarters of an hour; better for the fast student
#   bash recipes/offline.sh --controls         and then the controls: other starts, the same steps
#   bash recipes/offline.sh --overwrite        redo everything; any other flag also goes to every stage
#
# Killed? Run it again: finished stages are kept, the one that was cut goes on.
# Minutes in brackets: 2 quiet cores (docs/LOG.md has the machine), imports included.
set -eo pipefail  # no -u: bash before 4.4 (macOS) takes an empty array for an unset one
cd "$(dirname "${BASH_SOURCE[0]}")/.."

size=full
assets=assets
controls=
everywhere=()
while (($#)); do
  case $1 in
    --size | --assets)
      [[ $# -gt 1 ]] || { echo "error: $1 wants a value: --size smoke, --assets DIR" >&2; exit 2; }
      if [[ $1 == --size ]]; then size=$2; else assets=$2; fi
      shift 2 ;;
    --controls) controls=yes; shift ;;
    *) everywhere+=("$1"); shift ;;
  esac
done

case $size in
  full)  # texts labelled, steps of MLM, of the fast student
    recipe=offline texts=41000 held_out=1000 pca=20000 mlm_steps=60 fast=385 queries=0
    evaluate=0 checkpoint=120 pairs=800 sets="sciq boolq" ;;
  smoke)
    recipe=smoke texts=1200 held_out=200 pca=1000 mlm_steps=6 fast=10 queries=100
    evaluate=10 checkpoint=5 pairs=300 sets="sciq" ;;
  afternoon)
    recipe=afternoon texts=104000 held_out=1000 pca=20000 mlm_steps=240 fast=0 queries=0
    evaluate=660 checkpoint=250 pairs=800 sets="sciq boolq" ;;
  *) echo "error: --size is full, smoke or afternoon, not $size" >&2; exit 2 ;;
esac

teacher=$assets/models/all-MiniLM-L6-v2
# Selected on SQuAD and on held-out Wikipedia articles, whose entities no training text has; SciQ and
# BoolQ are for the table alone.
evaluation=(--retrieval-folder "$assets/retrieval" --validation-sets squad wiki-descriptions)
stage() { python "$@" --recipe "$recipe" "${everywhere[@]}"; }
begin=$SECONDS

# 1  A blank ModernBERT, narrower than its 384-d teacher, with the teacher's vocabulary. [0.1]
stage build_and_save_small_modernbert.py --preset offline --tokenizer "$teacher"

# 2  One corpus of stories, questions, Wikipedia and papers: passages first, a held-out part. [0.4]
stage mlm/create_dataset.py --cleaning web --sources offline --offline-text "$assets/text/train.parquet" \
  "$assets/text/wiki.parquet" "$assets/text/papers.parquet" --tokenizer "$teacher" \
  --max-tokens 256 --max-texts "$texts" --held-out-rows "$held_out" --min-characters 20 \
  --passage-share 0.7

# 3  The teacher's vectors, projected 384 -> 256; of three passages in four, of a span alone: at equal
#    tokens more texts, and queries are short (docs/LOG.md). [3.2]
stage create_distil_dataset.py --teacher "$teacher" --pca-texts "$pca" --span-share 0.75

# 4  The best student starts as half of the teacher: its layers 0, 4 and 5, five units out of six,
#    and on top the PCA layer that made the labels (docs/EXPERIMENTS.md) ... [0.2]
stage mlm/init_model_mlm.py --variant layers --init layers --layers 0 4 5 \
  --donor create_distil_dataset/reduced_teacher --ffn-units 1280

# 5  ... and learns the rest from the teacher's vectors, one pass; its table stays the teacher's. [4.8]
distil=(--objective cosine --optimizer adamw --rows-per-batch 52 --decay 0.95 --epochs 1
  --held-out-rows 500 --evaluate-every "$evaluate" --checkpoint-every "$checkpoint"
  --select-by "retrieval_ndcg@10" "${evaluation[@]}")
stage distil_modernbert.py --student mlm/init_model_mlm@layers --learning-rate 1e-3 \
  --freeze-embeddings "${distil[@]}"

# 6  Two layers are four times as fast as the teacher, and learn in half the steps. [1.5]
stage mlm/init_model_mlm.py --variant fast --init layers --layers 0 5 \
  --donor create_distil_dataset/reduced_teacher --ffn-units 512
stage distil_modernbert.py --variant fast --student mlm/init_model_mlm@fast --learning-rate 1e-3 \
  --freeze-embeddings "${distil[@]}" --max-steps "$fast" --evaluate-every 0

# 7  The small ModernBERT starts as a static model of the teacher. [0.4]
#    Without the linear map: it makes a better static model, but not a better start (docs/LOG.md).
stage mlm/init_model_mlm.py --variant static --init static --map-epochs 0
stage distil_modernbert.py --variant modernbert --student mlm/init_model_mlm@static \
  --learning-rate 2e-3 "${distil[@]}"  # [3.5]

# 8  Cosines that track graded similarity; keeps the distilled model where retrieval would suffer. [0.5]
stage sts_fine_tuning.py --pairs mined --objective cosine --mine-pairs "$pairs" --mine-words 40 \
  --held-out-pairs 300 --epochs 1 --evaluate-every 0 \
  --sentence-pairs "$assets/sentence_pairs/mrpc.parquet" "${evaluation[@]}"

# 9  The best student as an int8 graph, for a server without torch. [0.3]
stage export_model.py --variant int8 --no-openvino --probes 16 --speed-texts 0

# 10  All of them beside the teacher, its reduction, the static twin and BM25. [2.8]
benchmark=(--teacher "$teacher" --max-queries "$queries" --retrieval $sets
  --retrieval-folder "$assets/retrieval" --sts "$assets/sentence_pairs/mrpc.parquet"
  --training-text create_distil_dataset)
stage benchmark_hotpotqa.py "${benchmark[@]}" \
  --models distilled=distil_modernbert "distilled int8=export_model@int8/onnx/model_quantized.onnx" \
  fast=distil_modernbert@fast sts=sts_fine_tuning modernbert=distil_modernbert@modernbert \
  --static-twin mlm/init_model_mlm@static/static_twin

# 11  The controls: what the starts are worth, with the small ModernBERT's texts and steps.
if [[ $controls ]]; then
  # Carved out of the teacher (GUIDE), then masked-language modelling; from random numbers.
  stage mlm/init_model_mlm.py --init guide --donor "$teacher"
  stage mlm/pre_train.py --sequence-tokens 256 --sequences-per-batch 16 --accumulate 1 --epochs 1 \
    --max-steps "$mlm_steps" --checkpoint-every "$checkpoint" --evaluate-every 0
  stage distil_modernbert.py --variant guide --student mlm/pre_train --learning-rate 2e-3 \
    "${distil[@]}"
  # The teacher's table as it is: neither fitted to the labels nor trained.
  stage mlm/init_model_mlm.py --variant untrained --init static --map-epochs 0 --fit-epochs 0
  stage distil_modernbert.py --variant random --student build_and_save_small_modernbert \
    --learning-rate 2e-3 "${distil[@]}"
  stage benchmark_hotpotqa.py "${benchmark[@]}" --variant controls \
    --models modernbert=distil_modernbert@modernbert guide+mlm=distil_modernbert@guide \
    random-start=distil_modernbert@random \
    untrained-static=mlm/init_model_mlm@untrained/static_twin
fi

# 12  All of it on a page; what the stages shared is dropped, its makers would make it again. [0.4]
python report.py --recipe "$recipe"
rm -rf "${RUNS:-runs}/$recipe/.cache"

echo "recipe $recipe: $(( (SECONDS - begin) / 60 )) min $(( (SECONDS - begin) % 60 )) s; search with: make search"
