#!/usr/bin/env bash
# A folder of your documents becomes a search model for them, and a table that says what it is worth.
#
#   bash recipes/my_domain.sh ~/notes                        what `make mine DOCS=~/notes` does
#   bash recipes/my_domain.sh ~/notes --queries asked.csv    with queries that somebody really asked
#   bash recipes/my_domain.sh ~/notes --overwrite            redo everything
#   bash recipes/my_domain.sh ~/notes --name notes           in runs/notes instead of runs/mine
#   bash recipes/my_domain.sh ~/notes --teacher MODEL        of another language: a folder, a hub id
#   bash recipes/my_domain.sh ~/notes --teacher intfloat/multilingual-e5-small \
#     --query-prompt "query: " --document-prompt "passage: "   what its card asks for, and its folder
#                                                              does not name
#
# A teacher is a BERT, MPNet, RoBERTa, XLM-RoBERTa or ModernBERT of three layers at least, with mean
# or CLS pooling. Other flags go to prepare_documents.py. Killed? Run it again: finished stages are kept, the one
# that was cut goes on. Minutes in brackets: about, by the rates of `make run` on 2 quiet cores.
set -Eeo pipefail  # no -u: bash before 4.4 (macOS) takes an empty array for an unset one

if [[ $# == 0 || $1 == -* ]]; then
  echo "error: name your folder first: bash recipes/my_domain.sh ~/notes" >&2
  exit 2
fi
[[ -e $1 ]] || { echo "error: $1 is not there" >&2; exit 2; }
# Files and folders are named from where you stand, and the scripts run from where they are.
whole() {
  if [[ -e $1 ]]; then printf '%s/%s' "$(cd "$(dirname -- "$1")" && pwd)" "$(basename -- "$1")"
  else printf '%s' "$1"; fi
}
documents=$(whole "$1")
shift

recipe=mine
assets=assets
teacher=
everywhere=() preparing=() prompts=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --name) recipe=$2; shift ;;
    --assets) assets=$(whole "$2"); shift ;;
    --teacher) teacher=$(whole "$2"); shift ;;
    --queries) preparing+=("$1" "$(whole "$2")"); shift ;;
    --query-prompt | --document-prompt) prompts+=("$1" "$2"); shift ;;
    --overwrite) everywhere=(--overwrite) ;;
    *) preparing+=("$1") ;;
  esac
  shift
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
trap 'echo "stopped there. Mend what it says and run this again; where the folder, the teacher or a" \
  "flag has changed: --overwrite, which makes all of it again" >&2' ERR
stage() { python "$@" --recipe "$recipe" "${everywhere[@]}"; }
begin=$SECONDS
teacher=${teacher:-$assets/models/all-MiniLM-L6-v2}
own=${RUNS:-runs}/$recipe/prepare_documents/final

# 1  Files to passages and queries; a fifth of the documents (of few, up to half) never trains. [0.5]
stage prepare_documents.py --documents "$documents" --teacher "$teacher" \
  --general-folder "$assets/retrieval" \
  --general-text "$assets/text/wiki.parquet" "$assets/text/papers.parquet" "${preparing[@]}"

# 2  One corpus of them and of general text, without what stands in the held-out documents. [0.3]
stage mlm/create_dataset.py --sources offline \
  --offline-text "$own/text/own.parquet" "$own/text/general.parquet" --tokenizer "$teacher" \
  --retrieval-folder "$own/retrieval" --leak-sets mine mine-validation --max-tokens 256 \
  --held-out-rows 100 --min-characters 4 --max-lost-share 0.9

# 3  The teacher's vectors, projected to 256 dimensions (a narrower teacher's stay whole). [3]
stage create_distil_dataset.py --teacher "$teacher" --dimension 256 --pca-texts 20000 \
  "${prompts[@]}"

# 4  The teacher's first and last two layers (of six: 0, 4, 5) with five sixths of their units, and
#    the PCA layer that made the labels on top. [0.2]
stage mlm/init_model_mlm.py --init layers --layers 0 -2 -1 \
  --donor create_distil_dataset/reduced_teacher --ffn-units 0.8333

# 5  It learns the rest from the teacher's vectors; the checkpoint that is best on your held-out
#    documents and on SQuAD is kept. [5]
stage distil_modernbert.py --student mlm/init_model_mlm --learning-rate 1e-3 --objective cosine \
  --freeze-embeddings --optimizer adamw --rows-per-batch 32 --decay 0.95 --epochs 1 --held-out-rows 100 \
  --evaluate-every 200 --checkpoint-every 100 --select-by "retrieval_ndcg@10" \
  --retrieval-folder "$own/retrieval" --validation-sets mine-validation squad

# 6  A static model of the same teacher: what costs nothing to run. [0.5]
stage distil_model2vec.py --base-model-name "$teacher" --pca-dims 256

# 7  The table, and whether it is worth it here. [1]
stage benchmark_hotpotqa.py --teacher "$teacher" --models student=distil_modernbert \
  start=mlm/init_model_mlm --static-twin distil_model2vec \
  --retrieval mine squad --retrieval-folder "$own/retrieval" --sts --judged-set mine \
  --training-text create_distil_dataset "${prompts[@]}"

# 8  All of it on a page; what the stages shared is dropped, its makers would make it again. [0.4]
python report.py --recipe "$recipe"
rm -rf "${RUNS:-runs}/$recipe/.cache"

echo "recipe $recipe: $(( (SECONDS - begin) / 60 )) min $(( (SECONDS - begin) % 60 )) s; search with:"
echo "  python try_it.py --recipe $recipe --passages $own/passages"
