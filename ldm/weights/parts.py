"""The parts of a model and their files, by the names that diffusers gives them."""

from __future__ import annotations

INDEX, CONFIG, SCHEDULER_CONFIG = "model_index.json", "config.json", "scheduler_config.json"
TEXT_ENCODERS, TOKENIZERS = ("text_encoder", "text_encoder_2"), ("tokenizer", "tokenizer_2")  # SDXL has two
TOWER_SUFFIXES = ("", "_2")  # of both, in that order
DRAWING_PARTS = ("unet", "scheduler", "vae", *TEXT_ENCODERS, *TOKENIZERS)
PARTS = (*DRAWING_PARTS, "label_encoder")
UNREAD_PARTS = ("safety_checker", "feature_extractor", "image_encoder")  # StableDiffusionPipeline asks for them too
