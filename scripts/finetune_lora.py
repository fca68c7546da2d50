"""Teach a finished model a subject or a style from a folder of pictures, as a LoRA of a few megabytes.

python scripts/finetune_lora.py pictures --model stable-diffusion-v1-5/stable-diffusion-v1-5 -o runs/style --rank 16
python scripts/finetune_lora.py pictures --model MODEL -o runs/dog --instance_prompt "a photo of sks dog"
ldm generate "a photo of sks dog in the snow" --model MODEL --lora runs/dog

configs/finetune/lora.yaml has what is not said.
"""

from _finetune import main

if __name__ == "__main__":
    main(__doc__ or "", "lora.yaml", lora=True)
