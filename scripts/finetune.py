r"""Fine-tune a finished model on a folder of pictures: all of its network.

python scripts/finetune.py pictures --model stable-diffusion-v1-5/stable-diffusion-v1-5 -o runs/mine --steps 2000
python scripts/finetune.py pictures --model MODEL -o runs/dog --instance_prompt "a photo of sks dog" \
    --class_prompt "a photo of a dog" --train_text_encoder

configs/finetune/full.yaml has what is not said; scripts/finetune_lora.py needs far less memory.
"""

from _finetune import main

if __name__ == "__main__":
    main(__doc__ or "", "full.yaml", lora=False)
