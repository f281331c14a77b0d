#!/usr/bin/env bash
# The second generation: GUIDE from ModernBERT-base, masked language modelling, MSE distillation.
#
#   bash recipes/small_v2.sh                   hub and GPU, into runs/small_v2: 12 x 384, 1,024 tokens
#   bash recipes/small_v2.sh --size small      offline assets, minutes on two cores, runs/small_v2_small
#   bash recipes/small_v2.sh --overwrite       redo everything; any other flag also goes to every stage
#
# Killed? Run it again: finished stages are kept, the one that was cut goes on.
set -eo pipefail  # no -u: bash before 4.4 (macOS) takes an empty array for an unset one
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source recipes/options.sh

case $size in
  full)  # the scripts' own constants are this recipe
    recipe=small_v2
    shape=() corpus=() donor=() language=() labels=() vectors=() pairs=() table=() ;;
  small)
    recipe=small_v2_small
    shape=(--preset offline --tokenizer "$teacher")
    corpus=("${offline_corpus[@]}")
    donor=(--donor "$teacher")  # no ModernBERT is to be had offline
    language=(--sequence-tokens 256 --sequences-per-batch 16 --accumulate 1 --epochs 1
      --max-steps 40 --held-out-rows 400 --evaluate-every 0)
    labels=(--teacher "$teacher" --pca-texts 0)
    vectors=(--rows-per-batch 32 --epochs 2 --decay 0.5 --learning-rate 2e-3 --held-out-rows 400
      --evaluate-every 0 "${offline_select[@]}")
    pairs=("${offline_pairs[@]}" "${offline_sets[@]}")
    table=("${offline_benchmark[@]}" --training-text create_distil_dataset) ;;
  *) echo "error: --size is full or small, not $size" >&2; exit 2 ;;
esac

# 1  A blank student, and its corpus.
stage build_and_save_small_modernbert.py "${shape[@]}"
stage mlm/create_dataset.py "${corpus[@]}"

# 2  GUIDE, then 30 % masked language modelling.
stage mlm/init_model_mlm.py "${donor[@]}"
stage mlm/pre_train.py "${language[@]}"

# 3  The teacher's vectors, reduced to the student's width, copied by squared distance.
stage create_distil_dataset.py "${labels[@]}"
stage distil_modernbert.py --objective mse "${vectors[@]}"

# 4  Cosines that track graded similarity; then the table.
stage sts_fine_tuning.py "${pairs[@]}"
stage benchmark_hotpotqa.py --models sts=sts_fine_tuning distilled=distil_modernbert "${table[@]}"
done_in
