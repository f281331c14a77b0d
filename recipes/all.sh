#!/usr/bin/env bash
# All five recipes with the offline assets, then one table of what they made: what `make recipes` runs.
#
#   bash recipes/all.sh                    under 40 minutes on two quiet cores
#   bash recipes/all.sh --overwrite        redo everything; any other flag also goes to every stage
#
# Killed? Run it again: finished stages are kept, the one that was cut goes on.
set -eo pipefail  # no -u: bash before 4.4 (macOS) takes an empty array for an unset one
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source recipes/options.sh
if [[ $size != full ]]; then
  echo "error: recipes/all.sh has one size; give --size $size to a single recipe" >&2
  exit 2
fi

bash recipes/offline.sh --assets "$assets" "${everywhere[@]}"
for system in small_v1 small_v2 small_v2_guide; do
  bash "recipes/$system.sh" --size small --assets "$assets" "${everywhere[@]}"
done
bash recipes/model2vec.sh --assets "$assets" "${everywhere[@]}"

# What each recipe ends with, beside the teacher and BM25.
recipe=all_recipes
runs=${RUNS:-runs}
stage benchmark_hotpotqa.py "${offline_benchmark[@]}" --reduced-teacher "" --models \
  offline="$runs/offline/sts_fine_tuning/final" \
  small-v1="$runs/small_v1_small/sts_fine_tuning/final" \
  small-v2="$runs/small_v2_small/sts_fine_tuning/final" \
  small-v2-guide="$runs/small_v2_guide_small/post_train_distilled_model/final" \
  model2vec="$runs/model2vec/distil_model2vec/final"
done_in
