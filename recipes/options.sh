# Read by the recipes: --size small|full and --assets DIR; any other flag goes to every stage.
size=full
assets=assets
while [[ ${1:-} == --size || ${1:-} == --assets ]]; do
  case $1 in
    --size) size=$2 ;;
    --assets) assets=$2 ;;
  esac
  shift 2
done
everywhere=("$@")
begin=$SECONDS
teacher=$assets/models/all-MiniLM-L6-v2
stage() { python "$@" --recipe "$recipe" "${everywhere[@]}"; }
done_in() {
  echo "recipe $recipe: $(( (SECONDS - begin) / 60 )) min $(( (SECONDS - begin) % 60 )) s"
}

# The offline assets stand in for the hub, in minutes, to see every stage at work.
offline_corpus=(--sources offline --offline-text "$assets/text/train.parquet" --tokenizer "$teacher"
  --max-tokens 256 --max-texts 3000 --held-out-rows 300 --min-characters 20 --passage-share 0.3)
offline_sets=(--retrieval-folder "$assets/retrieval" --validation-sets boolq-dev)
# BoolQ alone: the others' wrong choices are decided by common sense, which a bi-encoder's cosine
# does not have (it agrees with 48 to 50 % of their labels).
offline_triplets=(--pairs "$assets/pairs/train.parquet" --judge "$teacher" --miner ""
  --sources boolq --max-triplets 300 --dev-rows 50 --pool 1000)
offline_benchmark=(--teacher "$teacher" --retrieval sciq boolq --max-queries 200
  --retrieval-folder "$assets/retrieval" --sts "$assets/sentence_pairs/mrpc.parquet")
offline_pairs=(--pairs mined --mine-pairs 200 --held-out-pairs 100 --mine-words 40 --epochs 1
  --evaluate-every 0 --sentence-pairs "$assets/sentence_pairs/mrpc.parquet")
