#!/usr/bin/env bash
# The training guide: uniform layer selection, a judge's scores, MarginMSE inside Matryoshka.
#
#   bash recipes/small_v2_guide.sh                hub and GPU, into runs/small_v2_guide: 6 x 768
#   bash recipes/small_v2_guide.sh --size small   offline assets, minutes on two cores
#   bash recipes/small_v2_guide.sh --overwrite    redo everything; any other flag goes to every stage
#
# The student is as wide as its donor and its teacher, so no label is projected; and it "inherits
# deep semantic understanding, bypassing the costly initial pre-training": no language modelling.
# Killed? Run it again: finished stages are kept, the one that was cut goes on.
set -eo pipefail  # no -u: bash before 4.4 (macOS) takes an empty array for an unset one
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source recipes/options.sh

case $size in
  full)
    recipe=small_v2_guide
    donor=(--num-layers 6)  # layers 0, 4, 8, 12, 16, 20 of ModernBERT-base's 22
    corpus=() labels=() vectors=() triplets=() table=()
    margins=(--rows-per-batch 64 --learning-rate 2e-5 --epochs 3 --precision bf16
      --dimensions 768 512 256 128) ;;
  small)
    recipe=small_v2_guide_small
    donor=(--num-layers 3 --donor "$teacher")  # no ModernBERT is to be had offline: a BERT's 0, 2, 4
    corpus=("${offline_corpus[@]}")
    labels=(--teacher "$teacher")
    vectors=(--rows-per-batch 32 --epochs 2 --decay 0.5 --learning-rate 1e-3 --held-out-rows 400
      --evaluate-every 0 "${offline_select[@]}")
    triplets=("${offline_triplets[@]}")
    margins=(--negatives 2 --rows-per-batch 32 --learning-rate 2e-4 --epochs 3
      --dimensions 384 256 128 64 --evaluate-every 24
      --sts "$assets/sentence_pairs/mrpc.parquet" "${offline_select[@]}")
    table=("${offline_benchmark[@]}" --training-text create_distil_dataset) ;;
  *) echo "error: --size is full or small, not $size" >&2; exit 2 ;;
esac

# 1  The donor's layers at even intervals, whole, with its embeddings, norms and tokenizer.
stage mlm/init_model_mlm.py --init layers "${donor[@]}"

# 2  A corpus, and the teacher's vectors of it: the student learns to be a bi-encoder.
stage mlm/create_dataset.py "${corpus[@]}"
stage create_distil_dataset.py --student mlm/init_model_mlm "${labels[@]}"
stage distil_modernbert.py --student mlm/init_model_mlm --objective mse "${vectors[@]}"

# 3  A judge scores, mends and drops triplets; its margins are learnt at several widths at once.
stage relabel_triplets.py "${triplets[@]}"
stage post_train_distilled_model.py --objective margin_mse "${margins[@]}"

# 4  The table; quality against dimension is in post_train_distilled_model/final/dimensions.md.
stage benchmark_hotpotqa.py --models margins=post_train_distilled_model \
  distilled=distil_modernbert "${table[@]}"
done_in
