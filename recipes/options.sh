# Read by the recipes: --size small|full and --assets DIR; any other flag goes to every stage.
size=full
assets=assets
everywhere=()
while (($#)); do
  case $1 in
    --size | --assets)
      [[ $# -gt 1 ]] || { echo "error: $1 wants a value: --size small, --assets DIR" >&2; exit 2; }
      if [[ $1 == --size ]]; then size=$2; else assets=$2; fi
      shift 2 ;;
    *) everywhere+=("$1"); shift ;;
  esac
done
begin=$SECONDS
teacher=$assets/models/all-MiniLM-L6-v2
stage() { python "$@" --recipe "$recipe" "${everywhere[@]}"; }
done_in() {  # and drop what the stages shared: its makers would make it again
  rm -rf "${RUNS:-runs}/$recipe/.cache"
  echo "recipe $recipe: $(( (SECONDS - begin) / 60 )) min $(( (SECONDS - begin) % 60 )) s"
}

# The offline assets stand in for the hub, in minutes. Every stage keeps what is best on boolq-dev,
# the model that came in among it; SciQ and BoolQ are for the tables alone.
offline_corpus=(--cleaning web --sources offline --offline-text "$assets/text/train.parquet" --tokenizer "$teacher"
  --max-tokens 256 --max-texts 6000 --held-out-rows 400 --min-characters 20 --passage-share 0.45)
offline_sets=(--retrieval-folder "$assets/retrieval" --validation-sets boolq-dev)
offline_select=("${offline_sets[@]}" --select-by "retrieval_ndcg@10" --optimizer adamw)
# BoolQ alone: the others' wrong choices are decided by common sense, which a bi-encoder's cosine
# does not have (it agrees with 48 to 50 % of their labels).
offline_triplets=(--cleaning web --pairs "$assets/pairs/train.parquet" --judge "$teacher" --miner ""
  --sources boolq --max-triplets 600 --dev-rows 100 --pool 1500)
# The teacher's vectors of SciQ and BoolQ are made once, for the tables of all recipes.
offline_benchmark=(--teacher "$teacher" --retrieval sciq boolq --vectors vectors
  --retrieval-folder "$assets/retrieval" --sts "$assets/sentence_pairs/mrpc.parquet")
offline_pairs=(--pairs mined --mine-pairs 400 --held-out-pairs 200 --mine-words 40 --epochs 1
  --evaluate-every 0 --sentence-pairs "$assets/sentence_pairs/mrpc.parquet")
