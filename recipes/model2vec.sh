#!/usr/bin/env bash
# No hub, no GPU, no training: a static model of the offline teacher, and how good and fast it is.
#
#   bash recipes/model2vec.sh                  into runs/model2vec
#   bash recipes/model2vec.sh --size small     narrower, fewer queries, in runs/model2vec_small
#   bash recipes/model2vec.sh --overwrite      redo everything; any other flag also goes to every stage
#
# If recipes/offline.sh has run, its student stands in the same table. When that came later, the
# table is another one: --overwrite makes it. Minutes in brackets: 2 quiet cores, imports included.
set -eo pipefail  # no -u: bash before 4.4 (macOS) takes an empty array for an unset one
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source recipes/options.sh

case $size in
  full)  # width of the vectors, queries a set (0: all), sets
    recipe=model2vec dimensions=256 queries=0 sets="sciq boolq" ;;
  small|smoke)
    recipe=model2vec_small dimensions=64 queries=100 sets="sciq" ;;
  *) echo "error: --size is full or small, not $size" >&2; exit 2 ;;
esac

models=(static=distil_model2vec)
student=${RUNS:-runs}/offline/distil_modernbert/final
if [[ -d $student ]]; then models+=(student="$student"); fi

# 1  The teacher's vector of each of its 30k tokens, PCA, Zipf's weights. [0.6]
stage distil_model2vec.py --base-model-name "$teacher" --pca-dims "$dimensions"

# 2  Beside the teacher, the student and BM25: quality, size, texts per second. [2]
stage benchmark_hotpotqa.py --teacher "$teacher" --reduced-teacher "" --models "${models[@]}" \
  --retrieval $sets --retrieval-folder "$assets/retrieval" --max-queries "$queries" \
  --vectors vectors --sts "$assets/sentence_pairs/mrpc.parquet"

done_in
