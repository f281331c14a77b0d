"""The masked-language-modelling half of the pipeline: corpus, initialisation, pre-training."""
