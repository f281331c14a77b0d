#!/usr/bin/env bash
# The first generation: a blank 6-layer student, contrastive training, then the teacher's ranking.
#
#   bash recipes/small_v1.sh                   hub and GPU, into runs/small_v1
#   bash recipes/small_v1.sh --size small      offline assets, minutes on two cores, runs/small_v1_small
#   bash recipes/small_v1.sh --overwrite       redo everything; any other flag also goes to every stage
#
# Killed? Run it again: finished stages are kept, the one that was cut goes on.
set -eo pipefail  # no -u: bash before 4.4 (macOS) takes an empty array for an unset one
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source recipes/options.sh

case $size in
  full)
    recipe=small_v1
    shape=(--preset small-v1)
    corpus=(--max-texts 500000)
    contrast=()  # 50,000 AllNLI triplets, batches of 32, best by sts-dev Spearman
    labels=(--teacher BAAI/bge-base-en-v1.5)
    ranking=(--learning-rate 1e-4)
    triplets=(--max-triplets 50000 --miner BAAI/bge-base-en-v1.5)
    scores=(--negatives 4 --epochs 1)
    pairs=()
    table=(--teacher BAAI/bge-base-en-v1.5) ;;
  small)
    recipe=small_v1_small
    # Narrower layers than the source's 1,024 units, and a rate that a hundred steps need.
    shape=(--preset small-v1 --intermediate-size 384 --tokenizer "$teacher")
    corpus=("${offline_corpus[@]}")
    # BoolQ's questions and passages: the other pairs' answers are single words or common sense.
    contrast=(--cleaning web --pairs "$assets/pairs/train.parquet" --sources boolq --rows 0
      --dev relabel_triplets/dev --sts "$assets/sentence_pairs/mrpc.parquet" --rows-per-batch 64
      --max-tokens 96 --learning-rate 2e-3 --evaluate-every 0 "${offline_select[@]}")
    labels=(--teacher "$teacher" --pca-texts 0)
    # Gently: at 3e-4 and more boolq-dev falls from the first evaluation on.
    ranking=(--max-tokens 512 --rows-per-batch 256 --tokens-per-batch 32768 --epochs 1
      --learning-rate 2e-4 --held-out-rows 400 --evaluate-every 11 "${offline_select[@]}")
    triplets=("${offline_triplets[@]}")
    scores=(--negatives 2 --epochs 2 --rows-per-batch 32 --learning-rate 3e-4 --evaluate-every 16
      --sts "$assets/sentence_pairs/mrpc.parquet" "${offline_select[@]}")
    pairs=("${offline_pairs[@]}" "${offline_sets[@]}")
    table=("${offline_benchmark[@]}" --training-text create_distil_dataset) ;;
  *) echo "error: --size is full or small, not $size" >&2; exit 2 ;;
esac

# 1  Six layers, 256 wide.
stage build_and_save_small_modernbert.py "${shape[@]}"

# 2  Pairs and triplets: an anchor finds its positive among the batch. The judge's triplets come
#    first, since their held-out part gives the small size its triplet accuracy.
stage relabel_triplets.py "${triplets[@]}"
stage train_small_modernbert.py "${contrast[@]}"

# 3  The teacher's ranking inside each batch.
stage mlm/create_dataset.py "${corpus[@]}"
stage create_distil_dataset.py "${labels[@]}"
stage distil_modernbert.py --student train_small_modernbert --objective kl "${ranking[@]}"

# 4  Score distillation: the judge's scores of each positive and its mined negatives.
stage post_train_distilled_model.py --objective kl --dimensions \
  --judge-temperature 0.05 "${scores[@]}"

# 5  Cosines that track graded similarity.
stage sts_fine_tuning.py --student post_train_distilled_model "${pairs[@]}"

# 6  Every step of it beside the teacher.
stage benchmark_hotpotqa.py --models sts=sts_fine_tuning scores=post_train_distilled_model \
  ranking=distil_modernbert contrastive=train_small_modernbert "${table[@]}"
done_in
