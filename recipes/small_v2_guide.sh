#!/usr/bin/env bash
# The training guide: uniform layer selection, a judge's scores, MarginMSE inside Matryoshka.
#
#   bash recipes/small_v2_guide.sh                hub and GPU, into runs/small_v2_guide
#   bash recipes/small_v2_guide.sh --size small   offline assets, minutes on two cores
#   bash recipes/small_v2_guide.sh --overwrite    redo everything; any other flag goes to every stage
#
# Killed? Run it again: finished stages are kept, the one that was cut goes on.
set -eo pipefail  # no -u: bash before 4.4 (macOS) takes an empty array for an unset one
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source recipes/options.sh

case $size in
  full)
    recipe=small_v2_guide
    shape=() corpus=() donor=() language=() labels=() vectors=() triplets=() table=()
    margins=(--rows-per-batch 64 --learning-rate 2e-5 --epochs 3 --precision bf16) ;;
  small)
    recipe=small_v2_guide_small
    shape=(--preset offline --tokenizer "$teacher")
    corpus=("${offline_corpus[@]}")
    donor=(--donor "$teacher")  # no ModernBERT is to be had offline
    language=(--sequence-tokens 256 --sequences-per-batch 16 --accumulate 1 --epochs 1
      --max-steps 40 --held-out-rows 400 --evaluate-every 0)
    labels=(--teacher "$teacher" --pca-texts 0)
    vectors=(--rows-per-batch 32 --epochs 2 --decay 0.5 --learning-rate 2e-3 --held-out-rows 400
      --evaluate-every 0 "${offline_select[@]}")
    triplets=("${offline_triplets[@]}")
    margins=(--negatives 2 --rows-per-batch 32 --learning-rate 2e-4 --epochs 3
      --dimensions 256 128 64 --evaluate-every 24
      --sts "$assets/sentence_pairs/mrpc.parquet" "${offline_select[@]}")
    table=("${offline_benchmark[@]}") ;;
  *) echo "error: --size is full or small, not $size" >&2; exit 2 ;;
esac

# 1  A blank student, and its corpus.
stage build_and_save_small_modernbert.py "${shape[@]}"
stage mlm/create_dataset.py "${corpus[@]}"

# 2  Every k-th layer of the donor instead of its first ones; then masked language modelling.
stage mlm/init_model_mlm.py --layer-selection uniform "${donor[@]}"
stage mlm/pre_train.py "${language[@]}"

# 3  The teacher's vectors.
stage create_distil_dataset.py "${labels[@]}"
stage distil_modernbert.py --objective mse "${vectors[@]}"

# 4  A judge scores, mends and drops triplets; its margins are learnt at several widths at once.
stage relabel_triplets.py "${triplets[@]}"
stage post_train_distilled_model.py --objective margin_mse "${margins[@]}"

# 5  The table; quality against dimension is in post_train_distilled_model/final/dimensions.md.
stage benchmark_hotpotqa.py --models margins=post_train_distilled_model \
  distilled=distil_modernbert "${table[@]}"
done_in
